"""Mixtures: shares by weight, every image in its turn, labels of all parts."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from speciarl_jax.data import label_tree, mixture
from speciarl_jax.verifiers.taxonomy import Taxonomy


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.integers(1, 200)), min_size=1, max_size=6),
    st.integers(0, 500),
)
def test_shares_follow_the_weights(parts, size):
    weights, lengths = map(list, zip(*parts, strict=True))
    counts = mixture.shares(weights, lengths, size)
    total = sum(weights)
    if size:
        assert sum(counts) == size
    else:
        # No image twice, and one more would need some.
        assert all(count <= length for count, length in zip(counts, lengths, strict=True))
        more = (sum(counts) + len(parts) + 1) / total
        assert any(more * w > n for w, n in zip(weights, lengths, strict=True))
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - sum(counts) * weight / total) < 1


def test_six_times_five_hundred_is_three_thousand():
    assert mixture.shares([1.0] * 6, [500] * 6, 0) == [500] * 6
    assert mixture.shares([1.0, 3.0], [500, 500], 0) == [167, 499]
    assert mixture.shares([None, None], [7, 5], 0) == [7, 5]
    assert mixture.shares([2.0, 1.0], [4, 4], 12) == [8, 4]


@pytest.mark.parametrize("weights", [[1.0, None], [1.0, 0.0], [1.0, -2.0], [float("nan"), 1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="give every part a weight above 0 or none of them"):
        mixture.shares(weights, [5, 5], 0)


@pytest.fixture
def folders(tmp_path):
    """Two folders: 12 images of birds, 4 of flowers; a file name stands in both."""
    for name, labels, count in (("birds", ["eagle", "gull"], 6), ("flowers", ["rose"], 4)):
        for label in labels:
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / name / label / f"{i}.png")
    return tmp_path


def mix(folder, weights=(None, None), size=0, seed=0, **common):
    parts = {
        name: {
            "name": "folder",
            "weight": weight,
            "options": {"path": str(folder / name), "group": name[:-1]},
        }
        for name, weight in zip(("birds", "flowers"), weights, strict=True)
    }
    return mixture.Source(parts=parts, size=size, seed=seed, common=common)


def seen(source):
    return collections.Counter(
        (source.describe(i)["part"], source.describe(i)["key"]) for i in range(len(source))
    )


def test_without_weights_every_image_comes_once(folders):
    source = mix(folders)
    assert len(source) == 16 and set(seen(source).values()) == {1}
    ids = {row["image_id"] for row in source}
    assert len(ids) == 16 and all(0 <= i < 2**31 for i in ids)
    row = source[15]
    assert row.pop("image").shape == (4, 4, 3) and row == source.describe(15)
    with pytest.raises(IndexError):
        source[16]


def test_a_large_part_is_drawn_anew_each_epoch_and_a_small_one_repeated(folders):
    source = mix(folders, (1.0, 1.0), size=12)
    of_part = collections.Counter(row["part"] for row in source)
    assert of_part == {"birds": 6, "flowers": 6}
    counts = seen(source)
    assert all(n == 1 for (part, _), n in counts.items() if part == "birds")
    assert sorted(n for (part, _), n in counts.items() if part == "flowers") == [1, 1, 2, 2]
    again, other = mix(folders, (1.0, 1.0), size=12), source.with_seed(1)
    assert seen(again) == counts and len(other) == 12
    assert seen(other) == seen(mix(folders, (1.0, 1.0), size=12, seed=1))
    drawn = [{key for part, key in seen(source.with_seed(s)) if part == "birds"} for s in range(8)]
    assert len(set.union(*drawn)) == 12 and any(d != drawn[0] for d in drawn)


def test_labels_of_all_parts_are_in_the_tree(folders):
    taxonomy = Taxonomy(mix(folders).label_tree)
    assert taxonomy.category("bird", "eagle").name == "GENERIC"
    assert taxonomy.category("flower", "rose").name == "GENERIC"
    assert taxonomy.category("flower", "eagle").name == "WRONG"


def test_a_part_may_be_without_labels(folders):
    def mix(labelled):
        parts = {
            name: {"name": "folder", "options": {"path": str(folders / name)}}
            for name in ("birds", "flowers")
        }
        parts["flowers"]["labelled"] = labelled
        return mixture.Source(parts=parts, seed=0)

    known, source = mix(True), mix(False)
    assert source.unlabelled == ["flowers"] and known.unlabelled == []
    assert source.with_seed(1).unlabelled == ["flowers"]
    assert source.fingerprint != known.fingerprint
    for i in range(len(source)):
        row = source[i]
        assert row["image_id"] == known[i]["image_id"]
        hidden = row["part"] == "flowers"
        assert row.get("unlabelled", False) == hidden and (row["label"] == "") == hidden
        assert (row["label_id"] == "") == hidden
        assert {k: v for k, v in row.items() if k != "image"} == source.describe(i)
    # No word of the hidden part is known to the verifier.
    assert len(label_tree.read(source)["leaves"]) == 2


def test_common_options_hold_for_every_part(folders):
    assert len(mix(folders, subset=3)) == 6
    with pytest.raises(TypeError, match="views"):
        mix(folders, views=2)


def test_the_fingerprint_knows_the_parts_and_their_shares(folders):
    found = {mix(folders).fingerprint, mix(folders, (1.0, 1.0)).fingerprint}
    assert len(found) == 2 and mix(folders).fingerprint in found
    (folders / "birds" / "eagle" / "0.png").unlink()
    assert mix(folders).fingerprint not in found


def test_parts_of_other_kinds_may_be_mixed_in(folders):
    (folders / "birds" / "eagle").rename(folders / "birds" / "harrier")
    parts = {
        "birds": {"name": "folder", "options": {"path": str(folders / "birds")}},
        "emoji": {
            "name": "emoji",
            "options": dict(split="held_out", difficulty="easy", image_size=24),
        },
    }
    source = mixture.Source(parts=parts, seed=0)
    taxonomy = Taxonomy(source.label_tree)
    for i in (0, len(source) - 1):
        assert taxonomy.leaf_index(source.describe(i)["label_id"]) >= 0
    assert not source.missing()
    with pytest.raises(ValueError, match="stands in two data sets with different names"):
        (folders / "birds" / "harrier").rename(folders / "birds" / "eagle")
        mixture.Source(parts=parts, seed=0)
    one, two = source[len(source) - 1], source.with_seed(1)[len(source) - 1]
    assert one["image_id"] == two["image_id"]
    assert not np.array_equal(one["image"], two["image"])


@pytest.mark.parametrize(
    "parts, message",
    [
        ({}, "a mixture needs parts"),
        ({"a": {"options": {}}}, "part 'a' of the mixture has the keys .*needs 'name'"),
        ({"a": {"name": "folder", "wight": 1}}, "part 'a' .*'wight'"),
        ({"a": {"name": "photos"}}, "'photos' is no choice for data"),
        ({"a": {"name": "emoji", "labelled": False}}, "no part of the mixture has labels"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        mixture.Source(parts=parts, seed=0)
