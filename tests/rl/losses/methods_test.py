"""Each method from rewards to loss and gradient, against loops over the papers' equations.

The parts have tests of their own; here a method's configuration puts them together: rewards of
random verdicts, advantages of groups with answers left out, and the loss of several updates. The
oracle is torch in float64, one token at a time, and takes its gradient by autograd.
"""

import functools
import math

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
from speciarl_jax.experiment import algorithm
from speciarl_jax.rl.losses import importance

B, N, T = 3, 4, 6
LENGTH = 2048  # Dr.GRPO's constant
METHODS = ("base", "grpo_sequence_mean", "dr_grpo", "dapo", "gspo", "rloo", "reuse", "binary")
METHODS += ("static_map:1", "single", "cispo", "sapo", "gmpo", "reinforce_pp", "icepop")


@functools.cache
def parts_of(name):
    config = configs.load(name)
    return config, algorithm.from_config(config)


def draw(seed):
    """Verdicts, answers and log-probabilities; some answers empty, some without a verdict."""
    rng = np.random.default_rng(seed)
    spread = rng.choice([0.05, 0.6, 3.0])
    low = rng.integers(-1, 5, (B, 1))
    sampler = rng.normal(-1.5, 0.8, (B, N, T)).astype(np.float32)
    trainer = (sampler + rng.normal(0, 0.3, sampler.shape)).astype(np.float32)
    return {
        "category": rng.integers(low, np.minimum(low + 4, 6), (B, N)).astype(np.int32),
        "valid": rng.random((B, N)) < 0.85,
        "mask": np.arange(T) < rng.integers(0, T + 1, (B, N, 1)),
        "rollout": sampler,
        "recomputed": trainer,
        "logp": (trainer + rng.normal(0, spread, sampler.shape)).astype(np.float32),
        "reference": rng.normal(-1.5, 0.8, sampler.shape).astype(np.float32),
    }


def ours(name, case):
    """Advantages, loss and gradient as `rl_step` and `update` put them together."""
    config, parts = parts_of(name)
    reward = parts.reward(case["category"], case["valid"])
    if parts.overlong is not None:
        # Completions of the test are short: the limit is theirs.
        penalty = functools.partial(parts.overlong.func, max_tokens=T, buffer=2, weight=1.0)
        reward = reward - penalty(case["mask"].sum(-1))
    old = case[parts.old_logprobs]
    if parts.kl_in_reward:
        pair = (np.where(case["mask"], case[key], 0) for key in ("rollout", "reference"))
        reward = reward - parts.kl_in_reward * np.sum(parts.kl(*pair), axis=-1)
    advantage = parts.advantages(reward, case["valid"])
    mask = case["mask"] & case["valid"][..., None]
    weight = parts.token_weights(mask)
    corrected, gap = weight, (case["recomputed"], case["rollout"], mask)
    if parts.tis_cap:
        corrected = weight * importance.truncated_weights(
            *gap, cap=parts.tis_cap, level=parts.tis_level
        )
    if parts.kept is not None:
        corrected = np.where(parts.kept(*gap), corrected, 0)

    def loss(logp):
        loss_BNT, _ = parts.policy_loss(logp, old, advantage, mask)
        found = (corrected * loss_BNT).sum()
        if parts.kl_in_loss:
            found += parts.kl_in_loss * (weight * parts.kl(logp, case["reference"])).sum()
        return found

    value, gradient = jax.value_and_grad(loss)(case["logp"])
    return np.asarray(advantage), float(value), np.asarray(gradient)


def reward_of(name, categories, valid):
    """Rewards of one group; `categories` are ranks, -1 for unparsed."""
    fixed = {
        "binary": [0, 0, 0, 0, 1, 1],
        "static_map:1": [0, 0.25, 0.5, 0.75, 1, 1],
    }
    best = max([c for c, v in zip(categories, valid, strict=True) if v], default=-1)
    bar = {5: 4, 0: 1, -1: 1}.get(best, best)
    rewards, taken = [], False
    for c, verified in zip(categories, valid, strict=True):
        earns = c >= bar and not (name == "single" and taken)
        taken |= earns and bool(verified)
        rewards.append(-1.0 if c == -1 else float(fixed[name][c] if name in fixed else earns))
    return rewards


def advantages_of(name, case):
    """Group by group, answer by answer."""
    found = np.zeros((B, N))
    for b in range(B):
        rewards = reward_of(name, case["category"][b].tolist(), case["valid"][b])
        for n in range(N):
            length = int(case["mask"][b, n].sum())
            if name == "dapo":
                rewards[n] += min(0.0, ((T - 2) - length) / 2)
            if name == "rloo":
                gap = (case["rollout"] - case["reference"]).astype(np.float64)[b, n, :length]
                rewards[n] -= 0.01 * gap.sum()
        kept = [n for n in range(N) if case["valid"][b, n]]
        if len(kept) < 2 or len({np.float32(rewards[n]) for n in kept}) == 1:
            continue
        mean = sum(rewards[n] for n in kept) / len(kept)
        deviation = math.sqrt(sum((rewards[n] - mean) ** 2 for n in kept) / (len(kept) - 1))
        for n in kept:
            if name == "rloo":
                others = [rewards[m] for m in kept if m != n]
                found[b, n] = rewards[n] - sum(others) / len(others)
            elif name in ("dr_grpo", "reinforce_pp"):
                found[b, n] = rewards[n] - mean
            else:
                found[b, n] = (rewards[n] - mean) / (deviation + 1e-6)
    if name == "reinforce_pp" and case["valid"].sum() > 1:
        found[case["valid"]] /= found[case["valid"]].std(ddof=1) + 1e-6
    return found


def token_loss(name, ratio, a, logp):
    """Of one token (GSPO: of one answer; GMPO: its clipped log-ratio)."""
    if name == "cispo":
        return -ratio.detach().clamp(0, 5) * a * logp
    if name == "sapo":
        tau = 1.0 if a > 0 else 1.05
        return -a * torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    if name == "gmpo":
        return torch.log(ratio.clamp(max=math.exp(0.4)) if a > 0 else ratio.clamp(math.exp(-0.4)))
    low, high, dual = {"dapo": (0.2, 0.28, 10.0), "gspo": (3e-4, 4e-4, math.inf)}.get(
        name, (0.2, 0.2, 3.0)
    )
    clipped = torch.clamp(ratio, 1 - low, 1 + high)
    loss = torch.maximum(-a * ratio, -a * clipped)
    return torch.minimum(loss, torch.full_like(loss, -a * dual)) if a < 0 else loss


def theirs(name, case, advantage):
    """Loss and gradient; `advantage` [B, N]."""
    logp = torch.tensor(case["logp"], dtype=torch.float64, requires_grad=True)
    sampler, trainer, reference = (
        torch.tensor(case[key], dtype=torch.float64)
        for key in ("rollout", "recomputed", "reference")
    )
    old = trainer if name in ("reuse", "icepop") else sampler
    answers = []  # (losses of tokens) of each answer that takes part
    for b, n in np.ndindex(B, N):
        length = int(case["mask"][b, n].sum())
        if not case["valid"][b, n] or not length:
            continue
        a, tokens = float(advantage[b, n]), []
        difference = (logp[b, n, :length] - old[b, n, :length]).clamp(-20, 20)
        for t in range(length):
            one = difference.mean() if name == "gspo" else difference[t]
            loss = token_loss(name, torch.exp(one), a, logp[b, n, t])
            if name == "reuse":
                loss = loss * min(math.exp(float(trainer[b, n, t] - sampler[b, n, t])), 2.0)
            if name == "icepop":
                k = math.exp(float(trainer[b, n, t] - sampler[b, n, t]))
                loss = loss * (k if 0.5 <= k <= 5 else 0)
            if name == "reinforce_pp":
                gap = reference[b, n, t] - logp[b, n, t]
                loss = loss + 0.01 * (gap**2 / 2).clamp(max=10)
            elif name not in ("dr_grpo", "dapo", "gspo", "rloo", "cispo", "sapo", "gmpo"):
                gap = reference[b, n, t] - logp[b, n, t]
                loss = loss + 0.01 * (torch.exp(gap) - gap - 1).clamp(-10, 10)
            tokens.append(loss)
        tokens = torch.stack(tokens)
        mean = -a * torch.exp(tokens.mean()).expand(length)
        answers.append(mean if name == "gmpo" else tokens)
    if not answers:
        return 0.0, np.zeros((B, N, T))
    if name in ("grpo_sequence_mean", "gspo", "sapo", "gmpo"):
        loss = torch.stack([answer.mean() for answer in answers]).mean()
    elif name == "dr_grpo":
        loss = torch.stack([answer.sum() / LENGTH for answer in answers]).mean()
    else:
        loss = torch.cat(answers).mean()
    loss.backward()
    return loss.item(), logp.grad.numpy()


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_method_is_the_equations_of_its_paper(name, seed):
    case = draw(seed)
    advantage, value, gradient = ours(name, case)
    np.testing.assert_allclose(advantage, advantages_of(name, case), rtol=1e-4, atol=1e-4)
    # From one advantage on, so that rounding of the rewards is not in the comparison.
    want_value, want_gradient = theirs(name, case, advantage)
    np.testing.assert_allclose(value, want_value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-3, atol=1e-5)


def test_the_cases_reach_every_branch():
    """Clips on both sides, the dual clips, groups left out, empty answers."""
    seen = set()
    for seed in range(60):
        case = draw(seed)
        a = advantages_of("base", case)[..., None]
        ratio = np.exp((case["logp"] - case["rollout"]).astype(np.float64))
        here = case["mask"] & case["valid"][..., None]
        seen |= {"clipped above"} if (here & (a > 0) & (ratio > 1.28)).any() else set()
        seen |= {"clipped below"} if (here & (a < 0) & (ratio < 0.8)).any() else set()
        seen |= {"dual clip 3"} if (here & (a < 0) & (ratio > 3)).any() else set()
        seen |= {"dual clip 10"} if (here & (a < 0) & (ratio > 10)).any() else set()
        seen |= {"no signal"} if (a == 0).all(axis=(1, 2)).any() else set()
        seen |= {"empty answer"} if (~case["mask"].any(-1) & case["valid"]).any() else set()
        seen |= {"unverified"} if (~case["valid"]).any() else set()
    assert len(seen) == 7, seen
