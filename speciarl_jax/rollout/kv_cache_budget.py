"""Memory of decoding: what the caches take, and how many images are sampled at once."""

from typing import Any

import jax.numpy as jnp
from absl import logging

from speciarl_jax.models.decoder.text_config import TextConfig


def token_bytes(text: TextConfig, dtype: Any, kv_cache: str = "dtype") -> int:
    """Bytes of the keys and values of one token: 57,344 for the 7B model in bfloat16.

    Args:
      dtype: of the products.
      kv_cache: one of `cache.KINDS`; in int8 each head has a float32 scale beside it.
    """
    head = text.head_dim * jnp.dtype(dtype).itemsize
    if kv_cache == "int8":
        head = text.head_dim + 4
    return 2 * text.num_layers * text.num_kv_heads * head


def image_bytes(token: int, *, prompt: int, answers: int, tokens: int, num_compactions: int) -> int:
    """Bytes of the caches of one image: of its prompt, which all answers share, and of these.

    Args:
      token: `token_bytes`.
      prompt: P, tokens.
      answers: N.
      tokens: T, of an answer at most.
      num_compactions: as for `generate`; while answers are moved, the caches of both loops exist.
    """
    whole = prompt + answers * tokens
    if not num_compactions:
        return token * whole
    if answers == 1:  # half of the images are moved
        return token * (whole + -(-whole // 2))
    return token * (whole + prompt + -(-answers // 2) * tokens)


def chunks(
    images: int,
    prompt: int,
    *,
    token: int,
    answers: int,
    tokens: int,
    num_compactions: int,
    devices: int,
    cache_bytes: int,
    max_images_per_chunk: int,
) -> int:
    """The fewest parts of equal size, cut evenly over the devices, that a batch is sampled in.

    Parts are equal, so that they run through one compiled program. Where the size of the batch has
    no fitting divisor they are many and small (13 images with room for 12 are 13 parts of one);
    a warning then names batch sizes that need fewer.

    Args:
      images: B, a multiple of `devices`.
      prompt, token, answers, tokens, num_compactions: as for `image_bytes`.
      devices: that the images are cut over.
      cache_bytes: of the caches on a device, at most; 0 for no limit.
      max_images_per_chunk: at once on all devices, at most; 0 for no limit.

    Raises:
      ValueError: not even one image a device fits.
    """
    here = images // devices
    most = max_images_per_chunk // devices if max_images_per_chunk else here
    if not most:
        raise ValueError(
            f"config.rollout.max_images_per_chunk is {max_images_per_chunk}, but the images are "
            f"cut over {devices} devices (mesh data x fsdp); set it to at least {devices}, or to 0"
        )
    if cache_bytes:
        one = image_bytes(
            token, prompt=prompt, answers=answers, tokens=tokens, num_compactions=num_compactions
        )
        most = min(most, cache_bytes // one)
        if not most:
            raise ValueError(
                f"the decode cache of one image takes {one:,} bytes ({token:,} a token; prompt "
                f"of up to {prompt} tokens, {answers} answers of up to {tokens}), but "
                f"config.rollout.cache_bytes is {cache_bytes:,}; raise it, or lower "
                "config.rollout.max_tokens, num_rollouts, or config.data.max_prompt_tokens, which "
                "bounds the prompt"
            )
    fewest = -(-here // most)
    count = next(count for count in range(fewest, here + 1) if here % count == 0)
    if count > fewest:
        logging.warning(
            "%d images are sampled in %d parts of %d, though %d fit at once: parts are equal. A "
            "batch of %d or %d images would use the memory better",
            images,
            count,
            images // count,
            most * devices,
            here // most * most * devices,
            -(-here // fewest) * fewest * devices,
        )
    return count
