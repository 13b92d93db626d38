"""The benchmark that ships: what is in it, what an image depends on, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from speciarl_jax.data import augment, emoji
from speciarl_jax.verifiers.taxonomy import Taxonomy

INDEX = json.loads((emoji.ASSETS / "index.json").read_text())


def source(**changes):
    options = dict(split="held_out", difficulty="moderate", image_size=24, seed=0)
    return emoji.Source(**{**options, **changes})


def test_splits_share_no_family_and_use_every_style():
    families = [family for split in emoji.SPLITS.values() for family in split]
    assert sorted(families) == sorted(emoji.STYLE_FAMILIES)  # each one once
    styles = [style for members in emoji.STYLE_FAMILIES.values() for style in members]
    assert sorted(styles) == sorted(INDEX["has"])
    drawn = {}
    for split in emoji.SPLITS:
        rows = source(split=split, difficulty="clean", image_size=8)._rows
        drawn[split] = {row[0] for row in rows}
        assert drawn[split] == {s for f in emoji.SPLITS[split] for s in emoji.STYLE_FAMILIES[f]}
    assert not set.intersection(*drawn.values())


@pytest.mark.parametrize("style", sorted(INDEX["has"]))
def test_a_sheet_has_exactly_the_cells_of_the_index(style):
    cells = emoji._atlas(style)
    assert cells.shape == (len(INDEX["keys"]), emoji.CELL, emoji.CELL, 4)
    visible = (cells[..., 3] > 128).mean(axis=(1, 2))
    has = np.array(INDEX["has"][style])
    assert np.all(visible[~has] == 0)
    assert np.all(visible[has] > 0.02)


def test_concepts_agree_with_the_label_tree_and_the_index():
    tree = json.loads(emoji.TAXONOMY_PATH.read_text())
    found = emoji.concepts("all")
    assert [c.label_id for c in found] == list(tree["leaves"])
    keys = [key for c in found for key in c.keys]
    assert len(set(keys)) == len(keys) and set(keys) <= set(INDEX["keys"])
    for concept in found:
        leaf = tree["leaves"][concept.label_id]
        assert concept.keys and concept.generic in tree["groups"]
        assert concept.ancestors == tuple(names[0] for names in leaf["ancestors"])
        assert concept.generic not in concept.ancestors


def test_no_ancestor_repeats_a_name_of_its_group():
    tree = json.loads(emoji.TAXONOMY_PATH.read_text())
    for label_id, leaf in tree["leaves"].items():
        names = [name for node in leaf["ancestors"] for name in node]
        assert len(set(names)) == len(names), label_id
        assert not set(names) & set(tree["groups"][leaf["generic"]]), label_id


def test_ancestors_come_nearest_first():
    """None stands before another that has only some of its leaves."""
    tree = json.loads(emoji.TAXONOMY_PATH.read_text())
    classes = {key: [node[0] for node in leaf["ancestors"]] for key, leaf in tree["leaves"].items()}
    below = {}
    for key, names in classes.items():
        for name in names:
            below.setdefault(name, set()).add(key)
    # A fried egg is a dish and an egg, and a dagger a cutting tool and a weapon: neither is below.
    for key, names in classes.items():
        for i, name in enumerate(names if key not in ("fried-egg", "dagger") else ()):
            assert not any(below[name] > below[later] for later in names[i + 1 :]), key


def test_every_image_has_a_label_of_the_verifier():
    taxonomy = Taxonomy.from_file(emoji.Source.TAXONOMY_PATH)
    rows = list(source(concept_set="all", difficulty="clean", image_size=8))
    labels = {taxonomy.leaf_index(row["label_id"]) for row in rows}
    assert labels == set(range(len(taxonomy.leaf_ids)))
    for row in rows:
        assert taxonomy.category(row["label"], row["label_id"]).name == "SPECIFIC"
        assert taxonomy.category(row["generic"], row["label_id"]).name == "GENERIC"


@pytest.mark.parametrize("split", sorted(emoji.SPLITS))
def test_the_benchmark_is_large_and_every_split_shows_all_of_it(split):
    images = source(split=split, difficulty="clean", image_size=8)
    labels = {concept.label_id for concept in images.concepts}
    shown = {row[3].label_id for row in images._rows}
    assert len(shown) >= 150
    # One designer drew no more than these of the concepts that are reinforced on.
    assert shown < labels if split == "reinforcement" else shown == labels


def test_an_image_depends_on_its_identity_and_the_seed_alone():
    few, all_of_them = source(domains=["animal"]), source(concept_set="all", views=2)
    by_id = {}
    for i in reversed(range(len(all_of_them))):
        by_id[all_of_them[i]["image_id"]] = all_of_them[i]
    for i in range(0, len(few), 7):
        here, there = few[i], by_id[few[i]["image_id"]]
        np.testing.assert_array_equal(here["image"], there["image"])
        assert {k: v for k, v in here.items() if k != "image"} == {
            k: v for k, v in there.items() if k != "image"
        }


def test_seeds_and_views_differ_and_identities_do_not_clash():
    one, two = source(), source(seed=1)
    assert [row["image_id"] for row in one] == [row["image_id"] for row in two]
    same = [np.array_equal(one[i]["image"], two[i]["image"]) for i in range(len(one))]
    assert not any(same)
    views = source(views=3)
    assert len(views) == 3 * len(one)
    assert len({row["image_id"] for row in views}) == len(views)
    np.testing.assert_array_equal(views[5]["image"], one[5]["image"])
    assert not np.array_equal(views[5]["image"], views[5 + len(one)]["image"])


def test_image_ids_are_the_same_in_every_release():
    (eagle,) = (row for row in source(domains=["animal"]) if row["key"] == "1f985")
    assert eagle["style"] == "twemoji" and eagle["image_id"] == 1384074205


def test_images_have_the_size_and_type_that_are_promised():
    row = source(image_size=40)[0]
    assert row["image"].shape == (40, 40, 3) and row["image"].dtype == np.uint8
    assert row["style"] == "twemoji" and row["difficulty"] == "moderate"
    assert 0 <= row["image_id"] < 2**31


def test_mixed_difficulty_says_which_level_an_image_got():
    levels = [row["difficulty"] for row in source(difficulty="mixed", views=3, image_size=8)]
    for level, share in augment.MIXED.items():
        assert abs(levels.count(level) / len(levels) - share) < 0.08


def test_domains_keep_their_groups():
    groups = {c.generic for c in source(domains=["animal", "food"]).concepts}
    assert groups == {"animal", "food"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(split="test"), "'test' is unknown.*held_out.*pretraining.*reinforcement"),
        (dict(difficulty="brutal"), "'brutal' is unknown.*clean.*easy.*moderate.*hard.*mixed"),
        (dict(domains=["animal", "anmial"]), r"\['anmial'\] are unknown.*'animal'.*'vehicle'"),
        (dict(concept_set="some"), "'some' is unknown.*benchmark.*all"),
        (dict(image_size=7), "image_size is 7 and views 1.*8 and 1"),
        (dict(views=0), "image_size is 24 and views 0"),
        (dict(domains=["furniture"]), r"no concept of 'benchmark'.*\['furniture'\]"),
    ],
)
def test_unknown_choices_are_refused_with_the_known_ones(changes, message):
    with pytest.raises(ValueError, match=message):
        source(**changes)


@pytest.fixture
def assets(tmp_path):
    """A copy of the index and of one sheet."""
    for name in ("index.json", "fxemoji_64.png"):
        shutil.copy(emoji.ASSETS / name, tmp_path / name)
    return tmp_path


def test_a_copied_sheet_is_read_like_the_original(assets):
    np.testing.assert_array_equal(emoji._atlas("fxemoji", assets), emoji._atlas("fxemoji"))


def test_a_missing_sheet_is_named(assets):
    (assets / "fxemoji_64.png").unlink()
    with pytest.raises(ValueError, match=r"fxemoji_64\.png is missing.*build_emoji"):
        emoji._atlas("fxemoji", assets)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_sheet_is_named(assets, damage):
    path = assets / "fxemoji_64.png"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    contents = {"cut": data[:5000], "empty": b"", "text": b"<html>not found</html>"}
    path.write_bytes(contents.get(damage, data))
    with pytest.raises(ValueError, match=r"fxemoji_64\.png is missing or damaged.*build_emoji"):
        emoji._atlas("fxemoji", assets)


def content(name):
    return json.loads((emoji.ASSETS / name).read_text())


def without(name, *path):
    """The text of a file that lacks one key."""
    whole = inner = content(name)
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(whole)


DAMAGED_FILES = {
    "index.json": {
        "missing": None,
        "empty": "",
        "no UTF-8": b"\xff\xfe",
        "cut": json.dumps(INDEX)[:900],
        "no object": "[]",
        "without has": without("index.json", "has"),
        "without cols": without("index.json", "cols"),
        "a short list": json.dumps({**INDEX, "has": {"noto": [1]}}),
    },
    "taxonomy.json": {
        "missing": None,
        "cut": (emoji.ASSETS / "taxonomy.json").read_text()[:900],
        "without leaves": without("taxonomy.json", "leaves"),
        "without benchmark": without("taxonomy.json", "benchmark"),
        "a leaf without name": without("taxonomy.json", "leaves", "eagle", "name"),
        "leaves in a list": json.dumps({**content("taxonomy.json"), "leaves": []}),
    },
}
READERS = {
    "index.json": emoji._index,
    "taxonomy.json": lambda folder: emoji._taxonomy(folder / "taxonomy.json"),
}


@pytest.mark.parametrize(
    "name, damage", [(name, damage) for name in DAMAGED_FILES for damage in DAMAGED_FILES[name]]
)
def test_a_missing_or_damaged_file_is_named_with_a_remedy(name, damage, tmp_path):
    text = DAMAGED_FILES[name][damage]
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"{tmp_path}/{name} is missing or damaged .*restore it"):
        READERS[name](tmp_path)


def test_an_index_without_a_style_or_a_drawing_is_named(monkeypatch):
    for lacking in ({"has": {}}, {"keys": ["0"] * len(INDEX["keys"])}):
        monkeypatch.setattr(emoji, "_index", lambda lacking=lacking: {**INDEX, **lacking})
        with pytest.raises(ValueError, match=r"index\.json is missing or damaged .KeyError"):
            source()


def test_a_sheet_of_another_size_is_refused_with_both_sizes(assets):
    has = {style: cells[:40] for style, cells in INDEX["has"].items()}
    index = {**INDEX, "keys": INDEX["keys"][:40], "has": has}
    (assets / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"fxemoji_64\.png .* is 1408 x 1408 px.*1408 x 128"):
        emoji._atlas("fxemoji", assets)
