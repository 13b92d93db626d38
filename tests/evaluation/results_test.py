"""`metrics.json` and comparisons across runs, against counts by hand on random verdicts."""

import collections
import json

import numpy as np
import pytest
from etils import epath

from speciarl_jax.evaluation import consensus, predictions, remarks, results
from speciarl_jax.evaluation.predictions import Part
from speciarl_jax.tools import compare
from speciarl_jax.verifiers import taxonomy
from speciarl_jax.verifiers.label_tree import label_names

WEIGHTS = {"generic": 0.3, "less_specific": 0.6, "specific": 1.0, "more_specific": 0.9}
NAMES = ["unparsed", "wrong", "abstain", *WEIGHTS]
GREEDY = Part("base", "emoji", "base", "greedy")
SAMPLES = GREEDY._replace(decoding="samples")


def answers(seed, count=40, samples=1, unverified=0.0):
    """Lines of random verdicts about images of four labels."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        said = rng.choice(["cat", "Dog", "dog!", "None", "bird", "tags"], samples).tolist()
        names = rng.choice(NAMES, samples).tolist()
        lines.append(
            {
                "image_id": i,
                "label": f"label {i % 4}",
                "label_id": list(TREE["leaves"])[i % 4],
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
    found = results.of_parts({GREEDY: greedy, SAMPLES: samples}, WEIGHTS)
    json.dumps(found)
    assert found["weights"] == WEIGHTS | {"name": "custom"} and found["comparisons"] == []
    (row,) = found["runs"]
    said = [line["categories"][0] for line in greedy]
    known = [name for name in said if name != predictions.UNVERIFIED]
    assert (row["policy"], row["data"], row["prompt"]) == ("base", "emoji", "base")
    assert row["images"] == len(known) < 40
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
        assert row["by_class"][label]["images"] == len(names)
        np.testing.assert_allclose(three(row["by_class"][label]), slow(names), rtol=1e-12)
    whole = [line for line in samples if predictions.UNVERIFIED not in line["categories"]]
    best = [max(line["categories"], key=NAMES.index) for line in whole]
    assert row["samples"] == 5 and row["sampled_images"] == len(whole) < 40
    assert [point["n"] for point in row["best_of"]] == [1, 2, 4, 5]
    np.testing.assert_allclose(three(row["best_of"][-1]), slow(best), rtol=1e-12)
    every = [name for line in whole for name in line["categories"]]
    np.testing.assert_allclose(three(row["best_of"][0]), slow(every), rtol=1e-12)


def test_agreement_is_counted_over_normalised_names_and_declining_is_none():
    def row(responses, categories):
        return {"responses": [f"<answer>{r}</answer>" for r in responses], "categories": categories}

    shares, correct = results.agreement(
        [
            row(["a dog", "Dog!", "cat", "None"], ["generic", "generic", "wrong", "abstain"]),
            row(["None", "none", "dog"], ["abstain", "abstain", "specific"]),
            row(["cat", "cat", "dog"], ["wrong", "wrong", "specific"]),
            {"responses": ["no", "tags"], "categories": ["unparsed"] * 2},
        ]
    )
    assert shares == [0.5, 2 / 3] and correct == [True, False]


def test_agreement_does_not_depend_on_the_order_of_samples():
    """The verifier wants thoughts; an answer without is unparsed, and names nothing."""
    bare, good = "<answer>dog</answer>", "<think>hm</think> <answer>dog</answer>"
    both = [(bare, "unparsed"), *[(good, "specific")] * 9]
    for order in (both, both[::-1]):
        said, names = zip(*order, strict=True)
        line = {"responses": list(said), "categories": list(names)}
        assert results.agreement([line]) == ([0.9], [True])
    # A judge that is of two minds about one name: most of its verdicts count.
    doubted = [(good, "wrong"), *[(good, "generic")] * 2]
    for order in (doubted, doubted[::-1]):
        said, names = zip(*order, strict=True)
        line = {"responses": list(said), "categories": list(names)}
        assert results.agreement([line]) == ([1.0], [True])


TREE = {
    "version": 1,
    "groups": {"animal": ["animal"], "device": ["device"]},
    "leaves": {
        "eagle": {"name": "eagle", "generic": "animal", "ancestors": [["bird"]]},
        "hawk": {"name": "hawk", "generic": "animal", "ancestors": [["bird"]]},
        "mouse": {"name": "mouse", "generic": "animal"},
        "mouse_device": {"name": "mouse", "generic": "device"},
    },
}


def image(label, said):
    """Samples about an image: "2 eagle, 1 None"."""
    names = [n for part in said.split(", ") for n in [part.split()[1]] * int(part.split()[0])]
    return {
        "label_id": label,
        "label": label,
        "responses": [f"<think></think><answer>{name}</answer>" for name in names],
        "categories": ["wrong"] * len(names),  # of the samples, not of the choice
    }


def test_choices_are_what_predict_would_name_judged_by_the_tree():
    samples = [
        image("eagle", "7 eagle, 2 hawk, 1 None"),  # eagle .7, bird .9
        image("hawk", "7 eagle, 2 hawk, 1 None"),  # the same, of a hawk
        image("mouse", "10 mouse"),
        image("mouse", "10 gadget"),
        image("mouse", "4 mouse, 3 None, 3 eagle"),  # animal .7
    ]
    rows = results.choices(samples, taxonomy.Taxonomy(TREE), WEIGHTS)
    assert [row["confidence"] for row in rows] == list(results.CONFIDENCES)
    at = {row["confidence"]: row for row in rows}
    # eagle: right, eagle: wrong, mouse, gadget: wrong, animal.
    assert at[0.7] == {
        "confidence": 0.7,
        "named": 1.0,
        "agreement": pytest.approx((0.7 + 0.7 + 1 + 1 + 0.7) / 5),
        "correctness": 0.6,
        "specificity": pytest.approx((1 + 1 + 0.3) / 3),
    }
    # bird, bird, mouse, gadget, and nothing.
    assert at[0.9]["named"] == 0.8 and at[0.9]["correctness"] == 0.75
    assert at[0.9]["specificity"] == pytest.approx((0.6 + 0.6 + 1) / 3)
    assert at[1.0]["named"] == 0.4 and at[1.0]["correctness"] == 0.5
    none = results.choices(samples[:1], taxonomy.Taxonomy(TREE), WEIGHTS)[-1]
    assert none["named"] == 0 and none["correctness"] is none["specificity"] is None
    # Against the rule itself.
    tree = consensus.NameTree(TREE)
    for row in rows:
        names = [consensus.choose(s["responses"], tree, row["confidence"]).name for s in samples]
        assert row["named"] == sum(name is not None for name in names) / 5


def test_choices_are_in_the_metrics_where_a_taxonomy_judges():
    greedy = [image("eagle", "1 eagle"), image("mouse", "1 mouse")]
    samples = [image("eagle", "3 eagle"), image("mouse", "3 mouse")]
    for i, line in enumerate(greedy + samples):
        line["image_id"] = i % 2
    parts = {GREEDY: greedy, SAMPLES: samples}
    found = results.of_parts(parts, WEIGHTS, labels={"emoji": taxonomy.Taxonomy(TREE)})
    assert found["runs"][0]["choices"][0]["correctness"] == 1.0
    (remark,) = remarks.about(found)
    assert "base/emoji/base, names of predict --confidence: 0.1: 100% named, 100% of" in remark
    other = {**TREE, "leaves": {"eagle": TREE["leaves"]["eagle"]}}
    for labels in (None, label_names.LabelNames({"eagle": "eagle"}), taxonomy.Taxonomy(other)):
        found = results.of_parts(parts, WEIGHTS, labels={"emoji": labels} if labels else {})
        assert found["runs"][0]["choices"] == []
        assert not {"constant_answer", "unknown_answers"} & found["runs"][0].keys()


def test_what_was_measured_on_the_same_lines_stays_in_the_metrics(tmp_path):
    store = predictions.Predictions(tmp_path)
    other = GREEDY._replace(policy="trained")
    for part, lines in (
        (GREEDY, answers(1)),
        (SAMPLES, [image("eagle", "3 eagle") | {"index": i} for i in range(3)]),
        (other, answers(2)),
    ):
        store.begin(part, {"policy": part.policy})
        store.append(part, lines)
    first = results.update(
        tmp_path,
        store,
        WEIGHTS,
        labels={"emoji": taxonomy.Taxonomy(TREE)},
        open_world={p: {"text_inclusion": 0.5, "judge_inclusion": 0.25} for p in (GREEDY, other)},
    )
    assert first["runs"][0]["choices"] and first["runs"][0]["open_world"]
    # Without asking for any of it.
    assert results.update(tmp_path, store, WEIGHTS) == first
    assert json.loads((tmp_path / "metrics.json").read_text()) == first
    # One more is measured, and a judge is silent.
    more = {"judge_unverified": 1.0, "semantic_similarity": 0.1}
    second = results.update(tmp_path, store, WEIGHTS, open_world={GREEDY: more})
    assert second["runs"][0]["open_world"] == {"text_inclusion": 0.5, **more}
    # Other answers.
    store.begin(other, {"policy": "another"}, overwrite=True)
    store.append(other, answers(3))
    third = results.update(tmp_path, store, WEIGHTS)
    assert "open_world" not in third["runs"][1]
    assert third["runs"][0]["open_world"] == second["runs"][0]["open_world"]
    (tmp_path / "metrics.json").write_text("{")
    assert "open_world" not in results.update(tmp_path, store, WEIGHTS)["runs"][0]


def test_what_the_tree_told_stays_in_the_metrics_as_far_as_it_still_holds(tmp_path):
    store = predictions.Predictions(tmp_path)
    store.begin(GREEDY, {})
    store.append(GREEDY, answers(1))
    labels = {"emoji": taxonomy.Taxonomy(TREE)}
    first = results.update(tmp_path, store, WEIGHTS, labels=labels)["runs"][0]
    # Half of the images show an eagle or a hawk, which "bird" fits better than "animal".
    assert first["constant_answer"]["answer"] == "mouse" and first["unknown_answers"]["share"] > 0
    assert results.update(tmp_path, store, WEIGHTS)["runs"][0] == first
    # Other weights make another score of the constant answer, and perhaps another answer.
    second = results.update(tmp_path, store, WEIGHTS | {"specific": 0.5})["runs"][0]
    assert "constant_answer" not in second
    assert second["unknown_answers"] == first["unknown_answers"]
    # Other answers.
    store.begin(GREEDY, {"policy": "another"}, overwrite=True)
    store.append(GREEDY, answers(2))
    assert "unknown_answers" not in results.update(tmp_path, store, WEIGHTS)["runs"][0]


def test_runs_of_different_verifiers_are_not_compared_and_it_is_said():
    other, third = (GREEDY._replace(policy=name) for name in ("trained", "merged"))
    judge = {"name": "flax_judge", "weights": "a", "max_words": 8}
    known = {"verifier": judge, "labels": "x", "images": 40, "max_tokens": 16, "prompt": "p"}
    parts = {part: answers(i) for i, part in enumerate((GREEDY, other, third))}
    provenances = {
        str(GREEDY): known,
        str(other): known | {"max_tokens": 64, "policy": "another"},
        str(third): known | {"verifier": judge | {"weights": "b"}},
    }
    found = json.loads(json.dumps(results.of_parts(parts, WEIGHTS, provenances=provenances)))
    (row,), (refused,) = found["comparisons"], found["not_compared"]
    assert row["b"]["policy"] == "trained" and row["differs"] == {"max_tokens": [16, 64]}
    assert refused["b"]["policy"] == "merged"
    assert refused["because"] == {"verifier.weights": ["a", "b"]}
    test, rule, first, second = remarks.about(found)
    assert test.startswith("trained/emoji/base against base/emoji/base: ") and "p < 0.05" in rule
    assert "base/emoji/base and trained/emoji/base also differ in max_tokens (16 and 64)" in first
    assert "verifier.weights ('a' and 'b')" in second and "the folder of one judge" in second
    # Options of two verifiers are not told apart one by one.
    provenances[str(third)] = known | {"verifier": {"name": "taxonomy", "path": ""}}
    (refused,) = results.of_parts(parts, WEIGHTS, provenances=provenances)["not_compared"]
    assert refused["because"] == {"verifier.name": ("flax_judge", "taxonomy")}
    # The text of a prompt counts only where its name does not tell.
    assert results.of_parts(parts, WEIGHTS)["not_compared"] == []


def test_runs_are_compared_on_the_images_that_both_have_verdicts_for():
    a, b = answers(1, unverified=0.1), answers(2, unverified=0.1)
    b = [line for line in b if line["image_id"] != 3]
    b[5] = {**b[5], "label": "another"}
    trained = GREEDY._replace(policy="trained")
    found = results.of_parts({GREEDY: a, trained: b}, WEIGHTS)
    (row,) = found["comparisons"]
    assert row["a"]["policy"] == "base" and row["b"]["policy"] == "trained"
    theirs = {(line["image_id"], line["label"]): line["categories"][0] for line in b}
    pairs = [
        (line["categories"][0], theirs[line["image_id"], line["label"]])
        for line in a
        if (line["image_id"], line["label"]) in theirs
    ]
    pairs = [pair for pair in pairs if predictions.UNVERIFIED not in pair]
    assert row["images"] == len(pairs) < 38
    before, after = (slow(side) for side in zip(*pairs, strict=True))
    got = [row["differences"][name]["value"] for name in ("correctness", "specificity", "hm")]
    np.testing.assert_allclose(got, np.subtract(after, before), rtol=1e-9, atol=1e-12)


ABOUT = {
    "data": {"name": "emoji", "options": {}},
    "seed": 1,
    "images": 40,
    "max_tokens": 16,
    "verifier": {"name": "taxonomy"},
}


@pytest.fixture
def folders(tmp_path):
    """Two finished evaluations of base and trained, the first with samples."""
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        store = predictions.Predictions(tmp_path / name)
        for i, policy in enumerate(("base", "trained")):
            part = GREEDY._replace(policy=policy)
            store.begin(part, ABOUT)
            store.append(part, answers(10 * number * i + i))
            if name == "one":
                store.begin(part._replace(decoding="samples"), ABOUT | {"sampling": 5})
                store.append(part._replace(decoding="samples"), answers(i, samples=5))
        results.write(tmp_path / name, results.of_parts(store.parts(), WEIGHTS))
    return [tmp_path / name for name in ("one", "two")]


def compared(folders, wanted=()):
    runs = {folder.name: compare.read_run(folder, wanted) for folder in folders}
    return compare.compare(runs, compare.read_weights(folders))


def test_a_kill_while_metrics_are_written_leaves_those_of_before(folders, monkeypatch):
    path = folders[0] / "metrics.json"
    before = path.read_text()

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(epath.Path(path)), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        results.write(folders[0], {"runs": []})
    assert path.read_text() == before


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
    # Only the first run was sampled.
    (best,) = [i for i, row in enumerate(rows) if row.startswith("| HM of the best of | 1 | 2 ")]
    point = found["runs"][1]["best_of"][-1]["hm"]
    assert rows[best + 2].startswith("| one, trained | ")
    assert rows[best + 2].endswith(f"| {point:.3f} |")
    assert len(rows) == 1 + 4 + 1 + 3 + 3 and "| two, trained - one, trained | 40 |" in text
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
    (folders[1] / predictions.PROVENANCE).write_text(
        json.dumps({str(GREEDY): {**ABOUT, "seed": 2}})
    )
    with pytest.raises(ValueError, match="asked about other images: seed is 1 in one and 2"):
        compared(folders)
    (folders[1] / predictions.PROVENANCE).write_text(
        json.dumps({str(GREEDY): {**ABOUT, "verifier": {"name": "http_judge"}}})
    )
    with pytest.raises(ValueError, match="judged by another verifier.*: verifier.name is 'taxo"):
        compared(folders)
    # Its name in earlier versions.
    (folders[1] / predictions.PROVENANCE).unlink()
    (folders[1] / "predictions_facts.json").write_text(
        json.dumps({str(GREEDY): {**ABOUT, "max_tokens": 64}})
    )
    text = compare.to_markdown(compared(folders))
    assert (
        "- one/base/emoji/base and two/base/emoji/base also differ in max_tokens (16 and 6" in text
    )
    assert "\nWeights of specificity: custom (generic 0.3, less specific 0.6, specific 1, " in text
    path = folders[1] / "metrics.json"
    # Files of earlier versions have no name of the weights.
    path.write_text(json.dumps({"weights": WEIGHTS}))
    assert compare.read_weights(folders) == WEIGHTS
    path.write_text(json.dumps({"weights": {"generic": 1.0}}))
    with pytest.raises(ValueError, match="weigh specificity differently"):
        compare.read_weights(folders)
    path.unlink()
    with pytest.raises(ValueError, match="metrics.json is missing: let the evaluation end"):
        compare.read_weights(folders)
