"""The vision encoder: patches in, a feature per 2 x 2 patches out (arXiv 2502.13923, 2.1.1)."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from speciarl_jax.models import vision_encoder, vision_lora
from speciarl_jax.models.decoder import mrope
from speciarl_jax.models.norm import rms_norm
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


_LINEARS = ("qkv", "proj", "gate", "up", "down")


class VisionEncoder(vision_encoder.VisionEncoder):
    """Patch embedding, blocks of window and full attention, and the merger."""

    def _make_parameters(self, param_dtype: Any, rngs: nnx.Rngs) -> None:
        config = self.config
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

    def _kernels(self, target: str) -> dict[str, nnx.Param]:
        if target == "merger":
            return {"merger_in": self.merger_in, "merger_out": self.merger_out}
        return {f"blocks_{name}": self.blocks[name] for name in _LINEARS}

    def __call__(
        self, patches_BSC: jax.Array, layout: VisionLayout, *, use_lora: bool = True
    ) -> jax.Array:
        """Encodes images.

        Args:
          patches_BSC: [B, patches, `config.patch_dim`], in the image processor's order.
          layout: from `window_layout.vision_layout`.
          use_lora: False runs the frozen base, if there are adapters.

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
        whole = vision_encoder.attend_within_images(self.attention, layout.image_BS, valid_BS)
        windows = layout.num_windows

        def cut(x):
            return rearrange(x, "b (w s) ... -> (b w) s ...", w=windows)

        # A slot may hold several windows.
        window = cut(layout.window_BS)
        window_mask = window[:, None, :, None] == window[:, None, None, :]
        window_mask &= cut(valid_BS)[:, None, None, :]
        inside = functools.partial(jax.nn.dot_product_attention, mask=window_mask)
        blocks = {name: param[...] for name, param in self.blocks.items()}
        adapters = vision_lora.stacks(self.lora, "blocks_") if use_lora else {}
        first = 0
        # Neighbouring blocks of one kind run in one scan.
        kinds = [i in config.full_attention_layers for i in range(config.depth)]
        for full, run in itertools.groupby(kinds):
            count = len(list(run))
            mine = jax.tree.map(lambda p, i=first, n=count: p[i : i + n], (blocks, adapters))
            first += count
            cos_sin, x = (rotary, x_BSD) if full else (tuple(map(cut, rotary)), cut(x_BSD))

            def step(x, layer, attend=whole if full else inside, cos_sin=cos_sin):
                x = activation_sharding.constrain(x, "batch", ...)
                linear = vision_lora.linears(*layer, self.lora_scale, dtype)
                x = _block(x, layer[0], linear, attend, cos_sin, config)
                return activation_sharding.constrain(x, "batch", ...), None

            if adapters:
                step = jax.checkpoint(step)
            x, _ = jax.lax.scan(step, x, mine, unroll=min(self.scan_unroll, count))
            x_BSD = x if full else rearrange(x, "(b w) s d -> b (w s) d", w=windows)
        return self._merge(x_BSD, layout, use_lora)

    def _merge(self, x_BSD: jax.Array, layout: VisionLayout, use_lora: bool = True) -> jax.Array:
        unit = self.config.spatial_merge_size**2
        adapters = vision_lora.stacks(self.lora, "merger_") if use_lora else {}
        adapters = {name: p[0] for name, p in adapters.items()}
        params = {
            "in": self.merger_in[...],
            "in_bias": self.merger_in_bias[...],
            "out": self.merger_out[...],
            "out_bias": self.merger_out_bias[...],
        }
        linear = vision_lora.linears(params, adapters, self.lora_scale, self.dtype)
        x_BSD = rms_norm(x_BSD, self.merger_norm[...], self.config.norm_eps)
        x_BUD = rearrange(x_BSD, "b (u k) d -> b u (k d)", k=unit)
        index_BM1 = layout.token_index_BM[..., None]
        x_BMD = jnp.take_along_axis(x_BUD, jnp.maximum(index_BM1, 0), axis=1)
        x_BMD = linear("out", jax.nn.gelu(linear("in", x_BMD), approximate=False))
        return activation_sharding.constrain(jnp.where(index_BM1 >= 0, x_BMD, 0), "batch", ...)


def _block(x_BSD, params, linear, attend, cos_sin, config):
    """Runs one pre-norm block.

    `linear(name, x)` runs its linear layers, and `attend(q, k, v)` takes and returns
    [B, S, heads, head size].
    """
    h_BSD = rms_norm(x_BSD, params["norm1"], config.norm_eps)
    # Product and bias first: the residual stream is larger, and rounds more coarsely.
    x_BSD = x_BSD + vision_encoder.self_attention(h_BSD, linear, attend, cos_sin, config.num_heads)
    h_BSD = rms_norm(x_BSD, params["norm2"], config.norm_eps)
    return x_BSD + linear("down", jax.nn.silu(linear("gate", h_BSD)) * linear("up", h_BSD))
