"""Credit by information: its two kinds by hand, and what it does to rewards."""

import algorithms
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.rl.rewards import information
from speciarl_jax.rollout.types import Groups
from speciarl_jax.training import rl_step
from speciarl_jax.verifiers.category import Category


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_what_holds_everywhere_loses_the_strength_and_what_holds_nowhere_nothing(strength):
    rate = jnp.array([[1.0, 0.0, 0.25]])
    share = information.credit(rate, strength=strength)
    np.testing.assert_allclose(share, [[1 - strength, 1, 1 - strength * 0.25]], atol=1e-6)
    # Of four equal labels each tells two bits; half of the images one.
    rate = jnp.array([[1.0, 0.0, 0.25, 0.5, 0.1]])
    bits = information.credit(rate, strength=strength, kind="bits", entropy=np.log(4))
    want = [1 - strength, 1, 1, 1 - strength / 2, 1]
    np.testing.assert_allclose(bits, [want], atol=1e-6)
    assert share.dtype == bits.dtype == jnp.float32


def test_labels_without_entropy_leave_no_information():
    one = information.credit(jnp.array([[1.0]]), strength=1.0, kind="bits", entropy=0.0)
    np.testing.assert_allclose(one, [[0.0]])


def test_an_unknown_kind_and_a_strength_that_is_none_are_refused():
    with pytest.raises(ValueError, match="kind is 'nats'; choose one of"):
        information.credit(jnp.zeros((1, 1)), strength=1.0, kind="nats")
    with pytest.raises(ValueError, match=r"strength is 1.5; choose a number from 0 .* to 1"):
        information.credit(jnp.zeros((1, 1)), strength=1.5)


def test_only_positive_rewards_of_a_group_get_less():
    c = Category
    category = jnp.array([[c.GENERIC, c.GENERIC, c.WRONG, c.UNPARSED], [c.SPECIFIC, 2, 0, 4]])
    rate = jnp.array([[1.0, 0.5, 0.0, 0.9], [0.1, 1.0, 0.2, 0.2]])
    groups = Groups(None, None, None, category, jnp.ones((2, 4), bool), rate)
    algorithm = algorithms.made(information=lambda rate_BN: 1 - 0.5 * rate_BN)
    found = rl_step.reward_groups(groups, jnp.int32(0), algorithm).reward_BN
    np.testing.assert_allclose(found, [[0.5, 0.75, 0, -1], [0.95, 0, 0, 0.9]], atol=1e-6)
    plain = rl_step.reward_groups(groups, jnp.int32(0), algorithms.made()).reward_BN
    np.testing.assert_allclose(plain, [[1, 1, 0, -1], [1, 0, 0, 1]])
