"""What a study would run: configurations, commands, folders, and what is refused."""

import pathlib
import shlex

import pytest

from speciarl_jax.tools.study import Row, Search, definition, plan

ROOT = pathlib.Path(__file__).resolve().parents[3]
BASE = Row("base", "configs/quickstart.py", train=False)


def planner_of(study, folder, *rows, **changes):
    given = {"rows": (BASE, *rows), "reference": rows[0].name if rows else "base"}
    return plan.Planner(study(**given | changes), folder)


def runs_of(planner, number=1):
    return list(planner.reported(planner.study.rows[number]))


def test_each_seed_of_a_trained_row_is_a_run_and_the_base_is_one(plan_of):
    found = {one.folder: one for one in plan_of().runs()}
    assert list(found) == [
        "runs/base/evaluation",
        *("runs/SpeciaRL/seed_0", "runs/SpeciaRL/seed_1"),
        *("runs/binary_RFT/seed_0", "runs/binary_RFT/seed_1"),
    ]
    base, binary = found["runs/base/evaluation"], found["runs/binary_RFT/seed_1"]
    assert [command[0] for command in base.commands] == ["evaluate"]
    assert base.commands[0][-1] == "--best_of=3"
    ((program, config, *flags),) = binary.commands
    assert (program, config) == ("train", "--config=configs/binary.py:quickstart")
    assert {"--config.seed=1", "--config.evaluation.before=False"} <= set(flags)
    assert {part.data for part in binary.parts} == {"in", "out"}
    assert {part.decoding for part in base.parts} == {"greedy", "samples"}
    assert binary.config["seed"] == 1 and binary.config["reward.name"] == "binary"


def test_rows_and_seeds_can_be_selected(plan_of):
    found = plan_of(["binary (RFT)"], [1]).runs()
    assert [one.name for one in found] == ["binary (RFT), seed 1"]
    with pytest.raises(ValueError, match="no row 'RFT'"):
        plan_of(["RFT"])
    with pytest.raises(ValueError, match=r"--seeds has \[7\]"):
        plan_of([], [7])


def test_a_trained_row_with_samples_is_evaluated_once_more(study, tmp_path):
    planner = planner_of(study, tmp_path, Row("a", "configs/quickstart.py", best_of=8), seeds=(4,))
    (found,) = runs_of(planner)
    workdir = f"--workdir={tmp_path}/runs/a/seed_4"
    assert found.commands[1] == ("evaluate", workdir, "--policies=trained", "--best_of=8")


def test_all_rows_are_asked_about_the_images_of_the_base(study, tmp_path):
    row = Row("many", "configs/quickstart.py", {"data.options.views": 7})
    planner = planner_of(
        study, tmp_path, row, sets={"a": {}, "b": {"name": "own", "options": {"x": 1}}}
    )
    (first, _) = runs_of(planner)
    assert first.config["data.options.views"] == 7
    assert first.config["evaluation.sets.a.options.views"] == 4  # of configs/quickstart.py
    assert first.config["evaluation.sets.a.options.split"] == "held_out"
    assert first.config["evaluation.sets.b.name"] == "own"
    assert {k: v for k, v in first.config.items() if k.startswith("evaluation.sets.b.options")} == {
        "evaluation.sets.b.options.x": 1
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 7),
        ("optimizer.learning_rate", 1),
        ("train.fused", False),
        ("data.options.domains", ("vehicle", "food")),
        ("evaluation.validation_sets", {"one two": {"domains": ("food",)}}),
        ("data.system", 'Say it\'s a "name" for $5.'),
        ("data.max_pixels", None),
        ("data.max_pixels", 3136),
    ],
)
def test_an_override_arrives_through_the_shell(key, value):
    config, arguments = plan.resolve("configs/quickstart.py", {key: value})
    found = config
    for part in key.split("."):
        found = found[part]
    assert (found.to_dict() if hasattr(found, "to_dict") else found) == value
    typed = " ".join(map(plan._quoted, arguments))
    assert shlex.split(typed) == list(arguments)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train.stepz": 3}, "row 'a'.*train.stepz"),
        ({"train.steps": "many"}, "row 'a'.*train.steps"),
        ({"train.steps": 1.5}, "row 'a'.*train.steps"),
        ({"train.steps": None}, "row 'a'.*train.steps"),
        ({"data.options.domains": {1, 2}.__class__}, "row 'a'.*no plain value"),
    ],
)
def test_an_override_that_does_not_fit_is_refused_by_its_row(study, tmp_path, overrides, said):
    planner = planner_of(study, tmp_path, Row("a", "configs/quickstart.py", overrides))
    with pytest.raises(ValueError, match=said):
        runs_of(planner)


def test_only_keys_that_change_results_count(study, tmp_path):
    def config(**overrides):
        row = Row("a", "configs/quickstart.py", overrides)
        return runs_of(planner_of(study, tmp_path, row))[0].config

    plain = config()
    assert config(**{"checkpoint.save_every": 3, "logging.writers": ()}) == plain
    changed = config(**{"train.steps": 61, "reward.options.mode": "single"})
    said = plan.differences(plain, changed)
    assert said.split("\n") == [
        "  reward.options.mode: 'all' -> 'single'",
        "  train.steps: 60 -> 61",
    ]


SEARCH = Search(trials=2, images={"domains": ("food",)})
VALUES = {"train.steps": (1, 2, 3), "loss.kl_coefficient": (0.0, 0.1)}


def test_a_search_tries_as_many_settings_of_each_row(study, tmp_path):
    rows = [Row(n, "configs/quickstart.py", search=VALUES) for n in ("a", "b")]
    planner = planner_of(study, tmp_path, *rows, search=SEARCH)
    a, b = (list(planner.trials(row)) for row in rows)
    assert [one.folder for one in a] == ["search/a/trial_0", "search/a/trial_1"]
    assert [one.overrides for one in a] == [one.overrides for one in b]
    assert a[0].overrides != a[1].overrides and set(a[0].overrides) == set(VALUES)
    # Only the images of the search, and one seed.
    assert {part.data for one in a for part in one.parts} == {plan.VALIDATION}
    assert {one.config["seed"] for one in a} == {0}
    every = definition.settings(rows[0], Search(trials=6, images={}))
    assert [tuple(one.values()) for one in every] == [
        *((1, 0.0), (1, 0.1), (2, 0.0), (2, 0.1), (3, 0.0), (3, 0.1))
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": ()}, "at least one whole number"),
        ({"seeds": (1, 1)}, "each once"),
        ({"base": "SpeciaRL"}, "the base 'SpeciaRL' is trained"),
        ({"reference": "GRPO"}, "no row 'GRPO'"),
        ({"sets": {}}, "at least one"),
        ({"rows": (BASE, Row("a b", "x"), Row("a/b", "x"))}, "one folder"),
        ({"overrides": {"seed": 3}}, r"the study overrides \['seed'\]"),
        ({"rows": (BASE, Row("a", "x", {"evaluation.sets": {}}))}, "a overrides"),
        ({"rows": (BASE, Row("a", "x", search=VALUES))}, "no `search`"),
        ({"search": Search(1, {}, metric="f1")}, "choose one of"),
        ({"search": Search(1, {"domains": ("vehicle",)})}, "the reported set 'out'"),
        (
            {"search": Search(7, {"a": 1}), "rows": (BASE, Row("a", "x", search=VALUES))},
            "6 combinations .* 7 trials",
        ),
    ],
)
def test_a_study_that_does_not_fit_together_is_refused(study, changes, said):
    changes = {"reference": "base"} | changes if "rows" in changes else changes
    with pytest.raises(ValueError, match=said):
        definition.check(study(**changes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no study"),
        ("", "needs a function get_study"),
        ("def get_study():\n    return {}", "returned a dict"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, text, said):
    path = tmp_path / "study.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=said):
        definition.load(str(path))


@pytest.mark.parametrize(
    "path",
    [
        *map(str, sorted((ROOT / "configs" / "studies").glob("*.py"))),
        "configs/studies/cifar100.py:narrow",
    ],
)
def test_a_study_that_ships_can_be_planned(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    planner = plan.Planner(definition.load(path), tmp_path)
    runs = [one for row in planner.study.rows for one in planner.reported(row)]
    trained = [row for row in planner.study.rows if row.train]
    assert len(runs) == len(planner.study.rows) + len(trained) * (len(planner.study.seeds) - 1)


def test_keys_of_all_rows_change_from_the_command_line(study, tmp_path):
    given = ["train.steps=7", "data.prompt=specific", "data.options.domains=('animal',)"]
    changed = definition.with_overrides(study(overrides={"train.log_every": 3}), given)
    assert changed.overrides == {
        "train.log_every": 3,
        "train.steps": 7,
        "data.prompt": "specific",
        "data.options.domains": ("animal",),
    }
    planner = plan.Planner(changed, tmp_path)
    for row in changed.rows:
        for planned in planner.reported(row):
            assert planned.config["train.steps"] == 7
            assert planned.config["data.options.domains"] == ["animal"]


@pytest.mark.parametrize(
    "text, said", [("train.steps", "is not KEY=VALUE"), ("seed=3", "which a study sets itself")]
)
def test_what_is_no_key_of_all_rows_is_refused(study, text, said):
    with pytest.raises(ValueError, match=said):
        definition.with_overrides(study(), [text])
