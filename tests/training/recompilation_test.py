"""What is compiled, and when: nothing after the first use of each shape, and nothing twice."""

import contextlib
import dataclasses
import itertools
import json
import shutil

import jax
import judged_step
import numpy as np
import pytest
import small_run
from own_images import fill, own

from speciarl_jax.data import prompt_builder
from speciarl_jax.evaluation.evaluator import Evaluator
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps, train_data

EVENTS = ("/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_trace_duration")


@contextlib.contextmanager
def counting():
    """A list of what jax traces and compiles meanwhile."""
    seen = []

    def listen(event, seconds, **facts):
        if event in EVENTS:
            seen.append((event, facts))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_what_is_counted_are_traces_and_compilations():
    with counting() as seen:
        double = jax.jit(lambda x: 2 * x)
        double(np.ones(7))
        assert {event for event, _ in seen} == set(EVENTS)
        before = len(seen)
        double(np.zeros(7))
        assert len(seen) == before
        double(np.ones(8))
        assert len(seen) > before


def larger_images(policy_folder, folder):
    """The policy, with a processor that takes images of up to 60 x 60 pixels, 25 tokens."""
    shutil.copytree(policy_folder, folder)
    path = folder / "preprocessor_config.json"
    facts = json.loads(path.read_text())
    facts["size"] = {"shortest_edge": 24 * 24, "longest_edge": 60 * 60}
    path.write_text(json.dumps(facts))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("place", ["none", "host"])
def test_nothing_is_compiled_after_warm_up(policy_folder, small_config, tmp_path, place):
    """Images of many sizes in buckets, steps and evaluations, other temperatures, evicting."""
    config = own(
        small_config,
        fill(tmp_path / "images", 24, 60),
        model__path=str(larger_images(policy_folder, tmp_path / "policy")),
        data__bucket_growth=3.0,
        data__vision_cache__place=place,
        data__vision_cache__bytes=15_000,  # of about 40,000: some are always missing
        data__vision_cache__images_per_device=3,
        rollout__max_images_per_chunk=2,
        rollout__num_compactions=1,
    )
    run = small_run.prepared(config)
    optimizer, state, where = state_lib.start(run)
    program = steps.train_step(run, optimizer, where)
    stream = train_data.training_batches(run)
    batches = [next(stream).batch for _ in range(9)]
    shapes = [prompt_builder.batch_sizes(batch) for batch in batches]
    assert 2 <= len(set(shapes)) < len(set(batch.tokens_BP.sum() for batch in batches))
    evaluator = Evaluator(run)

    def train_on(state, numbers):
        shares = []
        for number in numbers:
            old = state
            batch = run.place(batches[number])
            state, values = program(state, run.base, run.verifier, batch, np.uint32(number + 1))
            shares += run.place_metrics().values()
            assert all(np.isfinite(float(value)) for value in values.values())
            # The state is donated, the base is not.
            assert all(x.is_deleted() for x in jax.tree.leaves(old))
            assert not any(x.is_deleted() for x in jax.tree.leaves((run.base, run.lora, state)))
        return state, shares

    warm = [shapes.index(shape) for shape in set(shapes)]
    state, _ = train_on(state, warm)
    evaluator(state.lora)
    run.place_metrics()
    with counting() as seen:
        state, shares = train_on(state, range(9))
        greedy = evaluator(state.lora)
        evaluator(state.lora, temperature=0.6, top_p=0.95)
        warmer = evaluator(state.lora, temperature=1.3)
        assert not seen, seen
    assert greedy.responses != warmer.responses
    if place == "host":
        assert 0 < np.mean(shares) < 1


@pytest.fixture
def unoptimised():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_host_verifier_and_dynamic_sampling_compile_nothing_after_warm_up(
    policy_folder, small_config, tmp_path, unoptimised, dynamic
):
    """Pools and rounds of two sizes; a pool that never fills takes two rounds a step."""
    config = own(
        small_config,
        fill(tmp_path / "images", 24, 60),
        model__path=str(larger_images(policy_folder, tmp_path / "policy")),
        data__bucket_growth=3.0,
        rollout__num_rollouts=judged_step.ANSWERS,
        rollout__max_tokens=4,
        rollout__num_compactions=0,
        train__batch_size=8 if dynamic else 4,
        train__dynamic_sampling__max_rounds=2 if dynamic else 0,
        train__dynamic_sampling__batch_size=4,
        verifier__num_chunks=2,
    )
    run = small_run.prepared(config)
    run = dataclasses.replace(run, verifier=judged_step.FunctionVerifier())
    optimizer, state, where = state_lib.start(run)
    program = steps.train_step(run, optimizer, where)
    stream = train_data.training_batches(run)
    batches = [next(stream).batch for _ in range(9)]
    shapes = [prompt_builder.batch_sizes(batch) for batch in batches]
    first = [shapes.index(shape) for shape in set(shapes)]
    assert len(first) == 2

    def train_on(state, *numbers):
        given = iter([run.place(batches[number]) for number in numbers])
        batch = (lambda: next(given)) if dynamic else next(given)
        state, values = program(state, run.base, run.verifier, batch, np.uint32(numbers[0] + 1))
        assert values.get("dynamic_sampling/rounds", 2) == 2
        return state

    rounds = 2 if dynamic else 1
    with counting() as seen:
        for numbers in itertools.product(first, repeat=rounds):
            state = train_on(state, *numbers)
    compiled = [facts["fun_name"] for event, facts in seen if event == EVENTS[0]]
    assert sum("rollout" in name for name in compiled) == 2
    # For each size of a pool: to begin one, and to add to it.
    assert sum("keep" in name for name in compiled) == (4 if dynamic else 0)
    with counting() as seen:
        for start in range(0, 9 - rounds + 1, rounds):
            state = train_on(state, *range(start, start + rounds))
        assert not seen, seen


COUNTING = """
import atexit, collections, json, runpy, sys
import jax

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.split("/")[-1]]))
atexit.register(lambda: print(json.dumps(counts)))
runpy.run_module("speciarl_jax.train", run_name="__main__")
"""


@pytest.mark.slow
def test_a_second_process_reads_what_the_first_compiled(start, policy_folder, tmp_path):
    """The training command, twice; jax counts what it finds in the folder and what it does not."""
    (tmp_path / "counting.py").write_text(COUNTING)
    options = {
        "compilation_cache": tmp_path / "programs",
        "model.path": policy_folder,
        "model.scan_unroll": 1,
        "data.options.image_size": 24,
        "data.options.domains": ("vehicle",),
        "verifier.options.max_response_bytes": 192,
        "rollout.num_rollouts": 2,
        "rollout.max_tokens": 8,
        "evaluation.options.views": 1,
        "evaluation.batch_size": 64,
        "train.batch_size": 8,
        "train.steps": 1,
        "optimizer.decay_steps": 0,
    }
    found = []
    for turn in range(2):
        command = [tmp_path / "counting.py", "--config=configs/quickstart.py"]
        command += [f"--config.{key}={value}" for key, value in options.items()]
        process = start(*command, f"--workdir={tmp_path / str(turn)}")
        printed, _ = process.communicate(timeout=900)
        assert process.returncode == 0, printed
        found.append(json.loads(printed.splitlines()[-1]))
    first, second = found
    assert first["cache_misses"] > 20 and second.get("cache_misses", 0) == 0, found
    assert second["cache_hits"] >= first["cache_misses"]
    rows = [json.loads((tmp_path / str(n) / "metrics.jsonl").read_text()) for n in range(2)]
    one, two = ({k: v for k, v in row.items() if not k.startswith("time")} for row in rows)
    assert one == two and "update/loss" in one
