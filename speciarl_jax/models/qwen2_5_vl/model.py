"""Qwen2.5-VL: vision encoder and decoder, and how reinforcement learning runs them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.models.qwen2_5_vl.cache import PrefixCache, SuffixCache
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig
from speciarl_jax.models.qwen2_5_vl.decoder import Decoder
from speciarl_jax.models.qwen2_5_vl.vision import VisionEncoder
from speciarl_jax.models.qwen2_5_vl.window_layout import VisionLayout


class Qwen25VL(nnx.Module):
    """The policy. Every method is pure: no state changes, no random numbers.

    `use_lora=False` runs the frozen base: the reference policy at no extra memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: Any = jnp.bfloat16,
        param_dtype: Any = jnp.bfloat16,
        lora_rank: int = 0,
        lora_alpha: float = 1.0,
        scan_unroll: int = 1,
        base_weights: str = "param_dtype",
        attention: str = "xla",
        rngs: nnx.Rngs,
    ):
        """Random weights; `hf.load` fills them from a checkpoint.

        Args:
          config: dimensions.
          dtype: of the matrix products; norms, softmax and rotary angles are float32.
          param_dtype: of the frozen weights; LoRA is float32.
          lora_rank: r of the adapters on the decoder's linear layers; 0 for none.
          lora_alpha: the adapters are scaled by alpha / r.
          scan_unroll: layers a turn of the loop over layers.
          base_weights: of the decoder's linear layers, one of `decoder.BASE_WEIGHTS`.
          attention: over whole sequences, one of `fused.KINDS`; decoding has its own.
          rngs: with a `params` stream.
        """
        self.config = config
        common = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "scan_unroll": scan_unroll,
            "attention": attention,
        }
        self.visual = VisionEncoder(config.vision, **common, rngs=rngs)
        self.decoder = Decoder(
            config.text,
            **common,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            base_weights=base_weights,
            rngs=rngs,
        )

    def encode_images(self, patches_BSC: jax.Array, layout: VisionLayout) -> jax.Array:
        """Features [B, M, D] of the images' merged tokens (`VisionEncoder`)."""
        return self.visual(patches_BSC, layout)

    def embed(self, tokens_BP: jax.Array, features_BMD: jax.Array | None) -> jax.Array:
        """Embeddings [B, P, D]; the k-th image placeholder of a row takes the row's k-th feature.

        The host checks that placeholders and features match (`layout.mrope_positions`).
        """
        x_BPD = self.decoder.embed(tokens_BP)
        if features_BMD is None:
            return x_BPD
        is_image_BP = tokens_BP == self.config.image_token_id
        which_BP = jnp.maximum(jnp.cumsum(is_image_BP, axis=1) - 1, 0)
        image_BPD = jnp.take_along_axis(features_BMD, which_BP[..., None], axis=1)
        return jnp.where(is_image_BP[..., None], image_BPD.astype(x_BPD.dtype), x_BPD)

    def prefill(
        self,
        x_BPD: jax.Array,
        positions_3BP: jax.Array,
        mask_BP: jax.Array,
        *,
        use_lora: bool = True,
    ) -> tuple[jax.Array, PrefixCache]:
        """Runs prompts once; returns normed hidden states [B, P, D] and keys and values."""
        return self.decoder.prefill(x_BPD, positions_3BP, mask_BP, use_lora=use_lora)

    def init_suffix(self, batch: int, answers: int, length: int, dtype: Any) -> SuffixCache:
        """An empty cache for `answers` answers of up to `length` tokens about each image."""
        return self.decoder.init_suffix(batch, answers, length, dtype)

    def decode_step(
        self,
        tokens_BN: jax.Array,
        position_BN: jax.Array,
        step: jax.Array,
        prefix: PrefixCache,
        suffix: SuffixCache,
        *,
        use_lora: bool = True,
        weights: Any = None,
    ) -> tuple[jax.Array, SuffixCache]:
        """Runs token `step` of every answer against the shared prefix and its own past.

        Args:
          tokens_BN: int32.
          position_BN: int32 rotary position, the same on the three axes.
          step: int32 scalar, the column of the suffix that is written; later ones are not seen.
          prefix: from `prefill`, not repeated.
          suffix: from `init_suffix` or the last step.
          use_lora: False runs the frozen base; without effect if there are `weights`.
          weights: from `decode_weights`; made anew in every step when None.

        Returns:
          Normed hidden states [B, N, D] and the suffix.
        """
        return self.decoder.decode_step(
            tokens_BN, position_BN, step, prefix, suffix, use_lora=use_lora, weights=weights
        )

    def decode_weights(self, *, use_lora: bool, merge_lora: bool) -> Any:
        """The decoder's weights for a loop over `decode_step` (`Decoder.decode_weights`)."""
        return self.decoder.decode_weights(use_lora=use_lora, merge_lora=merge_lora)

    def forward_shared(
        self,
        x_BPD: jax.Array,
        positions_3BP: jax.Array,
        mask_BP: jax.Array,
        tokens_BNT: jax.Array,
        position_BT: jax.Array,
        *,
        use_lora: bool = True,
        remat: str = "none",
        reference: bool = False,
    ) -> list[tuple[jax.Array, jax.Array]]:
        """Teacher-forced pass over rows `[prompt | answer 1 ... answer N]`, differentiable.

        Args:
          x_BPD: embedded prompts.
          positions_3BP: their rotary positions.
          mask_BP: bool, false at padding.
          tokens_BNT: answers, padded on the right (padding is never seen by what precedes it).
          position_BT: rotary position of answer token t, the same for all N.
          use_lora: False runs the frozen base.
          remat: what the backward pass computes again, a key of `decoder.REMAT`.
          reference: run the frozen base as well, without gradient, in the same loop over layers.

        Returns:
          One pair, or with `reference` two: normed hidden states of the prompts [B, P, D] and of
          the answers [B, N, T, D].
        """
        return self.decoder.forward_shared(
            x_BPD,
            positions_3BP,
            mask_BP,
            tokens_BNT,
            position_BT,
            use_lora=use_lora,
            remat=remat,
            reference=reference,
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [..., V]."""
        return self.decoder.logits(hidden)

    def head(self) -> jax.Array:
        """The language-model head [D, V] in the dtype of the products."""
        return self.decoder.head_kernel()

    def __call__(
        self,
        tokens_BS: jax.Array,
        positions_3BS: jax.Array,
        mask_BS: jax.Array,
        features_BMD: jax.Array | None = None,
        *,
        use_lora: bool = True,
    ) -> jax.Array:
        """float32 logits [B, S, V] of whole sequences, each by itself."""
        x_BSD = self.embed(tokens_BS, features_BMD)
        hidden_BSD, _ = self.prefill(x_BSD, positions_3BS, mask_BS, use_lora=use_lora)
        return self.logits(hidden_BSD)
