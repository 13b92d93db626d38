"""What a group shares, and what decoding leaves out, against plain counterparts, in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick_compiler import QUICK

from speciarl_jax.models import family
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.image_tokens import mrope_positions
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig
from speciarl_jax.models.qwen3_vl import config as qwen3_vl
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.rollout import slot_compaction
from speciarl_jax.rollout.generate import generate
from speciarl_jax.rollout.logprobs import answer_logprobs

VOCAB, IMAGE, EOS = 24, 20, 3
TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 21,
    "vision_start_token_id": 22,
    "vision_end_token_id": 23,
    "eos_token_id": (EOS,),
}
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
        depth=1,
        hidden_size=16,
        intermediate_size=24,
        num_heads=2,
        out_hidden_size=32,
        patch_size=2,
        window_size=8,
        full_attention_layers=(0,),
    ),
    **TOKENS,
)
# The same with features that the first of three layers adds, and the second.
DEEPSTACK = qwen3_vl.ModelConfig(
    text=dataclasses.replace(
        CONFIG.text, num_layers=3, qkv_bias=False, qk_norm=True, mrope_interleaved=True
    ),
    vision=qwen3_vl.VisionConfig(
        depth=2,
        hidden_size=16,
        intermediate_size=24,
        num_heads=2,
        out_hidden_size=32,
        patch_size=2,
        num_position_embeddings=9,
        deepstack_layers=(0, 1),
    ),
    **TOKENS,
)
POLICIES = {"plain": CONFIG, "deepstack": DEEPSTACK}
BANNED = np.arange(VOCAB) >= IMAGE
# Tokens that may be sampled, by how often an answer ends then. "often": each group at many times.
SAMPLED = {"often": [EOS, 4, 5], "rarely": range(EOS, IMAGE), "never": range(4, IMAGE)}
IMAGES = 3


@functools.cache
def make_policy(scan_unroll=1, dtype=jnp.float32, kind="plain"):
    """graphdef, adapters that do something, and base."""

    def make():
        return VisionLanguageModel(
            POLICIES[kind],
            dtype=dtype,
            param_dtype=dtype,
            lora_rank=3,
            lora_alpha=6.0,
            scan_unroll=scan_unroll,
            rngs=nnx.Rngs(0),
        )

    graphdef, lora, base = nnx.split(nnx.eval_shape(make), nnx.LoRAParam, ...)
    rng = np.random.default_rng(0)

    def fill(p):
        return jnp.asarray(rng.normal(0, 1 / np.sqrt(max(p.shape[-2:])), p.shape), p.dtype)

    return graphdef, jax.tree.map(fill, lora), jax.tree.map(fill, base)


@functools.cache
def make_batch(kind="plain"):
    """Prompts of three lengths, padded on the left, and a row that only pads the batch."""
    config = POLICIES[kind]
    rng = np.random.default_rng(1)
    grids = [[(4, 4)]] * IMAGES
    rows = [[5, 22, *[IMAGE] * 4, 23, *rng.integers(4, 19, 2 + 2 * i)] for i in range(IMAGES)]
    length = max(map(len, rows))
    tokens = np.array([[0] * (length - len(r)) + list(r) for r in rows], np.int32)
    mask = np.array([[False] * (length - len(r)) + [True] * len(r) for r in rows])
    positions, following = mrope_positions(tokens, mask, grids, config)
    return PromptBatch(
        patches_BSC=rng.normal(size=(IMAGES, 16, config.vision.patch_dim)).astype(np.float32),
        layout=family.of(config).vision_layout(grids, config.vision),
        tokens_BP=tokens,
        mask_BP=mask,
        positions_B3P=positions.swapaxes(0, 1),
        next_position_B=following,
        image_id_B=np.arange(IMAGES, dtype=np.uint32) + 7,
        label_index_B=np.zeros(IMAGES, np.int32),
        weight_B=np.array([1, 1, 0], np.float32),
    )


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


def whole_sequences(
    policy, batch, features_BMD, tokens_BNT, temperature, use_lora=True, banned=BANNED
):
    """Log-probability and entropy, each answer a sequence of its own after its own prompt."""
    images, answers, length = tokens_BNT.shape
    start = batch.tokens_BP.shape[1]

    def repeat(x):
        return jnp.repeat(x, answers, axis=0)

    own = tokens_BNT.reshape(images * answers, length)
    tokens = jnp.concatenate([repeat(batch.tokens_BP), own], axis=1)
    mask = jnp.concatenate([repeat(batch.mask_BP), jnp.ones(own.shape, bool)], axis=1)
    after = repeat(batch.next_position_B)[:, None] + jnp.arange(length)
    after = jnp.broadcast_to(after[:, None], (len(after), 3, length))
    positions = jnp.concatenate([repeat(batch.positions_B3P), after], axis=2).swapaxes(0, 1)
    logits = policy(tokens, positions, mask, repeat(features_BMD), use_lora=use_lora)
    logits = logits[:, start - 1 : -1]
    logp = jax.nn.log_softmax(jnp.where(banned, -1e30, logits / temperature), axis=-1)
    chosen = jnp.take_along_axis(logp, own[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return chosen.reshape(tokens_BNT.shape), entropy.reshape(tokens_BNT.shape)


@pytest.mark.parametrize(
    "kind, answers, length, chunk, frozen_head",
    [
        ("plain", 4, 7, 3, True),
        ("plain", 4, 7, 3, False),
        pytest.param("plain", 1, 7, 100, True, marks=pytest.mark.slow),
        ("plain", 3, 1, 16, True),
        ("deepstack", 4, 7, 3, True),
        pytest.param("plain", 1, 7, 100, False, marks=pytest.mark.slow),
        pytest.param("plain", 3, 1, 16, False, marks=pytest.mark.slow),
        pytest.param("deepstack", 3, 1, 16, False, marks=pytest.mark.slow),
    ],
)
def test_shared_rows_equal_whole_sequences(kind, answers, length, chunk, frozen_head):
    """Ragged answers, N = 1, answers of one token; values to 1e-5 and gradients to 1e-4."""
    graphdef, lora, base = make_policy(kind=kind)
    batch, rng = make_batch(kind), np.random.default_rng(2)
    lengths = rng.integers(1, length + 1, (IMAGES, answers, 1))
    # One answer never ends.
    lengths[0, 0] = length
    mask = np.arange(length) < lengths
    tokens = np.where(mask, rng.integers(4, IMAGE, mask.shape), EOS).astype(np.int32)
    weight = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    size = (IMAGES, 4, POLICIES[kind].vision.feature_size)
    features = jnp.asarray(rng.normal(size=size), jnp.float32)

    def shared(lora, features):
        policy = nnx.merge(graphdef, lora, base)
        return answer_logprobs(
            policy,
            batch,
            features,
            tokens,
            banned_V=BANNED,
            temperature=0.7,
            chunk_size=chunk,
            frozen_head=frozen_head,
            reference=True,
        )

    def plain(lora, features):
        policy = nnx.merge(graphdef, lora, base)
        reference, _ = whole_sequences(policy, batch, features, tokens, 0.7, use_lora=False)
        return *whole_sequences(policy, batch, features, tokens, 0.7), reference

    def gradient(function):
        def loss(lora, features):
            logp, entropy, reference = function(lora, features)
            if function is shared:
                # No gradient may come from here.
                logp = logp + reference - jax.lax.stop_gradient(reference)
            return jnp.sum(weight * logp), (logp, entropy, reference)

        return quick(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(lora, features)

    ((_, got), got_grads), ((_, want), want_grads) = gradient(shared), gradient(plain)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a[mask], b[mask], rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("frozen_head", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_entropys_gradient_is_that_of_whole_distributions(frozen_head):
    """Of a sum of entropies and log-probabilities, whose gradients must not mix."""
    graphdef, lora, base = make_policy()
    batch, rng = make_batch(), np.random.default_rng(5)
    tokens = rng.integers(4, IMAGE, (IMAGES, 3, 5)).astype(np.int32)
    weights = rng.normal(size=(2, *tokens.shape)).astype(np.float32)
    features = jnp.asarray(rng.normal(size=(IMAGES, 4, 32)), jnp.float32)

    def shared(policy, features):
        options = {"banned_V": BANNED, "temperature": 0.7, "chunk_size": 2}
        options |= {"frozen_head": frozen_head, "entropy_gradient": True}
        return answer_logprobs(policy, batch, features, tokens, **options)[:2]

    def plain(policy, features):
        return whole_sequences(policy, batch, features, tokens, 0.7)

    def gradient(function):
        def loss(lora, features):
            scores = function(nnx.merge(graphdef, lora, base), features)
            return sum(jnp.sum(w * x) for w, x in zip(weights, scores, strict=True))

        return quick(jax.grad(loss, argnums=(0, 1)))(lora, features)

    pairs = zip(jax.tree.leaves(gradient(shared)), jax.tree.leaves(gradient(plain)), strict=True)
    for a, b in pairs:
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_shared_rows_in_bfloat16_are_as_near_to_float32_as_whole_sequences():
    """The weights are the same; an operation in the wrong precision costs a multiple."""
    low, high = make_policy(dtype=jnp.bfloat16), make_policy()
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), low[2])
    rng = np.random.default_rng(4)
    tokens = rng.integers(4, IMAGE, (IMAGES, 4, 7)).astype(np.int32)
    features = jnp.asarray(rng.normal(size=(IMAGES, 4, 32)), jnp.bfloat16)

    def scores(shared, graphdef, lora, base):
        def program(lora, base, features):
            policy, batch = nnx.merge(graphdef, lora, base), make_batch()
            if shared:
                return answer_logprobs(policy, batch, features, tokens, banned_V=BANNED)[0]
            return whole_sequences(policy, batch, features, tokens, 1.0)[0]

        got = quick(program)(lora, base, features.astype(base["decoder"]["head"].dtype))
        assert got.dtype == jnp.float32
        return np.asarray(got)

    want = scores(False, high[0], high[1], weights)
    ours, plain = (scores(shared, *low) - want for shared in (True, False))
    assert 0 < np.sqrt(np.mean(ours**2)) < 1.5 * np.sqrt(np.mean(plain**2)) < 0.3 * want.std()


def test_a_trained_head_gets_its_gradient_and_a_frozen_one_none():
    graphdef, lora, base = make_policy()
    batch = make_batch()
    tokens = np.random.default_rng(3).integers(4, IMAGE, (IMAGES, 2, 3)).astype(np.int32)
    features = jnp.ones((IMAGES, 4, 32))

    def loss(base, frozen_head):
        policy = nnx.merge(graphdef, lora, base)
        scores = answer_logprobs(
            policy, batch, features, tokens, banned_V=BANNED, frozen_head=frozen_head
        )
        return jnp.sum(scores.logp_BNT)

    def largest(frozen_head):
        grads = quick(jax.grad(functools.partial(loss, frozen_head=frozen_head)))(base)
        return float(jnp.abs(grads["decoder"]["head"][...]).max())

    assert largest(False) > 1e-2 and largest(True) == 0.0


def banned_if(ends):
    return ~np.isin(np.arange(VOCAB), SAMPLED[ends])


@functools.cache
def sampler(num_rollouts, max_tokens, scan_unroll, kind, **options):
    graphdef, _, _ = make_policy(scan_unroll, kind=kind)

    def program(lora, base, batch, banned_V, temperature):
        policy = nnx.merge(graphdef, lora, base)
        features = policy.encode_images(batch.patches_BSC, batch.layout)
        return generate(
            policy,
            batch,
            features,
            jax.random.key(7),
            num_rollouts=num_rollouts,
            max_tokens=max_tokens,
            end_ids=(EOS,),
            banned_V=banned_V,
            temperature=temperature,
            **options,
        )

    return quick(program)


@functools.cache
def sampled(
    num_rollouts=6,
    max_tokens=9,
    ends="often",
    scan_unroll=1,
    temperature=3.0,
    kind="plain",
    **options,
):
    _, lora, base = make_policy(scan_unroll, kind=kind)
    program = sampler(num_rollouts, max_tokens, scan_unroll, kind, **options)
    drawn = program(lora, base, make_batch(kind), banned_if(ends), np.float32(temperature))
    return jax.tree.map(np.asarray, drawn)


@functools.partial(jax.jit, static_argnames="kind", compiler_options=QUICK)
def scores_of(lora, base, batch, tokens_BNT, banned_V, kind="plain"):
    policy = nnx.merge(make_policy(kind=kind)[0], lora, base)
    features = policy.encode_images(batch.patches_BSC, batch.layout)
    return whole_sequences(policy, batch, features, tokens_BNT, 1.0, banned=banned_V)[0]


@pytest.mark.parametrize(
    "num_rollouts, max_tokens, ends, options",
    [
        pytest.param(6, 9, "often", {}, marks=pytest.mark.slow),
        pytest.param(6, 9, "often", {"num_compactions": 9}, marks=pytest.mark.slow),
        (1, 9, "often", {"num_compactions": 3, "merge_lora": True}),
        pytest.param(3, 1, "often", {"num_compactions": 3}, marks=pytest.mark.slow),
        pytest.param(1, 1, "never", {"scan_unroll": 2}, marks=pytest.mark.slow),
        pytest.param(
            *(4, 9, "never", {"scan_unroll": 2, "merge_lora": True}), marks=pytest.mark.slow
        ),
        pytest.param(2, 70, "never", {}, marks=pytest.mark.slow),
        pytest.param(5, 70, "rarely", {"num_compactions": 2}, marks=pytest.mark.slow),
        (5, 70, "rarely", {"num_compactions": 2, "merge_lora": True, "scan_unroll": 2}),
        (6, 9, "often", {"num_compactions": 9, "kind": "deepstack"}),
        pytest.param(
            *(4, 9, "never", {"scan_unroll": 3, "merge_lora": True, "kind": "deepstack"}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_decoding_gives_the_log_probabilities_of_whole_sequences(
    num_rollouts, max_tokens, ends, options, record_error
):
    """70 tokens are read in more than one number of columns; prompts are padded on the left."""
    rollout = sampled(num_rollouts, max_tokens, ends, temperature=1.0, **options)
    kind = options.get("kind", "plain")
    _, lora, base = make_policy(kind=kind)
    arguments = make_batch(kind), rollout.tokens_BNT, banned_if(ends)
    want = np.asarray(scores_of(lora, base, *arguments, kind=kind))
    mask = rollout.mask_BNT
    lengths = mask[:2].sum(axis=-1)
    if ends == "never":
        assert (lengths == max_tokens).all()
    elif max_tokens > 1:
        assert lengths.min() < max_tokens
    assert mask[:2, :, 0].all() and not mask[2].any()
    assert max_tokens < 70 or lengths.max() > 40
    record_error("decoding, log-probabilities", np.abs(rollout.logp_BNT - want)[mask].max(), "nat")
    np.testing.assert_allclose(rollout.logp_BNT[mask], want[mask], rtol=1e-5, atol=1e-5)


def assert_same_answers(got, want):
    np.testing.assert_array_equal(got.tokens_BNT, want.tokens_BNT)
    np.testing.assert_array_equal(got.mask_BNT, want.mask_BNT)
    np.testing.assert_allclose(got.logp_BNT, want.logp_BNT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"num_compactions": 1},
        pytest.param({"num_compactions": 9}, marks=pytest.mark.slow),
        pytest.param({"merge_lora": True}, marks=pytest.mark.slow),
        pytest.param({"scan_unroll": 2}, marks=pytest.mark.slow),
        {"scan_unroll": 2, "merge_lora": True, "num_compactions": 2},
    ],
    ids=str,
)
def test_decoding_with_less_work_gives_the_same_answers(options):
    want = sampled()
    lengths = want.mask_BNT.sum(axis=-1)
    # Ragged, in every group an early end; the row that pads the batch is empty.
    assert len(set(lengths[:2].ravel())) > 3 and not lengths[2].any()
    assert_same_answers(sampled(**options), want)


@pytest.mark.slow
def test_shrinking_changes_nothing_for_one_answer_one_token_or_answers_that_never_end():
    assert_same_answers(sampled(num_rollouts=1, num_compactions=3), sampled(num_rollouts=1))
    one = sampled(max_tokens=1, num_compactions=3)
    assert_same_answers(one, sampled(max_tokens=1))
    assert one.tokens_BNT.shape[-1] == 1
    endless = sampled(ends="never", num_compactions=3)
    assert_same_answers(endless, sampled(ends="never"))
    assert endless.mask_BNT[:2].all()


def test_smaller_loops_start_as_soon_as_the_answers_that_go_on_fit():
    """The answers of the tests above pass through loops of 6, 3, 2 and 1 an image."""
    done = np.array([sampled().mask_BNT.sum(axis=-1) <= t for t in range(1, 9)])
    sizes = slot_compaction.slot_sizes(IMAGES, 6, 9)
    smallest = [next(s for s in reversed(sizes) if slot_compaction.fits(d, 1, s)) for d in done]
    assert {(3, 6), (3, 3), (3, 1)} <= set(smallest) and smallest[-1] != (3, 6)
    graphdef, lora, base = make_policy()

    def sizes_of(num_compactions):
        def program(lora, base, batch):
            policy = nnx.merge(graphdef, lora, base)
            features = jnp.zeros((IMAGES, 4, 32))
            return generate(
                policy,
                batch,
                features,
                jax.random.key(7),
                num_rollouts=6,
                max_tokens=9,
                end_ids=(EOS,),
                banned_V=BANNED,
                num_compactions=num_compactions,
            )

        jaxpr = jax.make_jaxpr(program)(lora, base, make_batch())
        loops = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "while"]
        found = [v.aval.shape for e in loops for v in e.outvars]
        return sorted({shape[:2] for shape in found if shape[2:] == (9,)}, reverse=True)

    assert sizes_of(0) == [(3, 6)] and sizes_of(2) == [(3, 6), (3, 3), (3, 2)]
    assert sizes_of(9) == [(3, 6), (3, 3), (3, 2), (3, 1), (2, 1), (1, 1)]
