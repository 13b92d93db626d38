"""The taxonomy verifier: an answer is looked up among the names around the true label.

`Taxonomy` decides on the host, from text. `TaxonomyVerifier` decides on the device, from tokens,
and agrees with it on every response of at most `max_response_bytes`; a longer one is UNPARSED on
the device. Nothing is guessed: an answer that equals no name is wrong, so lists, "A or B",
sentences, markup, instructions and invisible characters earn nothing.

The format of the file is in `taxonomy_file`.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import parsing, parsing_on_device
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree import schema, word_forms

# An odd multiplier of a polynomial hash modulo 2**32 (the one of FNV-1a, 32 bits).
_MULTIPLIER = 16777619


class Explanation(NamedTuple):
    """Why an answer got its category: the key compared, and what it matched ("" for nothing)."""

    category: Category
    key: bytes
    match: str


class Taxonomy:
    """Names around each leaf, and the verdict on an answer (host side; the oracle).

    An answer is compared by `parsing.key`, so case, punctuation, dashes and a leading article do
    not matter. For the true leaf, a key that is
      - its name or a synonym is SPECIFIC,
      - a name of a hyponym is MORE_SPECIFIC,
      - a name of its group is GENERIC,
      - a name of an ancestor below the group is LESS_SPECIFIC,
      - one of `abstentions` is ABSTAIN,
      - empty is UNPARSED,
      - anything else, siblings and answers longer than any name included, is WRONG.
    If a key has several of these relations to the leaf, the first of this list counts. A word with
    several senses ("mouse") is judged in the sense of the true leaf, as each leaf has its own list.
    Simple plurals and accent-free spellings (`word_forms`) count as their name, unless they are
    the name or a synonym of another leaf ("glasses" is no plural where it is a leaf).

    Attributes:
      data: the content of the file.
      leaf_ids: the leaves in the order of the file; `leaf_index` numbers them.
      leaf_names: their names, in the same order.
      names: the keys of all names and forms, as sorted strings.
      relations: for each leaf, in the same order, a dict from key to (category, description).
      abstentions: the keys of the abstentions.
    """

    def __init__(
        self,
        data: Mapping,
        *,
        source: str = "taxonomy",
        max_words: int = 8,
        abstentions: Iterable[str] = parsing.ABSTENTIONS,
        word_forms_too: bool = True,
    ):
        """Checks and indexes a taxonomy.

        Args:
          data: the content of a taxonomy file (format: `taxonomy_file`).
          source: what errors call it.
          max_words: the most words a name may have. As no name is longer, a longer answer is WRONG.
          abstentions: phrases that decline to answer.
          word_forms_too: accept plurals and other spellings of names.

        Raises:
          ValueError: a field is missing or malformed, a name has too many words, or a name is also
            an abstention.
        """
        schema.check(data, source)
        self.data = data
        self.abstentions = frozenset(map(parsing.key, abstentions))
        self.leaf_ids = tuple(data["leaves"])
        self.leaf_names = tuple(leaf["name"] for leaf in data["leaves"].values())
        self._index = {leaf_id: i for i, leaf_id in enumerate(self.leaf_ids)}
        labels = {
            parsing.key(name)
            for leaf in data["leaves"].values()
            for name in (leaf["name"], *leaf.get("synonyms", []))
        }
        forms = _Forms(labels | self.abstentions) if word_forms_too else None
        self.relations = []
        for leaf_id, leaf in data["leaves"].items():
            relation = {}
            entries = list(schema.relations(leaf, data["groups"]))
            for name, category, match in entries:
                key = parsing.key(name)
                self._check_key(key, name, max_words, f"{source}: leaf {leaf_id!r}")
                relation.setdefault(key, (category, match))
            for name, category, match in entries if forms else ():
                for key in forms(name):
                    relation.setdefault(key, (category, "form of " + match))
            self.relations.append(relation)
        keys = sorted(set().union(*self.relations))
        self.names = tuple(key.decode("utf-8", "surrogatepass") for key in keys)

    @classmethod
    def from_file(cls, path: str | os.PathLike, **options) -> "Taxonomy":
        """Reads a taxonomy file; `options` as for the constructor.

        Raises:
          ValueError: the file cannot be read, is no JSON, or is no valid taxonomy.
        """
        return cls(schema.read(path), source=str(path), **options)

    def _check_key(self, key: bytes, name: str, max_words: int, where: str) -> None:
        words = key.count(b" ") + 1
        if words > max_words:
            raise ValueError(
                f"{where}: the name {name!r} has {words} words, and max_words is {max_words}; "
                "raise max_words or remove the name"
            )
        if key in self.abstentions:
            raise ValueError(
                f"{where}: the name {name!r} is also an abstention; rename one of them"
            )

    def leaf_index(self, leaf_id: str) -> int:
        """The number of a leaf, as `TaxonomyVerifier.verify` wants it."""
        if leaf_id not in self._index:
            raise ValueError(f"leaf {leaf_id!r} is not among the {len(self.leaf_ids)} leaves")
        return self._index[leaf_id]

    def explain(self, answer_text: str, leaf_id: str) -> Explanation:
        """The category of an answer (the content of the tags) and what it matched."""
        relation = self.relations[self.leaf_index(leaf_id)]
        key = parsing.key(answer_text)
        if not key:
            return Explanation(Category.UNPARSED, key, "")
        if key in relation:
            return Explanation(relation[key][0], key, relation[key][1])
        if key in self.abstentions:
            return Explanation(Category.ABSTAIN, key, "abstention")
        return Explanation(Category.WRONG, key, "")

    def category(self, answer_text: str, leaf_id: str) -> Category:
        """The category of an answer: the content of the answer tags."""
        return self.explain(answer_text, leaf_id).category

    def response_category(
        self, text: str, leaf_id: str, *, require_think: bool = False
    ) -> Category:
        """The category of a whole response, tags included (`parsing.extract`)."""
        content = parsing.extract(text, require_think=require_think)
        return Category.UNPARSED if content is None else self.category(content, leaf_id)


class _Forms:
    """Keys of the other forms of a name, less the keys that are taken; remembers them."""

    def __init__(self, taken: frozenset[bytes] | set[bytes]):
        self._taken = taken
        self._known = {}

    def __call__(self, name: str) -> set[bytes]:
        if name not in self._known:
            spelt = word_forms.spellings(name)
            keys = set(map(parsing.key, spelt))
            for key in {parsing.key(name), *keys}:
                text = key.decode("utf-8", "surrogatepass")
                keys |= {form.encode("utf-8", "surrogatepass") for form in word_forms.plurals(text)}
            self._known[name] = keys - self._taken - {b""}
        return self._known[name]


@flax.struct.dataclass
class _Tables:
    """What the device needs; C names (abstentions included) in the order of their hashes.

    Attributes:
      tokens: bytes of the vocabulary.
      powers_A: uint32 powers of the multiplier.
      hash_C: uint32, sorted.
      name_CA: uint8 keys, zero-padded.
      category_CF: int8 `Category` of a name for each of the F leaves.
      longest_run: static, how many names share one hash at most.
      max_response_bytes: static, or None for as many as the tokens can have.
      require_think: static.
    """

    tokens: parsing_on_device.TokenBytes
    powers_A: jax.Array
    hash_C: jax.Array
    name_CA: jax.Array
    category_CF: jax.Array
    longest_run: int = flax.struct.field(pytree_node=False)
    max_response_bytes: int | None = flax.struct.field(pytree_node=False)
    require_think: bool = flax.struct.field(pytree_node=False)


def _hash(key_A, powers_A, xp):
    """Polynomial hash; the zeros that pad a key add nothing, and no key holds a zero byte."""
    return xp.sum(key_A.astype(xp.uint32) * powers_A, axis=-1, dtype=xp.uint32)


def _build_tables(taxonomy: Taxonomy, max_answer_bytes: int) -> dict:
    """Arrays of `_Tables` as numpy, but for the vocabulary, and `longest_run`."""
    keys = sorted(set(taxonomy.abstentions).union(*taxonomy.relations))
    longest = max(keys, key=len)
    if len(longest) > max_answer_bytes:
        raise ValueError(
            f"the name {longest.decode('utf-8', 'replace')!r} has {len(longest)} bytes, and "
            f"max_answer_bytes is {max_answer_bytes}; raise max_answer_bytes or remove the name"
        )
    name_CA = np.zeros((len(keys), max_answer_bytes), np.uint8)
    for row, key in zip(name_CA, keys, strict=True):
        row[: len(key)] = np.frombuffer(key, np.uint8)
    powers = [pow(_MULTIPLIER, i + 1, 2**32) for i in range(max_answer_bytes)]
    powers_A = np.asarray(powers, np.uint32)
    hash_C = _hash(name_CA, powers_A, np)
    order_C = np.argsort(hash_C, kind="stable")
    row_of = {keys[old]: new for new, old in enumerate(order_C)}
    category_CF = np.full((len(keys), len(taxonomy.leaf_ids)), Category.WRONG, np.int8)
    for key in taxonomy.abstentions:
        category_CF[row_of[key]] = Category.ABSTAIN
    for i, relation in enumerate(taxonomy.relations):
        for key, (category, _) in relation.items():
            category_CF[row_of[key], i] = category
    return {
        "powers_A": powers_A,
        "hash_C": hash_C[order_C],
        "name_CA": name_CA[order_C],
        "category_CF": category_CF,
        "longest_run": int(np.unique(hash_C, return_counts=True)[1].max()),
    }


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
        require_think: bool = False,
    ):
        """Builds the tables.

        Args:
          taxonomy: the names.
          token_bytes: the bytes of each vocabulary id; b"" for special tokens.
          max_answer_bytes: the longest key that is compared; no name may be longer.
          max_response_bytes: size of the byte buffer of a response; a response with more bytes is
            UNPARSED. None: as many as T of the longest tokens have, which always suffices.
          require_think: as for `parsing.extract`.

        Raises:
          ValueError: a name is too long, `token_bytes` is empty, or `max_response_bytes` < 1.
        """
        if max_response_bytes is not None and max_response_bytes < 1:
            raise ValueError(f"max_response_bytes is {max_response_bytes}; give at least 1 or None")
        tables = _build_tables(taxonomy, max_answer_bytes)
        self._tables = _Tables(
            tokens=parsing_on_device.TokenBytes.create(token_bytes),
            **{k: v if isinstance(v, int) else jnp.asarray(v) for k, v in tables.items()},
            max_response_bytes=max_response_bytes,
            require_think=require_think,
        )

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
        """Categories of responses; traceable.

        Args:
          tokens_BNT: int32 response tokens; ids outside of the vocabulary have no bytes.
          mask_BNT: bool; where False, a token is not part of the response.
          leaf_index_B: int32 `Taxonomy.leaf_index` of the true label.

        Returns:
          int32 [B, N] `Category` and bool [B, N]: a verdict exists. It always does, but for a row
          whose leaf index is no leaf (a padding row, say): that one is UNPARSED and not valid.

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
) -> tuple[jax.Array, jax.Array]:
    """Category (int32) and validity (bool) of one response."""
    size = tokens_T.shape[0] * tables.tokens.longest
    if tables.max_response_bytes is not None:
        size = min(size, tables.max_response_bytes)
    text_L, total = parsing_on_device.spell(tables.tokens, tokens_T, mask_T, size)
    found, start, stop = parsing_on_device.answer_span(text_L, require_think=tables.require_think)
    max_answer_bytes = tables.powers_A.shape[0]
    key_A, length = parsing_on_device.key_bytes(text_L, start, stop, max_answer_bytes)
    parsed = found & (total <= size) & (length > 0)

    leaves = tables.category_CF.shape[1]
    valid = (leaf_index >= 0) & (leaf_index < leaves)
    leaf = jnp.clip(leaf_index, 0, leaves - 1)
    row = jnp.searchsorted(tables.hash_C, _hash(key_A, tables.powers_A, jnp))
    category = jnp.int32(Category.WRONG)
    for i in range(tables.longest_run):
        c = jnp.minimum(row + i, tables.hash_C.shape[0] - 1)
        same = jnp.all(tables.name_CA[c] == key_A) & (length <= max_answer_bytes)
        category = jnp.where(same, tables.category_CF[c, leaf].astype(jnp.int32), category)
    return jnp.where(parsed & valid, category, Category.UNPARSED).astype(jnp.int32), valid


def create(
    token_bytes: Sequence[bytes],
    dataset_path: str | os.PathLike | None,
    *,
    path: str,
    require_think: bool,
    max_words: int,
    max_answer_bytes: int,
    max_response_bytes: int,
) -> tuple[Taxonomy, TaxonomyVerifier]:
    """What `config.verifier.name = "taxonomy"` stands for.

    Args:
      token_bytes: of the policy's vocabulary.
      dataset_path: the data set's own label tree, or None.
      path: another label tree; "" for the data set's own.
      require_think: as for `parsing.extract`.
      max_words: as for `Taxonomy`.
      max_answer_bytes: as for `TaxonomyVerifier`.
      max_response_bytes: as for `TaxonomyVerifier`.

    Returns:
      The names on the host, whose `leaf_index` numbers the labels, and the verifier.

    Raises:
      ValueError: there is no label tree, or it is not valid.
    """
    if not (path or dataset_path):
        raise ValueError(
            "this data set brings no label tree; set config.verifier.options.path to a JSON file "
            "in the format of verify/taxonomy_file.py"
        )
    taxonomy = Taxonomy.from_file(path or dataset_path, max_words=max_words)
    verifier = TaxonomyVerifier(
        taxonomy,
        token_bytes,
        max_answer_bytes=max_answer_bytes,
        max_response_bytes=max_response_bytes,
        require_think=require_think,
    )
    return taxonomy, verifier
