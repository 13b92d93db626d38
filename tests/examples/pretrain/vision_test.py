"""Supervising the encoder by the levels of a tree: numbering, the loss, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import random_modules
from flax import nnx

from examples.pretrain import vision
from speciarl_jax.models.qwen2_5_vl.config import VisionConfig
from speciarl_jax.models.qwen2_5_vl.vision import VisionEncoder
from speciarl_jax.models.qwen2_5_vl.window_layout import vision_layout

CONFIG = VisionConfig(
    depth=1,
    hidden_size=16,
    intermediate_size=32,
    num_heads=2,
    out_hidden_size=24,
    patch_size=4,
    window_size=8,
    full_attention_layers=(0,),
)
PATHS = [
    ("eagle", "bird", "animal"),
    ("owl", "bird", "animal"),
    ("bat", None, "animal"),
    ("apple", "fruit", "food"),
]
LEVELS = vision.levels(PATHS)
LAYOUT = vision_layout([[(4, 4)]] * 4, CONFIG)
WEIGHTS = (1.0, 0.5, 0.25)


def make_encoder():
    return VisionEncoder(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def make_heads():
    counts = [len(names) for names in LEVELS.names]
    return vision.TaxonomyHeads(CONFIG.out_hidden_size, counts, rngs=nnx.Rngs(0))


GRAPHS, PARAMS = zip(
    *map(nnx.split, map(random_modules.drawn, (make_encoder, make_heads))), strict=True
)
PATCHES = np.random.default_rng(0).normal(size=(4, 16, CONFIG.patch_dim)).astype(np.float32)


@jax.jit
def loss(params, target_BL, weights=WEIGHTS, label_smoothing=0.0):
    encoder, heads = map(nnx.merge, GRAPHS, params)
    return vision.loss(
        encoder,
        heads,
        PATCHES,
        LAYOUT,
        jnp.asarray(target_BL),
        level_weights=weights,
        label_smoothing=label_smoothing,
    )


@jax.jit
def logits_of(params):
    encoder, heads = map(nnx.merge, GRAPHS, params)
    return heads(encoder(PATCHES, LAYOUT))


def test_levels_number_the_classes_of_each_level():
    assert LEVELS.names == (("apple", "bat", "eagle", "owl"), ("bird", "fruit"), ("animal", "food"))
    np.testing.assert_array_equal(LEVELS.target, [[2, 0, 0], [3, 0, 0], [1, -1, 0], [0, 1, 1]])
    assert LEVELS.target.dtype == np.int32
    for path, row in zip(PATHS, LEVELS.target, strict=True):
        assert [
            names[i] if i >= 0 else None for names, i in zip(LEVELS.names, row, strict=True)
        ] == [*path]


def test_numbers_do_not_depend_on_the_order_of_labels():
    again = vision.levels(PATHS[::-1])
    assert again.names == LEVELS.names
    np.testing.assert_array_equal(again.target, LEVELS.target[::-1])


@pytest.mark.parametrize(("paths", "depths"), [([("a", "b"), ("a",)], r"\[1, 2\]"), ([], r"\[\]")])
def test_paths_of_unequal_length_are_refused(paths, depths):
    with pytest.raises(ValueError, match=f"{depths} levels"):
        vision.levels(paths)


def test_the_loss_is_the_weighted_cross_entropy_over_known_levels():
    total, metrics = loss(PARAMS, LEVELS.target)
    want, accuracy = 0.0, []
    for level, (logits, weight) in enumerate(zip(logits_of(PARAMS), WEIGHTS, strict=True)):
        target = LEVELS.target[:, level]
        rows = np.flatnonzero(target >= 0)
        logp = np.asarray(jax.nn.log_softmax(logits))
        want -= weight * logp[rows, target[rows]].mean()
        accuracy.append((logp.argmax(-1) == target)[rows].mean())
    np.testing.assert_allclose(total, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)


def test_a_missing_level_adds_nothing():
    without = LEVELS.target.copy()
    without[:, 1] = -1
    total, metrics = loss(PARAMS, without)
    rest, _ = loss(PARAMS, LEVELS.target, (1.0, 0.0, 0.25))
    np.testing.assert_allclose(total, rest, rtol=1e-6)
    assert metrics["accuracy"][1] == 0
    _, heads = jax.grad(lambda params: loss(params, without)[0])(PARAMS)
    assert np.all(np.asarray(heads["heads"][1]["kernel"]) == 0)
    assert np.any(np.asarray(heads["heads"][0]["kernel"]) != 0)


def test_smoothing_draws_the_target_towards_the_mean():
    sharp, smooth = (loss(PARAMS, LEVELS.target, WEIGHTS, s)[0] for s in (0.0, 0.1))
    uniform = 0.0
    for level, (logits, weight) in enumerate(zip(logits_of(PARAMS), WEIGHTS, strict=True)):
        rows = LEVELS.target[:, level] >= 0
        uniform -= weight * np.asarray(jax.nn.log_softmax(logits))[rows].mean()
    np.testing.assert_allclose(smooth, 0.9 * sharp + 0.1 * uniform, rtol=1e-5)
    assert not np.isclose(sharp, smooth, rtol=1e-4)


def test_a_wrong_number_of_weights_is_refused():
    with pytest.raises(ValueError, match="argument 2"):
        loss(PARAMS, LEVELS.target, (1.0, 1.0))


def test_a_few_steps_lower_the_loss_and_reach_the_encoder():
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        grad_of = jax.value_and_grad(loss, has_aux=True)
        (value, metrics), grads = grad_of(params, LEVELS.target)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value, metrics

    params, state, values = PARAMS, optimizer.init(PARAMS), []
    for _ in range(40):
        params, state, value, metrics = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]
    np.testing.assert_array_equal(metrics["accuracy"], 1)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), PARAMS[0], params[0])
    assert np.mean(jax.tree.leaves(moved)) > 0.8
