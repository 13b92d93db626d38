"""The first step is compiled in a thread, and nothing is compiled again as it is taken."""

import contextlib
import threading

import jax
import numpy as np
import pytest
import small_run

from speciarl_jax.experiment.run import prepare
from speciarl_jax.training import compile_ahead, steps, train_data


@contextlib.contextmanager
def compiled():
    """Yields a list of the names of the programs that JAX compiles or reads within the block."""
    found = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("fused", [True, False])
def test_the_first_step_compiles_nothing_again(policy_folder, fused):
    run = prepare(small_run.small_config(policy_folder, train__fused=fused))
    started = steps.start(run)
    with compiled() as ahead, compile_ahead.first_step(run, started):
        assert any(thread.name == "compile the first step" for thread in threading.enumerate())
    assert not any(thread.name == "compile the first step" for thread in threading.enumerate())
    batch = train_data.on_devices(run, train_data.training_batches(run), [])
    step = steps.train_step(run, *started[::2], compiled=started.programs)
    with compiled() as then:
        state, _ = step(started.state, run.base, run.verifier, batch, np.uint32(1))
    assert int(state.step) == 1
    name = "whole" if fused else "rollout"
    assert [one for one in ahead if name in one] and not [one for one in then if name in one]
    assert fused or [one for one in then if "learn" in one]  # the list does see what is compiled


def test_what_fails_there_is_left_to_the_step(policy_folder, caplog):
    run = prepare(small_run.small_config(policy_folder))
    started = steps.start(run)._replace(programs={"step": None})
    with caplog.at_level("INFO", "absl"), compile_ahead.first_step(run, started):
        pass
    assert "not compiled ahead: 'NoneType'" in caplog.text


def test_where_a_cache_holds_features_nothing_is_compiled_ahead(policy_folder):
    config = small_run.small_config(policy_folder, data__vision_cache__place="host")
    run = prepare(config)
    with compiled() as ahead, compile_ahead.first_step(run, steps.start(run)):
        pass
    assert not [one for one in ahead if "whole" in one]


def test_runs_of_all_seeds_share_their_programs(policy_folder):
    texts, keys = [], []
    for seed in (0, 1):
        run = prepare(small_run.small_config(policy_folder, seed=seed))
        started, key = steps.start(run), steps.key_of(run, 1)
        batch = train_data.on_devices(run, train_data.training_batches(run), [])
        step = started.programs["step"]
        texts.append(step.lower(started.state, run.base, run.verifier, batch, key).as_text())
        keys.append(key)
    assert texts[0] == texts[1]
    assert not np.array_equal(*keys)
