"""What the figures of a folder were made with: verifier, judge, prompts, weights, seed, split."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation import metrics
from speciarl_jax.evaluation.predictions import GIVEN, GREEDY, Part, is_given
from speciarl_jax.evaluation.report.folder import Folder, run_key

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
    """Lists what the runs of `metrics.json` were made with, from their provenance.

    Returns:
      Properties that at least one run has. Empty where no provenance is kept.
    """
    found: dict[str, dict[str, list[tuple[str, str, str]]]] = {}
    for run in content.metrics["runs"]:
        key = run_key(run)
        known = content.provenance.get(str(Part(*key, GREEDY)))
        for name, value in _of_run(known, run).items() if known else ():
            found.setdefault(name, {}).setdefault(value, []).append(key)
    rows = [Fact(name, list(values.items())) for name, values in found.items()]
    weights = content.metrics.get("weights")
    if rows and weights:
        said = metrics.describe_weights(weights).partition(": ")[2].rstrip(".")
        keys = [run_key(run) for run in content.metrics["runs"]]
        rows.append(Fact("weights of specificity", [(said, keys)]))
    return rows


def judge_of(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the judge in the provenance of a part: name and options; empty if there is none."""
    verifier = provenance.get("verifier", {})
    if verifier.get("name") in _JUDGES:
        return verifier
    judge = verifier.get("judge")
    return judge if isinstance(judge, Mapping) else {}


def _of_run(known: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, str]:
    verifier, judge, policy = known.get("verifier", {}), judge_of(known), known.get("policy", {})
    data = known.get("data", {})
    values = {
        "images": _joined(data.get("name"), _split(data.get("options", {}))),
        "verifier": _verifier(verifier, judge),
        "judge": _judge(judge),
        "prompt": "not known"
        if is_given(known)
        else _joined(run["prompt"], _checksum("text", known.get("prompt"))),
        "policy": _joined(
            _checksum("weights", policy.get("weights")),
            _adapters(policy.get("adapters")),
            _checksum("given answers", policy.get(GIVEN)),
        ),
        "seed": known.get("seed"),
    }
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


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
