"""A reward, loss or verifier of a user's own that returns something else is named when traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from speciarl_jax.experiment import algorithm, extension_points, in_graph_verification
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rl import losses, rewards
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.verifiers.base import InGraphVerdicts, Verdicts
from speciarl_jax.verifiers.category import Category

B, N, T = 2, 3, 4


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """(package, name, source) -> a module of that package that lies elsewhere."""

    def add(package, name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])

    return add


def config_with(section, name):
    """The paper's configuration with another reward or loss, which has no options."""
    config = base.get_config()
    config[section].name = name
    with config.unlocked():
        config[section].options = {}
    return config


@pytest.mark.parametrize(
    "body, said",
    [
        ("valid_BN * 1", r"returned int32 \[2, 3\] as a reward .*return float \[B, N\] = \[2, 3\]"),
        ("valid_BN", r"returned bool \[2, 3\]"),
        ("valid_BN.mean(axis=1)", r"returned float32 \[2\] .*return float"),
        ("valid_BN.mean(axis=1, keepdims=True)", r"returned float32 \[2, 1\]"),
        ("(valid_BN * 1.0).T", r"returned float32 \[3, 2\]"),
        ("1.0", "returned a float as a reward"),
        ("None", "returned a NoneType as a reward"),
        ("(valid_BN * 1.0, {})", "returned a tuple of 2 as a reward"),
    ],
)
def test_a_reward_of_another_shape_or_dtype_is_refused_before_anything_runs(own_module, body, said):
    name = f"own_{abs(hash(body))}"
    own_module(rewards, name, f"def reward(category_BN, valid_BN):\n    return {body}\n")
    config = config_with("reward", name)
    with pytest.raises(TypeError, match=rf"rewards/{name}.py \(config.reward.name\) {said}"):
        algorithm.check(config)


def test_a_reward_in_half_precision_becomes_float32(own_module):
    source = "import jax.numpy as jnp\n\n\ndef reward(category_BN, valid_BN):\n"
    own_module(rewards, "own_half", source + "    return category_BN.astype(jnp.bfloat16)\n")
    config = config_with("reward", "own_half")
    algorithm.check(config)
    category_BN = jnp.array([[0, 4]])
    found = algorithm.from_config(config).reward(category_BN, category_BN > 0)
    assert found.dtype == jnp.float32 and found.tolist() == [[0.0, 4.0]]


@pytest.mark.parametrize(
    "body, said",
    [
        ("logp_BNT", "returned float32 .*return the loss of each token and a dict"),
        ("(logp_BNT.sum(), {})", r"returned float32 \[\] as the loss of each token"),
        ("(mask_BNT, {})", r"returned bool \[2, 3, 4\] as the loss"),
        ("(logp_BNT.sum(-1), {})", r"returned float32 \[2, 3\] as the loss of each token; return "),
        ("(logp_BNT, [logp_BNT])", "returned a tuple of 2; return the loss of each token"),
        ("(logp_BNT, {'mine': advantage_BN})", r"returned float32 \[2, 3\] as the metric 'mine'"),
        ("(logp_BNT, {'mine': 1.0})", "returned a float as the metric 'mine'"),
    ],
)
def test_a_loss_of_another_shape_or_dtype_is_refused_before_anything_runs(own_module, body, said):
    name = f"own_{abs(hash(body))}"
    arguments = "logp_BNT, old_logp_BNT, advantage_BN, mask_BNT"
    own_module(losses, name, f"def policy_loss({arguments}):\n    return {body}\n")
    config = config_with("loss", name)
    with pytest.raises(TypeError, match=rf"losses/{name}.py \(config.loss.name\) {said}"):
        algorithm.check(config)


class Own:
    """An in-graph verifier that returns what it is given."""

    def __init__(self, found):
        self.found = found

    def verify(self, tokens_BNT, mask_BNT, label_index_B):
        return self.found


def judged(found, **changes):
    batch = PromptBatch(**dict.fromkeys(PromptBatch.__dataclass_fields__))
    batch = batch.replace(label_index_B=jnp.zeros(B, int), weight_B=jnp.ones(B))
    rollout = Rollout(jnp.zeros((B, N, T), int), jnp.ones((B, N, T), bool), jnp.zeros((B, N, T)))
    return in_graph_verification.verify(Own(found), batch, rollout.replace(**changes))


CATEGORY, VALID = jnp.ones((B, N), int), jnp.ones((B, N), bool)


@pytest.mark.parametrize(
    "found, said",
    [
        (CATEGORY, r"returned int32 \[2, 3\]; return category_BN and valid_BN"),
        ((CATEGORY * 1.0, VALID), r"returned float32 \[2, 3\] as category_BN; return int \[B, N\]"),
        ((CATEGORY[:, :1], VALID), r"returned int32 \[2, 1\] as category_BN"),
        ((CATEGORY, VALID * 1.0), r"returned float32 \[2, 3\] as valid_BN; return bool"),
        ((CATEGORY, None), "returned a NoneType as valid_BN"),
        (InGraphVerdicts(CATEGORY, VALID, VALID), r"returned bool \[2, 3\] as probability_BN"),
        ((CATEGORY,), "returned a tuple of 1; return category_BN and valid_BN"),
        (
            InGraphVerdicts(CATEGORY, VALID, category_BNF=CATEGORY),
            r"returned int32 \[2, 3\] as category_BNF; return int \[B, N, F\] = \[2, 3, 3\]",
        ),
        ((CATEGORY, VALID, *[None] * 6), "returned a tuple of 8; return category_BN and valid_BN"),
    ],
)
def test_an_in_graph_verifier_that_returns_something_else_is_named(found, said):
    with pytest.raises(TypeError, match=f"extension_points_test.Own {said}"):
        judged(found)


def test_a_category_that_does_not_exist_is_no_verdict_and_earns_nothing():
    category = CATEGORY.at[0, 1].set(6).at[1, 2].set(-2)
    found = judged((category, VALID))
    assert np.argwhere(~np.asarray(found.valid_BN)).tolist() == [[0, 1], [1, 2]]
    assert set(np.ravel(found.category_BN).tolist()) == {1, int(Category.UNPARSED)}


def test_the_share_of_the_most_common_answer_is_that_of_a_count():
    rng = np.random.default_rng(0)
    for counted in (rng.random((8, 5)) < 0.6, np.zeros((8, 5), bool)):
        values = rng.integers(0, 4, (8, 5)).astype(np.uint32)
        most = max((np.sum(values[counted] == v) for v in range(4)), default=0)
        got = jax.jit(in_graph_verification.most_common)(values, counted)
        assert float(got) == pytest.approx(most / max(counted.sum(), 1))


def test_completions_are_compared_as_they_are_where_a_verifier_tells_nothing():
    tokens = jnp.array([[[1, 2, 3, 9], [1, 2, 3, 7], [3, 2, 1, 9]]] * 2)
    mask = jnp.array([True, True, True, False])[None, None] & jnp.ones((B, N, T), bool)
    found = judged((CATEGORY, VALID), tokens_BNT=tokens, mask_BNT=mask)
    first, second, third = np.asarray(found.answer_BN)[0]
    assert first == second != third and first > 0
    metrics = in_graph_verification.describe(found)
    assert float(metrics["verify/most_common_answer"]) == pytest.approx(2 / 3)


def host_verdicts(**changes):
    fields = {
        "category_BN": np.ones((B, N), np.int32),
        "valid_BN": np.ones((B, N), bool),
        "cached_BN": np.zeros((B, N), bool),
        "seconds_BN": np.zeros((B, N), np.float32),
    }
    return Verdicts(**fields | changes)


@pytest.mark.parametrize(
    "found, said",
    [
        ([1, 2], "gave a list; give Verdicts"),
        (host_verdicts(category_BN=np.ones((N, B), int)), r"int64 \[3, 2\] as category_BN"),
        (host_verdicts(category_BN=np.ones((B, N))), r"float64 \[2, 3\] as category_BN"),
        (host_verdicts(valid_BN=np.ones((B, N))), r"float64 \[2, 3\] as valid_BN; return bool"),
        (host_verdicts(matched_BN=np.ones(B, bool)), r"bool \[2\] as matched_BN"),
    ],
)
def test_a_host_verifier_that_gives_something_else_is_named(found, said):
    with pytest.raises(TypeError, match=rf"\(config.verifier.name\) .*{said}"):
        extension_points.host_verdicts(found, (B, N))


def test_a_host_verifiers_category_that_does_not_exist_is_no_verdict():
    category = np.array([[0, 5, 6], [-1, -2, 2]])
    found = extension_points.host_verdicts(host_verdicts(category_BN=category), (B, N))
    assert found.valid_BN.tolist() == [[True, True, False], [True, False, True]]
    assert found.category_BN.tolist() == [[0, 5, -1], [-1, -1, 2]]
