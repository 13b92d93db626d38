"""A policy of any family: its vision encoder and the shared decoder, joined."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.models import family
from speciarl_jax.models.decoder.decoder import Decoder
from speciarl_jax.models.policy_config import PolicyConfig


class VisionLanguageModel(nnx.Module):
    """The policy. Every method is pure: no state changes, no random numbers.

    Prompts are encoded and embedded here, and run by the methods of `decoder`. `use_lora=False`
    runs the frozen base: the reference policy at no extra memory.
    """

    def __init__(
        self,
        config: PolicyConfig,
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
        self.visual = family.of(config).encoder(config.vision, **common)
        self.decoder = Decoder(config.text, **common, **of_decoder)

    def encode_images(self, patches_BSC: jax.Array, layout: Any) -> jax.Array:
        """Returns features [B, M, E] of the images' merged tokens, as the family's encoder does.

        E is `config.vision.feature_size`: D values that stand for a token, and perhaps more that
        the decoder's first layers add (`decoder.deepstack`).
        """
        return self.visual(patches_BSC, layout)

    def embed(self, tokens_BP: jax.Array, features_BME: jax.Array | None) -> jax.Array:
        """Embeds prompts; the k-th image placeholder of a row takes the row's k-th feature.

        The host checks that placeholders and features match (`image_tokens.mrope_positions`).

        Returns:
          [B, P, E] in the dtype of the products: embeddings, and beside them what the decoder's
          layers add at images, zeros elsewhere. Without features, E is D.
        """
        x_BPD = self.decoder.embed(tokens_BP)
        if features_BME is None:
            return x_BPD
        is_image_BP = tokens_BP == self.config.image_token_id
        which_BP = jnp.maximum(jnp.cumsum(is_image_BP, axis=1) - 1, 0)
        image_BPE = jnp.take_along_axis(features_BME, which_BP[..., None], axis=1)
        image_BPE = image_BPE.astype(x_BPD.dtype)
        beside = image_BPE.shape[-1] - x_BPD.shape[-1]
        x_BPE = jnp.pad(x_BPD, [(0, 0), (0, 0), (0, beside)]) if beside else x_BPD
        return jnp.where(is_image_BP[..., None], image_BPE, x_BPE)

    def __call__(
        self,
        tokens_BS: jax.Array,
        positions_3BS: jax.Array,
        mask_BS: jax.Array,
        features_BME: jax.Array | None = None,
        *,
        use_lora: bool = True,
    ) -> jax.Array:
        """Returns float32 logits [B, S, V] of whole sequences, each by itself."""
        x_BSE = self.embed(tokens_BS, features_BME)
        hidden_BSD, _ = self.decoder.prefill(x_BSE, positions_3BS, mask_BS, use_lora=use_lora)
        return self.decoder.logits(hidden_BSD)
