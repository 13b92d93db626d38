"""What parity tests of every family do: run a policy and its twin in torch, and compare."""

import functools
import tempfile

import jax
import numpy as np
import pytest
import random_policy
import torch
from random_policy import BANNED, EOS, PAD, quick_jit

from speciarl_jax.rollout.generate import generate

TOLERANCE = 1e-4  # of the largest value
NEW_TOKENS = 64
SEEDS = range(20)
# Family -> seeds of the fast suite; all others are slow. Between them they draw tied and untied
# heads, groups of two heads and more, and rows of several images. Of Qwen2.5-VL they draw all sizes
# of windows, and no, some and only layers of full attention; of Qwen3-VL two and three DeepStack
# layers, and heads that together are not as wide as the model.
QUICK = {"qwen2_5_vl": (3, 6, 8, 17), "qwen3_vl": (6, 7)}


def seed_params(model_type, seeds=SEEDS):
    """A parameter of each seed, slow unless it is of `QUICK`."""
    quick = QUICK[model_type]
    return [pytest.param(s, marks=[] if s in quick else [pytest.mark.slow]) for s in seeds]


@functools.cache
def make_case(model_type, seed):
    """`random_policy.make_case`, once in a process."""
    with tempfile.TemporaryDirectory() as folder:
        return random_policy.make_case(seed, folder, model_type)


@functools.cache
def drawn(model_type):
    """What `random_policy.draw` gives for every seed."""
    return [random_policy.draw(seed, model_type=model_type) for seed in SEEDS]


@functools.cache
def ours(model_type, seed):
    """What `run` gives for that case, as numpy arrays."""
    case = make_case(model_type, seed)
    return jax.tree.map(np.asarray, run(case.policy, case.batch))


@quick_jit
def run(policy, batch):
    """The whole model, and what happens inside of it."""
    features = policy.encode_images(batch.patches_BSC, batch.layout)
    x = policy.embed(batch.tokens_BP, features)
    hidden, cache = policy.decoder.prefill(x, batch.positions_B3P.swapaxes(0, 1), batch.mask_BP)
    return {
        "features": features,
        "embedded": x,
        "hidden": hidden,
        "keys": cache.k_LBGKP.swapaxes(-1, -2),
        "values": cache.v_LBGPK,
        "logits": policy.decoder.logits(hidden),
    }


def torch_logits(case, model, batch):
    """float32 logits of the tokens that are not padding, by torch."""
    inputs = case.torch_inputs(batch)
    inputs["pixel_values"] = inputs["pixel_values"].to(next(model.parameters()).dtype)
    with torch.no_grad():
        return model(**inputs).logits.float().numpy()[batch.mask_BP]


def relative_error(got, want):
    """The largest difference, as a share of the largest value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape and np.isfinite(got).all()
    return np.abs(got - want).max() / np.abs(want).max()


def bfloat16_distances(case, policy, torch_model):
    """How far two bfloat16 models depart from float32, root mean squares in units of its spread."""
    want = torch_logits(case, case.torch_model, case.batch)
    theirs = torch_logits(case, torch_model, case.batch)
    got = np.asarray(run(policy, case.batch)["logits"])[case.batch.mask_BP]
    return tuple(np.sqrt(np.mean((x - want) ** 2)) / want.std() for x in (got, theirs))


def assert_positions(case, batch):
    """Compares rotary positions of the tokens that are not padding, and those behind them."""
    inputs = case.torch_inputs(batch)
    inputs.pop("pixel_values")
    want, delta = case.torch_model.model.get_rope_index(**inputs)
    mask_BP = batch.mask_BP
    got = batch.positions_B3P.swapaxes(0, 1)
    np.testing.assert_array_equal(got[:, mask_BP], want.numpy()[:, mask_BP])
    following_B = delta.numpy().ravel() + mask_BP.sum(axis=1)
    np.testing.assert_array_equal(batch.next_position_B, following_B)


@quick_jit
def greedy(policy, batch):
    """`NEW_TOKENS` tokens of one answer a row, the likeliest ones; it may not end."""
    return generate(
        policy,
        batch,
        policy.encode_images(batch.patches_BSC, batch.layout),
        jax.random.key(0),
        num_rollouts=1,
        max_tokens=NEW_TOKENS,
        end_ids=(EOS,),
        banned_V=BANNED,
        temperature=0.0,
    )


def assert_greedy_answers(case):
    """Compares all tokens of all rows; near ties would make it a matter of luck."""
    with torch.no_grad():
        found = case.torch_model.generate(
            **case.torch_inputs(case.batch),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            suppress_tokens=np.flatnonzero(BANNED).tolist(),
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
        )
    want = found.sequences[:, -NEW_TOKENS:].numpy()
    got = np.asarray(greedy(case.policy, case.batch).tokens_BNT)[:, 0]
    best = torch.stack(found.scores, 1).topk(2).values.numpy()
    np.testing.assert_array_equal(got, want)
    assert np.min(best[..., 0] - best[..., 1]) > 1e-5 * np.abs(best).max()
