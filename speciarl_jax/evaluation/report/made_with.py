"""What the figures of a folder were made with: verifier, judge, prompt, model, seed, rates."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation import metrics, pairs
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.evaluation.predictions import GIVEN, GREEDY, SAMPLES, Part, is_given
from speciarl_jax.evaluation.report.folder import Folder

# Verifiers that are a judge.
_JUDGES = ("flax_judge", "http_judge")
_SHORT = 8  # characters of a checksum


@dataclasses.dataclass(frozen=True)
class Fact:
    """One property of the runs of a folder.

    Attributes:
      name: of the property.
      values: (value, keys of the runs that have it); one value if all runs share it.
    """

    name: str
    values: list[tuple[str, list[tuple[str, str, str]]]]


def facts(content: Folder) -> list[Fact]:
    """Lists what the runs of `metrics.json` were made with.

    Evaluation is described by the provenance of the runs, training by `config.json`.

    Returns:
      Properties that at least one run has. Those of training stand with all runs. Empty where
      neither file is kept.
    """
    found: dict[str, dict[str, list[tuple[str, str, str]]]] = {name: {} for name in _NAMES}
    training, weights = _of_training(content.training), content.metrics.get("weights")
    for run in content.metrics["runs"]:
        evaluation = _of_run(content, run)
        values = evaluation | training
        for name in evaluation.keys() & training.keys():
            values[name] = f"evaluation {evaluation[name]}, {training[name]}"
        if values and weights:
            said = metrics.describe_weights(weights).partition(": ")[2].rstrip(".")
            values["weights of specificity"] = said
        for name, value in values.items():
            found[name].setdefault(value, []).append(run_key(run))
    return [Fact(name, list(values.items())) for name, values in found.items() if values]


# In this order.
_NAMES = (
    *("verifier", "judge", "prompt", "model", "policy", "images", "seed", "temperature"),
    *("training", "learning rate", "weights of specificity"),
)


def _of_training(config: Mapping[str, Any]) -> dict[str, str]:
    """Describes the training of a folder by its `config.json`; empty without one."""
    if not config:
        return {}
    train, optimizer = config.get("train", {}), config.get("optimizer", {})
    objective, rate = train.get("objective", "rl"), optimizer.get("learning_rate")
    temperature = config.get("rollout", {}).get("temperature") if objective == "rl" else None
    schedule = _joined(
        f"{optimizer['warmup_steps']} updates of warm-up" if optimizer.get("warmup_steps") else "",
        f"cosine to 0 at update {optimizer['decay_steps']}" if optimizer.get("decay_steps") else "",
    )
    values = {
        "training": _joined(objective, f"{train['steps']} steps" if "steps" in train else ""),
        "seed": f"training {config['seed']}" if "seed" in config else "",
        "temperature": "" if temperature is None else f"training {temperature:g}",
        "learning rate": "" if rate is None else f"{rate:g}{schedule and f' ({schedule})'}",
    }
    return {name: value for name, value in values.items() if value}


def judge_of(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the judge in the provenance of a part: name and options; empty if there is none."""
    verifier = provenance.get("verifier", {})
    if verifier.get("name") in _JUDGES:
        return verifier
    judge = verifier.get("judge")
    return judge if isinstance(judge, Mapping) else {}


def _of_run(content: Folder, run: Mapping[str, Any]) -> dict[str, str]:
    """Describes the evaluation of a run by its provenance; empty without one."""
    known = content.provenance.get(str(Part(*run_key(run), GREEDY)))
    if not known:
        return {}
    verifier, judge, policy = known.get("verifier", {}), judge_of(known), known.get("policy", {})
    data = known.get("data", {})
    sampling = content.provenance.get(str(Part(*run_key(run), SAMPLES)), {}).get("sampling", {})
    values = {
        "images": _joined(data.get("name"), _split(data.get("options", {}))),
        "verifier": _verifier(verifier, judge),
        "judge": _judge(judge) or "none",
        "prompt": "not known"
        if is_given(known)
        else _joined(run["prompt"], _checksum("text", known.get("prompt"))),
        "model": _model(content, run, policy),
        "policy": _joined(
            _checksum("weights", policy.get("weights")),
            _adapters(policy.get("adapters")),
            _checksum("given answers", policy.get(GIVEN)),
        ),
        "seed": known.get("seed"),
        "temperature": _sampling(sampling),
    }
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def _model(content: Folder, run: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    """Names the model of a run; "" where no configuration tells.

    A configuration names one model, so it counts for runs with the weights of the base.
    """
    weights = policy.get("weights")
    parts = [
        content.provenance.get(str(Part(*run_key(other), GREEDY)), {}).get("policy", {})
        for other in content.metrics["runs"]
        if other["data"] == run["data"] and other["policy"] in (pairs.BASE, run["policy"])
    ]
    config = content.training or content.configs.get(run["data"], {})
    alike = {one.get("weights") for one in parts if one} == {weights}
    return str(config.get("model", {}).get("path", "")) if weights and alike else ""


def _sampling(sampling: Mapping[str, Any]) -> str:
    """Describes how an evaluation answered: greedily, and by samples where there are any."""
    if "temperature" not in sampling:
        return "greedy"
    top_p = f", top-p {sampling['top_p']:g}" if sampling.get("top_p", 1) != 1 else ""
    return f"greedy, {sampling['answers']} samples at {sampling['temperature']:g}{top_p}"


def _verifier(verifier: Mapping[str, Any], judge: Mapping[str, Any]) -> str:
    name = verifier.get("name", "")
    if name != "cascade":
        return name
    rest = f"then {judge['name']}" if judge else "no judge"
    return f"cascade: the label tree, {rest}"


def _judge(judge: Mapping[str, Any]) -> str:
    if not judge:
        return ""
    decoding = judge.get("decoding", {})
    return _joined(
        judge["name"],
        judge.get("model"),
        _checksum("weights", judge.get("weights")),
        _checksum("prompt", judge.get("prompt")),
        f"calibration {judge['calibration']}" if judge.get("calibration") else None,
        f"temperature {decoding['temperature']}" if "temperature" in decoding else None,
    )


def _split(options: Mapping[str, Any]) -> str:
    """Names the split of a data set, or those of the parts of a mixture."""
    if "parts" in options:
        splits = {name: part.get("options", {}) for name, part in options["parts"].items()}
        return ", ".join(f"{name}: {_split(inner)}" for name, inner in splits.items())
    return f"split {options['split']}" if options.get("split") else ""


def _adapters(adapters: str | None) -> str:
    return "no adapters" if adapters == "none" else _checksum("adapters", adapters)


def _checksum(what: str, digest: Any) -> str:
    return f"{what} {str(digest)[:_SHORT]}" if digest else ""


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def described(
    found: Sequence[Fact], names: Mapping[tuple[str, str, str], str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Writes facts for people.

    Args:
      found: of `facts`.
      names: key of a run -> what the report calls it.

    Returns:
      (property, [(value, names of the runs that have it)]); no names if all runs share a value.
    """
    return [
        (
            fact.name,
            [
                (value, ", ".join(names[key] for key in keys) if len(fact.values) > 1 else "")
                for value, keys in fact.values
            ],
        )
        for fact in found
    ]
