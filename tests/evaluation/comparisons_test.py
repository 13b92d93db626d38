"""Paired comparisons: the base of each prompt, and one set of images for a data set."""

import json

import numpy as np
import pytest

from speciarl_jax.evaluation import bootstrap, comparisons, predictions, remarks, results
from speciarl_jax.evaluation.predictions import Part
from speciarl_jax.tools import compare

WEIGHTS = {"generic": 1 / 3, "less_specific": 2 / 3, "specific": 1.0, "more_specific": 1.0}
NAMES = ["unparsed", "wrong", "abstain", *WEIGHTS]


def lines(seed, images, unverified=()):
    """Random verdicts on the images of these ids."""
    rng = np.random.default_rng(seed)
    return [
        {
            "image_id": i,
            "label": f"label {i % 4}",
            "index": i,
            "responses": ["<answer>x</answer>"],
            "categories": [predictions.UNVERIFIED if i in unverified else rng.choice(NAMES).item()],
        }
        for i in images
    ]


def part(policy, prompt="base", data="emoji"):
    return Part(policy, data, prompt, "greedy")


def paired_test(a, b, images):
    """The paired test over some images, from the lines themselves."""
    sides = [
        predictions.categories([line for line in side if line["image_id"] in images])[:, 0]
        for side in (a, b)
    ]
    return bootstrap.paired(*sides, WEIGHTS)


def test_all_differences_of_a_data_set_are_over_the_images_that_all_have():
    base, trained = lines(1, range(40)), lines(2, range(40), unverified=(3,))
    few = lines(3, range(5, 25))
    parts = {part("base"): base, part("trained"): trained, part("few"): few}
    found = json.loads(json.dumps(results.of_parts(parts, WEIGHTS)))
    first, second = found["comparisons"]
    assert first["b"]["policy"] == "trained" and second["b"]["policy"] == "few"
    assert first["images"] == second["images"] == 20
    assert first["differences"] == paired_test(base, trained, range(5, 25))
    assert second["differences"] == paired_test(base, few, range(5, 25)) and "of_both" not in second
    # What the two alone answered is kept beside it.
    both = [i for i in range(40) if i != 3]
    assert first["of_both"] == {"images": 39, "differences": paired_test(base, trained, both)}
    said = remarks.about(found)
    assert said[0].startswith("trained/emoji/base against base/emoji/base: ")
    assert "39 images)" in said[0] and "(20)" in said[1]
    assert said[3] == (
        "Of emoji not all runs have a verdict about the same images (base/emoji/base 40, "
        "trained/emoji/base 39, few/emoji/base 20). Differences in tables are over the 20 images "
        "that all of them have."
    )


def test_runs_about_the_same_images_and_other_data_sets_need_no_word():
    parts = {part("base"): lines(1, range(40)), part("trained"): lines(2, range(40))}
    birds = {part(p, data="birds"): lines(i, range(9)) for i, p in enumerate(("base", "trained"))}
    found = results.of_parts(parts | birds, WEIGHTS)
    assert [row["images"] for row in found["comparisons"]] == [40, 9]
    assert remarks.image_sets(found) == []


def test_no_image_in_common_leaves_the_tests_of_two():
    parts = {
        part("base"): lines(1, range(40)),
        part("a"): lines(2, range(20)),
        part("b"): lines(3, range(20, 40)),
    }
    rows = results.of_parts(parts, WEIGHTS)["comparisons"]
    assert [(row["images"], row["differences"]) for row in rows] == [(0, {}), (0, {})]
    assert [row["of_both"]["images"] for row in rows] == [20, 20]
    # Two that share nothing are not tested at all.
    apart = {part("base"): lines(1, range(5)), part("a"): lines(2, range(5, 9))}
    assert results.of_parts(apart, WEIGHTS)["comparisons"] == []


def test_each_prompt_has_its_own_base_and_that_of_the_data_set():
    order = [("trained", "base"), ("base", "base"), ("base", "terse"), ("trained", "terse")]
    sides = comparisons.sides_of(
        {part(*one): lines(i, range(5)) for i, one in enumerate(order)}, {}
    )
    pairs, refused = comparisons.of_runs(sides)
    names = [tuple((side.name["policy"], side.name["prompt"]) for side in pair) for pair in pairs]
    base, terse = order[1:3]
    # The base is the reference wherever it stands.
    assert names == [(base, order[0]), (base, terse), (base, order[3]), (terse, order[3])]
    assert refused == []
    # Without a base the first run is.
    others = comparisons.sides_of({part(p): lines(1, range(5)) for p in ("x", "y")}, {})
    ((a, b),), _ = comparisons.of_runs(others)
    assert (a.name["policy"], b.name["policy"]) == ("x", "y")


def test_an_image_that_comes_twice_is_paired_twice():
    a = lines(1, range(3)) * 2
    assert len(comparisons.paired_lines(a, a)) == 6
    assert len(comparisons.paired_lines(a, a[:4])) == 4
    assert len(comparisons.common([a, a[:4], a])) == 4 and comparisons.common([]) == set()


@pytest.mark.parametrize("images", [40, 30])
def test_a_comparison_of_folders_has_one_set_of_images_too(images):
    one = {part("base"): lines(1, range(40)), part("trained"): lines(2, range(40))}
    two = {part("base"): lines(3, range(images))}
    found = compare.compare({"one": (one, {}), "two": (two, {})}, WEIGHTS)
    assert [row["images"] for row in found["comparisons"]] == [images, images]
    assert [row["b"]["run"] for row in found["comparisons"]] == ["one", "two"]
    text = compare.to_markdown(found)
    head, _, row = (line.split(" | ") for line in text.splitlines()[2:5])
    wrong = found["runs"][0]["score"]["histogram"]["wrong"] / 40
    assert row[head.index("wrong")] == f"{100 * wrong:.1f}%"
    assert ("not all runs have a verdict" in text) == (images == 30)
    assert "two/base/emoji/base against one/base/emoji/base: " in text
