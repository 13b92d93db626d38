"""A policy of any family: its vision encoder and the shared decoder, joined."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.models import family, lora
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
        lora_rank: int = 0,
        lora_alpha: float = 1.0,
        lora_targets: Sequence[str] = ("decoder",),
        base_weights: str = "param_dtype",
    ):
        """Draws random weights; `hf_checkpoint.load` fills them from a checkpoint.

        Args:
          dtype: of the matrix products; norms, softmax and rotary angles are float32.
          param_dtype: of the frozen weights; LoRA is float32.
          scan_unroll: layers in one turn of the loop over layers.
          attention: kernel for whole sequences, one of `attention_kernels.KINDS`.
          rngs: with a `params` stream.
          lora_rank: r of the adapters; 0 for none.
          lora_alpha: the adapters are scaled by alpha / r.
          lora_targets: what has adapters, some of `lora.TARGETS`.
          base_weights: of the decoder's linear layers, one of `decoder_weights.BASE_WEIGHTS`.

        Raises:
          ValueError: an option that is unknown.
        """
        self.config = config
        common = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "scan_unroll": scan_unroll,
            "attention": attention,
            "rngs": rngs,
        }
        targets = lora.check_targets(lora_targets)
        self.lora_scale = lora_alpha / lora_rank if lora_rank else 0.0
        vision_targets = tuple(t for t in targets if t != "decoder") if lora_rank else ()
        self.visual = family.of(config).encoder(
            config.vision,
            **common,
            lora_rank=lora_rank,
            lora_scale=self.lora_scale,
            lora_targets=vision_targets,
        )
        self.decoder = Decoder(
            config.text,
            **common,
            lora_rank=lora_rank if "decoder" in targets else 0,
            lora_alpha=lora_alpha,
            base_weights=base_weights,
        )

    @property
    def trains_encoder(self) -> bool:
        """Says whether the vision encoder or its merger has adapters: features then change."""
        return bool(self.visual.lora)

    def encode_images(
        self, patches_BSC: jax.Array, layout: Any, *, use_lora: bool = True
    ) -> jax.Array:
        """Returns features [B, M, E] of the images' merged tokens, as the family's encoder does.

        E is `config.vision.feature_size`: D values that stand for a token, and perhaps more that
        the decoder's first layers add (`decoder.deepstack`).
        """
        return self.visual(patches_BSC, layout, use_lora=use_lora)

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
