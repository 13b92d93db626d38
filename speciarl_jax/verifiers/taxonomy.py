"""The taxonomy verifier: an answer is looked up among the names around the true label.

`Taxonomy` decides on the host, from text. `TaxonomyVerifier` decides on the device, from tokens,
and agrees with it on every response of at most `max_response_bytes`; a longer one is UNPARSED on
the device. The form of an answer is forgiven, never its content (`matching`): an answer that equals
no name is wrong, so lists, "A or B", sentences, markup, instructions and invisible characters earn
nothing.

The format of the file is in `label_tree.schema`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import (
    abstention,
    base_rate,
    matching,
    matching_on_device,
    parsing,
    parsing_on_device,
)
from speciarl_jax.verifiers.base import InGraphVerdicts
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree import relations, schema

# Bytes of an answer beyond the longest name: frames, modifiers, a second name in parentheses.
_SPARE_BYTES = 32


class Explanation(NamedTuple):
    """Why an answer got its category: the key compared, and what it matched ("" for nothing)."""

    category: Category
    key: bytes
    match: str

    @property
    def known(self) -> bool:
        """Whether the tree decided: a name of some label, declining, or nothing to read."""
        return bool(self.match) or self.category == Category.UNPARSED


class Taxonomy:
    """Names around each leaf, and the verdict on an answer (host side; the oracle).

    An answer is compared by `parsing.phrase`, so case, punctuation, dashes, typography and accents
    do not matter; neither do number, and whether words are written together (`word_forms.forms`).
    Frames, modifiers and generic words beside a name are left out as `matching` says. For the true
    leaf, an answer that is
      - its name or a synonym is SPECIFIC,
      - a name of a hyponym, or its name with a modifier, is MORE_SPECIFIC,
      - a name of its group or of a broader ancestor is GENERIC,
      - a name of another ancestor is LESS_SPECIFIC,
      - "X (Y)", where both hold, is the better of both,
      - of the grammar of `abstention`, and no name, is ABSTAIN,
      - empty is UNPARSED,
      - anything else, siblings, lists and long answers included, is WRONG.
    If a key has several of these relations to the leaf, the first of this list counts. A word with
    several senses ("mouse") is judged in the sense of the true leaf, as each leaf has its own list.
    A form of a name that is itself written in the tree for something else is no form: "glasses"
    is no plural where it is a leaf.

    Attributes:
      data: the content of the file.
      leaf_ids: the leaves in the order of the file; `leaf_index` numbers them.
      leaf_names: their names, in the same order.
      names: the keys of all names and forms, as sorted strings.
      relations: for each leaf, in the same order, a dict from key to (category, description).
      opener: what may stand beside a name.
      phrase_bytes: a longer answer is WRONG.
    """

    def __init__(
        self,
        data: Mapping,
        *,
        source: str = "taxonomy",
        max_words: int = 8,
        word_forms_too: bool = True,
    ):
        """Checks and indexes a taxonomy.

        Args:
          data: the content of a taxonomy file (format: `label_tree.schema`).
          source: what errors call it.
          max_words: the most words a name may have.
          word_forms_too: accept plurals and other spellings of names.

        Raises:
          ValueError: a field is missing or malformed, a name has too many words, or a name is also
            an abstention.
        """
        schema.check(data, source)
        self.data = data
        self.leaf_ids = tuple(data["leaves"])
        self.leaf_names = tuple(leaf["name"] for leaf in data["leaves"].values())
        self._index = {leaf_id: i for i, leaf_id in enumerate(self.leaf_ids)}
        self.opener = matching.Opener(data.get("frames", []), data.get("modifiers", []))
        entries = [list(schema.relations(x, data["groups"])) for x in data["leaves"].values()]
        leaf_of = {}
        for leaf_id, names in zip(self.leaf_ids, entries, strict=True):
            for name, _, _ in names:
                leaf_of.setdefault(name, leaf_id)
        for name, leaf_id in leaf_of.items():
            relations.check_name(name, max_words, f"{source}: leaf {leaf_id!r}")
        self.relations = relations.of_leaves(entries, word_forms_too)
        self._keys = frozenset().union(*self.relations)
        self.names = tuple(key.decode("utf-8", "surrogatepass") for key in sorted(self._keys))
        longest = max(map(len, self._keys))
        self.phrase_bytes = max(abstention.MAX_BYTES, longest + _SPARE_BYTES)

    @classmethod
    def from_file(cls, path: str | os.PathLike, **options) -> "Taxonomy":
        """Reads a taxonomy file; `options` as for the constructor.

        Raises:
          ValueError: the file cannot be read, is no JSON, or is no valid taxonomy.
        """
        return cls(schema.read(path), source=str(path), **options)

    def leaf_index(self, leaf_id: str) -> int:
        """The number of a leaf, as `TaxonomyVerifier.verify` wants it."""
        if leaf_id not in self._index:
            raise ValueError(
                f"leaf {leaf_id!r} is not among the {len(self.leaf_ids)} leaves (such as "
                f"{self.leaf_ids[0]!r}); a tree of your own (config.verifier.options.path) needs "
                "the label ids of the data, so start from the label_tree.json that python -m "
                "speciarl_jax.tools.check_data writes"
            )
        return self._index[leaf_id]

    def explain(self, answer_text: str, leaf_id: str) -> Explanation:
        """The category of an answer (the content of the tags) and what it matched."""
        around = self.relations[self.leaf_index(leaf_id)], self._keys, self.opener
        key, phrase = parsing.key(answer_text), parsing.phrase(answer_text)
        if not phrase and not parsing.too_long(answer_text):
            return Explanation(Category.UNPARSED, key, "")
        if len(phrase) > self.phrase_bytes or parsing.too_long(answer_text):
            return Explanation(Category.WRONG, key, "")
        found = matching.look_up(phrase, *around)
        if found is None and (parts := parsing.parenthesis(answer_text)):
            found = matching.look_up_both(*parts, *around)
        if found is None and abstention.abstains(phrase):
            return Explanation(Category.ABSTAIN, key, "abstention")
        category, match = found or (Category.WRONG, "")
        return Explanation(category, key, match)

    def category(self, answer_text: str, leaf_id: str) -> Category:
        """The category of an answer: the content of the answer tags."""
        return self.explain(answer_text, leaf_id).category

    def response_category(self, text: str, leaf_id: str, *, tags: str = "answer") -> Category:
        """The category of a whole response, tags included (`parsing.extract`)."""
        content = parsing.extract(text, tags=tags)
        return Category.UNPARSED if content is None else self.category(content, leaf_id)


@flax.struct.dataclass
class _Tables:
    """What the device needs.

    Attributes:
      tokens: bytes of the vocabulary.
      typography: for phrases.
      names: of the tree.
      label_shares: for base rates, or None.
      every_label: static, whether answers are judged for all labels, too.
      max_response_bytes: static, or None for as many as the tokens can have.
      tags: static.
    """

    tokens: parsing_on_device.TokenBytes
    typography: parsing_on_device.Typography
    names: matching_on_device.Names
    label_shares: base_rate.LabelShares | None
    every_label: bool = flax.struct.field(pytree_node=False)
    max_response_bytes: int | None = flax.struct.field(pytree_node=False)
    tags: str = flax.struct.field(pytree_node=False)


@jax.tree_util.register_pytree_node_class
class TaxonomyVerifier:
    """The verdict of `Taxonomy.response_category` on a device, from response tokens.

    A pytree of arrays: build it once on the host and hand it to a jitted program as an argument, so
    that its tables are no constants of the program. Nothing in `verify` leaves the device.
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        token_bytes: Sequence[bytes],
        *,
        max_answer_bytes: int = 64,
        max_response_bytes: int | None = None,
        tags: str = "answer",
    ):
        """Builds the tables.

        Args:
          taxonomy: the names.
          token_bytes: the bytes of each vocabulary id; b"" for special tokens.
          max_answer_bytes: the longest key that is compared; no name may be longer.
          max_response_bytes: size of the byte buffer of a response; a response with more bytes is
            UNPARSED. None: as many as T of the longest tokens have, which always suffices.
          tags: as for `parsing.extract`.

        Raises:
          ValueError: a name is too long, `token_bytes` is empty, or `max_response_bytes` < 1.
        """
        if max_response_bytes is not None and max_response_bytes < 1:
            raise ValueError(f"max_response_bytes is {max_response_bytes}; give at least 1 or None")
        self._tables = _Tables(
            tokens=parsing_on_device.TokenBytes.create(token_bytes),
            typography=parsing_on_device.Typography.create(),
            names=matching_on_device.Names.create(
                taxonomy.relations,
                taxonomy.opener,
                max_answer_bytes=max_answer_bytes,
                phrase_bytes=taxonomy.phrase_bytes,
            ),
            label_shares=None,
            every_label=False,
            max_response_bytes=max_response_bytes,
            tags=tags,
        )

    def with_label_shares(self, share_F: np.ndarray) -> "TaxonomyVerifier":
        """Returns a verifier that also tells base rates (`InGraphVerdicts.base_rate_BN`).

        Args:
          share_F: float, the share of the training images that has each leaf; sums to 1.

        Raises:
          ValueError: these are no shares of the leaves of the tree.
        """
        shares = base_rate.LabelShares.create(self._tables.names, share_F)
        return self._with(label_shares=shares)

    def with_every_label(self) -> "TaxonomyVerifier":
        """Returns a verifier that also judges for all labels (`InGraphVerdicts.category_BNF`)."""
        return self._with(every_label=True)

    def _with(self, **changes) -> "TaxonomyVerifier":
        new = object.__new__(type(self))
        new._tables = self._tables.replace(**changes)
        return new

    def broadest_rate(self, category_BN: jax.Array, leaf_index_B: jax.Array) -> jax.Array | None:
        """`base_rate.LabelShares.broadest`; None without label shares."""
        shares = self._tables.label_shares
        return None if shares is None else shares.broadest(category_BN, leaf_index_B)

    def tree_flatten(self):
        return (self._tables,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        new = object.__new__(cls)
        (new._tables,) = children
        return new

    def verify(
        self, tokens_BNT: jax.Array, mask_BNT: jax.Array, leaf_index_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Categories of responses; traceable. See `verify_in_detail`."""
        return self.verify_in_detail(tokens_BNT, mask_BNT, leaf_index_B)[:2]

    def verify_in_detail(
        self, tokens_BNT: jax.Array, mask_BNT: jax.Array, leaf_index_B: jax.Array
    ) -> InGraphVerdicts:
        """Categories of responses, and whether the tree decided; traceable.

        Args:
          tokens_BNT: int32 response tokens; ids outside of the vocabulary have no bytes.
          mask_BNT: bool; where False, a token is not part of the response.
          leaf_index_B: int32 `Taxonomy.leaf_index` of the true label.

        Returns:
          Categories. A verdict always exists, but for a row whose leaf index is no leaf (a padding
          row, say): that one is UNPARSED and not valid.

        Raises:
          ValueError: the shapes do not agree.
        """
        if tokens_BNT.ndim != 3 or not tokens_BNT.size or tokens_BNT.shape != mask_BNT.shape:
            raise ValueError(
                f"tokens have shape {tokens_BNT.shape} and mask {mask_BNT.shape}; "
                "both must be [B, N, T], none of them 0"
            )
        if leaf_index_B.shape != tokens_BNT.shape[:1]:
            raise ValueError(
                f"leaf_index has shape {leaf_index_B.shape} and tokens {tokens_BNT.shape}; "
                "give one leaf for each of the B images"
            )
        over_n = jax.vmap(_verify_one, in_axes=(None, 0, 0, None))
        over_b = jax.vmap(over_n, in_axes=(None, 0, 0, 0))
        return over_b(self._tables, tokens_BNT, mask_BNT.astype(bool), leaf_index_B)


def _verify_one(
    tables: _Tables, tokens_T: jax.Array, mask_T: jax.Array, leaf_index: jax.Array
) -> InGraphVerdicts:
    """The verdict on one response; all fields are scalars."""
    size = tokens_T.shape[0] * tables.tokens.longest
    if tables.max_response_bytes is not None:
        size = min(size, tables.max_response_bytes)
    text_L, total = parsing_on_device.spell(tables.tokens, tokens_T, mask_T, size)
    found, start, stop = parsing_on_device.answer_span(text_L, tags=tables.tags)
    phrase = parsing_on_device.phrase_bytes(
        tables.typography, text_L, start, stop, tables.names.powers_P.shape[0]
    )
    leaves = tables.names.category_MF.shape[1]
    valid = (leaf_index >= 0) & (leaf_index < leaves)
    leaf = jnp.clip(leaf_index, 0, leaves - 1)
    reading = matching_on_device.read(tables.names, phrase)
    category, known = matching_on_device.compare(tables.names, reading, leaf)
    readable = found & (total <= size) & (phrase.length > 0)
    parsed = readable & valid
    category = jnp.where(parsed, category, Category.UNPARSED)
    within_A = jnp.arange(phrase.bytes_A.size) < phrase.length
    answer = parsing_on_device.text_hash(phrase.bytes_A, within_A & readable)
    rate = category_F = None
    if tables.label_shares is not None:
        rate = jnp.where(readable, tables.label_shares.rate(tables.names, reading), 0.0)
    if tables.every_label:
        judge = jax.vmap(matching_on_device.compare, in_axes=(None, None, 0))
        category_F, _ = judge(tables.names, reading, jnp.arange(leaves))
        category_F = jnp.where(readable, category_F, Category.UNPARSED).astype(jnp.int8)
    return InGraphVerdicts(
        category_BN=category.astype(jnp.int32),
        valid_BN=valid,
        matched_BN=known | ~parsed,
        answer_BN=answer,
        base_rate_BN=rate,
        category_BNF=category_F,
    )


def create(
    token_bytes: Sequence[bytes],
    dataset_path: str | os.PathLike | None,
    *,
    path: str,
    tags: str,
    max_words: int,
    max_answer_bytes: int,
    max_response_bytes: int,
) -> tuple[Taxonomy, TaxonomyVerifier]:
    """What `config.verifier.name = "taxonomy"` stands for.

    Args:
      token_bytes: of the policy's vocabulary.
      dataset_path: the data set's own label tree, or None.
      path: another label tree; "" for the data set's own.
      tags: as for `parsing.extract`.
      max_words: as for `Taxonomy`.
      max_answer_bytes: as for `TaxonomyVerifier`.
      max_response_bytes: as for `TaxonomyVerifier`.

    Returns:
      The names on the host, whose `leaf_index` numbers the labels, and the verifier.

    Raises:
      ValueError: there is no label tree, or it is not valid.
    """
    parsing.check_tags(tags)
    if not (path or dataset_path):
        raise ValueError(
            "this data set brings no label tree; set config.verifier.options.path to a JSON file "
            "in the format of verifiers/label_tree/schema.py"
        )
    taxonomy = Taxonomy.from_file(path or dataset_path, max_words=max_words)
    verifier = TaxonomyVerifier(
        taxonomy,
        token_bytes,
        max_answer_bytes=max_answer_bytes,
        max_response_bytes=max_response_bytes,
        tags=tags,
    )
    return taxonomy, verifier
