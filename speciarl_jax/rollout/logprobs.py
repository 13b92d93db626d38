"""Log-probabilities of given answers, teacher-forced against the shared prompt."""

import jax
import jax.numpy as jnp

from speciarl_jax.models.qwen2_5_vl.model import Qwen25VL
from speciarl_jax.rollout import sampling
from speciarl_jax.types import PromptBatch


def answer_logprobs(
    policy: Qwen25VL,
    batch: PromptBatch,
    features_BMD: jax.Array,
    tokens_BNT: jax.Array,
    *,
    banned_V: jax.Array,
    temperature: jax.Array | float = 1.0,
    use_lora: bool = True,
    chunk_size: int = 16,
    remat: str = "none",
) -> tuple[jax.Array, jax.Array]:
    """Log-probability and entropy at each token of N answers about each picture.

    The prompt is run once a picture and the answers attend to it (`Qwen25VL.forward_shared`). The
    head sees answer positions only, `chunk_size` of them at a time, and is rematerialised: logits
    of the whole batch never exist.

    Args:
      policy: the model.
      batch: pictures and prompts, padded on the left.
      features_BMD: `policy.encode_images` of the pictures.
      tokens_BNT: the answers, padded on the right.
      banned_V: bool, the tokens that sampling banned.
      temperature: of the distribution; 0 means 1, as in `sampling.scaled_logits`.
      use_lora: False gives the reference policy.
      chunk_size: answer positions a call of the head.
      remat: what the backward pass computes again of the layers, a key of `decoder.REMAT`.

    Returns:
      Two float32 [B, N, T] arrays, log-probability and entropy in nats; what stands outside the
      answers is finite and means nothing.
    """
    x_BPD = policy.embed(batch.tokens_BP, features_BMD)
    positions_3BP = jnp.swapaxes(batch.positions_B3P, 0, 1)
    length = tokens_BNT.shape[-1]
    # Nothing is predicted from the last token of an answer, so it is not run.
    position_BT = batch.next_position_B[:, None] + jnp.arange(length - 1, dtype=jnp.int32)
    hidden_BPD, hidden_BNTD = policy.forward_shared(
        x_BPD,
        positions_3BP,
        batch.mask_BP,
        tokens_BNT[..., :-1],
        position_BT,
        use_lora=use_lora,
        remat=remat,
    )
    batch_size, num_rollouts, _, width = hidden_BNTD.shape
    first_BN1D = jnp.broadcast_to(hidden_BPD[:, None, -1:], (batch_size, num_rollouts, 1, width))
    hidden_BNTD = jnp.concatenate([first_BN1D, hidden_BNTD], axis=2)

    @jax.checkpoint
    def score(hidden_BNCD, tokens_BNC):
        logits_BNCV = sampling.scaled_logits(policy.logits(hidden_BNCD), banned_V, temperature)
        all_logp_BNCV = jax.nn.log_softmax(logits_BNCV, axis=-1)
        logp_BNC = jnp.take_along_axis(all_logp_BNCV, tokens_BNC[..., None], axis=-1)[..., 0]
        entropy_BNC = -jnp.sum(jnp.exp(all_logp_BNCV) * all_logp_BNCV, axis=-1)
        return logp_BNC, jax.lax.stop_gradient(entropy_BNC)

    # Chunks along T leave the batch axis, which is the one that is sharded, alone.
    parts = [
        score(
            hidden_BNTD[:, :, start : start + chunk_size],
            tokens_BNT[:, :, start:][..., :chunk_size],
        )
        for start in range(0, length, chunk_size)
    ]
    logp_BNT, entropy_BNT = (jnp.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    return logp_BNT, entropy_BNT
