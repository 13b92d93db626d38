"""Parts and subsets: chosen by the images' own names, the same everywhere, one within another."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speciarl_jax.data import file_dataset


def entries(*counts):
    """Entries of labels 0, 1, ... with `counts` images each."""
    return [
        file_dataset.Entry(f"{label}/{i}.jpg", str(label), str(label), f"/x/{label}/{i}.jpg")
        for label, count in enumerate(counts)
        for i in range(count)
    ]


def keys(found):
    return {entry.key for entry in found}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 3), st.randoms(), st.data()
)
def test_subsets_are_nested_balanced_and_blind_to_the_order(counts, seed, random, data):
    rows = entries(*counts)
    large = data.draw(st.integers(1, len(rows)))
    small = data.draw(st.integers(1, large))
    shuffled = list(rows)
    random.shuffle(shuffled)
    chosen = file_dataset.choose_subset(rows, large, seed)
    assert len(chosen) == large and keys(chosen) == keys(
        file_dataset.choose_subset(shuffled, large, seed)
    )
    assert keys(file_dataset.choose_subset(rows, small, seed)) <= keys(chosen)
    assert [e for e in rows if e in set(chosen)] == chosen
    of_label = collections.Counter(entry.label_id for entry in chosen)
    for label, count in enumerate(counts):
        # A label has as many as any other, or all that it has.
        assert of_label[str(label)] >= min(count, max(of_label.values()) - 1)


def test_the_subsets_of_the_paper_are_the_same_in_every_release():
    rows = entries(*[30] * 200)
    found = {n: file_dataset.choose_subset(rows, n, 0) for n in (128, 1024, 2048, 3000)}
    assert [len(found[n]) for n in found] == [128, 1024, 2048, 3000]
    assert keys(found[128]) < keys(found[1024]) < keys(found[2048]) < keys(found[3000])
    assert len({e.label_id for e in found[128]}) == 128
    assert {e.label_id for e in found[1024]} == {str(i) for i in range(200)}
    counts = collections.Counter(e.label_id for e in found[3000])
    assert set(counts.values()) == {15}
    assert keys(file_dataset.choose_subset(rows, 128, 1)) != keys(found[128])
    assert file_dataset.stable_hash("a") == 14598278634844962250
    assert sorted(keys(found[128]))[:3] == ["0/9.jpg", "100/10.jpg", "101/23.jpg"]


def test_parts_are_disjoint_complete_and_stable_when_images_come():
    few, many = entries(400, 300), entries(400, 300, 200)
    held_out = file_dataset.choose_part(few, "held_out", 0.1)
    training = file_dataset.choose_part(few, "training", 0.1)
    assert keys(held_out) | keys(training) == keys(few) and not keys(held_out) & keys(training)
    assert 40 < len(held_out) < 100
    assert keys(held_out) == keys(file_dataset.choose_part(many, "held_out", 0.1)) & keys(few)
    assert keys(held_out) < keys(file_dataset.choose_part(few, "held_out", 0.3))
    assert file_dataset.choose_part(few, "all", 0.1) == few


def make(rows, **options):
    return file_dataset.Listing(
        rows, lambda e: np.zeros((2, 2, 3), np.uint8), None, name="x", **options
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(subset=9), r"x: config.data.options.subset .*is 9, but there are 8 images"),
        (dict(subset=-1), "config.data.options.subset .* is -1"),
        (dict(part="test"), "config.data.options.part .* is 'test'; choose one of .*held_out"),
        (dict(part="training", held_out_share=1.0), "config.data.options.held_out_share .* is 1.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(entries(4, 4), **options)


def test_the_fingerprint_changes_with_any_image_label_or_place():
    rows = entries(3, 3)
    first = make(rows).fingerprint
    assert first == make(entries(3, 3)).fingerprint
    renamed = [*rows[:-1], file_dataset.Entry("1/9.jpg", "1", "1", "")]
    labelled = [*rows[:-1], file_dataset.Entry("1/2.jpg", "0", "0", "")]
    others = [rows[:-1], rows[::-1], renamed, labelled]
    found = {make(other).fingerprint for other in others}
    assert len(found | {first}) == 5


def test_rows_and_identities():
    source = make(entries(3, 2))
    assert source.with_seed(5) is source and len(source) == 5
    row = source[4]
    assert row.pop("image").shape == (2, 2, 3)
    assert row == source.describe(4)
    assert (row["label_id"], row["label"], row["key"]) == ("1", "1", "1/1.jpg")
    ids = {source.describe(i)["image_id"] for i in range(5)}
    assert len(ids) == 5 and all(0 <= i < 2**31 for i in ids)
    assert sorted(source.missing()) == sorted(e.place for e in source.entries)


def test_every_label_with_two_images_is_in_both_parts():
    rows = entries(1, 2, 3, 10, 100, 9)
    for share in (1e-6, 0.1, 0.5, 0.999):
        parts = [file_dataset.choose_part(rows, p, share) for p in ("training", "held_out")]
        training, held_out = (collections.Counter(e.label_id for e in part) for part in parts)
        assert set(training) == set("012345") and set(held_out) == set("12345")
    held_out = file_dataset.choose_part(rows, "held_out", 0.1)
    counts = collections.Counter(e.label_id for e in held_out)
    assert [counts[str(i)] for i in range(6)] == [0, 1, 1, 1, 10, 1]


def test_a_part_without_images_is_refused():
    with pytest.raises(ValueError, match="none of its 3 images is in part 'held_out'"):
        make(entries(1, 1, 1), part="held_out")


def test_the_content_of_images_is_part_of_what_is_remembered(tmp_path):
    def of(content):
        path = tmp_path / "x.png"
        path.write_bytes(content)
        source = make([file_dataset.Entry("x", "a", "a", str(path))])
        return source.fingerprint, source.content_fingerprint

    small, large = bytes(1000), bytes(3 * 2**20)
    contents = [small, small[:-1] + b"x", large, b"x" * len(large), large[:-1] + b"x"]
    found = [of(content) for content in contents]
    assert len({names for names, _ in found}) == 1
    assert len({content for _, content in found}) == len(contents)
    assert of(small) == found[0]
