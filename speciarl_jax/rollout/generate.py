"""Sampling N answers about each picture: prefill once a picture, decode N against the prefix."""

import jax
import jax.numpy as jnp

from speciarl_jax.models.qwen2_5_vl.model import Qwen25VL
from speciarl_jax.rollout import sampling
from speciarl_jax.types import PromptBatch, Rollout


def generate(
    policy: Qwen25VL,
    batch: PromptBatch,
    features_BMD: jax.Array,
    key: jax.Array,
    *,
    num_rollouts: int,
    max_tokens: int,
    eos_id: int,
    banned_V: jax.Array,
    temperature: jax.Array | float = 1.0,
    top_p: jax.Array | float = 1.0,
    use_lora: bool = True,
) -> Rollout:
    """Samples answers until each has ended or holds `max_tokens` tokens.

    The prompt is prefilled once a picture and its keys and values are never repeated: the N answers
    are N queries against one prefix (`Qwen25VL.decode_step`). The loop stops when all have ended.

    Args:
      policy: the model.
      batch: pictures and prompts, padded on the left.
      features_BMD: `policy.encode_images` of the pictures.
      key: key of this step; the picture, rollout and position are folded in here.
      num_rollouts: N.
      max_tokens: T, the longest answer, end-of-sequence token included.
      eos_id: the token that ends an answer; it belongs to the answer.
      banned_V: bool, tokens that are never sampled.
      temperature: of the sampled distribution; 0 is greedy. Traced.
      top_p: nucleus, 1 for none. Traced.
      use_lora: False samples from the reference policy.

    Returns:
      `Rollout`.
    """
    batch_size, prompt_length = batch.tokens_BP.shape
    x_BPD = policy.embed(batch.tokens_BP, features_BMD)
    positions_3BP = jnp.swapaxes(batch.positions_B3P, 0, 1)
    hidden_BPD, prefix = policy.prefill(x_BPD, positions_3BP, batch.mask_BP, use_lora=use_lora)
    hidden_BND = jnp.broadcast_to(
        hidden_BPD[:, -1:], (batch_size, num_rollouts, hidden_BPD.shape[-1])
    )
    keys_BN = sampling.rollout_keys(key, batch.image_id_B, num_rollouts)

    def draw(hidden_BND, position):
        # The prompt's last logits are the same for all N; XLA does not need to know.
        return sampling.sample(
            policy.logits(hidden_BND),
            keys_BN,
            position,
            banned_V,
            temperature=temperature,
            top_p=top_p,
        )

    token_BN, logp_BN = draw(hidden_BND, 0)
    # A row that only pads the batch is done from the start, so it never keeps the loop alive.
    dead_BN = jnp.broadcast_to(batch.weight_B[:, None] == 0, token_BN.shape)
    shape = (batch_size, num_rollouts, max_tokens)
    tokens_BNT = jnp.full(shape, eos_id, jnp.int32).at[..., 0].set(token_BN)
    logp_BNT = jnp.zeros(shape, jnp.float32).at[..., 0].set(jnp.where(dead_BN, 0.0, logp_BN))
    mask_BNT = jnp.zeros(shape, bool).at[..., 0].set(~dead_BN)
    done_BN = dead_BN | (token_BN == eos_id)
    suffix = policy.init_suffix(batch_size, num_rollouts, max_tokens, hidden_BPD.dtype)

    def unfinished(carry):
        step, _, done_BN, *_ = carry
        return (step < max_tokens) & ~jnp.all(done_BN)

    def advance(carry):
        step, token_BN, done_BN, tokens_BNT, logp_BNT, mask_BNT, suffix = carry
        position_BN = jnp.broadcast_to(batch.next_position_B[:, None] + step - 1, token_BN.shape)
        hidden_BND, suffix = policy.decode_step(
            token_BN, position_BN, step - 1, prefix, suffix, use_lora=use_lora
        )
        token_BN, logp_BN = draw(hidden_BND, step)
        token_BN = jnp.where(done_BN, eos_id, token_BN)
        tokens_BNT = _write(tokens_BNT, token_BN, step)
        logp_BNT = _write(logp_BNT, jnp.where(done_BN, 0.0, logp_BN), step)
        mask_BNT = _write(mask_BNT, ~done_BN, step)
        done_BN = done_BN | (token_BN == eos_id)
        return step + 1, token_BN, done_BN, tokens_BNT, logp_BNT, mask_BNT, suffix

    carry = (jnp.int32(1), token_BN, done_BN, tokens_BNT, logp_BNT, mask_BNT, suffix)
    *_, tokens_BNT, logp_BNT, mask_BNT, _ = jax.lax.while_loop(unfinished, advance, carry)
    return Rollout(tokens_BNT=tokens_BNT, mask_BNT=mask_BNT, logp_BNT=logp_BNT)


def _write(target_BNT: jax.Array, value_BN: jax.Array, step: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(target_BNT, value_BN, step, axis=2)
