"""The text decoder by itself against transformers' Qwen2 and Qwen3, read from what it saves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from speciarl_jax.models import qwen_text

FAMILIES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
VOCABULARY = 61


def make_torch(family, seed=0):
    """A random model of random dimensions; the seed decides about both."""
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.choice([1, 2, 3]))
    heads = kv_heads * int(rng.choice([1, 2, 3]))
    head_dim = int(rng.choice([4, 6, 10]))
    # The heads of Qwen3 need not make up the width.
    hidden = heads * head_dim if family == "qwen2" else int(rng.choice([20, 36]))
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=int(rng.integers(10, 60)),
        num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=float(rng.choice([1e-6, 1e-3])),
        rope_parameters={"rope_type": "default", "rope_theta": float(rng.choice([1e4, 1e6, 50]))},
        tie_word_embeddings=bool(seed % 2),
        max_position_embeddings=512,
        **({"head_dim": head_dim} if family == "qwen3" else {}),
    )
    torch.manual_seed(seed)
    model = model_class(config).float().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def load32(folder):
    return qwen_text.load(folder, dtype=jnp.float32, param_dtype=jnp.float32)


def make_batch(seed, left):
    """Rows of several lengths, padded on one side."""
    rng = np.random.default_rng(seed)
    length = rng.integers(2, 15, (4, 1))
    length[0] = 14
    order = np.arange(14)[::-1] if left else np.arange(14)
    mask = order < length
    return np.where(mask, rng.integers(0, VOCABULARY, mask.shape), 0).astype(np.int32), mask


def torch_logits(model, tokens, mask):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long()
        ).logits.numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path, family, seed):
    theirs = make_torch(family, seed)
    theirs.save_pretrained(tmp_path)
    config, ours = load32(tmp_path)
    assert ("head" in nnx.state(ours)) == (not theirs.config.tie_word_embeddings)
    for left in (True, False):
        tokens, mask = make_batch(seed, left)
        want = torch_logits(theirs, tokens, mask)
        got = np.asarray(qwen_text.logits(ours, tokens, mask))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got[mask], want[mask], rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_a_cache_is_the_full_forward_pass(tmp_path, family):
    make_torch(family, seed=5).save_pretrained(tmp_path)
    _, ours = load32(tmp_path)
    tokens, mask = make_batch(5, left=True)
    answers_BNT = np.random.default_rng(6).integers(0, VOCABULARY, (4, 2, 5)).astype(np.int32)
    positions_3BP = qwen_text.positions(mask)
    _, prefix = ours.prefill(ours.embed(tokens), positions_3BP, mask, use_lora=False)
    suffix = ours.init_suffix(4, 2, 5, jnp.float32)
    weights = ours.decode_weights(use_lora=False, merge_lora=False)
    step = jax.jit(lambda *args: ours.decode_step(*args, weights=weights))
    whole = np.concatenate([np.repeat(tokens, 2, 0), answers_BNT.reshape(8, 5)], axis=1)
    seen = np.concatenate([np.repeat(mask, 2, 0), np.ones((8, 5), bool)], axis=1)
    want = np.asarray(qwen_text.logits(ours, whole, seen))[:, -5:].reshape(4, 2, 5, -1)
    for t in range(5):
        position_BN = jnp.broadcast_to(positions_3BP[0, :, -1:] + 1 + t, (4, 2))
        hidden, suffix = step(answers_BNT[..., t], position_BN, t, prefix, suffix)
        got_BNV = np.asarray(ours.logits(hidden))
        np.testing.assert_allclose(got_BNV, want[:, :, t], rtol=0, atol=2e-5 * np.abs(want).max())


def published(**changes):
    """`config.json` as Qwen wrote it in 2024: flat rope_theta, no layer_types."""
    config = {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    }
    return {k: v for k, v in (config | changes).items() if v is not None}


def test_the_older_form_of_the_config_is_read():
    config = qwen_text.config_from_hf(published())
    assert config.rope_theta == 1e6 and config.head_dim == 64 and config.tie_word_embeddings
    assert config.qkv_bias and not config.qk_norm
    third = qwen_text.config_from_hf(
        published(model_type="qwen3", head_dim=128, hidden_size=1024, num_attention_heads=16)
    )
    assert third.head_dim == 128 and third.qk_norm and not third.qkv_bias


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"use_sliding_window": True}, "sliding-window attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope type 'linear'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen3_moe"}, "'qwen3_moe'.*no mixture of experts"),
        ({"model_type": "qwen2_5_vl"}, "'qwen2_5_vl'"),
        ({"num_key_value_heads": None}, "lacks 'num_key_value_heads'"),
        ({"hidden_size": "896"}, "hidden_size '896', which must be a whole number"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        qwen_text.config_from_hf(published(**changes))


def test_a_sliding_window_that_no_layer_uses_is_no_reason_to_refuse():
    unused = published(use_sliding_window=True, max_window_layers=24)
    assert qwen_text.config_from_hf(unused) == qwen_text.config_from_hf(published())


def test_weights_that_do_not_belong_to_the_config_are_refused(tmp_path):
    make_torch("qwen3").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="lacks tensors.*k_proj.bias"):
        load32(tmp_path)
    path.write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks tensors.*q_norm.weight"):
        load32(tmp_path)
