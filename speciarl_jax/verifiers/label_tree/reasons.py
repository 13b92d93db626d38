"""Says in words why an answer got its category from a label tree."""

import functools
import re
from collections.abc import Mapping

from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree import schema
from speciarl_jax.verifiers.taxonomy import Taxonomy

NO_NAME = "no name of the tree"
UNREADABLE = "no answer can be read"
_NODE = re.compile(r"(broader )?ancestor (\d+) '")
# What a wrong answer may be to another label; the earlier ones say more about it.
_MEANS = {
    Category.SPECIFIC: "is a name of {!r}",
    Category.MORE_SPECIFIC: "is a kind of {!r}",
    Category.LESS_SPECIFIC: "is a broader name of other labels, such as {!r}",
    Category.GENERIC: "is a broader name of other labels, such as {!r}",
}
_ORDER = list(_MEANS)


class Reasons:
    """Explains the verdicts of one label tree."""

    def __init__(self, labels: Taxonomy):
        """Indexes the names of the tree when they are first needed.

        Args:
          labels: the tree.
        """
        self._labels = labels

    def explain(self, answer: str | None, leaf_id: str) -> tuple[Category, str]:
        """Returns the category of an answer, and why it has it.

        Args:
          answer: the content of the answer tags; None if no answer can be read.
          leaf_id: the true label.

        Returns:
          The category. The name that the answer equals and the node that has it ("synonym 'Passer
          domesticus' of 'House Sparrow'"); of a wrong answer the label that it names ("is a name of
          'House Finch'"), or `NO_NAME`.

        Raises:
          ValueError: the tree has no such label.
        """
        if answer is None:
            return Category.UNPARSED, UNREADABLE
        found = self._labels.explain(answer, leaf_id)
        if found.category == Category.UNPARSED:
            return found.category, UNREADABLE
        if found.category != Category.WRONG:
            return found.category, self._with_node(found.match, leaf_id)
        if found.key in self._means:
            meaning, leaf = self._means[found.key]
            return found.category, _MEANS[meaning].format(leaf)
        return found.category, found.match or NO_NAME

    def knows(self, answer: str | None) -> bool:
        """Whether the tree decides about an answer, whatever the true label is.

        It does if the answer is a name of some label, declines, or cannot be read.
        """
        category, reason = self.explain(answer, self._labels.leaf_ids[0])
        return category != Category.WRONG or reason != NO_NAME

    def _with_node(self, match: str, leaf_id: str) -> str:
        """Adds the first name of an ancestor to a match that gives only its number."""
        found = _NODE.search(match)
        if not found:
            return match
        leaf = self._labels.data["leaves"][leaf_id]
        nodes = leaf["broader" if found[1] else "ancestors"]
        node = _spoken(nodes[int(found[2]) - 1][0])
        return match if f"{node!r}" in match else f"{match} of the node {node!r}"

    @functools.cached_property
    def _means(self) -> Mapping[bytes, tuple[Category, str]]:
        """Maps each key of the tree to the closest of its meanings and a label that has it."""
        found: dict[bytes, tuple[Category, str]] = {}
        leaves = self._labels.data["leaves"].values()
        for leaf, relation in zip(leaves, self._labels.relations, strict=True):
            own = parsing.key(_spoken(leaf["name"]))
            for key, (category, _) in relation.items():
                known = found.get(key)
                closer = known is None or _ORDER.index(category) < _ORDER.index(known[0])
                if closer or key == own:
                    found[key] = category, _spoken(leaf["name"])
        return found


def _spoken(name: str) -> str:
    """Returns the first of the names that a name with alternatives stands for."""
    return schema.expand(name)[0]
