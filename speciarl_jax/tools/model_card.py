"""Writes the model card of an export: what it is, how it was made, and its figures.

Only what is on record is stated: figures come from the evaluations in the workdir whose adapters
are, bit for bit, those that were exported.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import huggingface_hub
import jinja2
from etils import epath

from speciarl_jax.data import markdown_text
from speciarl_jax.evaluation import metrics, provenance, remarks
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.evaluation.predictions import GREEDY, Part
from speciarl_jax.evaluation.report import folder, made_with
from speciarl_jax.runtime import commands
from speciarl_jax.training.writers import run_config

FILE = "README.md"
TAG = "speciarl_jax"  # by which a card is known as one of this package
_TEMPLATE = pathlib.Path(__file__).with_name("model_card.md.jinja")
# What is said about the weights elsewhere on the card, or names folders of the machine.
_NOT_SHOWN = ("model", "policy", "learning rate", "training")
_LICENCE = ("license", "license_name", "license_link")

_USE = {
    "merged": """from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{repo}")
processor = AutoProcessor.from_pretrained("{repo}")""",
    "peft": """import peft
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained("{base}")
model = peft.PeftModel.from_pretrained(base, "{repo}")""",
}


@dataclasses.dataclass(frozen=True)
class Export:
    """Describes an export.

    Attributes:
      repo_id: OWNER/NAME on the hub.
      kind: "merged" or "peft".
      base: folder of the base.
      base_name: name of the base on the hub; None where it is not known.
      lora: the adapters, `nnx.State`.
      rank: of the adapters.
      alpha: of the adapters.
      workdir: of the run; None where the adapters come from a folder of PEFT.
    """

    repo_id: str
    kind: str
    base: pathlib.Path
    base_name: str | None
    lora: Any
    rank: int
    alpha: float
    workdir: pathlib.Path | None

    @property
    def hub_base(self) -> str | None:
        """The base's name on the hub: as given, or as the hub's cache calls its folder."""
        cached = [part for part in self.base.resolve().parts if part.startswith("models--")]
        return self.base_name or (cached[-1][8:].replace("--", "/") if cached else None)


def card(export: Export) -> huggingface_hub.ModelCard:
    """Makes the card of an export; contacts nobody.

    Raises:
      ValueError: a file of the workdir is damaged.
    """
    content = _read(export.workdir)
    training = run_config.shown(content.training) if content else {}
    data = huggingface_hub.ModelCardData(
        base_model=export.hub_base,
        library_name={"merged": "transformers", "peft": "peft"}[export.kind],
        pipeline_tag="image-text-to-text",
        tags=[TAG],
        **_licence(export.base),
    )
    base = export.hub_base or export.base.name
    what = {"merged": "A copy of {} with trained adapters added.", "peft": "LoRA adapters for {}."}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    text = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        name=export.repo_id.rpartition("/")[2],
        what=what[export.kind].format(base),
        rows=_cells(_rows(export, base, training)),
        use=_USE[export.kind].format(repo=export.repo_id, base=base),
        **_figures(export, content),
    )
    return huggingface_hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _read(workdir: pathlib.Path | None) -> folder.Folder | None:
    """Reads a run; one that has measured nothing yet has only its configuration."""
    if workdir is None:
        return None
    path = epath.Path(workdir)
    try:
        return folder.read(path)
    except ValueError:
        if (path / "metrics.jsonl").exists() or (path / "metrics.json").exists():
            raise
        return folder.Folder(name=path.name, training=folder.read_training(path))


def _licence(base: pathlib.Path) -> dict[str, Any]:
    """Returns the licence that the card of the base states; empty where it has no card."""
    path = base / FILE
    found = huggingface_hub.metadata_load(path) if path.is_file() else None
    return {key: found[key] for key in _LICENCE if key in (found or {})}


def _rows(export: Export, base: str, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lists base, adapters, data, method and verifier."""
    rows = [("base", base), ("adapters", f"LoRA, rank {export.rank}, alpha {export.alpha:g}")]
    if not config:
        return rows
    data, train, optimizer = config["data"], config["train"], config["optimizer"]
    options = ", ".join(f"{key} {value}" for key, value in data["options"].items() if value)
    method = "supervised fine-tuning"
    if train["objective"] == "rl":
        rollout, loss = config["rollout"], config["loss"]
        method = (
            f"reinforcement learning: policy loss {loss['name']}, reward "
            f"{config['reward']['name']}, {rollout['num_rollouts']} rollouts of each image at "
            f"temperature {rollout['temperature']:g}, KL coefficient {loss['kl_coefficient']:g}"
        )
    rows += [
        ("training data", f"{data['name']} ({options})" if options else data["name"]),
        ("prompt", pathlib.PurePath(data["prompt"]).name),
        ("method", method),
        (
            "training",
            f"{train['steps']} steps of {train['batch_size']} images, learning rate "
            f"{optimizer['learning_rate']:g}, seed {config['seed']}",
        ),
    ]
    if train["objective"] == "rl":
        rows.append(("verifier", _verifier(config["verifier"])))
    return rows


def _verifier(section: Mapping[str, Any]) -> str:
    """Names a verifier, and its judge where it has one."""
    name = section["name"]
    judge = section.get("cascade", {}).get("judge", "") if name == "cascade" else name
    options = section.get(judge, {}) if judge in ("http_judge", "flax_judge") else {}
    model = options.get("model") or pathlib.PurePath(options.get("weights", "")).name
    said = f"the label tree, then {judge}" if name == "cascade" and judge else name
    return f"{said} ({model}, prompt {options['prompt']})" if options else said


def _figures(export: Export, content: folder.Folder | None) -> dict[str, Any]:
    """Returns figures, remarks, how they were measured and the commands; empty without any."""
    chosen = _evaluated(export, content) if content else []
    if not chosen:
        return {"figures": [], "remarks": [], "measured": [], "commands": []}
    keys = {run_key(run) for run in chosen}
    tests = [
        row
        for row in content.metrics["comparisons"]
        if {run_key(row[side]) for side in "ab"} <= keys
    ]
    only = dataclasses.replace(content, metrics={**content.metrics, "runs": chosen})
    names = {key: f"{key[0]} on {key[1]}" for key in keys}
    measured = [
        (name, "; ".join(f"{value} ({who})" if who else value for value, who in values))
        for name, values in made_with.described(made_with.facts(only), names)
        if name not in _NOT_SHOWN
    ]
    # A restart is the same command again.
    ran = dict.fromkeys(row["command"] for row in commands.read(epath.Path(export.workdir)))
    return {
        "figures": _cells([_figure(run) for run in chosen]),
        "remarks": [markdown_text.escape(said) for said in remarks.compared(tests)],
        "measured": _cells(measured),
        "commands": [run_config.without_secrets(command) for command in ran],
    }


def _evaluated(export: Export, content: folder.Folder) -> list[Mapping[str, Any]]:
    """Returns the runs of `metrics.json` that are of these adapters, and their bases."""
    digest, chosen, bases = provenance.digest_of_adapters(export.lora), [], []

    def policy(run):
        return content.provenance.get(str(Part(*run_key(run), GREEDY)), {}).get("policy", {})

    for run in content.metrics["runs"]:
        if policy(run).get("adapters") == digest:
            chosen.append(run)
    asked = {(run["data"], run["prompt"], policy(run).get("weights")) for run in chosen}
    for run in content.metrics["runs"]:
        known = policy(run)
        if known.get("adapters") == "none":
            if (run["data"], run["prompt"], known.get("weights")) in asked:
                bases.append(run)
    return bases + chosen


def _figure(run: Mapping[str, Any]) -> list[str]:
    scores = []
    for name in metrics.MEASURES:
        low, high = run["intervals"][name]
        scores.append(f"{run['score'][name]:.3f} ({low:.3f} to {high:.3f})")
    return [run["policy"], run["data"], run["prompt"], str(run["images"]), *scores]


def _cells(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Escapes what would be markup in a table."""
    return [[markdown_text.escape(str(cell)) for cell in row] for row in rows]
