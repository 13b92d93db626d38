"""Qwen2.5-VL: the vision encoder and the decoder, joined."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.models.qwen2_5_vl.config import ModelConfig
from speciarl_jax.models.qwen2_5_vl.decoder import Decoder
from speciarl_jax.models.qwen2_5_vl.vision import VisionEncoder
from speciarl_jax.models.qwen2_5_vl.window_layout import VisionLayout


class Qwen25VL(nnx.Module):
    """The policy. Every method is pure: no state changes, no random numbers.

    Prompts are encoded and embedded here, and run by the methods of `decoder`. `use_lora=False`
    runs the frozen base: the reference policy at no extra memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: Any = jnp.bfloat16,
        param_dtype: Any = jnp.bfloat16,
        scan_unroll: int = 1,
        attention: str = "xla",
        rngs: nnx.Rngs,
        **of_decoder: Any,
    ):
        """Draws random weights; `hf_checkpoint.load` fills them from a checkpoint.

        Args:
          dtype: of the matrix products; norms, softmax and rotary angles are float32.
          param_dtype: of the frozen weights; LoRA is float32.
          scan_unroll: layers in one turn of the loop over layers.
          attention: kernel for whole sequences, one of `attention_kernels.KINDS`.
          rngs: with a `params` stream.
          **of_decoder: `lora_rank`, `lora_alpha` and `base_weights` of `Decoder`.
        """
        self.config = config
        common = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "scan_unroll": scan_unroll,
            "attention": attention,
            "rngs": rngs,
        }
        self.visual = VisionEncoder(config.vision, **common)
        self.decoder = Decoder(config.text, **common, **of_decoder)

    def encode_images(self, patches_BSC: jax.Array, layout: VisionLayout) -> jax.Array:
        """Returns features [B, M, D] of the images' merged tokens (`VisionEncoder`)."""
        return self.visual(patches_BSC, layout)

    def embed(self, tokens_BP: jax.Array, features_BMD: jax.Array | None) -> jax.Array:
        """Embeds prompts; the k-th image placeholder of a row takes the row's k-th feature.

        The host checks that placeholders and features match (`window_layout.mrope_positions`).

        Returns:
          [B, P, D] in the dtype of the products.
        """
        x_BPD = self.decoder.embed(tokens_BP)
        if features_BMD is None:
            return x_BPD
        is_image_BP = tokens_BP == self.config.image_token_id
        which_BP = jnp.maximum(jnp.cumsum(is_image_BP, axis=1) - 1, 0)
        image_BPD = jnp.take_along_axis(features_BMD, which_BP[..., None], axis=1)
        return jnp.where(is_image_BP[..., None], image_BPD.astype(x_BPD.dtype), x_BPD)

    def __call__(
        self,
        tokens_BS: jax.Array,
        positions_3BS: jax.Array,
        mask_BS: jax.Array,
        features_BMD: jax.Array | None = None,
        *,
        use_lora: bool = True,
    ) -> jax.Array:
        """Returns float32 logits [B, S, V] of whole sequences, each by itself."""
        x_BSD = self.embed(tokens_BS, features_BMD)
        hidden_BSD, _ = self.decoder.prefill(x_BSD, positions_3BS, mask_BS, use_lora=use_lora)
        return self.decoder.logits(hidden_BSD)
