"""The vision encoder and the geometry around it against transformers' torch implementation."""

import jax.numpy as jnp
import numpy as np
import pytest
import random_modules
import torch
from flax import nnx
from random_policy import quick_jit
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as hf

from speciarl_jax.models.qwen2_5_vl import window_layout
from speciarl_jax.models.qwen2_5_vl.config import VisionConfig
from speciarl_jax.models.qwen2_5_vl.vision import VisionEncoder


def make_config(depth=4, full=(1, 3), window_units=2):
    return VisionConfig(
        depth=depth,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=24,
        patch_size=4,
        window_size=8 * window_units,
        full_attention_layers=full,
    )


def torch_encoder(config):
    torch.manual_seed(0)
    whole = Qwen2_5_VLConfig(
        vision_config=dict(
            depth=config.depth,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_heads,
            out_hidden_size=config.out_hidden_size,
            patch_size=config.patch_size,
            window_size=config.window_size,
            fullatt_block_indexes=list(config.full_attention_layers),
        )
    )
    encoder = hf.Qwen2_5_VisionTransformerPretrainedModel(whole.vision_config).float().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def make_encoder(config):
    return random_modules.drawn(
        lambda: VisionEncoder(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    )


@quick_jit
def encoded(encoder, patches_BSC, layout):
    return encoder(patches_BSC, layout)


def copy_weights(theirs, config):
    ours = make_encoder(config)
    w = {name: p.detach().numpy() for name, p in theirs.named_parameters()}

    def stack(name):
        return np.stack([w[f"blocks.{i}.{name}"] for i in range(config.depth)])

    names = {"qkv": "attn.qkv", "proj": "attn.proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
             "down": "mlp.down_proj"}  # fmt: skip
    for mine, name in names.items():
        ours.blocks[mine][...] = stack(f"{name}.weight").swapaxes(1, 2)
        ours.blocks[f"{mine}_bias"][...] = stack(f"{name}.bias")
    for mine in ("norm1", "norm2"):
        ours.blocks[mine][...] = stack(f"{mine}.weight")
    ours.patch_embed[...] = w["patch_embed.proj.weight"].reshape(config.hidden_size, -1).T
    ours.merger_norm[...] = w["merger.ln_q.weight"]
    ours.merger_in[...] = w["merger.mlp.0.weight"].T
    ours.merger_in_bias[...] = w["merger.mlp.0.bias"]
    ours.merger_out[...] = w["merger.mlp.2.weight"].T
    ours.merger_out_bias[...] = w["merger.mlp.2.bias"]
    return ours


def random_patches(grids, config, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [rng.normal(size=(h * w, config.patch_dim)).astype(np.float32) for h, w in row]
        for row in grids
    ]


def pad(rows, width):
    longest = max(sum(len(p) for p in row) for row in rows)
    out = np.zeros((len(rows), longest, width), np.float32)
    for i, row in enumerate(rows):
        if row:
            out[i, : sum(len(p) for p in row)] = np.concatenate(row)
    return out


GRIDS = [
    [[(8, 8)], [(8, 8)]],
    [[(4, 6), (10, 2)], [(6, 6)]],
    [[(2, 2)], [(14, 6), (6, 10), (4, 4)], []],
]


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("full", [(), (1, 3), (0, 1, 2, 3)])
def test_features_equal_those_of_transformers(grids, full):
    config = make_config(full=full)
    theirs = torch_encoder(config)
    ours = copy_weights(theirs, config)
    rows = random_patches(grids, config)
    layout = window_layout.vision_layout(grids, config)
    got = np.asarray(encoded(ours, pad(rows, config.patch_dim), layout))
    for b, (row, row_grids) in enumerate(zip(rows, grids, strict=True)):
        count = sum(h * w // 4 for h, w in row_grids)
        assert np.all(np.asarray(got[b, count:]) == 0)
        if not row:
            continue
        with torch.no_grad():
            thw = torch.tensor([(1, h, w) for h, w in row_grids])
            want = theirs(torch.tensor(np.concatenate(row)), grid_thw=thw)
        want = getattr(want, "pooler_output", want).numpy()
        np.testing.assert_allclose(got[b, :count], want, atol=1e-4 * np.abs(want).max())


def test_larger_buckets_change_no_number():
    config = make_config()
    grids = GRIDS[1]
    encoder = make_encoder(config)
    patches = pad(random_patches(grids, config), config.patch_dim)
    layout = window_layout.vision_layout(grids, config)
    tight = encoded(encoder, patches, layout)
    roomy = encoded(encoder, patches, layout.pad(11, 20))
    assert roomy.shape[1] == 20
    np.testing.assert_allclose(roomy[:, : tight.shape[1]], tight, atol=1e-5)
    assert np.all(np.asarray(roomy[:, tight.shape[1] :]) == 0)


def test_a_grid_that_does_not_divide_into_merged_tokens_is_refused():
    with pytest.raises(ValueError, match="5 x 8 patches"):
        window_layout.vision_layout([[(5, 8)]], make_config())
