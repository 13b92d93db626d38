"""`metrics.json` and comparisons across runs, against counts by hand on random verdicts."""

import collections
import json

import numpy as np
import pytest

from speciarl_jax import compare, predictions, run_metrics
from speciarl_jax.predictions import Part

WEIGHTS = {"generic": 0.3, "less_specific": 0.6, "specific": 1.0, "more_specific": 0.9}
NAMES = ["unparsed", "wrong", "abstain", *WEIGHTS]
GREEDY = Part("base", "emoji", "base", "greedy")
SAMPLES = GREEDY._replace(decoding="samples")


def answers(seed, count=40, samples=1, unverified=0.0):
    """Lines of random verdicts about pictures of four labels."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        said = rng.choice(["cat", "Dog", "dog!", "None", "bird", "tags"], samples).tolist()
        names = rng.choice(NAMES, samples).tolist()
        lines.append(
            {
                "image_id": i,
                "label": f"label {i % 4}",
                "index": i,
                "responses": [s if s == "tags" else f"<answer>{s}</answer>" for s in said],
                "categories": [
                    n if rng.random() >= unverified else predictions.UNVERIFIED for n in names
                ],
            }
        )
    return lines


def slow(names):
    gained = [WEIGHTS[n] for n in names if n in WEIGHTS]
    correctness = len(gained) / len(names)
    specificity = sum(gained) / len(gained) if gained else 0.0
    total = correctness + specificity
    return correctness, specificity, 2 * correctness * specificity / total if total else 0.0


def three(row):
    return [row[name] for name in ("correctness", "specificity", "hm")]


@pytest.mark.parametrize("seed", range(3))
def test_a_run_is_what_a_count_by_hand_finds(seed):
    greedy, samples = answers(seed, unverified=0.2), answers(seed + 9, samples=5, unverified=0.02)
    found = run_metrics.of_parts({GREEDY: greedy, SAMPLES: samples}, WEIGHTS)
    json.dumps(found)
    assert found["weights"] == WEIGHTS and found["comparisons"] == []
    (row,) = found["runs"]
    said = [line["categories"][0] for line in greedy]
    known = [name for name in said if name != predictions.UNVERIFIED]
    assert (row["policy"], row["data"], row["prompt"]) == ("base", "emoji", "base")
    assert row["pictures"] == len(known) < 40
    np.testing.assert_allclose(three(row["score"]), slow(known), rtol=1e-12)
    assert row["score"]["histogram"] == {name: known.count(name) for name in NAMES}
    assert row["abstain"] == known.count("abstain") / len(known)
    assert row["unparsed"] == known.count("unparsed") / len(known)
    assert row["unverified"] == pytest.approx(1 - len(known) / 40)
    for low, high in row["intervals"].values():
        assert 0 <= low < high <= 1
    by_class = collections.defaultdict(list)
    for line in greedy:
        if line["categories"][0] != predictions.UNVERIFIED:
            by_class[line["label"]].append(line["categories"][0])
    assert list(row["by_class"]) == sorted(by_class)
    for label, names in by_class.items():
        assert row["by_class"][label]["pictures"] == len(names)
        np.testing.assert_allclose(three(row["by_class"][label]), slow(names), rtol=1e-12)
    whole = [line for line in samples if predictions.UNVERIFIED not in line["categories"]]
    best = [max(line["categories"], key=NAMES.index) for line in whole]
    assert row["samples"] == 5 and row["sampled_pictures"] == len(whole) < 40
    assert [point["n"] for point in row["best_of"]] == [1, 2, 4, 5]
    np.testing.assert_allclose(three(row["best_of"][-1]), slow(best), rtol=1e-12)
    every = [name for line in whole for name in line["categories"]]
    np.testing.assert_allclose(three(row["best_of"][0]), slow(every), rtol=1e-12)


def test_agreement_is_counted_over_normalised_names_and_declining_is_none():
    def row(responses, categories):
        return {"responses": [f"<answer>{r}</answer>" for r in responses], "categories": categories}

    shares, correct = run_metrics.agreement(
        [
            row(["a dog", "Dog!", "cat", "None"], ["generic", "generic", "wrong", "abstain"]),
            row(["None", "none", "dog"], ["abstain", "abstain", "specific"]),
            row(["cat", "cat", "dog"], ["wrong", "wrong", "specific"]),
            {"responses": ["no", "tags"], "categories": ["unparsed"] * 2},
        ]
    )
    assert shares == [0.5, 2 / 3] and correct == [True, False]


def test_runs_are_compared_on_the_pictures_that_both_have_verdicts_for():
    a, b = answers(1, unverified=0.1), answers(2, unverified=0.1)
    b = [line for line in b if line["image_id"] != 3]
    b[5] = {**b[5], "label": "another"}
    trained = GREEDY._replace(policy="trained")
    found = run_metrics.of_parts({GREEDY: a, trained: b}, WEIGHTS)
    (row,) = found["comparisons"]
    assert row["a"]["policy"] == "base" and row["b"]["policy"] == "trained"
    theirs = {(line["image_id"], line["label"]): line["categories"][0] for line in b}
    pairs = [
        (line["categories"][0], theirs[line["image_id"], line["label"]])
        for line in a
        if (line["image_id"], line["label"]) in theirs
    ]
    pairs = [pair for pair in pairs if predictions.UNVERIFIED not in pair]
    assert row["pictures"] == len(pairs) < 38
    before, after = (slow(side) for side in zip(*pairs, strict=True))
    got = [row["differences"][name]["value"] for name in ("correctness", "specificity", "hm")]
    np.testing.assert_allclose(got, np.subtract(after, before), rtol=1e-9, atol=1e-12)


def test_a_picture_that_comes_twice_is_paired_twice():
    a = answers(1, 3) * 2
    assert len(run_metrics.paired_lines(a, a)) == 6
    assert len(run_metrics.paired_lines(a, a[:4])) == 4


@pytest.fixture
def folders(tmp_path):
    """Two finished evaluations of base and trained, the first with samples."""
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        store = predictions.Predictions(tmp_path / name)
        for i, policy in enumerate(("base", "trained")):
            part = GREEDY._replace(policy=policy)
            store.begin(part, {"data": ["emoji"], "seed": 1, "pictures": 40})
            store.append(part, answers(10 * number * i + i))
            if name == "one":
                store.begin(part._replace(decoding="samples"), {})
                store.append(part._replace(decoding="samples"), answers(i, samples=5))
        run_metrics.write(tmp_path / name, run_metrics.of_parts(store.parts(), WEIGHTS))
    return [tmp_path / name for name in ("one", "two")]


def compared(folders, wanted=()):
    runs = {folder.name: compare.read_run(folder, wanted) for folder in folders}
    return compare.compare(runs, compare.read_weights(folders))


def test_a_policy_is_compared_with_its_namesake_in_the_first_run(folders):
    found = compared(folders)
    assert [(row["run"], row["policy"]) for row in found["runs"]] == [
        *(("one", "base"), ("one", "trained"), ("two", "base"), ("two", "trained"))
    ]
    sides = [
        tuple((row[side]["run"], row[side]["policy"]) for side in "ab")
        for row in found["comparisons"]
    ]
    assert sides == [
        (("one", "base"), ("one", "trained")),
        (("one", "base"), ("two", "base")),
        (("one", "trained"), ("two", "trained")),
    ]
    # Both runs have the same base.
    assert found["comparisons"][1]["differences"]["hm"]["value"] == 0
    text = compare.to_markdown(found)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 4 + 1 + 3 and "| two, trained - one, trained | 40 |" in text
    score = found["runs"][0]["score"]["correctness"]
    assert f"| one, base | 40 | {score:.3f} (" in text and "p = 1.000" in text


def test_samples_are_compared_too(folders, tmp_path):
    found = compared(folders)
    alone = json.loads((folders[0] / "metrics.json").read_text())["runs"]
    for row, want in zip(found["runs"][:2], alone, strict=True):
        assert row["best_of"] == want["best_of"] and len(row["best_of"]) == 4
        assert row["calibration"] == want["calibration"]
    assert [row["best_of"] for row in found["runs"][2:]] == [[], []]
    paths = compare.write(tmp_path / "out", found, folders)
    assert [path.name for path in paths] == [
        *("comparison.json", "comparison.md", "trade_off.png", "categories.png", "best_of.png")
    ]
    assert all(path.is_file() for path in paths)


def test_a_policy_without_a_namesake_is_compared_with_all_of_the_first_run(folders):
    runs = {
        "one": compare.read_run(folders[0]),
        "two": (
            {GREEDY._replace(policy="other"): answers(5)},
            {},
        ),
    }
    found = compare.compare(runs, WEIGHTS)
    assert [row["a"]["policy"] for row in found["comparisons"][1:]] == ["base", "trained"]
    only = compared(folders, ["trained"])
    assert len(only["runs"]) == 2 and len(only["comparisons"]) == 1


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no predictions.jsonl; give folders"):
        compare.read_run(tmp_path / "empty")
    with pytest.raises(ValueError, match="no greedy answers with verdicts of the policies"):
        compare.read_run(folders[0], ["nobody"])
    (folders[1] / "predictions_facts.json").write_text(
        json.dumps({str(GREEDY): {"data": ["emoji"], "seed": 2, "pictures": 40}})
    )
    with pytest.raises(ValueError, match="asked about other pictures: seed is 1 in one and 2"):
        compared(folders)
    path = folders[1] / "metrics.json"
    path.write_text(json.dumps({"weights": {"generic": 1.0}}))
    with pytest.raises(ValueError, match="weigh specificity differently"):
        compare.read_weights(folders)
    path.unlink()
    with pytest.raises(ValueError, match="metrics.json is missing: let the evaluation end"):
        compare.read_weights(folders)
