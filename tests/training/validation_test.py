"""Validation while training: what it measures, keeps, ends, and refuses."""

import dataclasses
import json
import logging
import shutil
import types

import host_taxonomy
import ml_collections
import numpy as np
import pytest
import small_run

from speciarl_jax import evaluate, train
from speciarl_jax.evaluation import evaluator as evaluator_lib
from speciarl_jax.evaluation import metrics
from speciarl_jax.evaluation.evaluator import Evaluator
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import evaluation_run
from speciarl_jax.runtime import exit_codes, preemption
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.training import policy_sources, steps, train_logger, validation
from speciarl_jax.training import state as state_lib
from speciarl_jax.training.validation import Validation

pytestmark = pytest.mark.usefixtures("shared_programs")

# Every second of six steps, and two sets.
SETS = {"all": {}, "hard": {"difficulty": "hard"}}
WATCHED = {
    "train__steps": 6,
    "checkpoint__save_every": 3,
    "checkpoint__keep": 2,
    "evaluation__every": 2,
    "evaluation__images": 20,
    "evaluation__validation_sets": ml_collections.ConfigDict(SETS),
}
BEST = {"checkpoint__keep_best": 1, "checkpoint__best_metric": "validation/all/hm"}
STEPS = [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]


@pytest.fixture
def run_with(run, small_config):
    return lambda **changes: dataclasses.replace(run, config=small_config(**WATCHED | changes))


def rows_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]


def validations(workdir):
    return {r["step"]: r for r in rows_of(workdir) if any("validation/" in k for k in r)}


def state_of(run, workdir, step=None):
    _, state, _ = state_lib.start(run)
    folder = workdir / "checkpoints"
    with Checkpoints(folder, save_every=1, keep=9, create=False) as checkpoints:
        return small_run.arrays(checkpoints.restore(state, {}, step)[0])


def position_of(run, workdir):
    _, state, _ = state_lib.start(run)
    folder = workdir / "checkpoints"
    with Checkpoints(folder, save_every=1, keep=9, create=False) as checkpoints:
        position = checkpoints.restore(state, {})[1]
    return {k: v for k, v in position.items() if "seconds" not in k}


def assert_same(got, want, run, validated=True):
    assert rows_of(got) == rows_of(want)
    mine, calm = (position_of(run, workdir) for workdir in (got, want))
    if not validated:
        assert (mine.pop("validation")["step"], calm.pop("validation")["step"]) == (4, 6)
        for known in (mine, calm):  # These count validations, too.
            known["health"]["watched"].pop("validation_fallen")
            known["health"]["watched"].pop("validation_one_answer")
    assert mine == calm
    a, b = state_of(run, got), state_of(run, want)
    assert all(a[name].tobytes() == b[name].tobytes() for name in b)


@pytest.fixture(scope="module")
def calm(run, small_config, tmp_path_factory):
    """The workdir of a validated run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("calm")
    config = small_config(**WATCHED | BEST)
    train.train(dataclasses.replace(run, config=config), workdir)
    return workdir


@pytest.fixture
def scripted(monkeypatch):
    """Steps that compute nothing, and validations that find what is given."""

    def install(**values):
        """`values`: correctness, or hm, of the validation of step 0, 2, 4, ..."""
        found = iter(range(100))

        def scores(self, lora, when, leaves):
            number = next(found)
            row = {}
            for name in self._evaluators:
                for measure in metrics.MEASURES:
                    row[f"validation/{name}/{measure}"] = values.get(measure, [0.5] * 9)[number]
                row[f"validation/{name}/unverified"] = 0.0
            return row

        def train_step(run, optimizer, state_sharding, stage_done, compiled):
            def program(state, base, verifier, batch, number):
                return state, {"update/loss": 1.0, "update/skipped_in_a_row": 0.0}

            return program

        monkeypatch.setattr(Validation, "_scores", scores)
        monkeypatch.setattr(steps, "train_step", train_step)

    return install


# What is measured.


def test_validation_measures_what_an_evaluation_of_the_same_images_does(run_with, calm):
    rows = rows_of(calm)
    assert [row["step"] for row in rows] == STEPS
    found = validations(calm)
    assert list(found) == [0, 2, 4, 6]
    for name, options in SETS.items():
        # All images, of which the validation has those that the seed chooses.
        whole = run_with(evaluation__images=0, evaluation__validation_sets={name: options})
        ((_, evaluator),) = Validation(whole)._evaluators.items()
        few = Validation(run_with())._evaluators[name].source
        chosen = {few.describe(i)["image_id"] for i in range(len(few))}
        assert len(chosen) == 20 < len(evaluator.source)
        assert [*chosen] != [evaluator.source.describe(i)["image_id"] for i in range(20)]
        judged = evaluator(whole.lora)
        mine = [
            category
            for row, category in zip(judged.rows, judged.category_BN, strict=True)
            if row["image_id"] in chosen
        ]
        score = evaluator.score(np.array(mine))
        for measure in metrics.MEASURES:
            assert found[0][f"validation/{name}/{measure}"] == getattr(score, measure)
        assert found[0][f"validation/{name}/unverified"] == 0
    assert found[0]["validation/all/hm"] != found[6]["validation/all/hm"]


def test_the_time_of_a_validation_is_shown_apart(run_with, tmp_path, monkeypatch):
    def slow(self, lora, when, leaves, scores=Validation._scores):
        validation.time.sleep(2.0)
        return scores(self, lora, when, leaves)

    monkeypatch.setattr(Validation, "_scores", slow)
    shown = []
    bar = train_logger.TrainLogger.add_validation

    def add(self, number, row):
        bar(self, number, row)
        shown.append(self._bar.postfix)

    monkeypatch.setattr(train_logger.TrainLogger, "add_validation", add)
    train.train(run_with(train__steps=3, evaluation__every=1), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 1, 2, 2, 3, 3]
    for row in rows:
        assert ("time/validation" in row) != ("time/step" in row)
        assert row.get("time/validation", 2.0) >= 2.0
        if row["step"] > 1:
            assert row.get("time/step", 0.0) < 2.0 and row.get("time/device_idle", 0.0) < 2.0
    score = validations(tmp_path)[3]
    assert f"| all HM {score['validation/all/hm']:.2f} C " in shown[-1]
    assert "| hard HM" in shown[-1] and shown[-1].startswith("reward ")


def test_all_sets_and_steps_use_one_program(run_with, tmp_path, monkeypatch):
    made, make = [], evaluator_lib.answer_program

    def counted(run, count):
        made.append(make(run, count))
        return made[-1]

    monkeypatch.setattr(evaluator_lib, "answer_program", counted)
    run = run_with(train__steps=2)
    own = Evaluator(run)
    train.train(run, tmp_path, validation=Validation(run, own))
    assert len(made) == 1 and len(validations(tmp_path)) == 2


def test_another_verifier_judges_evaluations_alone(run_with, tmp_path):
    train.train(run_with(train__steps=2), tmp_path / "same")
    taxonomy = {"evaluation__verifier__name": "taxonomy"}
    other = run_with(train__steps=2, **taxonomy)
    train.train(other, tmp_path / "other")
    same, changed = (tmp_path / name for name in ("same", "other"))
    taken = [[r for r in rows_of(w) if "reward/mean" in r] for w in (same, changed)]
    assert taken[0] == taken[1]
    judged = evaluation_run(other)
    assert judged.config.verifier.name == "taxonomy" and judged.verifier is not other.verifier
    # The tree knows nothing of what a random policy says.
    score = validations(changed)[2]
    assert score["validation/all/correctness"] == 0 < validations(same)[2]["validation/all/hm"]


def test_evaluate_uses_the_verifier_of_evaluation(run_with, tmp_path):
    given = types.SimpleNamespace(
        config=run_with(evaluation__verifier__name="cascade").config,
        **dict.fromkeys(("policies", "sets", "prompts", "answers"), []),
        **{"workdir": str(tmp_path), "best": False, "step": None, "best_of": 0},
        **{"overwrite": False, "partial_answers": False},
    )
    config, plan = evaluate.make_plan(given)
    assert {one.verifier.name for one in (config, *plan.sets.values())} == {"cascade"}
    assert given.config.verifier.name == "taxonomy"
    given.config = run_with().config
    assert evaluate.make_plan(given)[0] is given.config


def test_sets_of_other_data_have_their_own_labels(run_with):
    """One verifier for each label tree, and none where the training's fits."""
    options = run_with().config.data.options.to_dict() | {"domains": ("food",)}
    sets = SETS | {"food": {"name": "emoji", "options": options}}
    found = Validation(run_with(evaluation__validation_sets=sets))._evaluators
    assert {id(one.run.verifier) for one in found.values()} == {id(run_with().verifier)}
    assert found["food"].source.describe(0)["generic"] == "food"
    assert found["all"].source.describe(0)["generic"] == "vehicle"
    with pytest.raises(ValueError, match="domains .'fod'. are unknown"):
        Validation(run_with(evaluation__validation_sets={"x": {"domains": ("fod",)}}))


def test_answers_without_a_verdict_are_counted(run_with, tmp_path, monkeypatch):
    run, batches = run_with(train__steps=2, evaluation__every=1), Evaluator.batches

    def some_unjudged(self, lora, **options):
        for indices, part in batches(self, lora, **options):
            valid_BN = part.valid_BN.copy()
            valid_BN[:3] = False
            yield indices, part._replace(valid_BN=valid_BN)

    monkeypatch.setattr(Evaluator, "batches", some_unjudged)
    train.train(run, tmp_path / "counted")
    # 20 images are a batch of 16 and one of 4.
    assert validations(tmp_path / "counted")[1]["validation/hard/unverified"] == 6


def test_a_judge_on_the_host_is_asked_and_must_answer(run_with, tmp_path):
    run = run_with(train__steps=1, evaluation__every=1)
    away = host_taxonomy.on_host(run, unknown=lambda text: True)
    with pytest.raises(host_verification.JudgeUnavailable, match="of the base, all: 100.0% of"):
        train.train(run, tmp_path, validation=Validation(run, Evaluator(away)))
    assert rows_of(tmp_path) == []
    there = Validation(run, Evaluator(host_taxonomy.on_host(run)))
    train.train(run, tmp_path, validation=there)
    assert validations(tmp_path).keys() == {0, 1}
    # The tree knows nothing of what a random policy says.
    found = validations(tmp_path)[1]
    assert found["validation/all/correctness"] == found["validation/all/unverified"] == 0


# Resuming.


@pytest.mark.parametrize(
    "how, when",
    [
        *(("killed", "base"), ("killed", "4")),
        *(("preempted", "base"), ("preempted", "2"), ("preempted", "6")),
    ],
)
def test_a_run_that_ends_during_a_validation_goes_on_to_the_same_bits(
    run, run_with, calm, tmp_path, monkeypatch, how, when
):
    """Killed in the second set, or with the notice of a preemption in the first."""
    batches, ended, asked = Evaluator.batches, [], []

    def broken(self, lora, *, name, **options):
        for found in batches(self, lora, name=name, **options):
            here = f"step {when}," in name or (when == "base" and "base" in name)
            if here and not ended:
                if how == "preempted":
                    ended.append(name)
                    asked.append(True)
                elif "hard" in name:
                    ended.append(name)
                    raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Evaluator, "batches", broken)
    monkeypatch.setattr(preemption.Notice, "after_step", lambda self: bool(asked))
    with pytest.raises(KeyboardInterrupt if how == "killed" else exit_codes.Preempted):
        train.train(run_with(**BEST), tmp_path)
    assert ended
    asked.clear()
    train.train(run_with(**BEST), tmp_path)
    # The last checkpoint was written before its validation, which each start does again.
    written_before = (when, how) == ("6", "preempted")
    if written_before:
        train.train(run_with(**BEST), tmp_path)
    assert_same(tmp_path, calm, run, validated=not written_before)
    config = run_with(**BEST).config
    best = []
    for workdir in (tmp_path, calm):
        with Checkpoints(workdir / "checkpoints", **config.checkpoint) as checkpoints:
            best.append(checkpoints.best_step())
    assert best[0] == best[1]


def test_a_judge_that_is_away_leaves_the_validation_to_the_next_start(
    run, run_with, calm, tmp_path, monkeypatch
):
    scores = Validation._scores
    away = [True]

    def sometimes(self, lora, when, leaves):
        if away and "step 4" in when:
            raise host_verification.JudgeUnavailable("away")
        return scores(self, lora, when, leaves)

    monkeypatch.setattr(Validation, "_scores", sometimes)
    with pytest.raises(host_verification.JudgeUnavailable):
        train.train(run_with(**BEST), tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)][-1] == 4
    assert list(validations(tmp_path)) == [0, 2]
    away.clear()
    train.train(run_with(**BEST), tmp_path)
    assert_same(tmp_path, calm, run)


def test_a_validation_before_the_checkpoint_is_not_done_again(run_with, calm, tmp_path):
    shutil.copytree(calm, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    train.train(run_with(**BEST), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_of_before_goes_on_with_validation_and_without(run, run_with, calm, tmp_path):
    off = {"evaluation__every": 0}
    train.train(run_with(**off, train__steps=3), tmp_path)
    assert not validations(tmp_path) and "validation" not in position_of(run, tmp_path)
    train.train(run_with(), tmp_path)
    # The weights are those of a run that was always validated.
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 4, 5, 6, 6]
    a, b = state_of(run, tmp_path), state_of(run, calm)
    assert all(a[name].tobytes() == b[name].tobytes() for name in b)
    rows = rows_of(tmp_path)
    train.train(run_with(**off), tmp_path)
    assert rows_of(tmp_path) == rows


# The best, and the end.


def test_the_best_checkpoint_is_one_that_was_validated(run_with, calm, tmp_path):
    scores = {step: row["validation/all/hm"] for step, row in validations(calm).items() if step}
    best = max(scores, key=lambda step: (scores[step], step))
    config = run_with(**BEST).config
    with Checkpoints(calm / "checkpoints", **config.checkpoint) as checkpoints:
        assert checkpoints.best_step() == best


def test_a_run_ends_with_its_best_after_validations_without_a_better_one(
    run, run_with, scripted, tmp_path, monkeypatch
):
    scripted(hm=[0.1, 0.3, 0.6, 0.6, 0.5, 0.7, 0.7])
    saved = {"train__steps": 20, "train__stop_after": 2, "checkpoint__keep": 1}
    stopping = run_with(**BEST | saved)
    watch = Validation(stopping)
    train.train(stopping, tmp_path, validation=watch)
    # Better after 2 and 4, the same after 6, worse after 8.
    assert [row["step"] for row in rows_of(tmp_path)][-1] == 8
    assert watch.progress.best_step == 4 and watch.best_step in (4, 6)
    assert watch.summary() == {"stopped": watch.stopped, "best_step": watch.best_step}
    assert "2 validations without a better validation/all/hm (best: 0.600 after step 4)" in (
        watch.stopped
    )
    again = Validation(stopping)
    train.train(stopping, tmp_path, validation=again)
    assert again.summary() == watch.summary()
    assert [row["step"] for row in rows_of(tmp_path)][-1] == 8
    # More patience: the run goes on.
    longer = run_with(**BEST | saved | {"train__stop_after": 4})
    scripted(hm=[0.7] * 9)
    train.train(longer, tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)][-1] == 18


def test_the_counter_of_validations_survives_a_restart(run_with, scripted, tmp_path):
    values = [0.1, 0.3, 0.2, 0.2, 0.2]
    saved = {"train__stop_after": 3, "checkpoint__keep": 1}
    scripted(hm=values)
    train.train(run_with(**BEST | saved | {"train__steps": 5}), tmp_path)
    scripted(hm=values[3:])
    train.train(run_with(**BEST | saved | {"train__steps": 30}), tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)][-1] == 6


def test_the_trained_policy_is_the_best_everywhere(run, run_with, tmp_path, monkeypatch):
    """In `train`, `evaluate` and `convert`."""
    config = run_with(train__stop_after=5, **BEST).config
    chosen = dataclasses.replace(run, config=config)
    watch = Validation(chosen)
    values = iter([0.1, 0.9, 0.2, 0.3])

    def scores(self, lora, when, leaves):
        value = next(values)
        return {f"validation/all/{m}": value for m in metrics.MEASURES}

    monkeypatch.setattr(Validation, "_scores", scores)
    lora, _ = train.train(chosen, tmp_path, validation=watch)
    assert watch.best_step == 2 and not watch.stopped
    want = state_of(run, tmp_path, 2)
    got = {f".lora{name}": value for name, value in small_run.arrays(lora).items()}
    assert got and all(value.tobytes() == want[name].tobytes() for name, value in got.items())
    (tmp_path / "config.json").write_text(config.to_json())
    base = policy_sources.base_of(run)
    for step in (None, policy_sources.BEST, 2):
        read = policy_sources.trained(run.mesh, run.lora, tmp_path, step, base)
        for name, value in small_run.arrays(read).items():
            assert value.tobytes() == got[f".lora{name}"].tobytes()
    last = small_run.arrays(policy_sources.trained(run.mesh, run.lora, tmp_path, 6, base))
    assert any(value.tobytes() != got[f".lora{name}"].tobytes() for name, value in last.items())


# The guard.


def test_the_guard_warns_and_then_ends_the_run(run_with, scripted, tmp_path, caplog):
    guard = {"train__max_correctness_drop": 0.05, "train__steps": 20}
    # Below once, back, below twice; the best harmonic mean is that of a checkpoint that fell.
    correct = [0.6, 0.54, 0.56, 0.5, 0.3, 0.6]
    scripted(correctness=correct, hm=[0.1, 0.9, 0.5, 0.8, 0.95, 0.99])
    run = run_with(**BEST | guard)
    watch = Validation(run)
    with caplog.at_level(logging.WARNING):
        train.train(run, tmp_path, validation=watch)
    assert [row["step"] for row in rows_of(tmp_path)][-1] == 8
    assert "correctness after step 2 fell to all 0.540 (base 0.600), hard 0.540" in caplog.text
    assert "more than config.train.max_correctness_drop 0.05; the run ends if" in caplog.text
    assert watch.stopped.startswith("correctness after step 8 fell to all 0.300 (base 0.600)")
    assert f"stopped after step 8: {watch.stopped}" in caplog.text
    assert watch.best_step == 4  # the only one that kept its correctness
    again = Validation(run)
    train.train(run, tmp_path, validation=again)
    assert again.summary() == watch.summary() == {"stopped": watch.stopped, "best_step": 4}
    # With a wider limit the same workdir goes on.
    wider = run_with(**BEST | guard | {"train__max_correctness_drop": 0.5, "train__steps": 9})
    scripted(correctness=[0.3])
    train.train(wider, tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)][-1] == 9


def test_a_guard_without_a_best_ends_with_the_last_step(run_with, scripted, tmp_path):
    scripted(correctness=[0.6, 0.3, 0.3])
    run = run_with(train__max_correctness_drop=0.1, train__steps=20)
    watch = Validation(run)
    train.train(run, tmp_path, validation=watch)
    assert watch.summary() == {"stopped": watch.stopped} and watch.progress.step == 4


def test_a_guard_that_comes_later_measures_the_base_first(run_with, scripted, tmp_path):
    scripted()
    train.train(run_with(evaluation__every=0, train__steps=3), tmp_path)
    scripted(correctness=[0.9, 0.5, 0.5])
    run = run_with(train__max_correctness_drop=0.1, train__steps=20)
    watch = Validation(run)
    train.train(run, tmp_path, validation=watch)
    assert watch.progress.base == {"all": 0.9, "hard": 0.9} and watch.progress.step == 6
    # Of other images nothing is known yet.
    other = Validation(run_with(train__max_correctness_drop=0.1, evaluation__images=8))
    other.set_state(watch.get_state())
    assert not other.progress.base and not other.stopped and other.progress.step == 6


# Refusals.


@pytest.mark.parametrize(
    "changes, said",
    [
        (BEST | {"evaluation__every": 0}, "best_metric is .* config.evaluation.every is 0"),
        ({"evaluation__every": 0, "train__stop_after": 1}, "stop_after is 1, but .*every is 0"),
        (
            {"evaluation__every": 0, "train__max_correctness_drop": 0.1},
            "max_correctness_drop is 0.1, but .*every is 0",
        ),
        (
            BEST | {"checkpoint__best_metric": "validation/birds/hm"},
            "birds/hm', which no validation measures; choose one of .*validation/all/correctness",
        ),
        (BEST | {"checkpoint__keep_best": 0}, "keep_best is 0, so no best checkpoint is kept"),
        ({"train__stop_after": 2}, "stop_after is 2: .* but that is 'reward/mean'"),
        ({"evaluation__validation_sets": {"a/b": {}}}, "the name 'a/b'; metrics are called"),
        ({"evaluation__validation_sets": {"a": 3}}, "sets.a is 3; give the options"),
    ],
)
def test_what_can_never_be_measured_is_refused_at_the_start(run_with, changes, said):
    with pytest.raises(ValueError, match=said):
        Validation(run_with(**changes))
