"""A label tree that decides what it knows, and a judge that is asked about the rest.

The tree decides where an answer equals one of its names, of whichever label, declines to answer, or
cannot be read. All other answers go to the judge of `config.verifier.cascade.judge`: `flax_judge`
within the program, or `http_judge` (and a `flax_judge` with another vocabulary) on the host.
Without a judge the tree stands alone, and what it does not know is WRONG.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import parsing, taxonomy
from speciarl_jax.verifiers.base import HostVerifier, InGraphVerdicts, Verdicts
from speciarl_jax.verifiers.category import Category


@flax.struct.dataclass
class Cascade:
    """The tree and a judge inside compiled programs.

    The judge scores all answers, as shapes are fixed; its verdicts count where the tree has none.

    Attributes:
      tree: decides first.
      fallback: the judge, an in-graph verifier with `verify_in_detail`.
    """

    tree: taxonomy.TaxonomyVerifier
    fallback: Any

    def verify(
        self, tokens_BNT: jax.Array, mask_BNT: jax.Array, label_index_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """int32 `Category` [B, N] and bool [B, N], a verdict exists; traceable."""
        return self.verify_in_detail(tokens_BNT, mask_BNT, label_index_B)[:2]

    def verify_in_detail(
        self, tokens_BNT: jax.Array, mask_BNT: jax.Array, label_index_B: jax.Array
    ) -> InGraphVerdicts:
        """`verify`, with who decided; probabilities are NaN where the tree did."""
        batch = tokens_BNT, mask_BNT, label_index_B
        tree = self.tree.verify_in_detail(*batch)
        judge = self.fallback.verify_in_detail(*batch)
        first_BN, base_rate_BN = tree.matched_BN, tree.base_rate_BN
        if base_rate_BN is not None:
            # Nobody asked the judge about other labels; what it accepts is as broad as can be.
            broadest_BN = self.tree.broadest_rate(judge.category_BN, label_index_B)
            base_rate_BN = jnp.where(first_BN, base_rate_BN, broadest_BN)
        return InGraphVerdicts(
            category_BN=jnp.where(first_BN, tree.category_BN, judge.category_BN),
            valid_BN=jnp.where(first_BN, tree.valid_BN, judge.valid_BN),
            probability_BN=jnp.where(first_BN, jnp.nan, judge.probability_BN),
            matched_BN=first_BN,
            answer_BN=tree.answer_BN,
            base_rate_BN=base_rate_BN,
        )

    def with_label_shares(self, share_F: np.ndarray) -> "Cascade":
        """Returns a verifier that also tells base rates (`TaxonomyVerifier.with_label_shares`)."""
        return self.replace(tree=self.tree.with_label_shares(share_F))


class HostCascade(HostVerifier):
    """The tree and a judge on the host; the judge is sent only what the tree does not know.

    Attributes:
      fallback: the judge, which is asked about the rest.
    """

    def __init__(self, tree: taxonomy.Taxonomy, fallback: HostVerifier, *, tags: str):
        """Joins a tree and a judge that number the labels alike.

        Args:
          tree: decides first.
          fallback: is asked about the rest.
          tags: as for `parsing.extract`.
        """
        self.fallback, self._tree, self._tags = fallback, tree, tags

    def submit(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> concurrent.futures.Future[Verdicts]:
        """See `HostVerifier`."""
        shape = (len(responses), len(responses[0]) if len(responses) else 0)
        category_BN = np.full(shape, int(Category.UNPARSED), np.int32)
        matched_BN = np.zeros(shape, bool)
        for b, (group, label) in enumerate(zip(responses, label_index, strict=True)):
            for n, text in enumerate(group):
                category_BN[b, n], matched_BN[b, n] = self._look(text, int(label))
        rest = [(int(b), int(n)) for b, n in np.argwhere(~matched_BN)]
        asked = self.fallback.submit(
            [[responses[b][n]] for b, n in rest], [int(label_index[b]) for b, _ in rest]
        )
        done: concurrent.futures.Future[Verdicts] = concurrent.futures.Future()

        def merge(future):
            try:
                done.set_result(_merged(category_BN, matched_BN, rest, future.result()))
            except BaseException as error:  # Whoever waits must hear of it.
                done.set_exception(error)

        asked.add_done_callback(merge)
        return done

    def errors(self) -> str:
        """See `HostVerifier`."""
        return self.fallback.errors()

    def close(self) -> None:
        """See `HostVerifier`."""
        self.fallback.close()

    def _look(self, response: str, label: int) -> tuple[Category, bool]:
        """The tree's verdict on a response, and whether it knows one."""
        content = parsing.extract(response, tags=self._tags)
        if content is None:
            return Category.UNPARSED, True
        found = self._tree.explain(content, self._tree.leaf_ids[label])
        return found.category, found.known


def _merged(
    category_BN: np.ndarray,
    matched_BN: np.ndarray,
    rest: Sequence[tuple[int, int]],
    judged: Verdicts,
) -> Verdicts:
    """Puts a judge's verdicts on single answers, [M, 1], into their places among the tree's."""
    shape = category_BN.shape
    fields = {
        "category_BN": category_BN,
        "valid_BN": matched_BN.copy(),
        "cached_BN": np.zeros(shape, bool),
        "seconds_BN": np.full(shape, np.nan, np.float32),
    }
    if judged.probability_BN is not None:
        fields["probability_BN"] = np.full(shape, np.nan, np.float32)
    if rest:
        places = tuple(np.array(rest).T)
        for name, values_BN in fields.items():
            values_BN[places] = getattr(judged, name)[:, 0]
    return Verdicts(**fields, matched_BN=matched_BN)


def create(
    token_bytes: Sequence[bytes],
    dataset_path: str | os.PathLike | None,
    *,
    make: Callable[[str], tuple[Any, Any]],
    judge: str,
    **tree_options: Any,
) -> tuple[taxonomy.Taxonomy, Any]:
    """What `config.verifier.name = "cascade"` stands for.

    Args:
      token_bytes: of the policy's vocabulary.
      dataset_path: the data set's own label tree, or None.
      make: name of another verifier -> its labels and itself, with the options of its section.
      judge: name of the verifier that is asked about the rest; "" for none.
      **tree_options: of `taxonomy.create`, from `config.verifier.options`.

    Returns:
      The names on the host, whose `leaf_index` numbers the labels, and the verifier: on the host
      if the judge is, within the program if not.

    Raises:
      ValueError: there is no label tree, or the judge is told other labels than the tree has.
    """
    tree, verifier = taxonomy.create(token_bytes, dataset_path, **tree_options)
    if not judge:
        return tree, verifier
    labels, asked = make(judge)
    if tuple(labels.leaf_ids) != tree.leaf_ids:
        raise ValueError(
            f"config.verifier.{judge}.path has other labels than the label tree; leave it empty "
            "(''), and the judge takes those of the tree"
        )
    if isinstance(asked, HostVerifier):
        return tree, HostCascade(tree, asked, tags=tree_options["tags"])
    return tree, Cascade(verifier, asked)
