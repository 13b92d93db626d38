"""Sweeps over random small models against transformers in torch, as those of `qwen2_5_vl`.

Each seed draws other dimensions, weights, images and texts (`support/random_policy.py`); the first
few of them are quick to run, and cover every number of DeepStack layers.
"""

import copy
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_policy
import torch
from flax import nnx
from parity import (
    TOLERANCE,
    assert_greedy_answers,
    assert_positions,
    bfloat16_distances,
    relative_error,
    run,
    torch_logits,
)

SEEDS = range(20)
QUICK = (1, 7)
sweep = pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=[] if s in QUICK else [pytest.mark.slow]) for s in SEEDS]
)


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """Threads that wait for each other over such small matrices cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def make_case(seed):
    with tempfile.TemporaryDirectory() as folder:
        return random_policy.make_case(seed, folder, "qwen3_vl")


@functools.cache
def ours(seed):
    case = make_case(seed)
    return jax.tree.map(np.asarray, run(case.policy, case.batch))


def test_the_sweep_draws_every_kind_of_model_and_row():
    drawn = [random_policy.draw(seed, model_type="qwen3_vl") for seed in SEEDS]
    configs = [config for config, *_ in drawn]
    rows = [row for *_, grids in drawn for row in grids]
    assert {len(row) for row in rows} == {0, 1, 2, 3}
    assert sum(len(set(row)) > 1 for row in rows) > 10
    visions, texts = [c.vision for c in configs], [c.text for c in configs]
    assert {len(v.deepstack_layers) for v in visions} == {0, 1, 2, 3}
    assert {len(configs[seed].vision.deepstack_layers) for seed in QUICK} == {1, 3}
    # Tables of positions that are smaller than the grids, and larger.
    sides = [v.position_side for v in visions]
    assert min(sides) < 4 and max(sides) > 14
    assert {t.tie_word_embeddings for t in texts} == {True, False}
    assert {t.head_dim_override is None for t in texts} == {True, False}
    assert all(not batch.mask_BP.all() for _, _, batch, _ in drawn)


@sweep
def test_vision_encoder_and_deepstack(seed, record_error):
    case = make_case(seed)
    counts = [sum(h * w // 4 for h, w in row) for row in case.grids]
    features = ours(seed)["features"]
    got = np.concatenate([f[:count] for f, count in zip(features, counts, strict=True)])
    with torch.no_grad():
        visual, inputs = case.torch_model.model.visual, case.torch_inputs(case.batch)
        found = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    want = [found.pooler_output, *found.deepstack_features]
    assert len(want) == 1 + len(case.config.vision.deepstack_layers)
    width = case.config.text.hidden_size
    for part, expected in zip(np.split(got, len(want), axis=-1), want, strict=True):
        assert part.shape[-1] == width
        error = relative_error(part, expected.numpy())
        record_error("Qwen3-VL: vision encoder and DeepStack", error)
        assert error < TOLERANCE
    padding = [f[count:] for f, count in zip(features, counts, strict=True)]
    assert not np.concatenate(padding).any()


@sweep
@pytest.mark.parametrize("side", ["left", "right"])
def test_rotary_positions(seed, side):
    case = make_case(seed)
    assert_positions(case, case.batch if side == "left" else case.padded_right())


@sweep
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_images_and_text(seed, side, record_error):
    case = make_case(seed)
    if side == "left":
        batch, got = case.batch, ours(seed)["logits"]
    else:
        batch = case.padded_right()
        got = run(case.policy, batch)["logits"]
    want = torch_logits(case, case.torch_model, batch)
    error = relative_error(np.asarray(got)[batch.mask_BP], want)
    record_error("Qwen3-VL: logits from images and text", error)
    assert error < TOLERANCE


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in SEEDS[4::3])]
)
def test_bfloat16_is_as_near_to_float32_as_that_of_transformers(seed, record_error):
    """As the test of that name of Qwen2.5-VL."""
    case = make_case(seed)
    policy = random_policy.make_policy(case.config, jnp.bfloat16)
    nnx.update(policy, jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(case.policy)))
    got, theirs = bfloat16_distances(case, policy, copy.deepcopy(case.torch_model).bfloat16())
    record_error("Qwen3-VL: bfloat16 logits, ours", got, "of their spread, rms")
    record_error("Qwen3-VL: bfloat16 logits, transformers'", theirs, "likewise")
    assert 0 < got < 1.5 * theirs


@sweep
def test_greedy_answers_are_those_of_transformers(seed):
    """All tokens, of all rows; answers may not end, so that all 64 tokens are compared."""
    assert_greedy_answers(make_case(seed))
