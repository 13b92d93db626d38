"""KL estimators: values and gradients against torch, and what they estimate by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.rl.losses import kl

ORACLES = {
    "k1": lambda torch, p, q: p - q,
    "k2": lambda torch, p, q: (p - q) ** 2 / 2,
    "k3": lambda torch, p, q: torch.exp(q - p) - 1 - (q - p),
}


@pytest.mark.parametrize("name", kl.ESTIMATORS)
@pytest.mark.parametrize("seed", range(4))
def test_value_and_gradient_equal_torch(name, seed):
    import torch

    rng = np.random.default_rng(seed)
    logp, reference = rng.normal(-1.5, 1, (2, 3, 5)).astype(np.float32)
    weight = rng.random((3, 5)).astype(np.float32)
    estimator = getattr(kl, name)
    value, gradient = jax.value_and_grad(
        lambda logp: jnp.sum(weight * estimator(logp, reference, clamp=2.0))
    )(logp)
    p = torch.tensor(logp, requires_grad=True)
    found = ORACLES[name](torch, p, torch.tensor(reference)).clamp(-2.0, 2.0)
    want = (torch.tensor(weight) * found).sum()
    want.backward()
    np.testing.assert_allclose(value, want.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, p.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert (np.abs(found.detach().numpy()) >= 2.0).any()


@pytest.fixture
def distributions():
    rng = np.random.default_rng(1)
    return rng.normal(0, 0.5, 12), np.asarray(jax.nn.log_softmax(rng.normal(0, 0.5, 12)))


def divergence(log_p, log_q):
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def expectation(name, logits, log_q):
    """Of the estimate of a token drawn from softmax(logits), the draw not differentiated."""
    log_p = jax.nn.log_softmax(logits)
    drawn = jax.lax.stop_gradient(jnp.exp(log_p))
    return jnp.sum(drawn * getattr(kl, name)(log_p, log_q))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(distributions, name):
    logits, log_q = distributions
    exact = divergence(jax.nn.log_softmax(logits), log_q)
    np.testing.assert_allclose(expectation(name, logits, log_q), exact, rtol=1e-5)


def test_as_losses_k1_teaches_nothing_k2_the_divergence_and_k3_the_reverse_one(distributions):
    logits, log_q = distributions
    forward = jax.grad(lambda x: divergence(jax.nn.log_softmax(x), log_q))(logits)
    reverse = jax.grad(lambda x: divergence(log_q, jax.nn.log_softmax(x)))(logits)
    gradient = {name: jax.grad(expectation, 1)(name, logits, log_q) for name in kl.ESTIMATORS}
    np.testing.assert_allclose(gradient["k1"], np.zeros(12), atol=1e-6)
    np.testing.assert_allclose(gradient["k2"], forward, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient["k3"], reverse, rtol=1e-4, atol=1e-6)
    assert np.abs(forward - reverse).max() > 1e-2


def test_the_schedule_rises_to_one_and_falls_to_zero():
    steps = np.arange(13)
    for warmup, decay, want in (
        (4, 0, [0.25, 0.5, 0.75, *[1.0] * 10]),
        (0, 5, [1.0, 0.8, 0.6, 0.4, 0.2, *[0.0] * 8]),
        (2, 10, [0.5, 1.0, 1.0, *np.arange(7, -1, -1) / 8, 0.0, 0.0]),
    ):
        got = kl.schedule(steps, warmup_steps=warmup, decay_steps=decay)
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", kl.ESTIMATORS)
def test_nothing_flows_through_the_reference_and_nothing_overflows(name):
    estimator = getattr(kl, name)
    assert float(jax.grad(lambda q: estimator(np.float32(-1.0), q))(np.float32(-1.5))) == 0.0
    assert abs(float(estimator(np.float32(-1e5), np.float32(0.0)))) == 10.0
    assert float(estimator(np.float32(-1.0), np.float32(-1.0))) == 0.0
