"""The top of the page: headline, provenance and the table of scores."""

import json
import re

import pytest
import report_folder
from html_page import Page

from speciarl_jax.evaluation import pairs
from speciarl_jax.evaluation.report import folder, made_with, page


@pytest.fixture
def workdir(tmp_path):
    report_folder.make(tmp_path)
    return tmp_path


def test_the_best_constant_answer_the_weights_and_unknown_answers_are_shown(workdir):
    before = " ".join(Page(page.render(folder.read(workdir))).text)
    assert "constant answer" not in before and "Weights of specificity" not in before
    report_folder.know_more(workdir)
    text = " ".join(Page(page.render(folder.read(workdir))).text)
    want = report_folder.score(["generic"] * 40 + ["wrong"] * 20)
    values = r"\s+".join(f"{want[key]:.3f}" for key in ("correctness", "specificity", "hm"))
    # Of the categories 40 are generic and 20 wrong.
    shares = r"\s+".join(["0.0%"] * 3 + ["66.7%", "0.0%", "33.3%", "0.0%"])
    assert re.search(rf'best constant answer "bird"\s+{values}\s+{shares}\s+60', text)
    assert text.count('best constant answer "bird"') == 1
    weights = "thirds (generic 0.333, less specific 0.667, specific 1, more specific 1)"
    assert f"Weights of specificity: {weights}." in text
    said = "the tree knows no name for 12.5% of the answers; most often: 'house martin <b>' (5), "
    assert f"base: {said}" in text and f"trained: {said}" in text


def test_the_page_says_what_its_figures_were_made_with(workdir):
    assert "made-with" not in Page(page.render(folder.read(workdir))).ids
    report_folder.know_more(workdir)
    config = {
        "seed": 7,
        "data": {"name": "elsewhere"},
        "model": {"path": "Qwen2.5-VL"},
        "rollout": {"temperature": 0.75},
        "optimizer": {"learning_rate": 3e-5, "warmup_steps": 10, "decay_steps": 0},
        "train": {"objective": "rl", "steps": 30},
        "reward": {"name": "best_prediction", "options": {"unparsed_reward": -1.0}},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    found = Page(page.render(folder.read(workdir)))
    # They stand on top.
    text = " ".join(" ".join(found.text).split()).partition(" Results ")[0]
    assert "made-with" in found.ids
    for name, value in (
        ("images", "emoji, split held_out"),
        ("verifier", "cascade: the label tree, then http_judge"),
        ("judge", "http_judge, Qwen3-30B, prompt abcdef01"),
        ("prompt", "base, text fedcba98"),
        (
            "policy",
            "weights 01234567, no adapters base weights 01234567, adapters 98765432 trained",
        ),
        ("model", "Qwen2.5-VL"),
        ("seed", "evaluation 1, training 7"),
        ("temperature", "evaluation greedy, 8 samples at 0.6, training 0.75"),
        ("training", "rl, 30 steps"),
        ("learning rate", "3e-05 (10 updates of warm-up)"),
        ("weights of specificity", "thirds (generic 0.333,"),
    ):
        assert f" {name} {value}" in f" {text}", text


def test_a_tree_without_judge_and_a_mixture_are_described():
    known = {
        "verifier": {"name": "cascade", "judge": ""},
        "data": {
            "name": "mixture",
            "options": {
                "parts": {"a": {"options": {"split": "test"}}, "b": {"options": {"split": "x"}}}
            },
        },
    }
    run = {"policy": "base", "data": "both", "prompt": "terse"}
    content = folder.Folder(
        "name", metrics={"runs": [run]}, provenance={"base/both/terse/greedy": known}
    )
    names = {pairs.run_key(run): "base"}
    assert made_with.described(made_with.facts(content), names) == [
        ("verifier", [("cascade: the label tree, no judge", "")]),
        ("judge", [("none", "")]),
        ("prompt", [("terse", "")]),
        ("images", [("mixture, a: split test, b: split x", "")]),
        ("temperature", [("greedy", "")]),
    ]
    assert made_with.facts(folder.Folder("name", metrics={"runs": [run], "weights": {}})) == []


def test_the_headline_is_what_the_paired_tests_show(workdir):
    def headline(**p_values):
        content = folder.read(workdir)
        for test in content.metrics["comparisons"]:
            for key, p in p_values.items():
                test["differences"][key] = test["differences"][key] | {"p": p}
        found = page.render(content)
        return re.search("<h1>(.*)</h1>", found).group(1), " ".join(Page(found).text)

    said, text = headline()
    assert said == "No difference that these 60 images can show"
    assert "HM +0.050 (−0.010 to +0.110), p\u00a0=\u00a00.080; 60 images" in text
    assert "p < 0.05 on at least 30 images" in text
    assert headline(specificity=0.001, correctness=0.7)[0] == "More specific, as often right"
    # Below the scores stands the tested difference, not that of two numbers of the table.
    assert re.search(r"trained\s+0\.567\s+\+0\.050\s", text)


def test_the_headline_is_of_all_data_sets_or_of_none(tmp_path):
    report_folder.make(tmp_path, sets=("emoji", "birds"))
    content = folder.read(tmp_path)
    tests = content.metrics["comparisons"]
    text = page.render(content)
    assert "<h1>No difference that these 60 images can show</h1>" in text
    assert "Greedy answers about 60 images of emoji, 60 images of birds." in text
    assert "trained against base · emoji" in text and "trained against base · birds" in text
    # In the trade-off each run is joined to the base of its own data set.
    assert text.count('class="step"') == 2 + 1  # and the diagonal of the calibration
    # A table of differences has the images of one data set.
    shown = " ".join(Page(text).text)
    assert shown.count("images of emoji that all have") == 1
    tests[0]["differences"] = tests[0]["differences"] | {"specificity": {"value": 0.1, "p": 0.001}}
    tests[0]["differences"]["specificity"]["interval"] = [0.05, 0.15]
    assert "<h1>How specific, and how right</h1>" in page.render(content)
    tests.clear()
    text = page.render(content)
    assert "<h1>How specific, and how right</h1>" in text and "against base" not in text


def test_wrong_answers_have_a_column_of_their_own(workdir):
    (table,) = re.findall(
        '<table class="headline">.*?</table>', page.render(folder.read(workdir)), re.S
    )
    heads = re.findall('<th scope="col">(.*?)</th>', table)
    assert heads[4:] == [
        *("more specific", "specific", "less specific", "generic", "abstain", "wrong"),
        *("unparsed", "unjudged", "images"),
    ]
    for row, run in zip(table.split("<tr>")[2:], folder.read(workdir).metrics["runs"], strict=True):
        cells = re.findall("<td>(.*?)</td>", row)
        counts = run["score"]["histogram"]
        assert cells[heads.index("wrong") - 1] == f"{100 * counts['wrong'] / 60:.1f}%"


def test_runs_about_different_images_have_their_differences_on_those_that_all_have(workdir):
    content = folder.read(workdir)
    content.metrics["runs"][1]["images"] = 50
    (test,) = content.metrics["comparisons"]
    test |= {"images": 40, "of_both": {"images": 50, "differences": test["differences"]}}
    text = " ".join(Page(page.render(content)).text)
    assert "Differences on the 40 images that all have" in text
    assert (
        "not all runs have a verdict about the same images (base/emoji/base 60, trained/emoji/base "
        "50). Differences in tables are over the 40 images that all of them have."
    ) in text
    assert "No difference that these 50 images can show" in text
