"""Builds a label tree for the taxonomy verifier from a CSV file or from WordNet's noun files.

    python -m speciarl_jax.tools.build_label_tree --csv=birds.csv --out=birds.json
    python -m speciarl_jax.tools.build_label_tree --wordnet=WordNet-3.1/dict --labels=labels.txt \
        --groups=animal,food,vehicle --out=tree.json

A row of the CSV is one label: the cells are the nodes from its group down to it, and bars (|)
separate the names of a node (`verifiers/label_tree/build.py`). A line of `labels.txt` is a word, or
an id, a tab and a word; "mouse#4" is the fourth sense in WordNet. Read the tree before you train
with it: WordNet's senses and hypernyms are not always what an image shows.
"""

import json
import pathlib
from collections.abc import Sequence

from absl import app, flags

from speciarl_jax.runtime import exit_codes
from speciarl_jax.verifiers.label_tree import build
from speciarl_jax.verifiers.label_tree.wordnet import Nouns
from speciarl_jax.verifiers.taxonomy import Taxonomy


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    from_wordnet = bool(given.wordnet and given.labels and given.groups)
    if len(argv) > 1 or not given.out or bool(given.csv) == from_wordnet:
        raise app.UsageError(
            "give --out=FILE, and either --csv=FILE or --wordnet=FOLDER --labels=FILE --groups=A,B"
        )
    if given.csv:
        tree = build.from_csv(given.csv, max_words=given.max_words)
    else:
        nouns, labels = Nouns(given.wordnet), build.read_labels(given.labels)
        tree = build.from_wordnet(nouns, labels, given.groups, max_words=given.max_words)
    taxonomy = Taxonomy(tree, source=given.out, max_words=given.max_words)
    out = pathlib.Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"{out}: {len(taxonomy.leaf_ids)} labels in {len(tree['groups'])} groups, "
        f"{len(taxonomy.names)} names and forms"
    )


if __name__ == "__main__":
    flags.DEFINE_string("csv", None, "Label paths, one a row.")
    flags.DEFINE_string("wordnet", None, "Folder with data.noun and index.noun.")
    flags.DEFINE_string("labels", None, "Words to look up in WordNet, one a line.")
    flags.DEFINE_list("groups", [], "Words of the broadest accepted classes, for WordNet.")
    flags.DEFINE_integer("max_words", 8, "Longer names are refused (CSV) or left out (WordNet).")
    flags.DEFINE_string("out", None, "Receives the tree (JSON).")
    exit_codes.run_tool("build_label_tree", main)
