"""What became of a policy: the words follow the paired tests, and nothing else."""

import numpy as np
import pytest

from speciarl_jax.evaluation import bootstrap, outcome, remarks
from speciarl_jax.verifiers.category import Category

WEIGHTS = {"generic": 1 / 3, "less_specific": 2 / 3, "specific": 1.0, "more_specific": 1.0}
SPECIFIC = {1: "more specific", 0: "as specific", -1: "less specific"}
RIGHT = {1: "more often right", 0: "as often right", -1: "less often right"}


def difference(value, p):
    return {"value": value, "interval": [value - 0.02, value + 0.02], "p": p}


def shown(specificity, correctness, images=892):
    differences = {"specificity": specificity, "correctness": correctness}
    return {"images": images, "differences": differences | {"hm": difference(0.01, 0.5)}}


@pytest.mark.parametrize("specific", [1, 0, -1])
@pytest.mark.parametrize("right", [1, 0, -1])
def test_each_combination_has_its_words(specific, right):
    # A large difference without significance is none.
    sides = [difference(0.1 * (one or 1), 0.001 if one else 0.7) for one in (specific, right)]
    want = f"{SPECIFIC[specific]}, {RIGHT[right]}"
    if not (specific or right):
        want = "no difference that these 892 images can show"
    assert outcome.sentence(shown(*sides)) == want


@pytest.mark.parametrize("p", [0.05, 0.7, 1.0])
def test_the_threshold_itself_shows_nothing(p):
    said = outcome.sentence(shown(difference(0.3, p), difference(-0.3, 0.0499)))
    assert said == "as specific, less often right"


def test_too_few_images_show_nothing_whatever_the_test_says():
    sure = difference(0.9, 0.0002)
    few = outcome.MIN_IMAGES - 1
    assert outcome.sentence(shown(sure, sure, few)) == (
        f"too few images to show a difference ({few})"
    )
    assert outcome.sentence(shown(sure, sure, few + 1)) == "more specific, more often right"
    # Such a test: five images, each one generic before and specific after.
    before, after = (np.full(5, int(c)) for c in (Category.GENERIC, Category.SPECIFIC))
    found = bootstrap.paired(before, after, WEIGHTS)
    assert found["specificity"]["p"] < outcome.SIGNIFICANT
    assert "too few" in outcome.sentence({"images": 5, "differences": found})


def found(*tests):
    """`metrics.json` with a base and a trained policy for each test, each of its own data set."""
    runs, rows = [], []
    for number, test in enumerate(tests):
        sides = [
            {"policy": policy, "data": f"set {number}", "prompt": "base"}
            for policy in ("base", "trained")
        ]
        runs += [side | {"images": test["images"], "choices": []} for side in sides if test]
        rows.append(dict(zip("ab", sides, strict=True)) | test | {"differs": {}})
    return {"runs": runs, "comparisons": rows, "not_compared": []}


UP, NONE = difference(0.1, 0.001), difference(0.1, 0.4)


def test_the_headline_is_that_of_all_data_sets_or_of_none():
    def headline(*tests):
        return outcome.headline(found(*tests))

    assert headline(shown(UP, NONE)) == "More specific, as often right"
    assert headline(shown(UP, NONE), shown(UP, NONE, 40)) == "More specific, as often right"
    assert headline(shown(UP, NONE), shown(NONE, UP)) == ""
    assert headline(shown(NONE, NONE, 1234)) == ("No difference that these 1,234 images can show")
    both = headline(shown(NONE, NONE, 60), shown(NONE, NONE, 90))
    assert both == "No difference that these images can show"
    assert headline() == ""
    # Without a paired test nothing is claimed, whatever the scores are.
    content = found(shown(UP, UP)) | {"comparisons": []}
    assert outcome.outcomes(content) == [] and outcome.headline(content) == ""
    # With several policies it says which one it is about: the last.
    content = found(shown(UP, NONE))
    content["runs"].insert(1, content["runs"][0] | {"policy": "other"})
    assert outcome.headline(content) == "trained: more specific, as often right"


def test_the_printed_remarks_say_what_the_headline_says_with_the_numbers_behind_it():
    content = found(shown(UP, NONE), shown(NONE, NONE, 12))
    first, second, rule = remarks.about(content)
    assert first == (
        "trained/set 0/base against base/set 0/base: more specific, as often right (correctness "
        "+0.100 (+0.080 to +0.120), p = 0.400; specificity +0.100 (+0.080 to +0.120), p = 0.001; "
        "HM +0.010 (-0.010 to +0.030), p = 0.500; 892 images)."
    )
    assert ": too few images to show a difference (12) (" in second
    assert rule == outcome.RULE and "p < 0.05 on at least 30 images" in rule


def test_words_are_about_all_images_that_the_two_answered():
    """Not only about those that every other policy answered, too."""
    content = found(shown(NONE, NONE, 10))
    content["comparisons"][0]["of_both"] = shown(UP, UP)
    (one,) = outcome.outcomes(content)
    assert outcome.sentence(one.test) == "more specific, more often right"
    assert "892 images" in outcome.evidence(one.test)
