"""Sampling against a shared prompt, and a naive forward pass of every sequence by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_modules
from flax import nnx

from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.image_tokens import mrope_positions
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig
from speciarl_jax.models.qwen2_5_vl.window_layout import vision_layout
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.rollout import sampling
from speciarl_jax.rollout.generate import generate
from speciarl_jax.rollout.logprobs import answer_logprobs

VOCAB, EOS, IMAGE, PAD = 24, 3, 20, 0
CONFIG = ModelConfig(
    text=TextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mrope_section=(2, 1, 1),
    ),
    vision=VisionConfig(
        depth=2,
        hidden_size=16,
        intermediate_size=24,
        num_heads=2,
        out_hidden_size=32,
        patch_size=2,
        window_size=8,
        full_attention_layers=(1,),
    ),
    image_token_id=IMAGE,
    video_token_id=21,
    vision_start_token_id=22,
    vision_end_token_id=23,
    eos_token_id=(EOS,),
)
BANNED = np.isin(np.arange(VOCAB), [PAD, IMAGE, 21, 22, 23])
MAX_TOKENS = 7


@functools.cache
def make_policy():
    policy = random_modules.drawn(
        lambda: VisionLanguageModel(
            CONFIG,
            dtype=jnp.float32,
            param_dtype=jnp.float32,
            lora_rank=3,
            lora_alpha=6.0,
            rngs=nnx.Rngs(0),
        )
    )
    # Large enough that the answers differ, with adapters that do something.
    rng = np.random.default_rng(0)
    for path, p in nnx.to_flat_state(nnx.state(policy)):
        if p.ndim > 1:
            value = rng.normal(0, 0.3, p.shape)
            if path[-1] == "head":
                value[:, EOS] *= 2  # some answers must end early
            p.set_value(jnp.asarray(value, jnp.float32))
    return policy


def make_batch(seed=0, images=3):
    rng = np.random.default_rng(seed)
    grids = [[(4, 4)] for _ in range(images)]
    rows = [[5, 22, *[IMAGE] * 4, 23, *rng.integers(4, 19, 2 + i % 3)] for i in range(images)]
    length = max(map(len, rows))
    tokens = np.array([[PAD] * (length - len(r)) + list(r) for r in rows], np.int32)
    mask = np.array([[False] * (length - len(r)) + [True] * len(r) for r in rows])
    positions, following = mrope_positions(tokens, mask, grids, CONFIG)
    return PromptBatch(
        patches_BSC=rng.normal(size=(images, 16, CONFIG.vision.patch_dim)).astype(np.float32),
        layout=vision_layout(grids, CONFIG.vision),
        tokens_BP=tokens,
        mask_BP=mask,
        positions_B3P=positions.swapaxes(0, 1),
        next_position_B=following,
        image_id_B=np.arange(images, dtype=np.uint32) + 100,
        label_index_B=np.zeros(images, np.int32),
        weight_B=np.ones(images, np.float32),
    )


@functools.cache
def sampler(num_rollouts, end_ids=(EOS,), **options):
    @nnx.jit
    def program(policy, batch, key, temperature, top_p):
        return generate(
            policy,
            batch,
            policy.encode_images(batch.patches_BSC, batch.layout),
            key,
            num_rollouts=num_rollouts,
            max_tokens=MAX_TOKENS,
            end_ids=end_ids,
            banned_V=BANNED,
            temperature=temperature,
            top_p=top_p,
            **options,
        )

    return program


def run(policy, batch, *, key=0, num_rollouts=5, temperature=1.0, top_p=1.0, **options):
    program = sampler(num_rollouts, **options)
    drawn = program(policy, batch, jax.random.key(key), np.float32(temperature), np.float32(top_p))
    return jax.tree.map(np.asarray, drawn)


@nnx.jit
def encoded(policy, batch):
    return policy.encode_images(batch.patches_BSC, batch.layout)


@functools.partial(nnx.jit, static_argnums=5)
def whole_sequences(policy, tokens, positions, mask, features, use_lora):
    return policy(tokens, positions, mask, features, use_lora=use_lora)


def naive_logp(policy, batch, rollout, temperature, use_lora=True):
    """Every prompt and answer as one sequence through the plain forward pass."""
    features = encoded(policy, batch)
    images, answers, length = rollout.tokens_BNT.shape
    prompt = batch.tokens_BP.shape[1]
    out = np.zeros(rollout.tokens_BNT.shape, np.float32)
    for n in range(answers):
        tokens = np.concatenate([batch.tokens_BP, rollout.tokens_BNT[:, n]], axis=1)
        mask = np.concatenate([batch.mask_BP, np.ones((images, length), bool)], axis=1)
        after = batch.next_position_B[:, None] + np.arange(length)
        after = np.broadcast_to(after, (3, images, length))
        positions = np.concatenate([batch.positions_B3P.swapaxes(0, 1), after], axis=2)
        logits = whole_sequences(policy, tokens, positions, mask, features, use_lora)
        logits = logits[:, prompt - 1 : -1]
        logits = np.where(BANNED, -np.inf, np.asarray(logits, np.float64) / temperature)
        logp = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        out[:, n] = np.take_along_axis(logp, rollout.tokens_BNT[:, n][..., None], axis=-1)[..., 0]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_log_probabilities_equal_a_naive_forward_pass(temperature):
    policy, batch = make_policy(), make_batch()
    rollout = run(policy, batch, temperature=temperature)
    want = naive_logp(policy, batch, rollout, temperature)
    np.testing.assert_allclose(
        rollout.logp_BNT[rollout.mask_BNT], want[rollout.mask_BNT], rtol=1e-5, atol=1e-5
    )
    assert len(np.unique(rollout.tokens_BNT.reshape(-1, MAX_TOKENS), axis=0)) > 5


@pytest.mark.parametrize("use_lora", [True, False])
@pytest.mark.parametrize("chunk_size", [2, 7, 100])
def test_teacher_forced_log_probabilities_equal_a_naive_forward_pass(use_lora, chunk_size):
    policy, batch = make_policy(), make_batch()
    rollout = run(policy, batch)

    @nnx.jit
    def teacher_forced(policy, features_BMD, tokens_BNT):
        return answer_logprobs(
            policy,
            batch,
            features_BMD,
            tokens_BNT,
            banned_V=BANNED,
            use_lora=use_lora,
            chunk_size=chunk_size,
        )

    got, entropy, _ = teacher_forced(policy, encoded(policy, batch), rollout.tokens_BNT)
    want = naive_logp(policy, batch, rollout, 1.0, use_lora)
    np.testing.assert_allclose(got[rollout.mask_BNT], want[rollout.mask_BNT], rtol=1e-5, atol=1e-5)
    assert np.all(np.asarray(entropy) >= 0) and np.all(np.isfinite(got))
    if use_lora:
        np.testing.assert_allclose(
            got[rollout.mask_BNT], rollout.logp_BNT[rollout.mask_BNT], rtol=1e-5, atol=1e-5
        )


def test_end_of_sequence_is_inside_the_mask_and_nothing_after_it():
    # So hot that every token is about equally likely: many answers end early, some never.
    rollout = run(make_policy(), make_batch(), num_rollouts=32, temperature=50.0)
    ended = 0
    for tokens, mask, logp in zip(
        rollout.tokens_BNT.reshape(-1, MAX_TOKENS),
        rollout.mask_BNT.reshape(-1, MAX_TOKENS),
        rollout.logp_BNT.reshape(-1, MAX_TOKENS),
        strict=True,
    ):
        found = np.flatnonzero(tokens == EOS)
        length = found[0] + 1 if len(found) else MAX_TOKENS
        ended += len(found) > 0
        assert mask.sum() == length and mask[:length].all()
        assert (tokens[length:] == EOS).all() and (logp[length:] == 0).all()
        assert not BANNED[tokens].any()
    assert 0 < ended < 96


def test_a_sample_does_not_depend_on_its_place_in_the_batch():
    policy, batch = make_policy(), make_batch(images=4)
    whole = run(policy, batch)
    order = np.array([2, 0, 3, 1])

    def shuffled(x):
        return x[order]

    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    other = PromptBatch(**jax.tree.map(shuffled, fields))
    moved = run(policy, other)
    np.testing.assert_array_equal(moved.tokens_BNT, whole.tokens_BNT[order])
    fewer = run(policy, batch, num_rollouts=3)
    np.testing.assert_array_equal(fewer.tokens_BNT, whole.tokens_BNT[:, :3])
    assert np.any(run(policy, batch, key=1).tokens_BNT != whole.tokens_BNT)


def test_greedy_takes_the_likeliest_token_and_a_small_nucleus_does_too():
    policy, batch = make_policy(), make_batch()
    greedy = run(policy, batch, temperature=0.0, num_rollouts=2)
    np.testing.assert_array_equal(greedy.tokens_BNT[:, 0], greedy.tokens_BNT[:, 1])
    nucleus = run(policy, batch, top_p=1e-6, num_rollouts=2)
    np.testing.assert_array_equal(nucleus.tokens_BNT, greedy.tokens_BNT)


def test_nucleus_keeps_the_smallest_set_that_holds_enough():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
    for top_p, kept in ((0.39, [1]), (0.41, [1, 3]), (0.75, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        found = np.flatnonzero(np.asarray(sampling.keep_nucleus(logits, top_p)) > -1e20)
        assert found.tolist() == kept


def test_padding_rows_have_no_tokens():
    batch = make_batch()
    batch = dataclasses.replace(batch, weight_B=np.array([1, 1, 0], np.float32))
    rollout = run(make_policy(), batch)
    assert not rollout.mask_BNT[2].any() and rollout.mask_BNT[:2].any()


def test_any_of_several_tokens_ends_an_answer_and_nothing_else_changes():
    """The draws are those of one end, up to the first token of either kind."""
    policy, batch = make_policy(), make_batch()
    one = run(policy, batch)
    often = np.bincount(one.tokens_BNT[one.mask_BNT], minlength=CONFIG.text.vocab_size)
    often[EOS] = 0
    other = int(np.argmax(often))
    both = run(policy, batch, end_ids=(EOS, other))
    is_end = np.isin(one.tokens_BNT, (EOS, other)) & one.mask_BNT
    before = np.cumsum(is_end, axis=-1) - is_end == 0
    np.testing.assert_array_equal(both.mask_BNT, one.mask_BNT & before)
    np.testing.assert_array_equal(both.tokens_BNT, np.where(both.mask_BNT, one.tokens_BNT, EOS))
    # Two programs, whose sums may be ordered differently.
    want = np.where(both.mask_BNT, one.logp_BNT, 0)
    np.testing.assert_allclose(both.logp_BNT, want, rtol=0, atol=1e-5)
    assert (both.mask_BNT.sum(-1) < one.mask_BNT.sum(-1)).mean() > 0.1
