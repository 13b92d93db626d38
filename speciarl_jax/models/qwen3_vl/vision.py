"""The vision encoder: patches in, a feature and its DeepStack parts per 2 x 2 patches out.

DeepStack (arXiv 2406.04334): states of some blocks are merged too, and the decoder adds them behind
its first layers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from speciarl_jax.models import vision_encoder, vision_lora
from speciarl_jax.models.decoder import mrope
from speciarl_jax.models.norm import layer_norm
from speciarl_jax.models.qwen3_vl.config import VisionConfig
from speciarl_jax.models.qwen3_vl.layout import VisionLayout
from speciarl_jax.runtime import activation_sharding

# Logical axes of the linear layers of a block, and of a merger; each has a bias.
_BLOCK = {
    "qkv": ("vision_embed", "vision_heads"),
    "proj": ("vision_heads", "vision_embed"),
    "fc1": ("vision_embed", "vision_mlp"),
    "fc2": ("vision_mlp", "vision_embed"),
}
_EMBED = {"patches": ("patch", "vision_embed")}
_MERGER = {"fc1": ("vision_embed", "vision_mlp"), "fc2": ("vision_mlp", "embed")}


class VisionEncoder(vision_encoder.VisionEncoder):
    """Patch embedding, learned positions, blocks of full attention, and the mergers."""

    def _make_parameters(self, param_dtype: Any, rngs: nnx.Rngs) -> None:
        config = self.config
        width, mlp = config.hidden_size, config.intermediate_size
        merged = width * config.spatial_merge_size**2
        make = functools.partial(_parameters, param_dtype=param_dtype, rngs=rngs)
        shapes = {"qkv": (width, 3 * width), "proj": (width, width)}
        shapes |= {"fc1": (width, mlp), "fc2": (mlp, width)}
        self.blocks = make(_BLOCK, shapes, {"norm1": width, "norm2": width}, (config.depth,))
        shapes = {"fc1": (merged, merged), "fc2": (merged, config.out_hidden_size)}
        self.merger = make(_MERGER, shapes, {"norm": width}, ())
        self.deepstack = nnx.Dict()
        if count := len(config.deepstack_layers):
            self.deepstack = make(_MERGER, shapes, {"norm": merged}, (count,))
        embed = make(_EMBED, {"patches": (config.patch_dim, width)}, {}, ())
        self.patch_embed, self.patch_embed_bias = embed["patches"], embed["patches_bias"]
        table = 0.02 * jax.random.normal(rngs.params(), (config.num_position_embeddings, width))
        self.positions = nnx.Param(table.astype(param_dtype), axes=("patch", "vision_embed"))

    def _kernels(self, target: str) -> dict[str, nnx.Param]:
        found = {}
        for part in ("merger", "deepstack") if target == "merger" else ("blocks",):
            params = getattr(self, part)
            found |= {f"{part}_{n}": params[n] for n in (*_BLOCK, *_MERGER) if n in params}
        return found

    def __call__(
        self, patches_BSC: jax.Array, layout: VisionLayout, *, use_lora: bool = True
    ) -> jax.Array:
        """Encodes images.

        Args:
          patches_BSC: [B, patches, `config.patch_dim`], in the image processor's order.
          layout: from `layout.vision_layout`.
          use_lora: False runs the frozen base, if there are adapters.

        Returns:
          Features [B, M, `config.feature_size`] of the merged tokens in the processor's order;
          zeros at padding. The last axis holds the feature that stands for the token, and then
          those that the decoder adds behind its first, second, ... layer.
        """
        config, dtype = self.config, self.dtype
        valid_BS = layout.patch_index_BS >= 0
        size = layout.patch_index_BS.shape[1]
        patches_BSC = _fit(patches_BSC.astype(dtype), size)
        x_BSD = patches_BSC @ self.patch_embed[...].astype(dtype)
        x_BSD += self.patch_embed_bias[...].astype(dtype)
        x_BSD += _interpolated(self.positions[...], layout, config).astype(dtype)
        x_BSD = activation_sharding.constrain(x_BSD, "batch", ...)
        cos_sin = mrope.rotary_2d(layout.hw_BS2, config.head_dim, config.rope_theta)
        attend = vision_encoder.attend_within_images(self.attention, layout.image_BS, valid_BS)
        count = len(config.deepstack_layers)
        adapters = vision_lora.stacks(self.lora, "blocks_") if use_lora else {}
        # Where the state behind a block is kept; the last place is for those that nobody reads.
        place = {block: i for i, block in enumerate(config.deepstack_layers)}
        place_L = jnp.array([place.get(i, count) for i in range(config.depth)], jnp.int32)

        def block(x, params, adapters):
            linear = vision_lora.linears(params, adapters, self.lora_scale, dtype)
            return _block(x, params, linear, attend, cos_sin, config)

        if adapters:  # the backward pass computes a block again
            block = jax.checkpoint(block)

        def step(carry, layer):
            (x, kept), (params, adapters, index) = carry, layer
            x = block(activation_sharding.constrain(x, "batch", ...), params, adapters)
            x = activation_sharding.constrain(x, "batch", ...)
            if count:
                kept = jax.lax.dynamic_update_index_in_dim(kept, x, index, axis=0)
                kept = activation_sharding.constrain(kept, None, "batch", ...)
            return (x, kept), None

        blocks = {name: param[...] for name, param in self.blocks.items()}
        kept = jnp.zeros((count + 1, *x_BSD.shape), dtype) if count else ()
        (x_BSD, kept), _ = jax.lax.scan(
            step,
            (x_BSD, kept),
            (blocks, adapters, place_L),
            unroll=min(self.scan_unroll, config.depth),
        )
        return self._merge(x_BSD, kept, layout, use_lora)

    def _merge(
        self, x_BSD: jax.Array, kept: Any, layout: VisionLayout, use_lora: bool
    ) -> jax.Array:
        config = self.config
        unit, eps = config.spatial_merge_size**2, config.norm_eps

        def shuffle(x):
            return rearrange(x, "b (u k) d -> b u (k d)", k=unit)

        def norm(x, params):
            return layer_norm(x, params["norm"], params["norm_bias"], eps)

        def project(x, params, prefix, index):
            adapters = vision_lora.stacks(self.lora, prefix) if use_lora else {}
            adapters = {name: p[index] for name, p in adapters.items()}
            linear = vision_lora.linears(params, adapters, self.lora_scale, self.dtype)
            return linear("fc2", jax.nn.gelu(linear("fc1", x), approximate=False))

        params = {name: p[...] for name, p in self.merger.items()}
        parts = [project(shuffle(norm(x_BSD, params)), params, "merger_", 0)]
        for i in range(len(config.deepstack_layers)):
            params = {name: p[i] for name, p in self.deepstack.items()}
            parts.append(project(norm(shuffle(kept[i]), params), params, "deepstack_", i))
        features_BMD = jnp.concatenate(parts, axis=-1)
        valid_BM1 = layout.token_index_BM[..., None] >= 0
        return activation_sharding.constrain(jnp.where(valid_BM1, features_BMD, 0), "batch", ...)


def _parameters(axes, shapes, norms, stack, *, param_dtype, rngs) -> nnx.Dict:
    """Makes linear layers with biases, and layer norms, each stacked if `stack` has a number."""
    linear, found, layers = nnx.initializers.lecun_normal(), nnx.Dict(), ("layers",) * len(stack)
    for name, (inputs, outputs) in axes.items():
        shape = shapes[name]
        keys = jax.random.split(rngs.params(), stack)
        make = functools.partial(linear, shape=shape, dtype=param_dtype)
        value = jax.vmap(make)(keys) if stack else make(keys)
        found[name] = nnx.Param(value, axes=(*layers, inputs, outputs))
        bias = jnp.zeros((*stack, shape[1]), param_dtype)
        found[f"{name}_bias"] = nnx.Param(bias, axes=(*layers, outputs))
    for name, width in norms.items():
        for part, fill in ((name, 1), (f"{name}_bias", 0)):
            value = jnp.full((*stack, width), fill, param_dtype)
            found[part] = nnx.Param(value, axes=(*layers, "vision_embed"))
    return found


def _fit(patches_BSC: jax.Array, size: int) -> jax.Array:
    """Pads or cuts the patches of rows to the length of their sequence; only padding is cut."""
    missing = size - patches_BSC.shape[1]
    if missing <= 0:
        return patches_BSC[:, :size]
    return jnp.pad(patches_BSC, [(0, 0), (0, missing), (0, 0)])


def _interpolated(table: jax.Array, layout: VisionLayout, config: VisionConfig) -> jax.Array:
    """Computes learned positions [B, S, D], float32: the table is laid over each image's grid.

    The corners of table and grid meet, and what lies between entries is interpolated on both axes.
    """
    side, width = config.position_side, config.hidden_size
    at = layout.hw_BS2.astype(jnp.float32) * (side - 1)
    at /= jnp.maximum(layout.grid_BS2 - 1, 1).astype(jnp.float32)
    low = jnp.floor(at)
    high_share = at - low
    low = low.astype(jnp.int32)
    high = jnp.minimum(low + 1, side - 1)
    table = table.astype(jnp.float32)
    total = jnp.zeros((*layout.image_BS.shape, width), jnp.float32)
    for rows, row_share in ((low, 1 - high_share), (high, high_share)):
        for columns, share in ((low, 1 - high_share), (high, high_share)):
            entry = table[rows[..., 0] * side + columns[..., 1]]
            total += entry * (row_share[..., 0] * share[..., 1])[..., None]
    return total


def _block(x_BSD, params, linear, attend, cos_sin, config):
    """Runs one pre-norm block.

    `linear(name, x)` runs its linear layers, and `attend(q, k, v)` takes and returns
    [B, S, heads, head size].
    """
    h_BSD = layer_norm(x_BSD, params["norm1"], params["norm1_bias"], config.norm_eps)
    # Product and bias first: the residual stream is larger, and rounds more coarsely.
    x_BSD = x_BSD + vision_encoder.self_attention(h_BSD, linear, attend, cos_sin, config.num_heads)
    h_BSD = layer_norm(x_BSD, params["norm2"], params["norm2_bias"], config.norm_eps)
    return x_BSD + linear("fc2", jax.nn.gelu(linear("fc1", h_BSD), approximate=True))
