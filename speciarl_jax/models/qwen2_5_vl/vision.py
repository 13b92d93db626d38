"""The vision encoder: patches in, a feature per 2 x 2 patches out (arXiv 2502.13923, 2.1.1)."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from speciarl_jax.models.decoder import attention_kernels, mrope
from speciarl_jax.models.norm import rms_norm
from speciarl_jax.models.qwen2_5_vl.config import VisionConfig
from speciarl_jax.models.qwen2_5_vl.window_layout import VisionLayout
from speciarl_jax.runtime import activation_sharding

# Logical axes of a block's parameters, after "layers".
_BLOCK_AXES = {
    "norm1": ("vision_embed",),
    "norm2": ("vision_embed",),
    "qkv": ("vision_embed", "vision_heads"),
    "qkv_bias": ("vision_heads",),
    "proj": ("vision_heads", "vision_embed"),
    "proj_bias": ("vision_embed",),
    "gate": ("vision_embed", "vision_mlp"),
    "gate_bias": ("vision_mlp",),
    "up": ("vision_embed", "vision_mlp"),
    "up_bias": ("vision_mlp",),
    "down": ("vision_mlp", "vision_embed"),
    "down_bias": ("vision_embed",),
}


class VisionEncoder(nnx.Module):
    """Patch embedding, blocks of window and full attention, and the merger."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        dtype: Any = jnp.bfloat16,
        param_dtype: Any = jnp.bfloat16,
        scan_unroll: int = 1,
        attention: str = "xla",
        rngs: nnx.Rngs,
    ):
        self.config, self.attention = config, attention
        self.dtype = dtype
        self.scan_unroll = scan_unroll
        width, mlp = config.hidden_size, config.intermediate_size
        merged = width * config.spatial_merge_size**2
        linear = nnx.initializers.lecun_normal()

        def param(shape, axes):
            if len(shape) == 1:
                return nnx.Param(jnp.zeros(shape, param_dtype), axes=axes)
            return nnx.Param(linear(rngs.params(), shape, param_dtype), axes=axes)

        sizes = {"vision_embed": width, "vision_heads": width, "vision_mlp": mlp}
        self.blocks = nnx.Dict()
        for name, axes in _BLOCK_AXES.items():
            outputs = {"vision_heads": 3 * width} if "qkv" in name else {}
            shape = tuple((sizes | outputs)[axis] for axis in axes)
            if name.startswith("norm"):
                value = jnp.ones((config.depth, *shape), param_dtype)
            elif len(shape) == 1:
                value = jnp.zeros((config.depth, *shape), param_dtype)
            else:
                keys = jax.random.split(rngs.params(), config.depth)
                value = jax.vmap(lambda key, s=shape: linear(key, s, param_dtype))(keys)
            self.blocks[name] = nnx.Param(value, axes=("layers", *axes))
        self.patch_embed = param((config.patch_dim, width), ("patch", "vision_embed"))
        self.merger_norm = nnx.Param(jnp.ones((width,), param_dtype), axes=("vision_embed",))
        self.merger_in = param((merged, merged), ("vision_embed", "vision_mlp"))
        self.merger_in_bias = param((merged,), ("vision_mlp",))
        self.merger_out = param((merged, config.out_hidden_size), ("vision_mlp", "embed"))
        self.merger_out_bias = param((config.out_hidden_size,), ("embed",))

    def __call__(self, patches_BSC: jax.Array, layout: VisionLayout) -> jax.Array:
        """Encodes images.

        Args:
          patches_BSC: [B, patches, `config.patch_dim`], in the image processor's order.
          layout: from `window_layout.vision_layout`.

        Returns:
          Features [B, M, `config.out_hidden_size`] of the merged tokens in the processor's order;
          zeros at padding.
        """
        config, dtype = self.config, self.dtype
        valid_BS = layout.patch_index_BS >= 0
        patches_BSC = jnp.take_along_axis(
            patches_BSC.astype(dtype), jnp.maximum(layout.patch_index_BS, 0)[..., None], axis=1
        )
        x_BSD = patches_BSC @ self.patch_embed[...].astype(dtype)
        x_BSD = activation_sharding.constrain(x_BSD, "batch", ...)
        rotary = mrope.rotary_2d(layout.hw_BS2, config.head_dim, config.rope_theta)
        same_BSS = layout.image_BS[:, :, None] == layout.image_BS[:, None, :]
        same_BSS &= valid_BS[:, None, :]
        windows = layout.num_windows

        def cut(x):
            return rearrange(x, "b (w s) ... -> (b w) s ...", w=windows)

        # A slot may hold several windows.
        window = cut(layout.window_BS)
        window_mask = window[:, None, :, None] == window[:, None, None, :]
        window_mask &= cut(valid_BS)[:, None, None, :]
        blocks = {name: param[...] for name, param in self.blocks.items()}
        first, kernel = 0, attention_kernels.KINDS[self.attention]
        # Neighbouring blocks of one kind run in one scan.
        kinds = [i in config.full_attention_layers for i in range(config.depth)]
        for full, run in itertools.groupby(kinds):
            count = len(list(run))
            mine = {name: p[first : first + count] for name, p in blocks.items()}
            first += count
            mask = same_BSS[:, None] if full else window_mask
            attend = functools.partial(jax.nn.dot_product_attention, mask=mask)
            if full and kernel:
                segment_BS = jnp.where(valid_BS, layout.image_BS + 1, 0)
                attend = functools.partial(kernel.full, segment_BS=segment_BS, kind=self.attention)
            cos_sin, x = (rotary, x_BSD) if full else (tuple(map(cut, rotary)), cut(x_BSD))

            def step(x, params, attend=attend, cos_sin=cos_sin):
                x = activation_sharding.constrain(x, "batch", ...)
                x = _block(x, params, attend, cos_sin, config, dtype)
                return activation_sharding.constrain(x, "batch", ...), None

            x, _ = jax.lax.scan(step, x, mine, unroll=min(self.scan_unroll, count))
            x_BSD = x if full else rearrange(x, "(b w) s d -> b (w s) d", w=windows)
        return self._merge(x_BSD, layout)

    def _merge(self, x_BSD: jax.Array, layout: VisionLayout) -> jax.Array:
        dtype, unit = self.dtype, self.config.spatial_merge_size**2
        x_BSD = rms_norm(x_BSD, self.merger_norm[...], self.config.norm_eps)
        x_BUD = rearrange(x_BSD, "b (u k) d -> b u (k d)", k=unit)
        index_BM1 = layout.token_index_BM[..., None]
        x_BMD = jnp.take_along_axis(x_BUD, jnp.maximum(index_BM1, 0), axis=1)
        x_BMD = x_BMD @ self.merger_in[...].astype(dtype) + self.merger_in_bias[...].astype(dtype)
        x_BMD = jax.nn.gelu(x_BMD, approximate=False)
        x_BMD = x_BMD @ self.merger_out[...].astype(dtype)
        x_BMD = x_BMD + self.merger_out_bias[...].astype(dtype)
        return activation_sharding.constrain(jnp.where(index_BM1 >= 0, x_BMD, 0), "batch", ...)


def _block(x_BSD, params, attend, cos_sin, config, dtype):
    """Runs one pre-norm block; `attend(q, k, v)` takes and returns [B, S, heads, head size]."""
    params = {name: p.astype(dtype) for name, p in params.items()}
    h_BSD = rms_norm(x_BSD, params["norm1"], config.norm_eps)
    qkv = h_BSD @ params["qkv"] + params["qkv_bias"]
    q, k, v = rearrange(qkv, "b s (three h k) -> three b s h k", three=3, h=config.num_heads)
    q, k = mrope.rotate(q, *cos_sin), mrope.rotate(k, *cos_sin)
    attended = attend(q, k, v)
    attended = rearrange(attended, "b s h k -> b s (h k)")
    # Product and bias first: the residual stream is larger, and rounds more coarsely.
    x_BSD = x_BSD + (attended @ params["proj"] + params["proj_bias"])
    h_BSD = rms_norm(x_BSD, params["norm2"], config.norm_eps)
    gate = jax.nn.silu(h_BSD @ params["gate"] + params["gate_bias"])
    up = h_BSD @ params["up"] + params["up_bias"]
    return x_BSD + ((gate * up) @ params["down"] + params["down_bias"])
