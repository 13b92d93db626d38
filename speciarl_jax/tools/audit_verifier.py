r"""Compares verifiers with labelled pairs and with each other.

    python -m speciarl_jax.tools.audit_verifier --config=configs/quickstart.py \
        --pairs=gold --verifiers=taxonomy,flax_judge --out=runs/audit
    python -m speciarl_jax.tools.audit_verifier --tree=caltech_birds2011 --pairs=answers.csv

`--pairs` is `gold` or `adversarial`, which ship with the package (`verifiers/audit_pairs`), or a
CSV file with the columns `truth`; `prediction`, the content of the answer tags, or `response`, a
whole response; and `accepted` or `category`, the right verdict, or several with semicolons between
them. `label_id` tells labels of one name apart. A column named like a verifier, or `judge` for all
but the taxonomy, states the right verdict of that verifier; "ask" there leaves the pair out.

With --config its verifiers judge. Prints a confusion matrix, Cohen's kappa, precision, recall and
the disagreements of each, then the same for each two verifiers. Limits of memory in training
(`max_response_bytes`) are lifted, so that only the rules decide.

With --tree a label tree judges, without configuration, weights or images: a file, a tree that ships
(`emoji`, or the name of a data set), or `auto` for the tree of each row's column `dataset`. `truth`
may be any name of the label, and verdicts need not be stated. Prints each verdict with the name
that matched, and how many are right.

--out receives `audit.json` with all figures, and `verdicts.csv`: the columns of the pairs, and for
each verifier its verdict and probabilities, or with --tree the verdict as `category` (a column
`category` of the pairs is called `accepted` there).
"""

import functools
import itertools
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from speciarl_jax.data import emoji, label_tree, tfds_images
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.experiment import make_verifier
from speciarl_jax.experiment.run import open_sources
from speciarl_jax.models import load_policy
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.runtime import exit_codes, plugins, sharding
from speciarl_jax.tools import audit_pairs
from speciarl_jax.tools.audit_pairs import (
    LABELS,
    TAXONOMY,
    Row,
    Verdicts,
    describe,
    read_pairs,
    response_of,
)
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.base import HostVerifier
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree.reasons import Reasons
from speciarl_jax.verifiers.taxonomy import Taxonomy

# Pairs that a verifier on the devices judges in one call.
BATCH = 64
# `--tree` for the tree of each row's data set.
AUTO = "auto"


def build(
    config: ml_collections.ConfigDict, name: str, tokenizer: Any, rows: Sequence[Row]
) -> tuple[Any, list[int]]:
    """Builds a verifier, and finds its numbers of the rows' true labels.

    Images are opened only for their label tree, and the policy's weights are loaded only if a judge
    uses them. Judges get the names of labels from the rows.

    Raises:
      ValueError: the tree of the taxonomy lacks a label, or has several of its name.
    """
    folder = load_policy.model_folder(config.model.path)
    vocabulary = hf_checkpoint.read_config(folder).text.vocab_size
    mesh = sharding.make_mesh(**config.mesh)

    def make(options):
        tree = None if options.get("path") else label_tree.path_of(open_sources(config))
        return make_verifier.make(config, name, options, tree, tokenizer, vocabulary, mesh, None)

    options = dict(make_verifier.verifier_options(config, name))
    longest = max(len(response_of(row, "think").encode()) for row in rows)
    if "max_response_bytes" in options:
        options["max_response_bytes"] = max(options["max_response_bytes"], longest)
    if name == TAXONOMY:
        labels, verifier = make(options)
        return verifier, [labels.leaf_index(leaf_of(labels, row)) for row in rows]
    names = list(dict.fromkeys(row["truth"] for row in rows))
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(f"{i}\t{' '.join(one.split())}" for i, one in enumerate(names)))
        file.flush()
        _, verifier = make(options | {"path": file.name})
    return verifier, [names.index(row["truth"]) for row in rows]


def leaf_of(labels: Taxonomy, row: Row) -> str:
    """Finds the leaf that a row's `label_id` or `truth` means; a leaf's name before a synonym.

    Raises:
      ValueError: the tree has no such leaf, or several.
    """
    leaf_id = row.get("label_id", row["truth"])
    if leaf_id in labels.leaf_ids:
        return leaf_id
    found = leaves_named(labels, row["truth"])
    if len(found) != 1:
        raise ValueError(
            f"the label tree has {len(found)} labels named {row['truth']!r}; give the column "
            "label_id, or another tree (--tree, or config.verifier.options.path)"
        )
    return found[0]


def leaves_named(labels: Taxonomy, name: str) -> list[str]:
    """Lists the leaves that have a name, or, if there are none, the leaves with such a synonym."""
    key = parsing.key(name)
    leaves = list(zip(labels.leaf_ids, labels.leaf_names, labels.relations, strict=True))
    exact = [leaf_id for leaf_id, own, _ in leaves if parsing.key(own) == key]
    return exact or [
        leaf_id
        for leaf_id, _, relation in leaves
        if key in relation and relation[key][0] == Category.SPECIFIC
    ]


def judge(
    verifier: Any, tokenizer: Any, rows: Sequence[Row], label: Sequence[int], tags: str
) -> Verdicts:
    """Asks one verifier about all rows; `label` has its number of each true label."""
    texts = [response_of(row, tags) for row in rows]
    has_more = hasattr(verifier, "judge")
    if isinstance(verifier, HostVerifier):
        groups = [[text] for text in texts]
        if has_more:
            found, probability_BNK = verifier.judge(groups, label)
            return Verdicts(found.category_BN[:, 0], found.valid_BN[:, 0], probability_BNK[:, 0])
        found = verifier.submit(groups, label).result()
        return Verdicts(found.category_BN[:, 0], found.valid_BN[:, 0])

    @jax.jit
    def program(verifier, *batch):
        return verifier.judge(*batch) if has_more else verifier.verify(*batch)

    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width, parts = max(1, max(map(len, ids))), []
    for first in range(0, len(ids), BATCH):
        tokens, mask = np.zeros((BATCH, 1, width), np.int32), np.zeros((BATCH, 1, width), bool)
        index, part = np.zeros(BATCH, np.int32), ids[first : first + BATCH]
        index[: len(part)] = label[first : first + BATCH]
        for i, one in enumerate(part):
            tokens[i, 0, : len(one)], mask[i, 0, : len(one)] = one, True
        found = program(verifier, tokens, mask, index)
        parts.append([np.asarray(x)[: len(part), 0] for x in found])
    return Verdicts(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def audit(
    config: ml_collections.ConfigDict, pairs: str, names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Verdicts], list[Row], list[str]]:
    """Runs and compares the verifiers of a configuration.

    Returns:
      Figures for `audit.json`, the verdicts, the rows for `verdicts.csv`, and lines to print.
    """
    rows = read_pairs(pairs)
    figures: dict[str, Any] = {"pairs": pairs, "verifiers": {}, "between": {}}
    found, lines = {}, []
    tokenizer = tokenizer_lib.load(load_policy.model_folder(config.model.path))
    for name in names:
        plugins.find("verifiers", name, "create")
        verifier, label = build(config, name, tokenizer, rows)
        tags = make_verifier.verifier_options(config, name)["tags"]
        found[name] = judge(verifier, tokenizer, rows, label, tags)
        if isinstance(verifier, HostVerifier):
            lines += [f"{name}: {said}" for said in [verifier.errors()] if said]
            verifier.close()
        figures["verifiers"][name], said = audit_pairs.compare(rows, name, found[name])
        lines += said
    for one, other in itertools.combinations(names, 2):
        both = found[one].valid & found[other].valid
        if not both.any():
            continue
        sides = (found[name].category[both] for name in (one, other))
        result = audit_pairs.agreement(*sides)
        figures["between"][f"{one}, {other}"] = result
        lines += [f"\n== {one} and {other} ==", audit_pairs.table(result, one, other)]
    return figures, found, [row | _cells(found, i) for i, row in enumerate(rows)], lines


def _cells(found: Mapping[str, Verdicts], i: int) -> Row:
    """Writes the verdicts on pair `i`, and their probabilities, as cells of `verdicts.csv`."""
    cells = {}
    for name, result in found.items():
        cells[f"{name}: verdict"] = result.name(i)
        if result.probability is not None:
            pairs = zip(audit_pairs.NAMES[1:], result.probability[i], strict=True)
            cells |= {f"{name}: {verdict}": f"{p:.6f}" for verdict, p in pairs}
    return cells


def audit_tree(tree: str, pairs: str) -> tuple[dict[str, Any], list[Row], list[str]]:
    """Judges pairs by a label tree, and compares with the labels if the pairs have any.

    Args:
      tree: a file, the name of a tree that ships, or `AUTO`. Rows whose column `dataset` names
        another data set with a tree are left out.
      pairs: as for `read_pairs`.

    Returns:
      Figures for `audit.json`, the rows for `verdicts.csv`, and lines to print.

    Raises:
      ValueError: there is no such tree, or it can judge no row.
    """
    rows = read_pairs(pairs, labelled=False)
    shipped = {path.stem: path for path in sorted(tfds_images.TREES.glob("*.json"))}
    shipped["emoji"] = emoji.TAXONOMY_PATH
    if tree == AUTO and "dataset" not in rows[0]:
        raise ValueError(f"--tree={AUTO} needs a column dataset in {pairs}; or give --tree=NAME")
    if tree in shipped:
        rows = [row for row in rows if row.get("dataset", tree) not in shipped.keys() - {tree}]

    @functools.cache
    def read(name):
        labels = Taxonomy.from_file(_tree_file(name, shipped))
        return labels, Reasons(labels)

    judged = []
    for row in rows:
        try:
            labels, why = read(row["dataset"] if tree == AUTO else tree)
            answer = parsing.extract(response_of(row, tags="answer"))
            judged.append((True, *why.explain(answer, leaf_of(labels, row))))
        except ValueError as error:
            judged.append((False, Category.UNPARSED, str(error)))
    if not any(valid for valid, *_ in judged):
        why = judged[0][-1] if rows else "all rows are about other data sets"
        raise ValueError(f"--tree={tree} can judge no row of {pairs}: {why}")
    valid, category, reason = zip(*judged, strict=True)
    found = Verdicts(np.array(category), np.array(valid), reason=reason)
    figures: dict[str, Any] = {"pairs": pairs, "tree": tree, "verifiers": {}}
    lines = [describe(row, found, i) for i, row in enumerate(rows)]
    if {TAXONOMY, *LABELS} & rows[0].keys():
        figures["verifiers"][TAXONOMY], said = audit_pairs.compare(rows, TAXONOMY, found)
        lines += said
    return figures, [_with_category(row, found.name(i)) for i, row in enumerate(rows)], lines


def _tree_file(name: str, shipped: Mapping[str, pathlib.Path]) -> pathlib.Path:
    if pathlib.Path(name).is_file():
        return pathlib.Path(name)
    if name.partition(":")[0] not in shipped:
        raise ValueError(f"{name!r} is no file and no tree that ships: {sorted(shipped)}")
    return shipped[name.partition(":")[0]]


def _with_category(row: Row, verdict: str) -> Row:
    """Adds the verdict, spelt like the accepted ones, with spaces."""
    if "category" in row:
        row = row | {"accepted": row.get("accepted", row["category"])}
    return row | {"category": verdict.replace("_", " ")}


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or (given.config is None) == (given.tree is None) or not given.verifiers:
        raise app.UsageError(
            "give --config=FILE and --verifiers=NAME,NAME, or --tree=NAME, and flags only"
        )
    if given.tree:
        figures, rows, lines = audit_tree(given.tree, given.pairs)
    else:
        figures, _, rows, lines = audit(given.config, given.pairs, given.verifiers)
    print("\n".join(lines))
    if given.out:
        audit_pairs.write(pathlib.Path(given.out), figures, rows)
        print(f"\nfigures and verdicts: {given.out}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("tree", None, "Label tree: a name, a file, or auto; instead of --config.")
    flags.DEFINE_string("pairs", "gold", "gold, adversarial, or a CSV file.")
    flags.DEFINE_list("verifiers", ["taxonomy"], "Verifiers of --config to compare.")
    flags.DEFINE_string("out", None, "Folder for audit.json and verdicts.csv.")
    exit_codes.run_tool("audit_verifier", main)
