"""Compares verifiers with labelled pairs and with each other.

    python -m speciarl_jax.tools.audit_verifier --config=configs/quickstart.py \
        --pairs=gold --verifiers=taxonomy,flax_judge --out=runs/audit

`--pairs` is `gold` or `adversarial`, which ship with the package (`verifiers/audit_pairs`), or a
CSV file of your own with the columns `truth`, `prediction` and `category`. Instead of `prediction`,
the content of the answer tags, there may be `response`, a whole response; `label_id` names the true
label where two have one name; any further column is kept. A column with the name of a verifier, or
`judge` for all that are no taxonomy, states its own outcome; "ask" there leaves the pair out of the
comparison.

Prints a confusion matrix, Cohen's kappa, precision and recall for each verifier, and the
disagreements, then the same for each two verifiers. `--out` also receives `audit.json` and
`verdicts.csv`, with the probabilities that a judge gave its six verdicts. Limits of memory in
training (`max_response_bytes`) are lifted, so that only the rules decide.
"""

import csv
import itertools
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from speciarl_jax import verifiers
from speciarl_jax.data import label_tree
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.experiment.run import make_verifier, open_sources, verifier_options
from speciarl_jax.models import load_policy
from speciarl_jax.models.qwen2_5_vl import hf_checkpoint
from speciarl_jax.runtime import exit_codes, plugins, sharding
from speciarl_jax.tools import agreement
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.base import HostVerifier
from speciarl_jax.verifiers.category import Category

SHIPPED = pathlib.Path(verifiers.__file__).parent / "audit_pairs"
TAXONOMY, JUDGE, ASK = "taxonomy", "judge", "ask"
# In-graph verifiers are run on so many pairs at a time.
ROWS = 64

Row = dict[str, str]


class Found(NamedTuple):
    """What a verifier says.

    Attributes:
      category: int `Category` [R].
      valid: bool [R], a verdict exists.
      probability: float [R, 6] of the six verdicts, or None where the verifier has none.
    """

    category: np.ndarray
    valid: np.ndarray
    probability: np.ndarray | None


def read_pairs(name_or_path: str) -> list[Row]:
    """Rows of pairs that ship with the package, or of a CSV file.

    Raises:
      ValueError: there is no such file, a column is missing, or a category is unknown; names the
        line.
    """
    shipped = SHIPPED / f"{name_or_path}.csv"
    path = shipped if shipped.exists() else pathlib.Path(name_or_path)
    if not path.is_file():
        names = sorted(p.stem for p in SHIPPED.glob("*.csv"))
        raise ValueError(f"there are no pairs {name_or_path!r}; choose one of {names}, or a file")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = set(reader.fieldnames or ()), list(reader)
    said, outcomes = columns & {"prediction", "response"}, columns & {"category", JUDGE, TAXONOMY}
    if "truth" not in columns or len(said) != 1 or not outcomes or not rows:
        raise ValueError(
            f"{path} has {len(rows)} rows with the columns {sorted(columns)}; it needs truth, "
            "category, and either prediction or response"
        )
    allowed = {*agreement.NAMES, ASK}
    for number, row in enumerate(rows, 1):
        for column in outcomes:
            row[column] = (row[column] or "").strip().lower().replace(" ", "_")
            if row[column] not in allowed:
                raise ValueError(
                    f"{path}, row {number}: {column} is {row[column]!r}; choose one of "
                    f"{agreement.NAMES}"
                )
        # A cell that is missing in the file is empty.
        row |= {column: row[column] or "" for column in ("truth", *said)}
        row.setdefault("label_id", row["truth"])
    return rows


def response_of(row: Row, require_think: bool) -> str:
    """The whole response about a row."""
    thought = f"{parsing.THINK_OPEN}{parsing.THINK_CLOSE}" if require_think else ""
    if "response" in row:
        return thought + row["response"]
    return f"{thought}{parsing.ANSWER_OPEN}{row['prediction']}{parsing.ANSWER_CLOSE}"


class Maker:
    """Builds verifiers for one policy, which is read only if one of them asks for its weights."""

    def __init__(self, config: ml_collections.ConfigDict):
        folder = load_policy.model_folder(config.model.path)
        self.config = config
        self._vocabulary = hf_checkpoint.read_config(folder).text.vocab_size
        self.tokenizer = tokenizer_lib.load(folder)
        self._mesh = sharding.make_mesh(**config.mesh)

    def __call__(self, name: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """Labels and verifier (`make_verifier`).

        Images are listed only where the verifier needs their label tree.
        """
        known = options.get("path")
        tree = None if known else label_tree.path_of(open_sources(self.config))
        return make_verifier(
            self.config, name, options, tree, self.tokenizer, self._vocabulary, self._mesh, None
        )


def build(make: Maker, name: str, rows: Sequence[Row]) -> tuple[Any, list[int]]:
    """A verifier and the numbers of the rows' true labels.

    A taxonomy has its own label tree. Judges need names only, and take those of the rows.

    Raises:
      ValueError: the tree of the taxonomy lacks a label, or has two of that name.
    """
    options = dict(verifier_options(make.config, name))
    longest = max(len(response_of(row, True).encode()) for row in rows)
    if "max_response_bytes" in options:
        options["max_response_bytes"] = max(options["max_response_bytes"], longest)
    if name == TAXONOMY:
        labels, verifier = make(name, options)
        return verifier, [_leaf(labels, row) for row in rows]
    names = list(dict.fromkeys(row["truth"] for row in rows))
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(f"{i}\t{' '.join(one.split())}" for i, one in enumerate(names)))
        file.flush()
        _, verifier = make(name, options | {"path": file.name})
    return verifier, [names.index(row["truth"]) for row in rows]


def _leaf(labels: Any, row: Row) -> int:
    if row["label_id"] in labels.leaf_ids:
        return labels.leaf_index(row["label_id"])
    same = [
        leaf_id
        for leaf_id, names in zip(labels.leaf_ids, labels.leaf_names, strict=True)
        if parsing.key(names) == parsing.key(row["truth"])
    ]
    if len(same) != 1:
        raise ValueError(
            f"the label tree has {len(same)} labels named {row['truth']!r}; give the column "
            "label_id, or another tree (config.verifier.options.path)"
        )
    return labels.leaf_index(same[0])


def judge(
    verifier: Any, tokenizer: Any, rows: Sequence[Row], label: Sequence[int], require_think: bool
) -> Found:
    """Verdicts of one verifier on all rows."""
    texts = [response_of(row, require_think) for row in rows]
    if isinstance(verifier, HostVerifier):
        probability = None
        if hasattr(verifier, "judge"):
            verdicts, probability_BNK = verifier.judge([[text] for text in texts], label)
            probability = probability_BNK[:, 0]
        else:
            verdicts = verifier.submit([[text] for text in texts], label).result()
        return Found(verdicts.category_BN[:, 0], verdicts.valid_BN[:, 0], probability)
    has_more = hasattr(verifier, "judge")

    @jax.jit
    def program(verifier, *batch):
        return verifier.judge(*batch) if has_more else verifier.verify(*batch)

    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width, parts = max(1, max(map(len, ids))), []
    for first in range(0, len(ids), ROWS):
        tokens, mask = np.zeros((ROWS, 1, width), np.int32), np.zeros((ROWS, 1, width), bool)
        index, part = np.zeros(ROWS, np.int32), ids[first : first + ROWS]
        index[: len(part)] = label[first : first + ROWS]
        for i, one in enumerate(part):
            tokens[i, 0, : len(one)], mask[i, 0, : len(one)] = one, True
        found = program(verifier, tokens, mask, index)
        parts.append([np.asarray(x)[: len(part), 0] for x in found])
    return Found(*(np.concatenate(x) for x in zip(*parts, strict=True)), *[None] * (not has_more))


def stated(rows: Sequence[Row], name: str) -> list[str]:
    """The outcome that the rows state for a verifier."""
    own = name if name in rows[0] else JUDGE if name != TAXONOMY and JUDGE in rows[0] else None
    column = own or "category"
    if column not in rows[0]:
        raise ValueError(f"the pairs state no outcome for {name}: no column category or {name}")
    return [row[column] for row in rows]


def compare(rows: Sequence[Row], name: str, found: Found) -> tuple[dict[str, Any], list[str]]:
    """Figures of a verifier against the rows, and lines to print."""
    want = stated(rows, name)
    taken = [i for i, w in enumerate(want) if w != ASK and found.valid[i]]
    asked = [i for i, w in enumerate(want) if w == ASK]
    lines = [f"\n== {name} against the labels =="]
    figures: dict[str, Any] = {"pairs": len(rows), "unverified": int((~found.valid).sum())}
    if taken:
        reference = np.array([Category[want[i].upper()] for i in taken])
        result = agreement.agreement(reference, found.category[taken])
        figures |= summary(result)
        lines.append(agreement.table(result, "labels", name))
        differ = [i for i in taken if Category[want[i].upper()] != found.category[i]]
        figures["disagreements"] = len(differ)
        lines += [f"{len(differ)} disagreements"] + [
            "  " + describe(rows[i], want[i], found, i) for i in differ
        ]
    if asked:
        lines.append(f"{len(asked)} pairs are for the judge to decide")
        lines += ["  " + describe(rows[i], ASK, found, i) for i in asked]
    if figures["unverified"]:
        lines.append(f"{figures['unverified']} pairs have no verdict")
    return figures, lines


def summary(result: agreement.Agreement) -> dict[str, Any]:
    """An agreement as JSON."""

    def named(values):
        pairs = zip(agreement.NAMES, values.tolist(), strict=True)
        return {name: value for name, value in pairs if value == value}

    return {
        "accuracy": result.accuracy,
        "kappa": None if np.isnan(result.kappa) else result.kappa,
        "precision": named(result.precision),
        "recall": named(result.recall),
        "matrix": result.matrix.tolist(),
    }


def describe(row: Row, want: str, found: Found, i: int) -> str:
    """One disagreement."""
    said = row.get("prediction", row.get("response", ""))
    said = said if len(said) <= 60 else f"{said[:60]}..."
    verdict = Category(int(found.category[i])).name.lower()
    sure = "" if found.probability is None else f" (p {found.probability[i].max():.2f})"
    kind = f" [{row['kind']}]" if row.get("kind") else ""
    return f"{row['truth']!r} <- {said!r}: {want}, verdict {verdict}{sure}{kind}"


def audit(
    config: ml_collections.ConfigDict, pairs: str, names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Found], list[Row], list[str]]:
    """Runs and compares verifiers.

    Returns:
      Figures for `audit.json`, the verdicts, the rows, and lines to print.
    """
    rows = read_pairs(pairs)
    figures: dict[str, Any] = {"pairs": pairs, "verifiers": {}, "between": {}}
    found, lines = {}, []
    make = Maker(config)
    for name in names:
        plugins.find("verifiers", name, "create")
        verifier, label = build(make, name, rows)
        require_think = verifier_options(config, name)["require_think"]
        found[name] = judge(verifier, make.tokenizer, rows, label, require_think)
        if isinstance(verifier, HostVerifier):
            lines += [f"{name}: {said}" for said in [verifier.errors()] if said]
            verifier.close()
        figures["verifiers"][name], said = compare(rows, name, found[name])
        lines += said
    for one, other in itertools.combinations(names, 2):
        both = found[one].valid & found[other].valid
        if not both.any():
            continue
        result = agreement.agreement(found[one].category[both], found[other].category[both])
        figures["between"][f"{one}, {other}"] = summary(result)
        lines += [f"\n== {one} and {other} ==", agreement.table(result, one, other)]
    return figures, found, rows, lines


def write(
    folder: pathlib.Path, figures: Mapping[str, Any], found: Mapping[str, Found], rows: list[Row]
) -> None:
    """Writes `audit.json` and `verdicts.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(figures, indent=2) + "\n")
    verdicts = agreement.NAMES[1:]
    with (folder / "verdicts.csv").open("w", encoding="utf-8", newline="") as file:
        columns = list(rows[0])
        for name, result in found.items():
            columns.append(f"{name}: verdict")
            if result.probability is not None:
                columns += [f"{name}: {verdict}" for verdict in verdicts]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for i, row in enumerate(rows):
            row = dict(row)
            for name, result in found.items():
                verdict = Category(int(result.category[i])).name.lower()
                row[f"{name}: verdict"] = verdict if result.valid[i] else "unverified"
                if result.probability is not None:
                    pairs = zip(verdicts, result.probability[i], strict=True)
                    row |= {f"{name}: {verdict}": f"{p:.6f}" for verdict, p in pairs}
            writer.writerow(row)


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or given.config is None or not given.verifiers:
        raise app.UsageError("give --config=FILE and --verifiers=NAME,NAME, and flags only")
    figures, found, rows, lines = audit(given.config, given.pairs, given.verifiers)
    print("\n".join(lines))
    if given.out:
        write(pathlib.Path(given.out), figures, found, rows)
        print(f"\nfigures and verdicts: {given.out}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("pairs", "gold", "gold, adversarial, or a CSV file.")
    flags.DEFINE_list("verifiers", ["taxonomy"], "Verifiers to compare.")
    flags.DEFINE_string("out", None, "Folder for audit.json and verdicts.csv.")
    exit_codes.run_tool("audit_verifier", main)
