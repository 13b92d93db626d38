"""Why answers got their categories, for the page: as label trees explain them."""

from collections.abc import Mapping
from typing import Any

from speciarl_jax.evaluation.predictions import Part, part_of
from speciarl_jax.evaluation.report import made_with
from speciarl_jax.evaluation.report.folder import Folder
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree.reasons import NO_NAME, Reasons
from speciarl_jax.verifiers.taxonomy import Taxonomy


class Why:
    """Gives reasons for recorded verdicts, each text once.

    Attributes:
      texts: the reasons; `number` gives places in this list.
    """

    def __init__(self, content: Folder, trees: Mapping[str, Taxonomy]):
        """Takes the trees of the data sets.

        Args:
          content: whose provenance says which parts a judge was asked about.
          trees: data set -> its tree; answers about other data sets have no reasons.
        """
        self.texts: list[str] = []
        self._reasons = {data: Reasons(tree) for data, tree in trees.items()}
        self._leaves = {data: set(tree.leaf_ids) for data, tree in trees.items()}
        self._provenance = content.provenance
        self._numbers: dict[str, int] = {}
        self._known: dict[tuple[str, str, str], tuple[Category, str]] = {}

    def number(self, row: Mapping[str, Any], response: str, category: str) -> int | None:
        """Returns the place of the reason in `texts`; None where none is known.

        None is known without a tree, or if the tree gives another category than the recorded one.
        So a tree that was changed since explains nothing wrongly.

        Args:
          row: of `predictions.jsonl`.
          response: one of its responses.
          category: the verdict on it.
        """
        data, leaf_id = row["data"], row.get("label_id")
        if leaf_id not in self._leaves.get(data, ()):
            return None
        key = (data, leaf_id, response)
        if key not in self._known:
            self._known[key] = self._reasons[data].explain(parsing.extract(response), leaf_id)
        found, text = self._known[key]
        if text == NO_NAME and self._has_judge(part_of(row)):
            text = f"{NO_NAME}; the judge decided"
        elif found.name.lower() != category:
            return None
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]

    def _has_judge(self, part: Part) -> bool:
        return bool(made_with.judge_of(self._provenance.get(str(part), {})))
