"""`tools.compare` takes the folders of several seeds for one method."""

import json
import types

import pytest
from etils import epath

from speciarl_jax.tools import compare
from speciarl_jax.tools.study import aggregate, groups, launchers, runner


@pytest.fixture
def finished(plan_of):
    plan = plan_of()
    assert runner.run(plan, launchers.local, lambda: None, lambda line: None) == []
    return plan


@pytest.fixture
def start_compare(monkeypatch, tmp_path):
    """Folders -> the content of `comparison.json`."""

    def start_compare(*folders, **changes):
        given = {"out": str(tmp_path / "out"), "policies": [], "group_seeds": True} | changes
        monkeypatch.setattr(compare.flags, "FLAGS", types.SimpleNamespace(**given))
        compare.main(["compare", *map(str, folders)])
        return json.loads((tmp_path / "out/comparison.json").read_text())

    return start_compare


def test_seeds_are_aggregated_as_in_a_study(finished, start_compare, tmp_path, capsys):
    runs = tmp_path / "runs"
    found = start_compare(*(runs / "SpeciaRL").glob("seed_*"), *(runs / "binary_RFT").glob("*"))
    want = aggregate.of_study(finished)
    one, other = found["sets"]["in"]["rows"], want["sets"]["in"]["rows"]
    assert [row["name"] for row in one] == [
        f"{runs}/SpeciaRL, trained",
        f"{runs}/binary_RFT, trained",
    ]
    assert one[1]["seeds"] == [0, 1]
    for mine, theirs in zip(one, other[2:], strict=True):
        assert mine["scores"]["hm"]["value"] == theirs["scores"]["hm"]["value"]
    mine, theirs = (rows[-1]["against_reference"]["differences"]["hm"] for rows in (one, other))
    assert mine["value"] == pytest.approx(theirs["value"])
    assert mine["interval"] == pytest.approx(theirs["interval"], abs=0.01)
    assert (tmp_path / "out/plot.png").exists() and "mean" in capsys.readouterr().out


def test_groups_are_named_by_patterns_and_a_base_has_no_seeds(finished, start_compare, tmp_path):
    runs = tmp_path / "runs"
    arguments = (f"ours={runs}/SpeciaRL/seed_*", f"base={runs}/base/*", runs / "binary_RFT/seed_1")
    rows = {row["name"]: row for row in start_compare(*arguments)["sets"]["out"]["rows"]}
    assert list(rows) == [
        *("ours, trained", "base", "base, best of 3", f"{runs}/binary_RFT, trained")
    ]
    assert rows["base"]["seeds"] == [] and rows["ours, trained"]["seeds"] == [0, 1]
    assert rows["base"]["against_reference"]["seeds"] == [0, 1]
    assert rows[f"{runs}/binary_RFT, trained"]["against_reference"]["seeds"] == [1]
    assert 0 < abs(rows["ours, trained"]["closed"]["value"])
    with pytest.raises(ValueError, match="no folder fits"):
        groups.find([f"x={runs}/none_*"])


def test_seeds_without_the_same_evaluations_are_refused(finished, start_compare, tmp_path):
    path = tmp_path / "runs/SpeciaRL/seed_1/predictions.jsonl"
    lines = [line for line in path.read_text().splitlines(True) if '"data": "in"' in line]
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match="trained/out/base/greedy.*same evaluations"):
        start_compare(*(tmp_path / "runs/SpeciaRL").glob("seed_*"))


def test_other_images_are_refused(finished, start_compare, tmp_path):
    path = tmp_path / "runs/SpeciaRL/seed_1/predictions_provenance.json"
    path.write_text(path.read_text().replace('"images": "in"', '"images": "others"'))
    with pytest.raises(ValueError, match="differ in the images or verdicts of 'in'"):
        start_compare(*sorted((tmp_path / "runs/SpeciaRL").glob("seed_*")))


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (["seed_3", "seed_1"], [3, 1]),
        (["a_0", "b_0"], [0, 1]),
        (["first", "run_7"], [0, 1]),
    ],
)
def test_seeds_have_the_numbers_of_their_folders(names, want):
    assert groups.seed_numbers([epath.Path(name) for name in names]) == want
