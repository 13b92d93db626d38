"""Training from the command line to the report, killed and resumed, and what it refuses."""

import dataclasses
import json
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from speciarl_jax import train
from speciarl_jax.experiment.run import prepare
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.runtime import fingerprint
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.runtime.wall_clock import RunClock
from speciarl_jax.training import policy_sources, steps, train_logger
from speciarl_jax.training import state as state_lib

pytestmark = pytest.mark.usefixtures("shared_programs")
STEPS = {"train__steps": 6, "checkpoint__save_every": 2, "checkpoint__keep": 3}
CATEGORIES = {
    "unparsed",
    "wrong",
    "abstain",
    "generic",
    "less_specific",
    "specific",
    "more_specific",
}


def with_config(run, small_config, **changes):
    return dataclasses.replace(run, config=small_config(**changes))


def rows_of(workdir):
    """Rows of `metrics.jsonl` without the time of day and what took how long."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if not name.startswith("time")} for row in rows
    ]


def restored(run, workdir, step=None):
    """Arrays of a checkpoint by their path."""
    _, state, _ = state_lib.start(run)
    checkpoints = Checkpoints(workdir / "checkpoints", save_every=1, keep=9, create=False)
    state, _ = checkpoints.restore(state, {}, step)
    checkpoints.close()
    return small_run.arrays(state)


def assert_identical(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.fixture(scope="module")
def finished(run, small_config, tmp_path_factory):
    """The workdir of a run of six steps that nothing disturbed."""
    workdir, calls = tmp_path_factory.mktemp("finished"), []
    before = jax.tree.map(np.array, run.base)
    train.train(
        with_config(run, small_config, **STEPS), workdir, on_first_step=lambda: calls.append(1)
    )
    assert calls == [1]
    # Donation took the adapters' copy and nothing else.
    assert_identical(small_run.arrays(run.base), small_run.arrays(before))
    assert all(np.isfinite(x).all() for x in small_run.arrays(run.lora).values())
    return workdir


def test_a_run_learns_from_its_rewards(run, finished):
    rows, first = rows_of(finished), small_run.arrays(run.lora)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["reward/zero_std_groups"] < 1 for row in rows)
    assert rows[0]["update/kl"] == pytest.approx(0, abs=1e-6) and rows[-1]["update/kl"] > 1e-3
    trained = restored(run, finished)
    assert int(trained[".step"]) == 6
    moved = [np.abs(trained[".lora" + name] - first[name]).max() for name in first]
    assert min(moved) > 1e-3


def test_fewer_steps_than_are_done_are_refused_before_anything_is_computed(
    run, small_config, finished, tmp_path, monkeypatch
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    short = with_config(run, small_config, **STEPS | {"train__steps": 3})
    said = "config.train.steps is 3, but .* has done 6 steps.* config.train.steps=6 or more"
    with pytest.raises(ValueError, match=said):
        train.train(short, tmp_path)
    monkeypatch.setattr(train, "prepare", lambda config: short)
    monkeypatch.delattr(train.evaluation_sets, "evaluators")
    with pytest.raises(ValueError, match=said):
        train.train_between_evaluations(short.config, tmp_path, RunClock(), False)
    assert rows_of(tmp_path) == rows_of(finished)


def test_who_reads_a_run_that_deletes_its_checkpoint_meanwhile_gets_another_one(
    run, small_config, policy_folder, finished, tmp_path, monkeypatch
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(small_config(**STEPS).to_json())
    restore, read = Checkpoints.restore, []

    def after_deleting(checkpoints, state, known, step):
        read.append(step)
        if len(read) == 1:
            shutil.rmtree(tmp_path / "checkpoints" / "6")
        return restore(checkpoints, state, known, step)

    before = sorted(path for path in tmp_path.rglob("*") if "checkpoints/6" not in str(path))
    monkeypatch.setattr(Checkpoints, "restore", after_deleting)
    found = policy_sources.trained(run.mesh, run.lora, tmp_path, None, policy_folder)
    assert read == [None, None]
    want = restored(run, finished, 4)
    assert_identical(
        {f".lora{k}": v for k, v in small_run.arrays(found).items()},
        {k: v for k, v in want.items() if k.startswith(".lora")},
    )
    # Who reads writes nothing.
    assert sorted(tmp_path.rglob("*")) == before


def kill_when(process, done, limit=300):
    """Sends SIGKILL as soon as `done()`; what the process printed."""
    until = time.monotonic() + limit
    while not done():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until, "no checkpoint appeared"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process.stdout.read()


def test_a_killed_run_goes_on_to_the_same_bits(
    run, small_config, policy_folder, finished, start_program, tmp_path
):
    process = start_program(
        "train_program",
        policy=str(policy_folder),
        workdir=str(tmp_path),
        config=STEPS,
        seconds_a_row=0.5,
    )
    printed = kill_when(process, (tmp_path / "checkpoints" / "2").exists)
    assert process.returncode == -signal.SIGKILL, printed
    steps = [row["step"] for row in rows_of(tmp_path)]
    assert steps and steps[-1] < 6 and not (tmp_path / "checkpoints" / "6").exists()
    # What a kill in the middle of a line leaves behind.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "reward/me')
    train.train(with_config(run, small_config, **STEPS), tmp_path)
    assert rows_of(tmp_path) == rows_of(finished)
    assert_identical(restored(run, tmp_path), restored(run, finished))


def test_a_run_that_an_error_stops_goes_on_to_the_same_bits(
    run, small_config, finished, tmp_path, monkeypatch
):
    write = train_logger.MetricWriter.write

    def full_disk(writer, step, values):
        if step == 5:
            until = time.monotonic() + 100
            while not (tmp_path / "checkpoints" / "4").exists() and time.monotonic() < until:
                time.sleep(0.02)
            raise OSError("no space left on device")
        write(writer, step, values)

    short = with_config(run, small_config, **STEPS)
    stopped, resumed = RunClock(), RunClock()
    stopped.set_state({"seconds": 1000.0})
    with monkeypatch.context() as patch:
        patch.setattr(train_logger.MetricWriter, "write", full_disk)
        with pytest.raises(OSError, match="no space left"):
            train.train(short, tmp_path, clock=stopped)
    assert rows_of(tmp_path) == rows_of(finished)[:4]
    lora, _ = train.train(short, tmp_path, clock=resumed)
    assert resumed.first_step == stopped.first_step
    assert 1000 < resumed.first_step < resumed.earlier < resumed.seconds()
    assert rows_of(tmp_path) == rows_of(finished)
    want = restored(run, finished)
    assert_identical(restored(run, tmp_path), want)
    got = {".lora" + name: value for name, value in small_run.arrays(lora).items()}
    assert_identical(got, {k: v for k, v in want.items() if k.startswith(".lora")})


@pytest.mark.slow
def test_one_program_and_three_programs_give_the_same_numbers(
    run, small_config, finished, tmp_path
):
    three = with_config(run, small_config, **STEPS | {"train__steps": 2}, train__fused=False)
    train.train(three, tmp_path)
    for got, want in zip(rows_of(tmp_path), rows_of(finished)[:2], strict=True):
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    got, want = restored(run, tmp_path), restored(run, finished, 2)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_samples_depend_on_the_step_and_on_nothing_before_it(run, small_config, finished):
    same = with_config(run, small_config, **STEPS)
    batch = small_run.batch_of(run)

    def step(number):
        optimizer, state, where = state_lib.start(same)
        program = steps.train_step(same, optimizer, where)
        _, metrics = program(state, run.base, run.verifier, batch, np.uint32(number))
        return {name: float(value) for name, value in metrics.items()}

    first = step(1)
    assert step(1) == first
    assert step(2)["update/entropy"] != first["update/entropy"]


def test_a_finished_run_does_nothing_more(run, small_config, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "again")
    calls, clock, same = [], RunClock(), with_config(run, small_config, **STEPS)
    lora, earlier = train.train(
        same, tmp_path / "again", clock=clock, on_first_step=lambda: calls.append(1)
    )
    assert rows_of(tmp_path / "again") == rows_of(finished) and not calls and not clock.moved
    assert 0 < clock.first_step < clock.earlier == earlier
    got = {".lora" + name: value for name, value in small_run.arrays(lora).items()}
    want = restored(run, finished)
    assert_identical(got, {k: v for k, v in want.items() if k.startswith(".lora")})


def test_more_steps_may_be_asked_for_but_no_other_configuration(
    run, small_config, finished, tmp_path
):
    shutil.copytree(finished, tmp_path / "more")
    other = STEPS | {"train__steps": 7, "optimizer__learning_rate": 0.5, "loss__kl_coefficient": 0}
    with pytest.raises(ValueError) as error:
        train.train(with_config(run, small_config, **other), tmp_path / "more")
    assert "optimizer.learning_rate: 0.004 -> 0.5" in str(error.value)
    assert "loss.kl_coefficient: 0.01 -> 0" in str(error.value)
    assert "train.steps" not in str(error.value) and "--workdir" in str(error.value)
    more = STEPS | {"train__steps": 7, "checkpoint__save_every": 7, "train__log_every": 1}
    train.train(with_config(run, small_config, **more), tmp_path / "more")
    rows = rows_of(tmp_path / "more")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert rows[:6] == rows_of(finished)


def test_too_many_updates_in_a_row_that_are_not_finite_stop_the_run(run, small_config, tmp_path):
    def poison(path, x):
        return x * jnp.nan if "final_norm" in jax.tree_util.keystr(path) else x

    broken = with_config(run, small_config, train__steps=6, train__max_skipped=2)
    broken = dataclasses.replace(broken, base=jax.tree_util.tree_map_with_path(poison, run.base))
    with pytest.raises(FloatingPointError, match=r"step 2: .* in the last 2 updates .*learning"):
        train.train(broken, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["update/skipped_in_a_row"] for row in rows] == [1.0, 2.0]
    assert [row["update/skipped"] for row in rows] == [1.0, 1.0]


def wait(process):
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def commanded(policy_folder, start, tmp_path_factory):
    """File of a configuration, command of a training run with it, its workdir, what it printed."""
    folder = tmp_path_factory.mktemp("commanded")
    config, workdir = folder / "tiny.py", folder / "run"
    config.write_text(
        "import small_run\n\n\ndef get_config():\n"
        f"    return small_run.small_config({str(policy_folder)!r}, train__steps=2)\n"
    )
    command = ("-m", "speciarl_jax.train", f"--config={config}", f"--workdir={workdir}")
    return config, command, workdir, wait(start(*command, quick=True))


def test_a_run_from_the_command_line_leaves_what_the_readme_promises(commanded):
    _, _, workdir, printed = commanded
    assert "| trained" in printed and str(workdir / "report.md") in printed
    assert "| best constant answer " in printed
    assert "Weights of specificity: thirds (" in printed
    summary = json.loads((workdir / "summary.json").read_text())
    assert set(summary) == {"base", "trained", "steps", "wall_seconds", "first_step_seconds"}
    text = (workdir / "predictions.jsonl").read_text()
    predicted = [json.loads(line) for line in text.splitlines()]
    runs = json.loads((workdir / "metrics.json").read_text())["runs"]
    assert {run["policy"]: run["score"] for run in runs} == {
        name: summary[name] for name in ("base", "trained")
    }
    for name in ("base", "trained"):
        assert set(summary[name]) == {"correctness", "specificity", "hm", "histogram"}
        assert set(summary[name]["histogram"]) == CATEGORIES
        lines = [line for line in predicted if line["policy"] == name]
        assert len(lines) == sum(summary[name]["histogram"].values()) > 16
        assert {line["decoding"] for line in lines} == {"greedy"}
    assert summary["steps"] == 2 and 0 < summary["first_step_seconds"] < summary["wall_seconds"]
    report = (workdir / "report.md").read_text()
    assert report.startswith("# SpeciaRL: ") and "\n## Training\n\n" in report
    assert "\n| steps | reward |" in report
    assert "Answers that changed from base to trained" in report
    page = (workdir / "report.html").read_text()
    assert str(workdir / "report.html") in printed and page.count("data:image/webp") > 10
    assert [row["step"] for row in rows_of(workdir)] == [1, 2]
    assert list((workdir / "tensorboard").iterdir())
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2"]
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 2


@pytest.mark.slow
def test_a_run_started_again_has_nothing_to_do_and_is_evaluated_without_its_file(commanded, start):
    config, command, workdir, _ = commanded
    said = (workdir / "summary.json").read_bytes()
    summary, text = json.loads(said), (workdir / "predictions.jsonl").read_text()
    wait(start(*command, quick=True))
    assert (workdir / "summary.json").read_bytes() == said

    # The evaluation of that workdir finds the same scores, and does not need the file.
    config.unlink()
    evaluate = ("-m", "speciarl_jax.evaluate", f"--workdir={workdir}", "--best_of=2")
    assert "trained, best of 2" in wait(start(*evaluate, quick=True))
    found = json.loads((workdir / "metrics.json").read_text())["runs"]
    assert {run["policy"]: run["score"] for run in found} == {
        name: summary[name] for name in ("base", "trained")
    }
    assert [[row["n"] for row in run["best_of"]] for run in found] == [[1, 2], [1, 2]]
    # What the training run left in the report is still there.
    report = (workdir / "report.md").read_text()
    assert "\n| steps | reward |" in report and "| HM of the best of | 1 | 2 |" in report
    # The greedy answers were there already.
    assert (workdir / "predictions.jsonl").read_text().startswith(text)


def test_a_command_line_without_a_workdir_or_without_the_file_is_refused(start, tmp_path):
    cases = [
        (["--config=configs/quickstart.py"], "give --config=FILE and --workdir=FOLDER"),
        ([f"--config={tmp_path / 'missing.py'}", f"--workdir={tmp_path}"], "missing.py"),
    ]
    running = [(start("-m", "speciarl_jax.train", *args), said) for args, said in cases]
    for process, said in running:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode != 0 and said in printed, printed


REFUSED = {
    "model__path": (None, "config.model.path is None.*ship with the package"),
    "model__path ": ("/nowhere/at/all", "'/nowhere/at/all', which is no folder"),
    "model__dtype": ("float16", "config.model.dtype is 'float16'; choose bfloat16 or float32"),
    "model__lora_rank": (0, "config.model.lora_rank is 0; it must be at least 1"),
    "mesh__data": (3, "data=3, fsdp=-1, tensor=1, but there are 1 devices"),
    "mesh__fsdp": (2, "data=1, fsdp=2, tensor=1, but there are 1 devices"),
    "data__name": ("photos", "'photos' is no choice for data; choose one of .*'emoji'"),
    "data__prompt": ("riddle", "no prompt 'riddle'; choose one of .*base.*specific"),
    "data__options__split": ("test", "split 'test' is unknown; choose one of .*held_out"),
    "data__options__difficulty": ("cruel", "difficulty 'cruel' is unknown; choose one of .*hard"),
    "data__options__domains": (("fruit",), "domains .'fruit'. are unknown; choose from .*vehicle"),
    "evaluation__options__split": ("test", "split 'test' is unknown; choose one of .*held_out"),
    "rollout__num_rollouts": (1, "config.rollout.num_rollouts is 1; it must be at least 2"),
    "rollout__temperature": (0.0, "config.rollout.temperature is 0.0; .*set it above 0"),
    "verifier__name": ("oracle", r"'oracle' is no choice for verifiers; choose one of .*taxonomy"),
    "verifier__options__max_answer_bytes": (2, "max_answer_bytes is 2; raise max_answer_bytes"),
    "verifier__options__max_words": (1, "the name .* words, and max_words is 1; raise max_words"),
    "verifier__options__path": ("/no/tree.json", "/no/tree.json"),
    "verifier__name ": ("http_judge", "set config.verifier.http_judge.model to what the server"),
    "verifier__num_chunks": (
        3,
        r"batch_size 8 cannot be cut into 3 parts .config.verifier.num_chunks",
    ),
    "verifier__min_judged_fraction": (
        1.5,
        "config.verifier.min_judged_fraction is 1.5; .* from 0 to 1",
    ),
    "verifier__max_unjudged_fraction": (
        -0.1,
        "config.verifier.max_unjudged_fraction is -0.1; .* from 0 to 1",
    ),
    "reward__name": ("praise", r"'praise' is no choice for rl.rewards; .*best_prediction"),
    "reward__options__mode": (
        "some",
        "config.reward.options.mode is 'some'; choose one of .*single",
    ),
    "loss__name": ("reinforce", r"'reinforce' is no choice for rl.losses; choose one of .*grpo"),
    "loss__options__dual_clip": (0.5, "config.loss.options.dual_clip is 0.5; .*set it above 1"),
    "loss__token_weights": ("mean", "config.loss.token_weights is 'mean'; choose .*token_mean"),
    "loss__kl_estimator": ("k1", "'k1' has no gradient in expectation; choose 'k2' or 'k3', or"),
    "loss__kl_in": ("advantage", "config.loss.kl_in is 'advantage'; choose one of .*reward"),
    "loss__old_logprobs": (
        "judge",
        "config.loss.old_logprobs is 'judge'; choose one of .*recomputed",
    ),
    "loss__tis_cap": (2.0, "cap above 0 corrects the recomputed ratio, so set old_logprobs"),
    "loss__kl_warmup_steps": (-1, "config.loss.kl_warmup_steps is -1; it must be at least 0"),
    "loss__tis_level": ("word", "config.loss.tis_level is 'word'; choose one of .*sequence"),
    "loss__mismatch_mask": (
        "token",
        "mismatch_mask 'token' compares .*old_logprobs is 'rollout'; set that to 'recomputed'",
    ),
    "loss__entropy_coefficient": (-0.1, "entropy_coefficient is -0.1; .*or to 0 to leave it out"),
    "advantage__std_over": ("step", "std_over 'step' is unknown; choose one of .*batch"),
    "advantage__baseline": ("median", "baseline 'median' is unknown; choose one of .*leave_one"),
    "reward__overlong_penalty": (1.0, "overlong_buffer is 512 .*between 0 and .*max_tokens, 8,"),
    "train__objective": ("fun", "config.train.objective is 'fun'; choose 'rl', or 'sft'"),
    "train__ppo_epochs": (0, "config.train.ppo_epochs is 0; it must be at least 1"),
    "optimizer__decay_steps": (2, "is 2, but .*steps 3 make 3 updates.* raise it to 3 or more"),
    "optimizer__learning_rate": (0.0, "config.optimizer.learning_rate is 0.0 .* above 0"),
    "optimizer__warmup_steps": (-3, "config.optimizer.warmup_steps is -3; .* at least 0"),
    "rollout__top_p": (95.0, "config.rollout.top_p is 95.0; .* above 0 and at most 1"),
    "evaluation__best_of_top_p": (0.0, "config.evaluation.best_of_top_p is 0.0; .* above 0"),
    "evaluation__best_of_batch_size": (0, "config.evaluation.best_of_batch_size is 0; .* least 1"),
    "model__scan_unroll": (0, "config.model.scan_unroll is 0; it must be at least 1"),
    "data__workers": (0, "config.data.workers is 0; it must be at least 1"),
    "data__max_prompt_tokens": (0, "config.data.max_prompt_tokens is 0; it must be at least 1"),
    "train__logprob_chunk": (0, "config.train.logprob_chunk is 0; it must be at least 1"),
    "train__dynamic_sampling__batch_size": (0, "dynamic_sampling.batch_size is 0; .* at least 1"),
    "train__batch_size": (640, "[0-9]+ images and config.train.batch_size is 640; lower"),
    "train__mini_batches": (3, "batch_size 8 cannot be cut into 3 mini-batches"),
    "train__micro_batches": (5, "1 mini-batches of 5 micro-batches; make it a multiple of 5"),
    "train__steps": (-1, "config.train.steps is -1; it must be at least 0"),
    "train__max_skipped": (0, "config.train.max_skipped is 0; it must be at least 1"),
    "label_noise__rate": (1.5, "config.label_noise.rate is 1.5; it must lie between 0 and 1"),
    "checkpoint__keep": (0, "config.checkpoint.keep is 0; it must be at least 1"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_bad_value_is_refused_before_any_compute_and_says_how_to_mend_it(small_config, key):
    value, said = REFUSED[key]
    with pytest.raises(ValueError, match=said):
        prepare(small_config(**{key.strip(): value}))


@pytest.mark.parametrize(
    "section", ["data", "evaluation", "verifier", "reward", "loss", "optimizer", "advantage"]
)
def test_an_unknown_option_is_refused_by_its_name(small_config, section):
    config = small_config()
    part = config[section]
    part = part.options if "options" in part else part
    with part.unlocked():
        part.colour = "blue"
    with pytest.raises(TypeError, match="colour"):
        prepare(config)


@pytest.fixture
def damaged(policy_folder, tmp_path):
    shutil.copytree(policy_folder, tmp_path / "damaged")
    return tmp_path / "damaged"


@pytest.mark.parametrize(
    "name, said",
    [
        ("tokenizer.json", "tokenizer.json is missing; point config.model.path at"),
        ("chat_template.jinja", "has no chat template; add chat_template.jinja"),
        ("preprocessor_config.json", "holds no preprocessor_config.json"),
        ("config.json", "config.json is missing"),
        ("model.safetensors", "holds neither model.safetensors nor"),
    ],
)
def test_a_policy_without_one_of_its_files_is_refused(small_config, damaged, name, said):
    (damaged / name).unlink()
    with pytest.raises(ValueError, match=said):
        prepare(small_config(model__path=str(damaged)))


@pytest.fixture
def closed_weights(monkeypatch):
    """Weights that must not be opened."""

    def load(*args, **options):
        raise AssertionError("weights were opened")

    monkeypatch.setattr(hf_checkpoint, "load", load)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data__prompt": "bsae"}, "no prompt 'bsae'"),
        ({"rollout__cache_bytes": 1}, "config.rollout.cache_bytes"),
    ],
)
def test_wrong_keys_are_refused_before_weights_are_opened(
    small_config, closed_weights, changes, said
):
    with pytest.raises(ValueError, match=said):
        prepare(small_config(**changes))


def test_small_files_are_read_before_weights_are_opened(small_config, closed_weights, damaged):
    config = small_config(model__path=str(damaged))
    with pytest.raises(AssertionError, match="weights were opened"):
        prepare(config)
    (damaged / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="holds no preprocessor_config.json"):
        prepare(config)
    (damaged / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer.json is missing"):
        prepare(config)
    # A folder of another model hears that first.
    (damaged / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match="model_type 'llava'"):
        prepare(config)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.9])
def test_a_damaged_weights_file_is_refused_by_its_name(small_config, damaged, keep):
    path = damaged / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        prepare(small_config(model__path=str(damaged)))


def test_a_fingerprint_has_every_key_but_those_that_may_change(small_config):
    known = fingerprint.of_config(small_config())
    assert known["data.options.domains"] == ["vehicle"] and known["rollout.temperature"] == 1.0
    free = {"train.steps", "train.log_every", "data.workers", "mesh.data", "checkpoint.keep"}
    free |= {"train.samples_every", "train.num_logged_images"}
    assert not free & known.keys() and "train.batch_size" in known
