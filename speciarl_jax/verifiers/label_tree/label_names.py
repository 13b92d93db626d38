"""The names of the true labels, for judges that know no tree."""

import os
import pathlib

from speciarl_jax.verifiers.label_tree import schema


class LabelNames:
    """The name of each label.

    Attributes:
      leaf_ids: what images call their labels (`label_id`).
      names: what a judge is told, in the same order.
      further: other names of labels and of kinds of them -> the number of the label.
    """

    def __init__(self, names: dict[str, str], further: dict[str, str] | None = None):
        """Numbers the labels.

        Args:
          names: id -> name.
          further: other name -> id.
        """
        self.leaf_ids, self.names = tuple(names), tuple(names.values())
        self._index = {leaf_id: i for i, leaf_id in enumerate(self.leaf_ids)}
        self.further = {name: self._index[leaf_id] for name, leaf_id in (further or {}).items()}

    def leaf_index(self, leaf_id: str) -> int:
        """The number of a label.

        Raises:
          ValueError: there is no such label.
        """
        if leaf_id not in self._index:
            raise ValueError(f"label {leaf_id!r} is not among the {len(self.leaf_ids)} labels")
        return self._index[leaf_id]


def read(path: str | os.PathLike) -> LabelNames:
    """Reads names from a label tree (JSON, `taxonomy_file`), or from a text file.

    A text file has one label a line: its name, which is also its id, or its id, a tab and its name.

    Raises:
      ValueError: the file cannot be read, is empty, or repeats an id.
    """
    path = pathlib.Path(path)
    if path.suffix == ".json":
        tree = schema.read(path)
        schema.check(tree, str(path))
        further = {
            name: leaf_id
            for leaf_id, leaf in tree["leaves"].items()
            for name in (*leaf.get("synonyms", ()), *leaf.get("hyponyms", ()))
        }
        names = {leaf_id: leaf["name"] for leaf_id, leaf in tree["leaves"].items()}
        return LabelNames(names, further)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the label names ({error})") from None
    rows = [line.split("\t", 1) for line in lines if line.strip()]
    names = {row[0].strip(): row[-1].strip() for row in rows}
    if not names or len(names) < len(rows):
        raise ValueError(
            f"{path} has {len(rows)} labels, {len(names)} different ones; write each label once, "
            "one a line"
        )
    return LabelNames(names)
