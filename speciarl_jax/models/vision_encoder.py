"""What the vision encoders of all families have in common: options, adapters, attention."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from speciarl_jax.models import vision_lora
from speciarl_jax.models.decoder import attention_kernels, mrope
from speciarl_jax.models.vision_config import VisionConfig

# [B, S, heads, head size] of queries, keys and values -> the same of what was attended.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class VisionEncoder(nnx.Module):
    """Base of the vision encoders; a family makes the parameters and says how they are used."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        dtype: Any = jnp.bfloat16,
        param_dtype: Any = jnp.bfloat16,
        scan_unroll: int = 1,
        attention: str = "xla",
        lora_rank: int = 0,
        lora_scale: float = 0.0,
        lora_targets: tuple[str, ...] = (),
        rngs: nnx.Rngs,
    ):
        """Draws random weights.

        Args:
          dtype: of the matrix products.
          param_dtype: of the frozen weights.
          scan_unroll: blocks in one turn of the loop over blocks.
          attention: kernel, one of `attention_kernels.KINDS`.
          lora_rank: r of the adapters.
          lora_scale: alpha / r.
          lora_targets: "encoder" for adapters on the blocks, "merger" for some on all mergers.
        """
        self.config, self.attention, self.lora_scale = config, attention, lora_scale
        self.dtype = dtype
        self.scan_unroll = scan_unroll
        self._make_parameters(param_dtype, rngs)
        adapted = {}
        for target in ("encoder", "merger"):
            adapted |= self._kernels(target) if target in lora_targets else {}
        self.lora = vision_lora.make(adapted, lora_rank, rngs)

    def _make_parameters(self, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Sets all frozen parameters as attributes, of random values."""
        raise NotImplementedError

    def _kernels(self, target: str) -> dict[str, nnx.Param]:
        """Returns the kernels that the adapters of `target` belong to, as `vision_lora.make`."""
        raise NotImplementedError


def attend_within_images(attention: str, image_BS: jax.Array, valid_BS: jax.Array) -> Attend:
    """Returns attention of each patch to all patches of its image.

    Args:
      attention: kernel, one of `attention_kernels.KINDS`.
      image_BS: int32, the image that a patch belongs to.
      valid_BS: bool, false at padding, which nothing attends to.
    """
    if kernel := attention_kernels.of(attention, image_BS.shape[1]):
        segment_BS = jnp.where(valid_BS, image_BS + 1, 0)
        return functools.partial(kernel.full, segment_BS=segment_BS, kind=attention)
    same_BSS = image_BS[:, :, None] == image_BS[:, None, :]
    mask = (same_BSS & valid_BS[:, None, :])[:, None]
    return functools.partial(jax.nn.dot_product_attention, mask=mask)


def self_attention(
    x_BSD: jax.Array,
    linear: Callable[[str, jax.Array], jax.Array],
    attend: Attend,
    cos_sin: tuple[jax.Array, jax.Array],
    num_heads: int,
) -> jax.Array:
    """Computes the attention of a block [B, S, D], given its normed input.

    Args:
      linear: (name, input) -> output of the block's linear layers; here "qkv" and "proj".
      attend: computes attention of rotated queries and keys.
      cos_sin: rotary angles, of `mrope.rotary_2d`.
    """
    qkv = linear("qkv", x_BSD)
    q, k, v = rearrange(qkv, "b s (three h k) -> three b s h k", three=3, h=num_heads)
    q, k = mrope.rotate(q, *cos_sin), mrope.rotate(k, *cos_sin)
    return linear("proj", rearrange(attend(q, k, v), "b s h k -> b s (h k)"))
