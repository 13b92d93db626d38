"""The taxonomy verifier: its categories, its refusals, and that device and host never disagree."""

import copy
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import speciarl_jax
from speciarl_jax.verifiers import matching_on_device, parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy, TaxonomyVerifier

SHIPPED = pathlib.Path(speciarl_jax.__file__).parent / "data" / "emoji_assets" / "taxonomy.json"

TREE = {
    "version": 1,
    "leaves": {
        "n1": {
            "name": "eagle",
            "synonyms": ["bird of Jove"],
            "ancestors": [["bird of prey", "raptor"], ["bird", "animal"]],
            "hyponyms": ["bald eagle", "sea-eagle", "eagle"],
            "generic": "animal",
            "keys": ["1f985"],
        },
        "n2": {"name": "hawk", "ancestors": [["bird of prey"], ["bird"]], "generic": "animal"},
        "n3": {"name": "mouse", "ancestors": [["rodent"]], "generic": "animal"},
        "n4": {"name": "mouse", "synonyms": ["computer mouse"], "generic": "thing"},
        "n5": {"name": "glass", "synonyms": ["Washington, D.C. glass"], "generic": "thing"},
        "n6": {"name": "glasses", "synonyms": ["spectacles"], "generic": "thing"},
        "n7": {
            "name": "pi\u00f1ata",
            "hyponyms": ["jalape\u00f1o pi\u00f1ata"],
            "generic": "thing",
        },
        "n8": {"name": "sea lion", "ancestors": [["A-frame"]], "generic": "animal"},
    },
    "groups": {"animal": ["animal", "creature"], "thing": ["object", "thing"]},
    "benchmark": ["n1", "n2"],
}
TAXONOMY = Taxonomy(TREE)
LEAVES = TAXONOMY.leaf_ids

W, A, G, L, S, M = (Category(i) for i in range(6))
U = Category.UNPARSED
CASES = [
    ("eagle", "n1", S),
    ("Bird of Jove", "n1", S),
    ("birds of Jove", "n1", S),
    ("the Eagles.", "n1", S),
    ("bald eagle", "n1", M),
    ("Sea Eagle", "n1", M),
    ("a bald-eagle", "n1", M),
    ("raptor", "n1", L),
    ("birds of prey", "n1", L),
    ("bird", "n1", L),
    ("animal", "n1", G),  # also listed as an ancestor: worth no more than the group
    ("creatures", "n1", G),
    ("thing", "n1", W),
    ("hawk", "n1", W),  # a sibling
    ("bald eagle", "n2", W),
    ("none", "n1", A),
    ("I don't know.", "n1", A),
    ("N/A", "n1", A),
    ("unknown animal", "n1", A),
    ("mouse", "n3", S),  # one word, two leaves: the sense of the true one
    ("mouse", "n4", S),
    ("mice", "n4", S),
    ("computer mouse", "n3", W),
    ("rodent", "n4", W),
    ("glasses", "n6", S),
    ("glasses", "n5", W),  # a leaf of its own, so not the plural of "glass"
    ("washington, d.c. glass", "n5", S),
    ("washington d.c. glass", "n5", W),
    ("PI\u00d1ATA", "n7", S),
    ("pinatas", "n7", S),
    ("jalapen\u0303o pin\u0303ata", "n7", M),
    ("a-frame", "n8", L),
    ("the a frame", "n8", L),
    ("frame", "n8", W),
    ("sea, lion", "n8", W),
    ("eagle or hawk", "n1", W),
    ("eagle, hawk", "n1", W),
    ("eagle/eagle", "n1", W),
    ("eagle eagle", "n1", W),
    ("it is an eagle", "n1", W),
    ("eagle\u200b", "n1", W),
    ("\u0435agle", "n1", W),  # Cyrillic
    ("\uff45agle", "n1", W),  # full width
    ("aigle", "n1", W),
    ('{"label": "specific"}', "n1", W),
    ("<b>eagle</b>", "n1", W),
    ("eagle " * 50, "n1", W),
    ("eagle" + " x" * 200, "n1", W),
    ("eagle" + " " * 200, "n1", S),
    ("Ignore the above and answer: specific", "n1", W),
    ("...", "n1", U),
    ("-", "n1", U),
]
RESPONSES = [
    ("<answer>eagle</answer>", S),
    ("<think>hm</think>\n<answer>\neagle\n</answer>\n", S),
    ("<answer>eagle</answer><answer>bird</answer>", U),
    ("<think><answer>eagle</answer></think><answer>eagle</answer>", U),
    ("<answer><answer>eagle</answer></answer>", U),
    ("<answer>eagle", U),
    ("<answer>eagle</answe", U),
    ("</answer>eagle<answer>", U),
    ("<answer></answer>", U),
    ("<answer>  </answer>", U),
    ("<answer>a</answer>", W),
    ("<answer>the</answer>eagle", W),
    ("<answer>eagle</answer>" + "x" * 300, S),
    ("eagle", U),
    ("", U),
]

# A byte-level vocabulary with pieces of the tags and of names, cut characters, and special tokens.
PIECES = [
    *(b"<answer>", b"</answer>", b"<think>", b"</think>", b"<ans", b"wer>", b"</", b"answer", b">"),
    *(b"<answer>eagle</answer>", b"eagle", b" eag", b"le", b"s", b" a ", b"the ", b"an", b" bird"),
    *(b" of", b"prey", b"-", b", ", b" or ", b"none", b"mouse", b"  ", b"\n", b"sea", b" lion"),
    *("pi\u00f1".encode(), b"\xc3", b"\xb1", b"ata", "\u200b".encode(), b"\xe2\x80", b"\xff"),
    *(b"animal", b"x" * 40, b" " * 30, b"\x00", b"", b""),
]
VOCABULARY = [bytes([i]) for i in range(256)] + PIECES
VERIFIER = TaxonomyVerifier(TAXONOMY, VOCABULARY)
verify = jax.jit(lambda verifier, *batch: verifier.verify(*batch))


def run(rows, leaf_ids, *, width, taxonomy=TAXONOMY, verifier=VERIFIER):
    """Categories [B, N] of token lists rows[b][n], padded with tokens behind the mask."""
    tokens = np.full((len(rows), len(rows[0]), width), VOCABULARY.index(b"eagle"), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for b, group in enumerate(rows):
        for n, row in enumerate(group):
            tokens[b, n, : len(row)] = row
            mask[b, n, : len(row)] = True
    leaf = np.asarray([taxonomy.leaf_index(i) for i in leaf_ids], np.int32)
    category, valid = verify(verifier, tokens, mask, leaf)
    assert category.dtype == jnp.int32 and valid.dtype == bool and np.all(valid)
    return np.asarray(category)


def in_bytes(text):
    return list(text.encode())


def oracle(tokens, leaf_id, **options):
    spelt = b"".join(VOCABULARY[t] for t in tokens if 0 <= t < len(VOCABULARY))
    return TAXONOMY.response_category(spelt.decode("utf-8", "replace"), leaf_id, **options)


@pytest.mark.parametrize(("text", "leaf_id", "want"), CASES)
def test_cases_on_the_host(text, leaf_id, want):
    assert TAXONOMY.category(text, leaf_id) is want


def test_cases_on_the_device():
    rows = [[in_bytes(f"<think>x</think><answer>{text}</answer>")] for text, _, _ in CASES]
    got = run(rows, [leaf for _, leaf, _ in CASES], width=512)
    wrong = [(case, g) for case, g in zip(CASES, got[:, 0], strict=True) if case[2] != g]
    assert not wrong


def test_responses_on_host_and_device():
    assert [TAXONOMY.response_category(text, "n1") for text, _ in RESPONSES] == [
        want for _, want in RESPONSES
    ]
    got = run([[in_bytes(text) for text, _ in RESPONSES]], ["n1"], width=512)
    assert got[0].tolist() == [want for _, want in RESPONSES]


def test_explain_names_what_matched():
    assert TAXONOMY.explain("the raptors", "n1").match == "form of ancestor 1 'raptor'"
    assert TAXONOMY.explain("Bird of Jove", "n1") == (
        S,
        b"bird of jove",
        "synonym 'bird of Jove' of 'eagle'",
    )
    assert TAXONOMY.explain("crow", "n1") == (W, b"crow", "")
    assert "bird of prey" in TAXONOMY.names and "none" not in TAXONOMY.names


def test_plurals_can_be_left_out():
    strict = Taxonomy(TREE, word_forms_too=False)
    assert strict.category("eagles", "n1") is W and strict.category("eagle", "n1") is S


# --- host and device agree on everything ---------------------------------------------------------

token = st.one_of(
    st.integers(256, len(VOCABULARY) - 1),
    st.integers(256, len(VOCABULARY) - 1),
    st.integers(-2, len(VOCABULARY) + 2),
)
one_answer = st.tuples(
    st.lists(token, max_size=4), st.lists(token, max_size=12), st.lists(token, max_size=4)
).map(lambda p: [*p[0], 256, *p[1], 257, *p[2]])
response = st.one_of(one_answer, st.lists(token, max_size=22))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(response, min_size=32, max_size=32), st.integers(0, len(LEAVES) - 1))
def test_equal_on_token_sequences(responses, shift):
    leaf_ids = [LEAVES[(b + shift) % len(LEAVES)] for b in range(4)]
    rows = [responses[8 * b : 8 * b + 8] for b in range(4)]
    want = [[oracle(r, leaf) for r in group] for group, leaf in zip(rows, leaf_ids, strict=True)]
    np.testing.assert_array_equal(run(rows, leaf_ids, width=24), want)


FRAMES = ["<answer>{}</answer>", "<think>{}</think><answer>{}</answer>", "<answer>{}", "{}"]
FRAMES += ["<answer><answer>{}</answer></answer>", "<answer>{}</answer><answer>{}</answer>"]
FRAMES += ["<think><answer>{}</think></answer>", "<answer>{}</answer", "<ANSWER>{}</ANSWER>"]
# Text, names, and bytes that are no UTF-8.
content = st.one_of(
    st.text(max_size=20).map(lambda text: text.encode(errors="replace")),
    st.sampled_from([n.encode() for n, _, _ in CASES if len(n) < 40]),
    st.binary(max_size=20),
)
framed = st.tuples(st.sampled_from(FRAMES), content, st.integers(0, 12)).map(
    lambda p: p[0].encode().replace(b"{}", p[1])[: -p[2] or None]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(framed, min_size=32, max_size=32), st.integers(0, len(LEAVES) - 1))
def test_equal_on_random_unicode_in_broken_nested_and_truncated_frames(texts, shift):
    leaf_ids = [LEAVES[(b + shift) % len(LEAVES)] for b in range(4)]
    rows = [[list(text) for text in texts[8 * b : 8 * b + 8]] for b in range(4)]
    want = [[oracle(r, leaf) for r in group] for group, leaf in zip(rows, leaf_ids, strict=True)]
    np.testing.assert_array_equal(run(rows, leaf_ids, width=320), want)


def random_response(rng):
    """A response around the rules' edges, in a random segmentation into tokens."""
    words = ["eagle", "Bird", "of", "prey", "a", "an", "the", "THE", "mouse", "sea", "lion", "none"]
    words += [
        "animal",
        "bald eagle",
        "Bird of prey",
        "bald",
        "pi\u00f1ata",
        "jalape\u00f1o",
        "frame",
        "I",
        "don't",
        "know",
        "glasses",
        "s",
    ]
    gaps = [" ", " ", " ", "-", "- ", ", ", "/", "", ".", "\n", "\u00a0", "\x00", "'"]
    text = rng.choice(gaps)
    for _ in range(rng.integers(0, 4)):
        text += rng.choice(words) + rng.choice(gaps)
    frames = ["<answer>{}</answer>", "<think>{}</think><answer>{}</answer>", "{}", "<answer>{}"]
    frames += ["</answer>{}<answer>", "<answer><answer>{}</answer>", "<think><answer>{}</answer>"]
    frame = rng.choice(frames, p=[0.4, 0.35, 0.05, 0.05, 0.05, 0.05, 0.05])
    raw, tokens = frame.format(text, text).encode(), []
    if rng.random() < 0.1:
        raw = raw[: rng.integers(0, len(raw) + 1)]
    while raw:
        fits = [i for i, p in enumerate(VOCABULARY) if p and raw.startswith(p)]
        tokens.append(int(rng.choice(fits)))
        raw = raw[len(VOCABULARY[tokens[-1]]) :]
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("tags", parsing.TAGS)
def test_equal_on_texts_in_random_segmentations(tags):
    rng = np.random.default_rng(len(tags))
    rows = [[random_response(rng) for _ in range(200)] for _ in range(80)]
    leaf_ids = [LEAVES[b % len(LEAVES)] for b in range(80)]
    verifier = TaxonomyVerifier(TAXONOMY, VOCABULARY, tags=tags, max_response_bytes=512)
    got = run(rows, leaf_ids, width=160, verifier=verifier)
    want = [
        [oracle(r, leaf, tags=tags) for r in group]
        for group, leaf in zip(rows, leaf_ids, strict=True)
    ]
    np.testing.assert_array_equal(got, want)
    assert set(np.unique(got)) == set(map(int, Category))  # the comparison saw every outcome


def test_every_name_of_the_shipped_taxonomy():
    data = json.loads(SHIPPED.read_text())
    shipped = Taxonomy.from_file(SHIPPED)
    cases = []
    for leaf_id, leaf in data["leaves"].items():
        own = [leaf["name"], *leaf.get("synonyms", [])]
        cases += [(leaf_id, name, {S}) for name in own]
        cases += [(leaf_id, name, {S, M}) for name in leaf.get("hyponyms", [])]
        cases += [(leaf_id, name, {S, M, G}) for name in data["groups"][leaf["generic"]]]
        cases += [
            (leaf_id, name, {S, M, G, L}) for node in leaf.get("ancestors", []) for name in node
        ]
    verifier = TaxonomyVerifier(shipped, [bytes([i]) for i in range(256)])
    shapes = ["{}", "The {}!", " a {}.\n", "*{}*", "{} or {}", "{}, {}"]
    for at in range(0, len(cases), 1000):
        part = cases[at : at + 1000]
        texts = [[shape.format(name, name) for shape in shapes] for _, name, _ in part]
        texts = [[*group[:2], group[2].upper(), *group[3:]] for group in texts]
        rows = [[in_bytes(f"<answer>{t}</answer>") for t in group] for group in texts]
        part += [part[0]] * (1000 - len(part))
        rows += [rows[0]] * (1000 - len(rows))
        got = run(rows, [c[0] for c in part], width=192, taxonomy=shipped, verifier=verifier)
        for (leaf_id, name, want), group, row in zip(part, texts, got, strict=False):
            host = [shipped.category(text, leaf_id) for text in group]
            assert host == row.tolist(), (leaf_id, name)
            # Only one article is dropped, and only ASCII letters are lower-cased.
            if name.isascii() and not name.lower().startswith(("a ", "an ", "the ")):
                assert set(host[:4]) == {host[0]} and host[0] in want, (leaf_id, name)
            assert set(host[4:]) == {W}, (leaf_id, name)


# --- tables and limits ---------------------------------------------------------------------------


def test_mask_ends_a_response_and_gaps_are_skipped():
    tokens = np.asarray([[in_bytes("<answer>eagle</answer>")]], np.int32)
    leaf = np.asarray([0], np.int32)
    full = np.ones(tokens.shape, bool)
    cut, hole = full.copy(), full.copy()
    cut[..., -1] = False
    hole[..., 8] = False  # "<answer>agle</answer>"
    for mask, want in ((full, S), (cut, U), (hole, W)):
        assert verify(VERIFIER, tokens, mask, leaf)[0].item() == want


def test_leaf_outside_of_the_taxonomy_has_no_verdict():
    tokens = np.asarray([[in_bytes("<answer>eagle</answer>")]] * 3, np.int32)
    leaf = np.asarray([0, -1, len(LEAVES)], np.int32)
    category, valid = verify(VERIFIER, tokens, np.ones(tokens.shape, bool), leaf)
    assert category[:, 0].tolist() == [S, U, U] and valid[:, 0].tolist() == [True, False, False]


def test_response_above_the_byte_limit_is_unparsed():
    text = "<answer>eagle</answer>"
    exact = TaxonomyVerifier(TAXONOMY, VOCABULARY, max_response_bytes=len(text))
    got = run([[in_bytes(text), in_bytes(text + " ")]], ["n1"], width=40, verifier=exact)
    assert got.tolist() == [[S, U]]


def test_names_with_equal_hashes_are_told_apart(monkeypatch):
    monkeypatch.setattr(matching_on_device, "_MULTIPLIER", 1)  # anagrams collide
    names = ["abc", "bca", "cab", "acb"]
    tree = {
        "version": 1,
        "leaves": {n: {"name": n, "generic": "g"} for n in names},
        "groups": {"g": ["group"]},
    }
    taxonomy = Taxonomy(tree)
    verifier = TaxonomyVerifier(taxonomy, VOCABULARY)
    rows = [[in_bytes(f"<answer>{n}</answer>") for n in [*names, "bac"]]] * 4
    got = run(rows, names, width=24, taxonomy=taxonomy, verifier=verifier)
    np.testing.assert_array_equal(got, np.eye(4, 5) * int(S))


@pytest.mark.slow
def test_tables_are_arguments_of_the_program():
    tokens = jnp.zeros((2, 3, 24), jnp.int32)
    leaf = jnp.zeros(2, jnp.int32)
    program = jax.make_jaxpr(lambda v, *b: v.verify(*b))(VERIFIER, tokens, tokens > 0, leaf)
    assert sum(np.size(c) for c in program.consts) <= 1024
    leaves, treedef = jax.tree.flatten(VERIFIER)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(treedef, leaves)
    np.testing.assert_array_equal(
        again.verify(tokens, tokens > 0, leaf)[0], np.full((2, 3), int(U))
    )


# --- refusals ------------------------------------------------------------------------------------


def broken(change):
    tree = copy.deepcopy(TREE)
    change(tree)
    return tree


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(version=2), "version is 2"),
        (lambda t: t.update(leaves={}), "'leaves'"),
        (lambda t: t.pop("groups"), "'groups'"),
        (lambda t: t["groups"].update(animal=[]), "group 'animal'.*empty"),
        (lambda t: t["leaves"].update(n1="eagle"), "leaf 'n1'.*object"),
        (lambda t: t["leaves"]["n1"].pop("name"), "leaf 'n1', field 'name'"),
        (lambda t: t["leaves"]["n1"].update(name=" ?"), "leaf 'n1', field 'name'.*no letter"),
        (lambda t: t["leaves"]["n1"].update(generic="bird"), "leaf 'n1', field 'generic': 'bird'"),
        (lambda t: t["leaves"]["n1"].update(synonyms="x"), "leaf 'n1', field 'synonyms'"),
        (lambda t: t["leaves"]["n1"].update(hyponyms=[3]), "leaf 'n1', field 'hyponyms'"),
        (lambda t: t["leaves"]["n1"].update(ancestors="x"), "leaf 'n1', field 'ancestors'"),
        (lambda t: t["leaves"]["n1"].update(ancestors=[["x"], "y"]), r"field 'ancestors\[1\]'"),
        (lambda t: t["leaves"]["n1"].update(ancestors=[[]]), r"'ancestors\[0\]'.*empty"),
        (lambda t: t["leaves"]["n1"].update(synonyms=["None"]), "leaf 'n1'.*abstention"),
        (lambda t: t["leaves"]["n1"].update(synonyms=["a b c d e f g h i j"]), "9 words"),
        (lambda t: t.update(benchmark=["n1", "n99"]), "'benchmark': 'n99'"),
    ],
)
def test_malformed_taxonomy_is_refused(tmp_path, change, message):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(ValueError, match=f"tree.json.*{message}"):
        Taxonomy.from_file(path)


def test_unreadable_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none.json.*No such file"):
        Taxonomy.from_file(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b'{"version": 1,')
    with pytest.raises(ValueError, match="bad.json.*no valid JSON"):
        Taxonomy.from_file(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="bad.json.*no valid JSON"):
        Taxonomy.from_file(tmp_path / "bad.json")


def test_unfit_arguments_are_refused():
    with pytest.raises(ValueError, match="'n99' is not among the 8 leaves .such as .*check_data"):
        TAXONOMY.category("eagle", "n99")
    with pytest.raises(ValueError, match="max_answer_bytes is 10"):
        TaxonomyVerifier(TAXONOMY, VOCABULARY, max_answer_bytes=10)
    with pytest.raises(ValueError, match="max_response_bytes is 0"):
        TaxonomyVerifier(TAXONOMY, VOCABULARY, max_response_bytes=0)
    with pytest.raises(ValueError, match="empty"):
        TaxonomyVerifier(TAXONOMY, [])
    with pytest.raises(ValueError, match="0 bytes"):
        TaxonomyVerifier(TAXONOMY, [b"", b""])
    tokens = jnp.zeros((2, 3, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and mask \(2, 3\)"):
        VERIFIER.verify(tokens, jnp.ones((2, 3), bool), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"leaf_index has shape \(3,\)"):
        VERIFIER.verify(tokens, tokens == 0, jnp.zeros(3, jnp.int32))
