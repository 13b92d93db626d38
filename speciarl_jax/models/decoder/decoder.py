"""The text decoder: grouped-query attention with M-RoPE, SwiGLU, LoRA on every linear layer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from speciarl_jax.models import lora
from speciarl_jax.models.decoder import (
    attention,
    attention_kernels,
    cache,
    decoder_weights,
    deepstack,
    mrope,
)
from speciarl_jax.models.decoder import remat as remat_lib
from speciarl_jax.models.decoder.cache import PrefixCache, SuffixCache
from speciarl_jax.models.decoder.decoder_weights import LINEARS, constant, normal
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.norm import rms_norm
from speciarl_jax.runtime import activation_sharding


class Decoder(nnx.Module):
    """Stacked layers, embedding, final norm and head."""

    def __init__(
        self,
        config: TextConfig,
        *,
        dtype: Any,
        param_dtype: Any,
        lora_rank: int = 0,
        lora_alpha: float = 1.0,
        scan_unroll: int = 1,
        base_weights: str = "param_dtype",
        attention: str = "xla",
        rngs: nnx.Rngs,
    ):
        """Draws random weights; arguments that are not named here are as for `VisionLanguageModel`.

        Args:
          lora_rank: r of the adapters on all linear layers; 0 for none.
          lora_alpha: the adapters are scaled by alpha / r.
          base_weights: of the linear layers, one of `decoder_weights.BASE_WEIGHTS`.
        """
        self.config, self.dtype, self.attention = config, dtype, attention
        self.lora_scale = lora_alpha / lora_rank if lora_rank else 0.0
        self.scan_unroll = scan_unroll
        self.layers, self.lora = decoder_weights.layers(
            config, param_dtype, lora_rank, base_weights, rngs
        )
        size, width = config.vocab_size, config.hidden_size
        self.embedding = normal(rngs, (size, width), ("vocab", "embed"), param_dtype)
        self.final_norm = constant(1, (width,), ("embed",), param_dtype)
        if not config.tie_word_embeddings:
            self.head = normal(rngs, (width, size), ("embed", "vocab"), param_dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns embeddings [..., D] of int32 tokens."""
        x = self.embedding[...].astype(self.dtype)[tokens]
        return activation_sharding.constrain(x, "batch", ...)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [..., V] of final hidden states [..., D]."""
        logits = jnp.matmul(hidden, self.head_kernel(), preferred_element_type=jnp.float32)
        return activation_sharding.constrain(logits, "batch", ..., "vocab")

    def head_kernel(self) -> jax.Array:
        """Returns the language-model head [D, V] in the dtype of the products."""
        tied = self.config.tie_word_embeddings
        return (self.embedding[...].T if tied else self.head[...]).astype(self.dtype)

    def prefill(
        self,
        x_BPE: jax.Array,
        positions_3BP: jax.Array,
        mask_BP: jax.Array,
        *,
        use_lora: bool = True,
    ) -> tuple[jax.Array, PrefixCache]:
        """Runs embedded prompts once; returns normed hidden states [B, P, D] and their cache.

        Args:
          x_BPE: embeddings, and beside them what layers add to them (`deepstack`); E is D if none.
          positions_3BP: int32 rotary positions.
          mask_BP: bool, false at padding.
        """
        kernel = attention_kernels.of(self.attention, mask_BP.shape[1])
        cos_sin = mrope.rotary(positions_3BP, self.config)

        def attend(q, k, v, carry, layer):
            if kernel:
                return kernel.causal(q, k, v, mask_BP, self.attention), carry, (k, v)
            return attention.causal(q, k, v, mask_BP), carry, (k, v)

        x_BPD, added = deepstack.split(x_BPE, self.config.hidden_size)
        x_BPD, _, (k, v) = self._run(x_BPD, self._weights(use_lora), cos_sin, attend, added=added)
        return self._norm(x_BPD), PrefixCache.of(k, v, mask_BP)

    @property
    def unrolled(self) -> bool:
        """Says whether decoding runs the layers one after the other, with no loop over them."""
        return self.scan_unroll >= self.config.num_layers

    def init_suffix(
        self, batch: int, answers: int, length: int, dtype: Any, kind: str = "dtype"
    ) -> SuffixCache:
        """Makes an empty cache for `answers` completions of `length` tokens after each prompt.

        Args:
          dtype: of what is not in int8.
          kind: one of `cache.KINDS`.
        """
        config, rows = self.config, (batch, answers, self.config.num_kv_heads)
        empty = functools.partial(
            SuffixCache.empty,
            rows=rows,
            length=length,
            width=config.head_dim,
            dtype=dtype,
            kind=kind,
        )
        if not self.unrolled:
            return empty(config.num_layers)
        layers = [empty(0) for _ in range(config.num_layers)]
        k, v = zip(*((layer.k_LBNGKT, layer.v_LBNGTK) for layer in layers), strict=True)
        return SuffixCache(k_LBNGKT=k, v_LBNGTK=v)

    def decode_weights(self, *, use_lora: bool, merge_lora: bool, kind: str = "param_dtype") -> Any:
        """Makes the weights for a loop over `decode_step`.

        Adapters that stay adapters are cast to the dtype of the products here, not in every step.

        Args:
          use_lora: False gives the frozen base.
          merge_lora: add the adapters to a copy of the linear layers' kernels; the steps then run
            no adapters, and read each layer where it lies.
          kind: "int8" rounds the kernels (the merged ones, if they are merged); one of
            `decoder_weights.BASE_WEIGHTS`.

        Raises:
          ValueError: merging into a base that is in int8 already; an unknown kind.
        """
        decoder_weights.check_kind("config.rollout.decode_weights", kind)
        layers, adapters = self._weights(use_lora)
        merged = merge_lora and bool(adapters)
        for name in LINEARS:
            pair = (adapters[f"{name}_a"], adapters[f"{name}_b"]) if merged else None
            layers[name] = lora.decode_kernel(layers[name], pair, self.lora_scale, kind == "int8")
        if not merged:
            return layers, {name: p.astype(self.dtype) for name, p in adapters.items()}
        if self.unrolled:
            return tuple((_layer_of(layers, i), {}) for i in range(self.config.num_layers))
        return layers, {}

    def _weights(self, use_lora: bool) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """Returns stacked weights and adapters; no adapters without `use_lora`."""
        layers = {name: p[...] for name, p in self.layers.items()}
        return layers, {name: p[...] for name, p in self.lora.items()} if use_lora else {}

    def decode_step(
        self,
        tokens_BN: jax.Array,
        position_BN: jax.Array,
        step: jax.Array,
        prefix: PrefixCache,
        suffix: SuffixCache,
        *,
        weights: Any,
    ) -> tuple[jax.Array, SuffixCache]:
        """Runs one token of each completion against the shared prefix and its own past.

        Args:
          tokens_BN: int32.
          position_BN: int32 rotary position, the same on the three axes.
          step: int32 scalar, the column of the suffix that is written; later ones are not seen.
          prefix: from `prefill`, not repeated.
          suffix: from `init_suffix` or the last step.
          weights: from `decode_weights`.

        Returns:
          Normed hidden states [B, N, D] and the suffix.
        """
        x_BND = self.embed(tokens_BN)
        positions = jnp.broadcast_to(position_BN, (3, *position_BN.shape))
        cos_sin = mrope.rotary(positions, self.config)

        def attend(q, k, v, carry, layer):
            index, prefix_k, prefix_v = layer
            own = cache.write(*carry, k, v, step, index)
            out = attention.decode(q, prefix_k, prefix_v, prefix.mask_BP, *own, step, layer=index)
            return out, own, ()

        k, v = suffix.k_LBNGKT, suffix.v_LBNGTK
        if not self.unrolled:
            layers = (jnp.arange(self.config.num_layers), prefix.k_LBGKP, prefix.v_LBGPK)
            x_BND, (k, v), _ = self._run(x_BND, weights, cos_sin, attend, (k, v), layers)
            return self._norm(x_BND), SuffixCache(k_LBNGKT=k, v_LBNGTK=v)
        written = []
        for i in range(self.config.num_layers):
            by_layer = isinstance(weights[0], tuple)
            params, adapters = weights[i] if by_layer else _layer_of(weights, i)
            layer = (None, prefix.k_LBGKP[i], prefix.v_LBGPK[i])
            x_BND, own, _ = self._layer(
                x_BND, params, adapters, cos_sin, attend, (k[i], v[i]), layer
            )
            written.append(own)
        k, v = zip(*written, strict=True)
        return self._norm(x_BND), SuffixCache(k_LBNGKT=k, v_LBNGTK=v)

    def extend(
        self,
        tokens_BNT: jax.Array,
        position_BNT: jax.Array,
        mask_BNTT: jax.Array,
        prefix: PrefixCache,
        *,
        use_lora: bool,
    ) -> jax.Array:
        """Runs N given continuations of each prefilled prompt; normed hidden states [B, N, T, D].

        `mask_BNTT` says which of its own columns a token sees; all see the whole prompt.
        """
        position_3BNT = jnp.broadcast_to(position_BNT, (3, *position_BNT.shape))
        cos_sin = mrope.rotary(position_3BNT, self.config)
        mask = mask_BNTT[:, None, None]

        def attend(q, k, v, carry, layer):
            prefix_k = rearrange(layer[0], "b g k p -> b p g k")
            prefix_v = rearrange(layer[1], "b g p k -> b p g k")
            out = attention.shared_prefix(q, prefix_k, prefix_v, prefix.mask_BP, k, v, mask)
            return out, carry, ()

        x_BNTD, layers = self.embed(tokens_BNT), (prefix.k_LBGKP, prefix.v_LBGPK)
        x_BNTD, _, _ = self._run(x_BNTD, self._weights(use_lora), cos_sin, attend, (), layers)
        return self._norm(x_BNTD)

    def forward_shared(
        self,
        x_BPE: jax.Array,
        positions_3BP: jax.Array,
        mask_BP: jax.Array,
        tokens_BNT: jax.Array,
        position_BT: jax.Array,
        *,
        use_lora: bool = True,
        remat: str = "none",
        reference_x_BPE: jax.Array | None = None,
    ) -> list[tuple[jax.Array, jax.Array]]:
        """Runs rows `[prompt | completion 1 ... completion N]`, teacher-forced and differentiable.

        Args:
          x_BPE: embedded prompts, as for `prefill`.
          mask_BP: bool, false at padding.
          tokens_BNT: completions, padded on the right (nothing before the padding sees it).
          position_BT: rotary position of completion token t, the same for all N.
          use_lora: False runs the frozen base.
          remat: what the backward pass computes again, a key of `remat.KINDS`.
          reference_x_BPE: embedded prompts for the frozen base, which then runs as well, without
            gradient, in the same loop over layers; or None.

        Returns:
          One pair, or with a reference two: normed hidden states of the prompts [B, P, D] and of
          the completions [B, N, T, D].
        """
        prompt, (_, answers, length) = mask_BP.shape[1], tokens_BNT.shape
        row = rearrange(self.embed(tokens_BNT), "b n t d -> b (n t) d")

        def whole(x_BPE):
            x_BPD, added = deepstack.split(x_BPE, self.config.hidden_size)
            return jnp.concatenate([x_BPD, row], axis=1), added

        # Positions restart after the prompt for every completion.
        position = jnp.tile(position_BT, (1, answers))
        positions = jnp.broadcast_to(position, (3, *position.shape))
        cos_sin = mrope.rotary(jnp.concatenate([positions_3BP, positions], axis=2), self.config)
        kernel = attention_kernels.of(self.attention, prompt + length)

        def attend(q, k, v, carry, layer):
            if kernel and length:  # none is left of completions of one token
                return kernel.shared(q, k, v, mask_BP, answers, self.attention), carry, ()
            return attention.shared(q, k, v, mask_BP, answers), carry, ()

        x, added = whole(x_BPE)
        beside = None if reference_x_BPE is None else jax.lax.stop_gradient(whole(reference_x_BPE))
        weights, options = self._weights(use_lora), {"remat": remat, "reference": beside}
        *found, _, _ = self._run(x, weights, cos_sin, attend, added=added, **options)

        def parts(x):
            x = self._norm(x)
            return x[:, :prompt], rearrange(x[:, prompt:], "b (n t) d -> b n t d", n=answers)

        return [parts(x) for x in found]

    def _norm(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.final_norm[...], self.config.norm_eps)

    def _run(
        self,
        x: jax.Array,
        weights: Any,
        cos_sin: tuple[jax.Array, jax.Array],
        attend: Callable,
        carry: Any = (),
        per_layer: Any = (),
        remat: str = "none",
        reference: tuple[jax.Array, jax.Array | None] | None = None,
        added: jax.Array | None = None,
    ) -> tuple[Any, ...]:
        """Runs all layers over `x` [..., D].

        Prefill, decoding and the shared forward pass differ only in
        `attend(q, k, v, carry, layer) -> (out, carry, kept)`. `reference`, [..., D] and an `added`
        of its own, goes through the same layers without LoRA, so that a layer's weights are read
        or gathered once for both.
        `added` [count, B, P, D] is added behind the first `count` layers, at the first P tokens.
        All layers stay one loop: behind the others it is zeros that are added.

        Returns:
          `x`, `reference` if there is one, `carry`, and `kept` of each layer, stacked.
        """

        def step(state, layer):
            x, *beside, carry = state
            params, adapters, layer, index = layer
            x, *beside = activation_sharding.constrain((x, *beside), "batch", ...)
            beside = [
                self._layer(other, params, {}, cos_sin, attend, carry, layer)[0] for other in beside
            ]
            x, carry, kept = self._layer(x, params, adapters, cos_sin, attend, carry, layer)
            if added is not None:
                x = deepstack.add(x, added, index)
                beside = [deepstack.add(one, reference[1], index) for one in beside]
            return (*activation_sharding.constrain((x, *beside), "batch", ...), carry), kept

        if remat != "none":
            step = jax.checkpoint(step, policy=remat_lib.policy(remat))
        beside = () if reference is None else (reference[0],)
        state, kept = jax.lax.scan(
            step,
            (x, *beside, carry),
            (*weights, per_layer, None if added is None else jnp.arange(self.config.num_layers)),
            length=self.config.num_layers,
            unroll=min(self.scan_unroll, self.config.num_layers),
        )
        return *state, kept

    def _layer(self, x, params, adapters, cos_sin, attend, carry, layer):
        config = self.config

        def linear(name, x):
            pair = (adapters[f"{name}_a"], adapters[f"{name}_b"]) if adapters else None
            bias = params.get(f"{name}_bias")
            return lora.linear(x, params[name], bias, pair, self.lora_scale, self.dtype)

        def heads(x):
            return x.reshape(*x.shape[:-1], -1, config.head_dim)

        def rotated(name, x):
            x = heads(linear(name, x))
            if config.qk_norm:
                x = rms_norm(x, params[f"{name}_norm"], config.norm_eps)
            return mrope.rotate(x, *cos_sin)

        h = rms_norm(x, params["attention_norm"], config.norm_eps)
        q, k, v = rotated("q", h), rotated("k", h), heads(linear("v", h))
        q = activation_sharding.constrain(q, "batch", ..., "heads", None)
        k, v = activation_sharding.constrain((k, v), "batch", ..., "kv_heads", None)
        out, carry, kept = attend(q, k, v, carry, layer)
        x = x + linear("o", out.reshape(*out.shape[:-2], -1))
        h = rms_norm(x, params["mlp_norm"], config.norm_eps)
        x = x + linear("down", jax.nn.silu(linear("gate", h)) * linear("up", h))
        return x, carry, kept


def _layer_of(tree: Any, index: int) -> Any:
    """Returns one layer of stacked weights."""
    return jax.tree.map(lambda x: x[index], tree)
