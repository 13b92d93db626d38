"""The report: its table, its curve, and text of a model that must not become markup."""

import dataclasses
import re

import pytest
import report_folder

from speciarl_jax.evaluation import report
from speciarl_jax.evaluation.metrics import Score
from speciarl_jax.evaluation.report import folder, markdown

NAMES = ["more_specific", "specific", "less_specific", "generic", "abstain", "wrong", "unparsed"]


def score(*counts):
    return Score(0.75, 0.5, 0.6, dict(zip(NAMES, counts, strict=True)))


def answer(label, response, category, difficulty="easy"):
    return {
        "label": label,
        "difficulty": difficulty,
        "responses": [response],
        "categories": [category],
    }


def run(policy, data="emoji", prompt="base", found=None, **more):
    entry = {"policy": policy, "data": data, "prompt": prompt, "images": 20, "best_of": []}
    found = found or score(0, 1, 2, 3, 4, 5, 5)
    return entry | {"score": dataclasses.asdict(found), "unverified": 0.0} | more


def written(
    *, history=(), before=(), after=(), runs=None, comparisons=(), refused=(), summary=None
):
    asked = {"data": "emoji", "prompt": "base", "decoding": "greedy"}
    rows = [
        {**line, **asked, "policy": policy, "image_id": i}
        for policy, lines in (("base", before), ("trained", after))
        for i, line in enumerate(lines)
    ]
    runs = [run("base"), run("trained")] if runs is None else runs
    return markdown.render(
        folder.Folder(
            "name",
            summary={"steps": 3, "wall_seconds": 90.0} if summary is None else summary,
            metrics={"runs": runs, "comparisons": comparisons, "not_compared": refused},
            predictions=rows,
            history=history,
        )
    )


def cells(line):
    """Cells of a Markdown row; an escaped bar does not end one."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_table_has_a_row_a_policy_and_shares_in_per_cent():
    text = report.table({"base": score(0, 1, 2, 3, 4, 5, 5), "a longer name": score(*[1] * 7)})
    head, rule, *rows = text.splitlines()
    assert cells(head) == [
        *("policy", "correctness", "specificity", "HM", "more specific", "specific"),
        *("less specific", "generic", "abstain", "wrong", "unparsed"),
    ]
    assert cells(rows[0]) == [
        *("base", "0.750", "0.500", "0.600"),
        *("0.0%", "5.0%", "10.0%", "15.0%", "20.0%", "25.0%", "25.0%"),
    ]
    assert cells(rows[1])[0] == "a longer name" and cells(rows[1])[-1] == "14.3%"
    # It can be read in a terminal as well: all lines are of one length.
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    assert set(rule) == set("|-:") and len(cells(rule)) == len(cells(head))


def test_a_table_of_no_answers_does_not_divide_by_zero():
    assert cells(report.table({"base": score(*[0] * 7)}).splitlines()[2])[4:] == ["0.0%"] * 7


def test_a_report_names_images_steps_and_minutes():
    text = written()
    assert "20 evaluation images" in text and "3 steps in 1.5 minutes" in text


def test_a_run_without_a_step_says_so_and_an_evaluation_says_nothing_of_training():
    assert "No step was taken." in written()
    assert "Training" not in written(summary={}) and "steps in" not in written(summary={})


def test_the_curve_averages_neighbouring_steps():
    history = [
        {"step": i, "reward/mean": float(i), "verify/specific": 0.5, "update/entropy": 1.0}
        for i in range(1, 26)
    ]
    text = written(history=history).split("## Training")[1].split("##")[0]
    rows = [cells(line) for line in text.strip().splitlines()]
    assert rows[0][:3] == ["steps", "reward", "specific"]
    body = rows[2:]
    assert len(body) == 9
    assert body[0][:3] == ["1-3", "2.000", "0.500"] and body[-1][:2] == ["25-25", "25.000"]
    # A column that was not measured stays empty, and every row has all columns.
    assert body[0][rows[0].index("KL")] == "" and {len(row) for row in rows} == {10}


def test_answers_that_rose_and_fell_are_listed_apart():
    said = "<think>hm</think><answer>{}</answer>"
    before = [
        answer("golden eagle", said.format("bird"), "generic"),
        answer("mug", said.format("cup"), "specific", "hard"),
        answer("oak", said.format("tree"), "generic"),
    ]
    after = [
        answer("golden eagle", said.format("eagle"), "less_specific"),
        answer("mug", "no tags at all", "unparsed", "hard"),
        answer("oak", said.format("plant"), "generic"),
    ]
    text = written(before=before, after=after)
    better, worse = text.split("1 of 3 became better:")[1].split("1 of 3 became worse:")
    assert [cells(line) for line in better.strip().splitlines()[2:]] == [
        ["golden eagle", "easy", "bird", "generic", "eagle", r"less\_specific"]
    ]
    assert [cells(line) for line in worse.split("##")[0].strip().splitlines()[2:]] == [
        ["mug", "hard", "cup", "specific", "no tags at all", "unparsed"]
    ]
    assert "oak" not in text


def test_a_long_answer_is_cut_in_the_report():
    old, new = (
        answer("mug", "cup", "wrong"),
        answer("mug", f"<answer>{'x' * 900}</answer>", "generic"),
    )
    text = written(before=[old], after=[new])
    assert "x" * 59 + "…" in text and "x" * 60 not in text


@pytest.mark.parametrize(
    "hostile",
    [
        "a | b",
        "<script>alert(1)</script>",
        "[click](http://x)",
        "![x](http://x/y.png)",
        "`code`",
        "*bold* _under_",
        "two\nlines\r\nthree\rfour",
        "back\\slash\\| bar",
        "a\u2028b\u2029c\x0bd\x0ce\x85f",
        "&lt;b&gt; ~~c~~",
    ],
)
def test_what_a_model_says_cannot_become_markup(hostile):
    before = [answer("mug", "<answer>plain</answer>", "wrong")]
    after = [answer("mug", f"<answer>x{hostile}x</answer>", "specific")]
    text = written(before=before, after=after)
    part = text.split("became better:")[1].split("0 of 1")[0].strip()
    assert len(part.splitlines()) == 3, "an answer must not start a line of its own"
    row = cells(part.splitlines()[2])
    assert len(row) == 6 and row[5] == "specific"
    bare = re.sub(r"\\.", "", row[4])
    assert not set("<>[]`*_|&~") & set(bare), row[4]


def test_at_most_fifteen_examples_are_shown_of_each():
    before = [answer(f"thing {i}", "<answer>a</answer>", "wrong") for i in range(100)]
    after = [answer(f"thing {i}", "<answer>b</answer>", "specific") for i in range(100)]
    text = written(before=before, after=after)
    assert "100 of 100 became better:" in text and text.count("| thing ") == 15
    # They are spread over the whole list.
    assert "thing 0 " in text and re.search("thing [89][0-9]", text)


def test_each_data_set_and_prompt_has_its_scores_differences_and_changes():
    difference = {"value": 0.05, "interval": [-0.01, 0.11], "p": 0.0004}
    differences = dict.fromkeys(("correctness", "specificity", "hm"), difference)

    def side(policy, data, prompt="base"):
        return {"policy": policy, "data": data, "prompt": prompt}

    comparisons = [
        {"a": side("base", data), "b": side(policy, data, prompt), "images": 19}
        | {"differences": differences}
        for data, policy, prompt in (
            *(
                ("emoji", "trained", "base"),
                ("emoji", "base", "terse"),
                ("birds", "tr|ained", "base"),
            ),
        )
    ]
    best = [{"n": 1, "hm": 0.5}, {"n": 2, "hm": 0.6125}]
    text = written(
        runs=[
            *(run("base"), run("trained", unverified=0.25), run("base", prompt="terse")),
            *(run("base", "birds"), run("tr|ained", "birds", best_of=best)),
        ],
        comparisons=comparisons,
        before=[answer("mug", "cup", "wrong")],
        after=[answer("mug", "mug", "specific")],
    )
    emoji, terse, birds = re.split("^## ", text, flags=re.M)[1:4]
    assert emoji.startswith("emoji, prompt base\n") and terse.startswith("emoji, prompt terse\n")
    assert birds.startswith("birds, prompt base\n")
    row = "| 19 | +0.050 (-0.010 to +0.110), p < .001 |"
    assert f"| trained - base {row}" in emoji and emoji.count(row) == 1
    assert f"| base - base, prompt base {row}" in terse and "tr\\|ained - base" in birds
    assert "trained 25.0% of the images" in emoji and "Left out" not in terse
    assert "1 of 1 became better:" in emoji and "became" not in terse
    # No answers about the birds are known; that is no change.
    assert "changed from base to tr\\|ained" in birds and "0 of 0 became better" in birds
    assert "| HM of the best of | 1 | 2 |" in birds and "| tr\\|ained | 0.500 | 0.613 |" in birds
    assert "HM of the best of" not in emoji and text.count("## Training") == 1


def test_constant_answers_weights_unknown_answers_and_what_was_used_are_named(tmp_path):
    report_folder.make(tmp_path, sets=("emoji", "birds"))
    report_folder.know_more(tmp_path)
    text = markdown.render(folder.read(tmp_path))
    assert "\n\nWeights of specificity: thirds (generic 0.333, less specific 0.667, " in text
    top, emoji, birds = re.split("^## ", text, flags=re.M)[:3]
    for part in (emoji, birds):
        (row,) = [line for line in part.splitlines() if "best constant answer" in line]
        assert cells(row)[0] == 'best constant answer "bird"' and cells(row)[1] == "0.667"
        assert "trained: the tree knows no name for 12.5% of the answers; most often: " in part
        assert "<b>" not in part
    rows = [cells(line) for line in top.splitlines() if line.startswith("| ")]
    assert ["verifier", "cascade: the label tree, then http\\_judge", "all"] in rows
    assert ["seed", "1", "all"] in rows
    both = "trained/emoji/base, trained/birds/base"
    assert ["policy", "weights 01234567, adapters 98765432", both] in rows
    report_folder.make(tmp_path)
    (tmp_path / "predictions_provenance.json").unlink()
    text = markdown.render(folder.read(tmp_path))
    assert not re.search("Weights|constant answer|made with", text)


def test_the_report_begins_with_what_the_paired_tests_show(tmp_path):
    report_folder.make(tmp_path)
    content = folder.read(tmp_path)
    (test,) = content.metrics["comparisons"]
    top = markdown.render(content).split("\n## ")[0]
    assert "\n\n**No difference that these 60 images can show.**\n" in top
    assert (
        r"HM +0.050 (-0.010 to +0.110), p = 0.080; 60 images).\n"
        and "trained against base: " in top
    )
    assert r"p \< 0.05 on at least 30 images" in top
    differences = test["differences"]
    test["differences"] = differences | {"correctness": differences["correctness"] | {"p": 0.01}}
    assert "\n\n**As specific, more often right.**\n" in markdown.render(content)
    # Where not all were asked about the same images, the table of differences says how many count.
    test |= {"images": 0, "differences": {}, "of_both": {"images": 50, "differences": differences}}
    text = markdown.render(content)
    assert "**No difference that these 50 images can show.**" in text
    assert "| trained - base | 0 |  |  |  |" in text
    assert "over the 0 images that all of them have" in text


def test_names_of_predict_and_what_is_not_compared_stand_with_their_runs():
    worth = {"confidence": 0.7, "named": 0.25, "agreement": 0.8, "correctness": 0.9}
    none = {"confidence": 1.0, "named": 0.0, "agreement": None, "correctness": None}
    choices = [worth | {"specificity": 0.625}, none | {"specificity": None}]
    sides = {
        side: {"policy": policy, "data": "emoji", "prompt": "base"}
        for side, policy in (("a", "base"), ("b", "tr|ained"))
    }
    refused = [sides | {"because": {"verifier.name": ["taxonomy", "flax_judge"]}}]
    text = written(
        runs=[run("base"), run("tr|ained", choices=choices), run("base", "birds")], refused=refused
    )
    emoji, birds = re.split("^## ", text, flags=re.M)[1:3]
    assert "| names of predict | --confidence | images named |" in emoji
    assert "| tr\\|ained | 0.7 | 0.250 | 0.900 | 0.625 |" in emoji
    assert "| tr\\|ained | 1.0 | 0.000 |  |  |" in emoji and "names of predict" not in birds
    assert "tr\\|ained/emoji/base are not compared: verifier.name ('taxonomy' and" in emoji
    assert "not compared" not in birds


def test_changes_are_those_of_the_same_images():
    lines = [answer(f"thing {i}", "a", "wrong") for i in range(3)]
    later = [answer(f"thing {i}", "b", "specific") for i in range(2)]
    text = written(before=lines, after=[later[0], answer("another", "b", "specific")])
    assert "1 of 1 became better:" in text and "thing 0" in text


def test_a_run_that_ended_early_says_why_and_shows_its_validations():
    scores = {f"validation/far|off/{m}": 0.25 for m in ("hm", "correctness", "specificity")}
    history = [{"step": 0} | scores, {"step": 1, "reward/mean": 0.5}, {"step": 10} | scores]
    summary = {"steps": 10, "wall_seconds": 60.0, "stopped": "correctness fell", "best_step": 5}
    text = written(history=history, summary=summary)
    assert "The run ended early: correctness fell." in text
    assert "is the best checkpoint, that of step 5." in text
    rows = [cells(line) for line in text.splitlines() if "far" in line]
    assert rows == [[n, r"far\|off", "0.250", "0.250", "0.250"] for n in ("0", "10")]
    assert "ended early" not in written(history=history[1:2]) and "validation set" not in written()
