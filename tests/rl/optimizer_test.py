"""AdamW written a second time in numpy: warm-up, clipping, decay."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from speciarl_jax.rl import optimizer

OPTIONS = {
    "learning_rate": 0.1,
    "warmup_steps": 0,
    "decay_steps": 0,
    "weight_decay": 0.0,
    "b1": 0.9,
    "b2": 0.99,
    "epsilon": 1e-8,
    "max_grad_norm": 1e9,
}


def run(grads, start, **changes):
    """Parameters after each update with these gradients."""
    adamw = optimizer.make(**OPTIONS | changes)
    params = {"a": jnp.asarray(start, jnp.float32)}
    state, found = adamw.init(params), []
    for grad in grads:
        updates, state = adamw.update({"a": jnp.asarray(grad, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.asarray(params["a"]))
    return found


def oracle(grads, start, rates, weight_decay=0.0, b1=0.9, b2=0.99, epsilon=1e-8, limit=1e9):
    """Algorithm 2 of arXiv 1711.05101 with a clipped gradient."""
    theta, m, v, found = np.asarray(start, np.float64), 0.0, 0.0, []
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        grad = np.asarray(grad, np.float64)
        grad = grad * min(1.0, limit / np.sqrt(np.sum(grad**2)))
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + epsilon)
        theta = theta - rate * (step + weight_decay * theta)
        found.append(theta)
    return found


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("limit", [1e9, 0.5])
def test_updates_equal_adamw_written_again(weight_decay, limit):
    rng = np.random.default_rng(0)
    grads, start = rng.normal(0, 1, (6, 5)), rng.normal(0, 1, 5)
    grads[2] *= 50
    got = run(grads, start, weight_decay=weight_decay, max_grad_norm=limit)
    want = oracle(grads, start, [0.1] * 6, weight_decay=weight_decay, limit=limit)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "warmup, rates",
    [
        (0, [0.1] * 6),
        (1, [0.1] * 6),
        (4, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]),
    ],
)
def test_the_learning_rate_rises_evenly_and_the_first_update_counts(warmup, rates):
    # Equal gradients: both moments are the gradient's own, so an update is the rate itself.
    path = [np.zeros(1), *run([np.ones(1)] * 6, np.zeros(1), warmup_steps=warmup)]
    np.testing.assert_allclose(-np.diff(np.ravel(path)), rates, rtol=1e-4)


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_learning_rate_falls_as_a_cosine_behind_the_warm_up(warmup):
    path = run([np.ones(1)] * 10, np.zeros(1), warmup_steps=warmup, decay_steps=8)
    rises = max(warmup - 1, 0)
    rates = [0.1 * (t + 1) / warmup for t in range(rises)]
    rates += [0.05 * (1 + np.cos(np.pi * t / (8 - rises))) for t in range(8 - rises)] + [0.0] * 2
    got = -np.diff(np.ravel([np.zeros(1), *path]))
    np.testing.assert_allclose(got, rates, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 3])
def test_as_many_decay_steps_as_updates_leave_the_last_update_a_rate(warmup):
    for decay_steps, learns in ((6, True), (5, False)):
        path = run([np.ones(1)] * 6, np.zeros(1), warmup_steps=warmup, decay_steps=decay_steps)
        assert (path[-1] != path[-2]).all() == learns


def test_a_gradient_is_scaled_down_as_a_whole_and_never_up():
    adamw = optimizer.make(**OPTIONS | {"max_grad_norm": 1.0, "epsilon": 1e3, "b1": 0.0})
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}

    def update(grads):
        updates, _ = adamw.update(grads, adamw.init(params), params)
        return np.array([*updates["a"], *updates["b"]])

    # With a huge epsilon an update is proportional to the clipped gradient.
    large = update({"a": jnp.array([6.0, 0.0]), "b": jnp.array([8.0])})
    unit = update({"a": jnp.array([0.6, 0.0]), "b": jnp.array([0.8])})
    tiny = update({"a": jnp.array([0.06, 0.0]), "b": jnp.array([0.08])})
    np.testing.assert_allclose(large, unit, rtol=1e-5)
    np.testing.assert_allclose(10 * tiny, unit, rtol=1e-2)
    np.testing.assert_allclose(unit[[0, 2]], [-0.1 * 0.6e-3, -0.1 * 0.8e-3], rtol=1e-2)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0 .*max_grad_norm .* must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm 0.0, which must be above 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1, which must be at least 0"),
        ({"warmup_steps": 5, "decay_steps": 5}, "decay_steps 5 .* above warmup_steps 5"),
    ],
)
def test_values_that_cannot_work_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        optimizer.make(**OPTIONS | changes)


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="momentum"):
        optimizer.make(**OPTIONS, momentum=0.9)


@pytest.mark.parametrize("warmup, decay", [(0, 0), (3, 0), (3, 8), (0, 8)])
def test_the_stated_rate_is_that_of_the_next_update(warmup, decay):
    adamw = optimizer.make(**OPTIONS | {"warmup_steps": warmup, "decay_steps": decay})
    params = {"a": jnp.zeros(1)}
    state = adamw.init(params)
    for _ in range(8):
        rate = adamw.learning_rate(state)
        # Equal gradients: both moments are the gradient's own, so an update is the rate itself.
        updates, state = adamw.update({"a": jnp.ones(1)}, state, params)
        np.testing.assert_allclose(-updates["a"][0], rate, rtol=1e-4, atol=1e-8)
    assert rate.dtype == jnp.float32 and adamw.max_grad_norm == 1e9
