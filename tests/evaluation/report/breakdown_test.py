"""Scores by difficulty and by domain, against counts by hand."""

import pytest
import report_folder

from speciarl_jax.evaluation import metrics, outcome
from speciarl_jax.evaluation.report import breakdown, folder, markdown, page

WEIGHTS = report_folder.WEIGHTS


def content(count=80, samples=True, known=("base", "trained"), **fields):
    """A base that is right about every second image, and a trained policy that always is.

    The base's samples are right in 0, 1, 2, 3 or 4 of 4 cases, in turn.
    """
    rows, runs = [], []
    for policy in known:
        for i in range(count):
            row = {"image_id": i, "label": f"label {i % 4}", "label_id": f"id {i % 4}", "index": i}
            row |= {"policy": policy, "data": "emoji", "prompt": "base"} | {
                name: values[i % len(values)] for name, values in fields.items()
            }
            right = policy == "trained" or i % 2 == 0
            said = {"responses": ["x"], "categories": ["specific" if right else "wrong"]}
            rows.append(row | {"decoding": "greedy"} | said)
            if samples and policy == "base":
                said = ["generic"] * (i % 5) + ["wrong"] * (4 - i % 5)
                rows.append(
                    row | {"decoding": "samples", "responses": ["x"] * 4, "categories": said}
                )
        runs.append({"policy": policy, "data": "emoji", "prompt": "base", "images": count})
    found = {"runs": runs, "comparisons": [], "not_compared": [], "weights": WEIGHTS}
    return folder.Folder("name", metrics=found, predictions=rows)


def tables(made, domains=None):
    return {one.title: one for one in breakdown.tables(made, "emoji", "base", domains)}


def test_difficulty_is_how_many_samples_of_the_base_are_right():
    (table,) = tables(content()).values()
    assert table.title == "By difficulty: the samples of base" and "the 4 samples" in table.note
    assert [(group.name, group.images) for group in table.groups] == [
        ("all are right", 16),
        ("half or more are right", 32),
        ("fewer than half are right", 16),
        ("none is right", 16),
    ]
    base, trained = table.groups[1].rows
    assert (base.run["policy"], trained.run["policy"]) == ("base", "trained")
    assert base.score == metrics.score([0, 4] * 16, WEIGHTS)
    assert base.wrong == 0.5 and trained.wrong == 0 and base.differences == {}
    assert trained.differences["correctness"]["value"] == 0.5
    low, high = trained.differences["correctness"]["interval"]
    assert 0.3 < low < 0.5 < high < 0.7
    # A small group has scores, but no differences.
    assert table.groups[0].images < outcome.MIN_IMAGES and not table.groups[0].rows[1].differences


def test_without_samples_it_is_whether_the_base_is_right():
    (table,) = tables(content(samples=False)).values()
    assert table.title == "By difficulty: is base right?" and "only room to fall" in table.note
    right, other = table.groups
    assert (right.name, right.images, other.name, other.images) == ("right", 40, "not right", 40)
    # Where no answer is correct there is no specificity, and so no difference of it.
    base, trained = other.rows
    assert base.value("correctness") == 0 and base.value("specificity") is base.value("hm") is None
    assert trained.value("hm") == 1 and list(trained.differences) == ["correctness"]


def test_domains_are_those_of_the_lines_or_of_the_label_tree():
    title = "By domain"
    assert title not in tables(content())
    found = tables(content(generic=["bird", "fish"]))[title]
    assert [(group.name, group.images) for group in found.groups] == [("bird", 40), ("fish", 40)]
    domains = {"id 0": "bird", "id 1": "bird", "id 2": "fish"}  # one label lacks its group
    found = tables(content(), domains)[title]
    assert [(group.name, group.images) for group in found.groups] == [("bird", 40), ("fish", 20)]
    # One domain alone says nothing.
    assert title not in tables(content(), dict.fromkeys(domains, "bird"))


def test_a_difficulty_that_the_data_set_states_has_a_table_from_the_easiest():
    found = tables(content(difficulty=["hard", "easy", "easy", "easy"]))
    groups = found["By the difficulty that the data set states"].groups
    # The base is right about every image that is called hard here.
    assert [(group.name, group.images) for group in groups] == [("hard", 20), ("easy", 60)]


def test_all_rows_of_a_table_are_about_the_same_images():
    made = content()
    rows = [row for row in made.predictions if row["policy"] == "base" or row["image_id"] % 4 != 1]
    rows[0] = rows[0] | {"categories": ["unverified"]}
    (table,) = breakdown.tables(
        folder.Folder("n", metrics=made.metrics, predictions=rows), "emoji", "base"
    )
    assert sum(group.images for group in table.groups) == 80 - 20 - 1
    # A run that cannot be compared takes no part.
    sides = {"a": made.metrics["runs"][0], "b": made.metrics["runs"][1]}
    made.metrics["not_compared"].append(sides | {"because": {"labels": ["x", "y"]}})
    (table,) = tables(made).values()
    assert [len(group.rows) for group in table.groups] == [1] * 4
    assert sum(group.images for group in table.groups) == 80


def test_nothing_is_scored_without_weights_or_answers():
    made = content()
    made.metrics["weights"] = None
    assert tables(made) == {}
    assert tables(folder.Folder("name", metrics=content().metrics)) == {}


@pytest.mark.parametrize("hostile", ["<b>bird</b>", "a | b"])
def test_both_reports_have_the_tables_and_escape_their_names(tmp_path, hostile):
    report_folder.make(tmp_path)
    report_folder.know_more(tmp_path)
    made = folder.read(tmp_path)
    for row in made.predictions:
        row["generic"] = (hostile, "fish")[row["image_id"] % 2]
    text = markdown.render(made)
    assert "\n### By domain\n" in text and "\n| fish | 30 | base | 0." in text
    assert "| images | number | policy | correctness | specificity | HM | wrong |" in text
    assert hostile not in text
    html = page.render(made)
    assert '<h2 id="groups-title">Difficulty and domain</h2>' in html
    assert ">By domain</h3>" in html and "<b>bird" not in html
    # The samples of this base are right about half of the time, whatever the image.
    assert html.count('<table class="groups">') == 2
