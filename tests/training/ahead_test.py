"""The batch of the next step is sampled before the verdicts on this one are there."""

import concurrent.futures
import json
import shutil
import types

import jax
import jax.numpy as jnp
import judged_run
import judged_step
import numpy as np
import pytest
import small_run
from judge_server import JudgeServer

from speciarl_jax import train
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import prepare
from speciarl_jax.experiment.validate_config import check_ahead
from speciarl_jax.runtime import sharding, step_timer
from speciarl_jax.training import ahead, host_verified_step
from speciarl_jax.training.state import TrainState
from speciarl_jax.verifiers.base import HostVerifier, Verdicts

STEPS = 4
MESH = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


class PatientVerifier(HostVerifier):
    """Judges a batch only when the next one was handed in, but for the last."""

    def __init__(self, last):
        self.waiting, self.texts, self.last = [], [], last

    def submit(self, responses, label_index):
        self.texts.append(responses[0][0])
        shape = (len(responses), judged_step.ANSWERS)
        future = concurrent.futures.Future()
        found = Verdicts(
            np.ones(shape, np.int32), np.ones(shape, bool), np.zeros(shape, bool), np.ones(shape)
        )
        self.waiting.append((future, found))
        for one, verdicts in self.waiting[: None if len(self.texts) == self.last else -1]:
            if not one.done():
                one.set_result(verdicts)
        return future

    def errors(self):
        return "the judge is ill"

    def close(self):
        pass


@pytest.fixture
def step_of():
    """(verifier, limit) -> a step that samples ahead, without a model, and its first state."""
    options = types.SimpleNamespace(num_chunks=1, max_unjudged_fraction=1.0)
    fixed = types.SimpleNamespace(dynamic_sampling=types.SimpleNamespace(max_rounds=0))
    config = types.SimpleNamespace(verifier=options, train=fixed)

    def step_of(verifier):
        run = types.SimpleNamespace(
            mesh=MESH, verifier=verifier, answers=judged_step.answers, config=config
        )
        rollout = jax.jit(judged_step.rollout_of, out_shardings=sharding.batch_sharding(MESH))

        def learn(state, base, groups):
            given = {"tokens": groups.rollout.tokens_BNT}
            zero = jnp.zeros((), jnp.int32)
            # Adapters rise by a thousand, so that tokens tell whose they are.
            return TrainState(state.step + 1, state.lora + 1000, zero, zero), given

        judge = host_verified_step.Judge(run, rollout, step_timer.ignore)
        update = jax.jit(learn, donate_argnums=0)
        step = ahead.Step(judge, update, lambda verdicts: {}, STEPS)
        zeros = [jnp.zeros((), jnp.int32) for _ in range(4)]
        return step, TrainState(*zeros).with_behaviour(jnp.zeros((), jnp.int32))

    return step_of


def batches():
    """Endless batches; the images of the n-th begin at 10 n."""
    count = 0
    while True:
        batch = judged_step.batch_of(np.arange(judged_step.IMAGES) + 10 * count)
        yield sharding.put_batch(MESH, batch)
        count += 1


def test_a_batch_is_on_its_way_while_the_one_before_is_judged(step_of):
    verifier = PatientVerifier(STEPS)
    step, state = step_of(verifier)
    stream, drawn = batches(), []

    def next_batch():
        drawn.append(next(stream))
        return drawn[-1]

    for number in range(1, STEPS + 1):
        state, metrics = step(state, None, verifier, next_batch, np.uint32(number))
        # It learns from its own batch, sampled by the adapters after the step before the last.
        adapters = 1000 * max(number - 2, 0)
        want = 100 * 10 * (number - 1) + number + adapters
        assert int(metrics["tokens"][0, 0, 0]) == want
        assert int(state.lora) == 1000 * number and int(state.behaviour) == 1000 * (number - 1)
    assert len(drawn) == STEPS == len(verifier.texts)  # nothing is sampled after the last step


def test_a_process_that_goes_on_samples_again_what_was_on_its_way(step_of):
    verifier = PatientVerifier(3)
    step, state = step_of(verifier)
    stream = batches()
    state, _ = step(state, None, verifier, lambda: next(stream), np.uint32(1))
    state, _ = step(state, None, verifier, lambda: next(stream), np.uint32(2))
    lost = verifier.texts[2]  # the rollouts of step 3
    verifier = PatientVerifier(1)
    step, _ = step_of(verifier)
    stream = batches()
    next(stream), next(stream)  # the stream stands where step 3 begins
    step._steps = 3
    _, metrics = step(state, None, verifier, lambda: next(stream), np.uint32(3))
    assert verifier.texts == [lost] and int(metrics["tokens"][0, 0, 0]) == 2003 + 1000


def test_a_judge_that_is_away_leaves_the_state_as_it_was(step_of, monkeypatch):
    step, state = step_of(PatientVerifier(1))

    def unavailable(*_):
        raise host_verification.JudgeUnavailable("away")

    monkeypatch.setattr(host_verification, "check_verified", unavailable)
    step._steps = 1
    with pytest.raises(host_verification.JudgeUnavailable):
        step(state, None, None, lambda: next(batches()), np.uint32(1))
    assert int(state.lora) == int(state.behaviour) == 0  # not donated


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"ahead": 2}, "ahead is 2; at most 1"),
        ({}, "'taxonomy' judges within the program"),
        ({"objective": "sft"}, "objective is 'sft'; set ahead to 0, or objective to 'rl'"),
        ({"dynamic_sampling.max_rounds": 3}, "max_rounds is 3; set ahead to 0"),
    ],
)
def test_where_nothing_is_waited_for_it_is_refused(small_config, changes, said):
    config = small_config()
    config.train.update_from_flattened_dict({"ahead": 1} | changes)
    with pytest.raises(ValueError, match=said):
        check_ahead(config, object())


def trained(workdir, url, **changes):
    """Rows of metrics without times, and the adapters."""
    changes = {"checkpoint__save_every": 1, "checkpoint__keep": 9, "train__ahead": 1} | changes
    run = prepare(judged_run.judged_config(url, "", **changes))
    try:
        lora, _ = train.train(run, workdir)
    finally:
        run.verifier.close()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    own = ("time", "verify/cache_hits", "verify/asked", "verify/latency")
    kept = [{k: v for k, v in row.items() if not k.startswith(own)} for row in rows]
    return kept, small_run.arrays(lora)


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits_from_any_step(compilation_cache, tmp_path):
    with JudgeServer(seconds=0.01) as server:
        rows, lora = trained(tmp_path / "whole", server.url, train__steps=STEPS)
        in_turn, _ = trained(tmp_path / "turn", server.url, train__steps=STEPS, train__ahead=0)
        for done in range(1, STEPS):
            shutil.copytree(tmp_path / "whole", tmp_path / str(done))
            for later in range(done + 1, STEPS + 1):
                shutil.rmtree(tmp_path / str(done) / "checkpoints" / str(later))
            got, again = trained(tmp_path / str(done), server.url, train__steps=STEPS)
            assert got == rows
            for name, value in lora.items():
                np.testing.assert_array_equal(again[name], value, err_msg=name)
        trained(tmp_path / "short", server.url, train__steps=2)
        longer, again = trained(tmp_path / "short", server.url, train__steps=STEPS)
        assert [row["step"] for row in longer] == list(range(1, STEPS + 1))
        for name, value in lora.items():
            np.testing.assert_array_equal(again[name], value, err_msg=name)
    # The first batch has no earlier adapters; from the second on they are one update older.
    assert rows[0] == in_turn[0] and rows[1] != in_turn[1]
    assert all(row["update/sampler_kl"] < 1e-3 for row in in_turn)
    assert rows[-1]["update/sampler_kl"] > in_turn[-1]["update/sampler_kl"]
    assert rows[-1]["data/images_seen"] == in_turn[-1]["data/images_seen"]
