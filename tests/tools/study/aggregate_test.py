"""What a study says about its runs: numbers, tables, figures; what is missing is said."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import study_program

from speciarl_jax.evaluation import metrics, seeds
from speciarl_jax.tools.study import aggregate, figure, launchers, runner, tables
from speciarl_jax.verifiers.category import Category

WEIGHTS = metrics.PRESETS["thirds"]


@pytest.fixture
def finished(plan_of):
    """The plan of a study all of whose runs are there."""
    plan = plan_of()
    assert runner.run(plan, launchers.local, lambda: None, lambda line: None) == []
    return plan


def row_of(found, name, data="in"):
    return next(row for row in found["sets"][data]["rows"] if row["name"] == name)


def verdicts(policy, data, decoding, place, count=1):
    part = f"{policy}/{data}/base/{decoding}"
    return np.array(
        [
            max(
                Category[study_program.category(f"{part}{place}{n}", image).upper()]
                for n in range(count)
            )
            for image in range(study_program.IMAGES)
        ]
    )


def test_the_numbers_are_those_of_the_answers_of_all_seeds(finished):
    found = aggregate.of_study(finished, resamples=500)
    assert list(found["sets"]) == ["in", "out"] and found["sets"]["in"]["images"] == 40
    names = [row["name"] for row in found["sets"]["in"]["rows"]]
    assert names == ["base", "base, best of 3", "SpeciaRL", "binary (RFT)"]
    for data in ("in", "out"):
        by_seed = [verdicts("trained", data, "greedy", f"seed_{s}") for s in (0, 1)]
        methods = {
            "base": seeds.Runs((), verdicts("base", data, "greedy", "evaluation")[None]),
            "best": seeds.Runs((), verdicts("base", data, "samples", "evaluation", 3)[None]),
            "SpeciaRL": seeds.Runs((0, 1), np.stack(by_seed)),
        }
        for name, runs in methods.items():
            shown = "base, best of 3" if name == "best" else name
            want = [metrics.score(one, WEIGHTS).hm for one in runs.category_SB]
            row = row_of(found, shown, data)
            assert row["scores"]["hm"]["by_seed"] == pytest.approx(want)
            assert row["scores"]["hm"]["value"] == pytest.approx(np.mean(want))
        drawn = seeds.SeedBootstrap(methods, WEIGHTS, resamples=2)
        row = row_of(found, "base", data)
        want = drawn.paired("SpeciaRL", "base")["differences"]["hm"]["value"]
        assert row["against_reference"]["differences"]["hm"]["value"] == pytest.approx(want)
        closed = row_of(found, "SpeciaRL", data)["closed"]
        assert closed["value"] == pytest.approx(drawn.closed("SpeciaRL", "base", "best")["value"])
    assert row_of(found, "SpeciaRL")["against_reference"] is None
    assert [run["status"] for run in found["runs"]] == ["finished"] * 5
    json.dumps(found, allow_nan=False)


def test_what_samples_of_the_base_agree_on_is_set_beside_the_methods(finished):
    found = aggregate.of_study(finished, resamples=20)
    first, second = found["sets"]["in"]["frontier"]
    assert first == pytest.approx(
        {"confidence": 0.2, "correctness": 0.5, "specificity": 0.9, "hm": 0.9 / 1.4}
    )
    # Images without a name are not correct.
    assert second["correctness"] == pytest.approx(0.4) and second["hm"] == pytest.approx(0.4)
    base, best = (row_of(found, name)["scores"]["hm"]["value"] for name in ("base", found["best"]))
    text = tables.markdown(found)
    share = round(100 * (0.9 / 1.4 - base) / (best - base))
    assert "in: the names that samples of base agree on, without training, reach" in text
    assert "at most 0.643 (0.500 and 0.900, at a confidence of 0.2 that" in text
    assert f"{share}% of the distance." in text
    assert "names that samples of base agree on" in figure.files(found)["plot.svg"].decode()
    for one in found["sets"].values():
        one["frontier"] = []
    assert "agree on" not in tables.markdown(found)


def test_missing_seeds_and_rows_are_told(finished, tmp_path):
    shutil.rmtree(tmp_path / "runs/binary_RFT/seed_0")
    shutil.rmtree(tmp_path / "runs/base")
    found = aggregate.of_study(finished, resamples=20)
    text = tables.markdown(found)
    assert "n=1 of 2" in text and "Seeds are missing of binary (RFT)." in text
    assert "No finished run yet of base." in text
    # The difference is of the seed that both have.
    assert row_of(found, "binary (RFT)")["against_reference"]["seeds"] == [1]
    shutil.rmtree(tmp_path / "runs")
    empty = aggregate.of_study(finished, resamples=20)
    assert empty["sets"]["in"] == {
        "images_of": empty["sets"]["in"]["images_of"],
        "frontier": [],
        "images": 0,
        "rows": [],
    }
    assert figure.files(empty) == {} and "No finished run yet" in tables.short(empty)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("images", "base and binary .* images or verdicts of 'in'.*'in' and 'others'"),
        ("verifier", "images or verdicts of 'in'"),
        ("policy", "binary .*seed 0 and binary .*seed 1 began with other weights"),
    ],
)
def test_runs_that_cannot_be_set_side_by_side_are_refused(finished, tmp_path, key, said):
    path = tmp_path / "runs/binary_RFT/seed_1/predictions_provenance.json"
    known = json.loads(path.read_text())
    known["trained/in/base/greedy"][key] = {"weights": "x"} if key == "policy" else "others"
    path.write_text(json.dumps(known))
    with pytest.raises(ValueError, match=said):
        aggregate.of_study(finished, resamples=2)


def test_the_tables_have_every_number(finished):
    found = aggregate.of_study(finished, resamples=50)
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(found))))
    assert len(rows) == 8 and rows[2]["row"] == "SpeciaRL" and rows[2]["seeds"] == "2"
    want = row_of(found, "binary (RFT)")
    assert float(rows[3]["hm"]) == want["scores"]["hm"]["value"]
    difference = want["against_reference"]["differences"]["correctness"]
    assert float(rows[3]["correctness_minus_reference_low"]) == difference["interval"][0]
    text = tables.markdown(found)
    assert "in: 40 images" in text and "HM - SpeciaRL" in text and "distance closed" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines[:6]}) == 1  # aligned
    starred = want["against_reference"]["differences"]["hm"]["excludes_zero"]
    line = next(line for line in lines if "binary" in line)
    assert line.split("|")[8].strip().endswith("*") == starred


def many(count):
    """`study.json` of so many methods of five seeds that nearly coincide."""
    rng = np.random.default_rng(0)
    methods = {
        f"method number {i}": seeds.Runs(tuple(range(5)), rng.integers(0, 5, (5, 300)))
        for i in range(count)
    }
    one = aggregate.of_methods(methods, WEIGHTS, {}, 20, base="method number 0")
    return {"base": "method number 0", "sets": {"a": one, "b": one}}


def test_every_two_methods_are_tested_against_each_other():
    found = many(3) | {"method": "", "weights": {}, "reference": None, "best": None, "search": {}}
    rows = {row["name"]: row for row in found["sets"]["a"]["rows"]}
    for name, row in rows.items():
        assert row["hm_against"].keys() == rows.keys() - {name}
        for other, test in row["hm_against"].items():
            hm, from_hm = (rows[one]["scores"]["hm"]["value"] for one in (name, other))
            assert test["value"] == pytest.approx(hm - from_hm)
            low, high = rows[other]["hm_against"][name]["interval"]
            np.testing.assert_allclose(test["interval"], [-high, -low], atol=1e-9)
    text = tables.markdown(found)
    (line, *_) = [one for one in text.split("the column:")[1].splitlines() if "number 1 " in one][
        1:
    ]
    assert f"{rows['method number 1']['hm_against']['method number 0']['value']:+.3f}" in line
    # A base that has no seeds, and the best of its samples, are no rows of that table.
    alone = aggregate.of_methods({"base": seeds.Runs((), np.zeros((1, 9), int))}, WEIGHTS, {}, 9)
    assert alone["rows"][0]["hm_against"] == {}


@pytest.mark.parametrize("count", [6, 25])
def test_names_in_the_figure_do_not_overlap(count):
    drawn = figure.draw(many(count))
    renderer = drawn._get_renderer()
    for axes in drawn.axes:
        names = [t for t in axes.texts if t.get_weight() == "bold"]
        assert len(names) == count
        boxes = [text.get_window_extent(renderer).shrunk(0.9, 0.7) for text in names]
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
        assert not pairs
        inside = axes.get_window_extent(renderer).padded(2)
        assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)
    looks = {figure._look(i) for i in range(90)}
    assert len(looks) == 90


def test_the_figure_is_written_as_svg_and_png():
    files = figure.files(many(3))
    assert files["plot.png"].startswith(b"\x89PNG")
    svg = files["plot.svg"].decode()
    assert "method number 2" in svg and re.search("HM 0.[0-9]", svg)
    assert "<dc:date>" not in svg  # the same numbers, the same file
