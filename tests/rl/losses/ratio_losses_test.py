"""CISPO, SAPO and GMPO, value and gradient, against loops over the tokens of their equations."""

import math

import jax
import numpy as np
import pytest

from speciarl_jax.rl.losses import cispo, gmpo, sapo, token_weights

# Loss -> its function, the weights of tokens in its paper, and options of each case.
LOSSES = {
    "cispo": (cispo.policy_loss, token_weights.token_mean),
    "sapo": (sapo.policy_loss, token_weights.sequence_mean),
    "gmpo": (gmpo.policy_loss, token_weights.sequence_mean),
}
CASES = [
    ("cispo", {"clip_low": 1.0, "clip_high": 0.4}),
    ("cispo", {"clip_low": 0.3, "clip_high": 1.0}),
    ("sapo", {"temperature_positive": 1.0, "temperature_negative": 1.05}),
    ("sapo", {"temperature_positive": 0.5, "temperature_negative": 3.0}),
    ("gmpo", {"clip_low": 0.4, "clip_high": 0.4}),
    ("gmpo", {"clip_low": 0.1, "clip_high": 0.6}),
]


def random_batch(seed, b=3, n=4, t=7):
    rng = np.random.default_rng(seed)
    length = rng.integers(0, t + 1, (b, n, 1))
    old = rng.normal(-1.0, 0.7, (b, n, t)).astype(np.float32)
    logp = (old + rng.normal(0, 0.6, old.shape)).astype(np.float32)
    advantage = rng.normal(0, 1, (b, n)).astype(np.float32)
    advantage[0, 0] = 0.0
    return logp, old, advantage, np.arange(t) < length


def cispo_of(logps, olds, a, *, clip_low, clip_high):
    """Sums of one rollout's tokens: -sg(r) A log p, and its derivatives."""
    loss, slopes = 0.0, []
    for logp, old in zip(logps, olds, strict=True):
        weight = min(max(math.exp(logp - old), 1 - clip_low), 1 + clip_high)
        loss -= weight * a * logp
        slopes.append(-weight * a)
    return loss, slopes


def sapo_of(logps, olds, a, *, temperature_positive, temperature_negative):
    """f(r) = 4 / tau sigmoid(tau (r - 1)), the mean over the tokens of -f(r) A."""
    tau = temperature_positive if a > 0 else temperature_negative
    loss, slopes = 0.0, []
    for logp, old in zip(logps, olds, strict=True):
        r = math.exp(logp - old)
        loss -= 4 / tau / (1 + math.exp(-tau * (r - 1))) * a / len(logps)
        slopes.append(-r * a / math.cosh(tau * (r - 1) / 2) ** 2 / len(logps))
    return loss, slopes


def gmpo_of(logps, olds, a, *, clip_low, clip_high):
    """(prod_t min(r**s, clip(r**s))**s)**(1 / T) with the sign s of A, as a product of ratios."""
    sign, product, free = (1 if a > 0 else -1), 1.0, []
    bounds = math.exp(-clip_low), math.exp(clip_high)
    for logp, old in zip(logps, olds, strict=True):
        r = math.exp(logp - old)
        signed, clipped = r**sign, min(max(r, bounds[0]), bounds[1]) ** sign
        product *= min(signed, clipped) ** sign
        free.append(signed <= clipped)
    mean = product ** (1 / len(logps))
    return -a * mean, [-a * mean / len(logps) * one for one in free]


def oracle(name, batch, options):
    logp, old, advantage, mask = batch
    of_rollout = {"cispo": cispo_of, "sapo": sapo_of, "gmpo": gmpo_of}[name]
    taken = [tuple(bn) for bn in np.argwhere(mask.any(axis=-1))]
    # CISPO divides by the tokens of the batch, the others by its rollouts.
    count = int(mask.sum()) if name == "cispo" else len(taken)
    value, gradient = 0.0, np.zeros(logp.shape)
    for bn in taken:
        here = mask[bn]
        tokens = (x[bn][here].astype(np.float64).tolist() for x in (logp, old))
        loss, slopes = of_rollout(*tokens, float(advantage[bn]), **options)
        value += loss / count
        gradient[bn][here] = np.array(slopes) / count
    return value, gradient


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name, options", CASES)
def test_value_and_gradient_equal_loops_over_the_equation(name, options, seed):
    batch = random_batch(seed)
    logp, old, advantage, mask = batch
    policy_loss, weigh = LOSSES[name]
    weights = weigh(mask)

    def loss(logp):
        return (weights * policy_loss(logp, old, advantage, mask, **options)[0]).sum()

    value, gradient = jax.value_and_grad(loss)(logp)
    want_value, want_gradient = oracle(name, batch, options)
    np.testing.assert_allclose(value, want_value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-7)
    assert np.abs(want_gradient).max() > 1e-3
    # What stands outside of the rollouts is not read.
    broken = np.where(mask, logp, np.nan), np.where(mask, old, np.inf)
    other = jax.value_and_grad(
        lambda x: (weights * policy_loss(x, broken[1], advantage, mask, **options)[0]).sum()
    )(broken[0])
    np.testing.assert_array_equal(other[0], value)
    np.testing.assert_array_equal(np.asarray(other[1])[~mask], 0.0)


@pytest.mark.parametrize("name, options", CASES)
def test_at_the_old_policy_the_gradient_is_that_of_the_plain_policy_gradient(name, options):
    _, old, advantage, mask = random_batch(5)
    policy_loss, weigh = LOSSES[name]
    weights = weigh(mask)

    def loss(logp):
        return (weights * policy_loss(logp, old, advantage, mask, **options)[0]).sum()

    gradient = jax.grad(loss)(old)
    np.testing.assert_allclose(gradient, -weights * advantage[..., None], rtol=1e-5, atol=1e-8)


def test_metrics_say_what_was_clipped_and_gated():
    logp, old, advantage, mask = random_batch(7)
    ratio, above = np.exp(logp - old), (advantage >= 0)[..., None]
    found = {
        name: LOSSES[name][0](logp, old, advantage, mask, **options)[1] for name, options in CASES
    }
    outside = (ratio < 0.7) | (ratio > 2.0)
    np.testing.assert_array_equal(found["cispo"]["clip_frac"], outside & mask)
    clipped = np.where(above, ratio > np.exp(0.6), ratio < np.exp(-0.1))
    np.testing.assert_array_equal(found["gmpo"]["clip_frac"], clipped & mask)
    tau = np.where((advantage > 0)[..., None], 0.5, 3.0)
    gate = np.where(mask, np.cosh(tau * (ratio - 1) / 2) ** -2.0, 1.0)
    np.testing.assert_allclose(found["sapo"]["gate"], gate, rtol=1e-4)
    for metrics in found.values():
        np.testing.assert_allclose(metrics["approx_kl"], np.where(mask, old - logp, 0.0), atol=1e-6)


def test_a_gate_without_a_temperature_is_refused():
    batch = random_batch(0)
    with pytest.raises(ValueError, match="temperature_negative is 0; set it above 0"):
        sapo.policy_loss(*batch, temperature_negative=0)
