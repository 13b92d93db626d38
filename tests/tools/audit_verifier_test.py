"""The audit: what it prints and writes, files of users, and what it refuses."""

import csv
import json
import types

import judge_server
import numpy as np
import pytest
from PIL import Image

from configs import own_folder
from speciarl_jax.tools import audit_pairs, audit_verifier
from speciarl_jax.verifiers.category import Category

W, S = Category.WRONG, Category.SPECIFIC


@pytest.fixture
def config(small_config, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Sort.\n{pair}\nReply.")
    return small_config(verifier__flax_judge__prompt=str(prompt))


def write_pairs(path, columns, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


@pytest.mark.slow
def test_two_verifiers_are_compared_with_the_pairs_and_with_each_other(config, tmp_path):
    rows = [
        ("wolf", "Timber wolf", "More specific", "a"),
        ("wolf", "canid", "less_specific", "b"),
        ("wolf", "a fox", "specific", "a person's mistake"),
        ("wolf", "wolf, fox", "wrong", "c"),
        ("fox", "none", "abstain", "d"),
    ]
    path = write_pairs(tmp_path / "p.csv", ["truth", "prediction", "category", "kind"], rows)
    names = ["taxonomy", "flax_judge"]
    figures, found, kept, lines = audit_verifier.audit(config, path, names)
    assert found["taxonomy"].category.tolist() == [5, 3, 0, 0, 1]
    result = figures["verifiers"]["taxonomy"]
    assert result["accuracy"] == 0.8 and result["disagreements"] == 1
    assert result["unverified"] == 0 and result["precision"]["wrong"] == 0.5
    assert np.sum(result["matrix"]) == 5
    text = "\n".join(lines)
    assert "'wolf' <- 'a fox': specific, verdict wrong [a person's mistake]" in text
    assert "== taxonomy and flax_judge ==" in text and "Cohen's kappa" in text
    # The list and the abstention are stated; random weights decide about the rest.
    judged = found["flax_judge"]
    assert judged.category[3:].tolist() == [0, 1] and judged.valid.all()
    np.testing.assert_allclose(judged.probability.sum(-1), 1, atol=1e-5)
    assert np.sum(figures["between"]["taxonomy, flax_judge"]["matrix"]) == 5
    audit_pairs.write(tmp_path / "out", figures, kept)
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == figures
    with (tmp_path / "out" / "verdicts.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["taxonomy: verdict"] for row in written][:2] == ["more_specific", "less_specific"]
    assert float(written[4]["flax_judge: abstain"]) == 1.0


@pytest.mark.slow
def test_the_tree_of_any_data_set_judges_and_a_judge_needs_none(config, tmp_path):
    for number, name in enumerate(("bird/eagle", "bird/gull", "car/van")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9 + i, 9), (number, 0, 0)).save(folder / f"{i}.png")
    with config.unlocked():
        own = own_folder.get_config()
        config.data, config.evaluation.options = own.data, own.evaluation.options
    config.data.options.path = str(tmp_path / "images")
    config.data.options.held_out_share = 0.3
    config.train.batch_size = 2
    columns = ["truth", "prediction", "category"]
    rows = [("eagle", "bird", "generic"), ("gull", "eagle", "wrong"), ("van", "van", "specific")]
    path = write_pairs(tmp_path / "p.csv", columns, rows)
    figures, found, *_ = audit_verifier.audit(config, path, ["taxonomy"])
    assert found["taxonomy"].category.tolist() == [2, 0, 4]
    assert figures["verifiers"]["taxonomy"]["accuracy"] == 1
    # A judge takes the names of the pairs; the images need not be there.
    config.data.options.path = str(tmp_path / "gone")
    _, found, *_ = audit_verifier.audit(config, path, ["flax_judge"])
    assert found["flax_judge"].valid.all()
    with pytest.raises(ValueError, match="gone"):
        audit_verifier.audit(config, path, ["taxonomy"])


def test_a_judge_behind_http_is_audited_beside_the_tree(config, tmp_path):
    def script(body, number):
        pair = judge_server.pair_of(body)
        return judge_server.status(404) if pair["prediction"] == "beast" else None

    rows = [
        ("wolf", "timber wolf", "more_specific"),
        ("wolf", "canid", "less_specific"),
        ("wolf", "wolf or fox", "wrong"),
        ("fox", "beast", "generic"),
        ("fox", "none", "abstain"),
    ]
    path = write_pairs(tmp_path / "p.csv", ["truth", "prediction", "category"], rows)
    judge = config.verifier.http_judge
    judge.model, judge.cache = "judge", ""
    with judge_server.JudgeServer(script, opinion=lambda pair: "less specific") as server:
        judge.server.url = server.url
        names = ["taxonomy", "http_judge"]
        figures, found, kept, lines = audit_verifier.audit(config, path, names)
        asked = [judge_server.pair_of(body) for body in server.requests]
    assert sorted(pair["prediction"] for pair in asked) == ["beast", "canid", "timber wolf"]
    assert found["http_judge"].valid.tolist() == [True, True, True, False, True]
    assert found["http_judge"].category[[0, 1, 2, 4]].tolist() == [3, 3, 0, 1]
    result = figures["verifiers"]["http_judge"]
    assert result["unverified"] == 1 and result["accuracy"] == 0.75
    assert result["disagreements"] == 1 and np.sum(result["matrix"]) == 4
    text = "\n".join(lines)
    assert "== http_judge against the labels ==" in text and "1 pairs have no verdict" in text
    assert "== taxonomy and http_judge ==" in text and "HTTP 404" in text
    audit_pairs.write(tmp_path / "out", figures, kept)
    with (tmp_path / "out" / "verdicts.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    said = [row["http_judge: verdict"] for row in written]
    assert said == ["less_specific", "less_specific", "wrong", "unverified", "abstain"]


@pytest.mark.slow
def test_outcomes_of_its_own_and_pairs_left_to_the_judge(config, tmp_path):
    rows = [
        ("wolf", "<answer>wolf</answer><answer>fox</answer>", "unparsed", "unparsed"),
        ("wolf", "<answer>it is a wolf</answer>", "wrong", "ask"),
        ("wolf", "<answer>" + "wolf " * 200 + "</answer>", "wrong", "wrong"),
    ]
    path = write_pairs(tmp_path / "p.csv", ["truth", "response", "taxonomy", "judge"], rows)
    figures, found, _, lines = audit_verifier.audit(config, path, ["taxonomy", "flax_judge"])
    for name in ("taxonomy", "flax_judge"):
        assert figures["verifiers"][name]["accuracy"] == 1
    assert np.sum(figures["verifiers"]["flax_judge"]["matrix"]) == 2
    assert "1 pairs are for the judge to decide" in "\n".join(lines)
    assert found["flax_judge"].category[1] in set(Category)


def test_an_answer_without_a_verdict_is_counted_and_compared_with_nothing():
    rows = [{"truth": "wolf", "prediction": "x", "category": "wrong", "label_id": "wolf"}] * 3
    found = audit_pairs.Verdicts(np.array([0, -1, 5]), np.array([True, False, True]), None)
    figures, lines = audit_pairs.compare(rows, "http_judge", found)
    assert figures["unverified"] == 1 and np.sum(figures["matrix"]) == 2
    assert figures["accuracy"] == 0.5 and "1 pairs have no verdict" in lines


@pytest.mark.parametrize(
    "columns, rows, message",
    [
        (["truth", "category"], [("a", "wrong")], "needs truth, category, and either"),
        (["truth", "prediction", "response", "category"], [("a", "b", "c", "wrong")], "either"),
        (["truth", "prediction", "category"], [], "has 0 rows"),
        (["truth", "prediction", "category"], [("a", "b", "right")], "row 1: category is 'right'"),
        (["truth", "prediction", "category"], [("a", "b")], "row 1: category is ''"),
    ],
)
def test_files_that_are_no_pairs_are_refused(tmp_path, columns, rows, message):
    path = write_pairs(tmp_path / "p.csv", columns, rows)
    with pytest.raises(ValueError, match=message):
        audit_pairs.read_pairs(path)
    with pytest.raises(
        ValueError, match="no pairs 'silver'; choose one of .*'adversarial', 'gold'"
    ):
        audit_pairs.read_pairs("silver")


def test_a_label_that_the_tree_lacks_is_refused(config, tmp_path):
    columns = ["truth", "prediction", "category"]
    path = write_pairs(tmp_path / "p.csv", columns, [("unicorn", "x", "wrong")])
    with pytest.raises(ValueError, match="has 0 labels named 'unicorn'; give the column label_id"):
        audit_verifier.audit(config, path, ["taxonomy"])
    with pytest.raises(ValueError, match="'oracle' is no choice for verifiers"):
        audit_verifier.audit(config, path, ["oracle"])


COLUMNS = ["dataset", "truth", "prediction", "accepted", "note"]
TREE_ROWS = [
    ("oxford_iiit_pet", "Beagle", "a beagle!", "specific", "1"),
    ("oxford_iiit_pet", "Beagle", "dogs", "Less specific; generic", "2"),
    ("oxford_iiit_pet", "Beagle", "Persian", "specific", "3"),
    ("oxford_iiit_pet", "unicorn", "horse", "wrong", "4"),
    ("emoji", "wolf", "timber wolf", "more specific", "5"),
    ("emoji", "timber", "wolf", "wrong", "6"),
]


def test_a_tree_alone_judges_pairs_and_says_why(tmp_path):
    path = write_pairs(tmp_path / "p.csv", COLUMNS, TREE_ROWS)
    figures, rows, lines = audit_verifier.audit_tree("auto", path)
    audit_pairs.write(tmp_path / "out", figures, rows)
    with (tmp_path / "out" / "verdicts.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == [*COLUMNS, "category"]
    assert [tuple(row[c] for c in COLUMNS) for row in written] == TREE_ROWS
    assert [row["category"] for row in written] == [
        *("specific", "generic", "wrong", "unverified", "more specific", "unverified")
    ]
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == figures
    result = figures["verifiers"]["taxonomy"]
    assert result["right"] == {"all": [3, 6], "oxford_iiit_pet": [2, 4], "emoji": [1, 2]}
    assert result["unverified"] == 2 and result["disagreements"] == 1
    text = "\n".join(lines)
    assert "'Beagle' <- 'a beagle!': verdict specific (name 'Beagle')" in text
    assert "verdict wrong (is a name of 'Persian')" in text
    assert "the label tree has 0 labels named 'unicorn'" in text
    assert "right, all: 3 of 6 (50.0%)" in text
    # A tree of one name judges the rows of its data set.
    _, rows, _ = audit_verifier.audit_tree("emoji", path)
    assert [row["note"] for row in rows] == ["5", "6"]


def test_a_tree_in_a_file_takes_any_name_of_a_label_and_names_the_node(tmp_path):
    bird = {"name": "eagle", "generic": "animal", "synonyms": ["erne", "shared"]}
    bird |= {"ancestors": [["bird of prey", "raptor"]], "broader": [["bird"], ["vertebrate"]]}
    leaves = {"1": bird, "2": {"name": "gull", "generic": "animal", "synonyms": ["shared"]}}
    leaves["3"] = {"name": "shared", "generic": "animal"}
    tree = {"version": 1, "groups": {"animal": ["animal"]}, "leaves": leaves}
    (tmp_path / "tree.json").write_text(json.dumps(tree))

    def judged(rows, columns=("truth", "prediction")):
        path = write_pairs(tmp_path / "p.csv", columns, rows)
        figures, rows, lines = audit_verifier.audit_tree(str(tmp_path / "tree.json"), path)
        return figures, [row["category"] for row in rows], lines

    figures, said, lines = judged([("An Erne", "raptors"), ("2", "eagle"), ("shared", "eagle")])
    assert said == ["less specific", "wrong", "wrong"] and figures["verifiers"] == {}
    assert "ancestor 1 'raptor' of the node 'bird of prey'" in lines[0]
    _, said, lines = judged([("eagle", "vertebrate")])
    assert said == ["generic"]
    assert "broader ancestor 2 'vertebrate')" in lines[0]
    # What the pairs call category is what they accept.
    path = write_pairs(
        tmp_path / "p.csv", ["truth", "response", "category"], [("gull", "<answer>gull", "wrong")]
    )
    figures, rows, _ = audit_verifier.audit_tree(str(tmp_path / "tree.json"), path)
    assert rows[0]["accepted"] == "wrong" and rows[0]["category"] == "unparsed"
    assert figures["verifiers"]["taxonomy"]["right"] == {"all": [0, 1]}
    del leaves["3"]
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="can judge no row .* has 2 labels named 'shared'; give"):
        judged([("shared", "eagle")])
    _, said, _ = judged([("shared", "eagle", "1")], ("truth", "prediction", "label_id"))
    assert said == ["specific"]


def test_a_tree_that_is_not_there_is_refused(tmp_path):
    path = write_pairs(tmp_path / "p.csv", ["truth", "prediction"], [("wolf", "wolf")])
    with pytest.raises(ValueError, match="'oak' is no file and no tree that ships: .*'emoji'"):
        audit_verifier.audit_tree("oak", path)
    with pytest.raises(ValueError, match="--tree=auto needs a column dataset"):
        audit_verifier.audit_tree("auto", path)


def test_the_command_needs_no_configuration(tmp_path, monkeypatch, capsys):
    given = {"config": None, "tree": "emoji", "pairs": "gold", "verifiers": ["taxonomy"]}
    given = types.SimpleNamespace(**given, out=str(tmp_path))
    monkeypatch.setattr(audit_verifier.flags, "FLAGS", given)
    audit_verifier.main(["audit_verifier"])
    assert "right, all: 720 of 720 (100.0%)" in capsys.readouterr().out
    figures = json.loads((tmp_path / "audit.json").read_text())
    assert figures["verifiers"]["taxonomy"]["right"] == {"all": [720, 720]}
    given.tree = None
    with pytest.raises(audit_verifier.app.UsageError, match="give --config=FILE .* or --tree=NAME"):
        audit_verifier.main(["audit_verifier"])


def test_the_figures_are_those_of_a_small_example():
    # Cohen's own layout: 20 of 50 agree on yes, 15 on no, 5 and 10 differ; kappa is 0.4.
    reference = [S] * 25 + [W] * 25
    other = [S] * 20 + [W] * 5 + [S] * 10 + [W] * 15
    found = audit_pairs.agreement(reference, other)
    assert found["accuracy"] == pytest.approx(0.7) and found["kappa"] == pytest.approx(0.4)
    s, w = S + 1, W + 1
    matrix, precision, recall = (found[name] for name in ("matrix", "precision", "recall"))
    assert matrix[s][s] == 20 and matrix[s][w] == 5
    assert matrix[w][s] == 10 and matrix[w][w] == 15 and np.sum(matrix) == 50
    assert precision == {"specific": pytest.approx(20 / 30), "wrong": pytest.approx(15 / 20)}
    assert recall == {"specific": pytest.approx(0.8), "wrong": pytest.approx(0.6)}
    printed = audit_pairs.table(found, "people", "judge")
    assert "rows: people, columns: judge" in printed and "kappa 0.400" in printed
    assert "generic" not in printed


def test_kappa_from_the_definition_on_random_verdicts():
    rng = np.random.default_rng(0)
    reference, noise = rng.integers(-1, 6, (2, 4000))
    other = np.where(rng.random(4000) < 0.6, reference, noise)
    found = audit_pairs.agreement(reference, other)
    chance = sum(np.mean(reference == c) * np.mean(other == c) for c in range(-1, 6))
    observed = np.mean(reference == other)
    assert found["kappa"] == pytest.approx((observed - chance) / (1 - chance))
    same = audit_pairs.agreement(reference, reference)
    assert same["kappa"] == pytest.approx(1) and set(same["precision"].values()) == {1.0}
    swapped = audit_pairs.agreement(other, reference)
    np.testing.assert_array_equal(swapped["matrix"], np.transpose(found["matrix"]))
    assert swapped["precision"] == found["recall"]


def test_agreement_by_chance_alone_has_no_kappa_and_unequal_lengths_are_refused():
    alone = audit_pairs.agreement([S, S], [S, S])
    assert alone["kappa"] is None and "kappa nan" in audit_pairs.table(alone, "a", "b")
    with pytest.raises(ValueError, match="2 verdicts cannot be compared with 1"):
        audit_pairs.agreement([S, S], [S])
    with pytest.raises(ValueError, match="0 verdicts"):
        audit_pairs.agreement([], [])
