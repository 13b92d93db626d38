"""Drawing tokens from logits. Temperature and top-p are traced: changing them compiles nothing."""

import math

import jax
import jax.numpy as jnp

# A logit no token can win with; finite, so that a row never becomes NaN.
BANNED_LOGIT = -1e30
_LARGE = 1 << 14  # tokens of a vocabulary that is worth cutting over devices
_EVEN = 16  # the number of blocks is a multiple of it, as devices are seldom more along an axis


def scaled_logits(
    logits: jax.Array, banned_V: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """Computes logits of the distribution that is sampled and trained on, float32 [..., V].

    Args:
      logits: [..., V].
      banned_V: bool, tokens that may never be an answer's (image placeholders, for instance).
      temperature: above 0 divides the logits; 0 means greedy, which leaves them as they are.
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    logits = logits.astype(jnp.float32) / jnp.where(temperature > 0, temperature, 1.0)
    return jnp.where(banned_V, BANNED_LOGIT, logits)


def keep_nucleus(logits: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Bans what lies outside the smallest set of tokens that holds `top_p` of the probability.

    Nucleus sampling (arXiv 1904.09751). The likeliest token always stays.
    """

    def keep(logits):
        descending = -jnp.sort(-logits, axis=-1)
        probability = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
        threshold = jnp.take_along_axis(descending, jnp.maximum(last, 0), axis=-1)
        return jnp.where(logits >= threshold, logits, BANNED_LOGIT)

    # Sorting a vocabulary costs more than the decoder step of a small model.
    return jax.lax.cond(jnp.asarray(top_p) < 1.0, keep, lambda logits: logits, logits)


def rollout_keys(key: jax.Array, image_id_B: jax.Array, num_rollouts: int) -> jax.Array:
    """Makes keys [B, N], from what an answer is and not from where it lies.

    The key depends on the step (already in `key`), the image and the number of the rollout, so a
    sample is the same on any mesh, in any batch layout and in any process.
    """
    image_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, image_id_B)
    numbers_N = jnp.arange(num_rollouts, dtype=jnp.uint32)
    return jax.vmap(lambda k: jax.vmap(jax.random.fold_in, (None, 0))(k, numbers_N))(image_keys_B)


def sample(
    logits_BNV: jax.Array,
    keys_BN: jax.Array,
    position: jax.Array,
    banned_V: jax.Array,
    *,
    temperature: jax.Array | float,
    top_p: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Draws one token for every answer.

    Args:
      keys_BN: `rollout_keys`.
      position: int32 scalar, which token of the answer this is; folded into the keys.
      banned_V: bool.
      temperature: 0 takes the likeliest token.
      top_p: in (0, 1]; 1 keeps the whole distribution.

    Returns:
      int32 tokens [B, N], and their float32 log-probability [B, N] under the temperature-scaled
      distribution before top-p.
    """
    logits_BNV = scaled_logits(logits_BNV, banned_V, temperature)
    kept_BNV = keep_nucleus(logits_BNV, top_p)
    # The likeliest token is always kept.
    highest_BN1 = jnp.max(logits_BNV, axis=-1, keepdims=True)
    shifted_BNV = logits_BNV - highest_BN1
    weight_BNV = jnp.exp(shifted_BNV)
    keys_BN = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, position)))(keys_BN)
    uniform_BN2 = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2,))))(keys_BN)
    token_BN = jax.lax.cond(
        jnp.asarray(temperature) <= 0,
        lambda: jnp.argmax(logits_BNV, axis=-1),
        lambda: choose(jnp.where(kept_BNV > BANNED_LOGIT, weight_BNV, 0.0), uniform_BN2),
    )
    logp_BN = jnp.take_along_axis(shifted_BNV, token_BN[..., None], axis=-1)[..., 0]
    logp_BN = logp_BN - jnp.log(jnp.sum(weight_BNV, axis=-1))
    return token_BN.astype(jnp.int32), logp_BN


def blocks_of(vocabulary: int) -> tuple[int, int]:
    """Cuts a vocabulary into blocks of tokens: how many, and how large; about as many as large.

    Devices may hold parts of a large vocabulary. So that each holds whole blocks, and nothing is
    gathered to cut them, they fill it to the last token where it is a multiple of 16, and their
    number is one as well. A small vocabulary is padded instead. The cut depends on nothing else, so
    that samples are the same on any mesh.
    """
    if vocabulary % _EVEN or vocabulary < _LARGE:
        size = math.isqrt(vocabulary - 1) + 1
        return -(-vocabulary // size), size
    counts = (n for n in range(_EVEN, vocabulary + 1, _EVEN) if vocabulary % n == 0)
    blocks = min(counts, key=lambda n: n + vocabulary // n)
    return blocks, vocabulary // blocks


def choose(weight: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws from a distribution given by weights that need not sum to 1.

    First a block of tokens, then a token in the block, each by inverting the cumulative sum. That
    takes two random numbers a row, where Gumbel noise takes one a token.

    Args:
      weight: float32 [..., V], not negative and not all 0.
      uniform: float32 [..., 2] in [0, 1).

    Returns:
      Indices [...] below V, of a weight above 0.
    """
    vocabulary = weight.shape[-1]
    blocks, size = blocks_of(vocabulary)
    padding = [(0, 0)] * (weight.ndim - 1) + [(0, blocks * size - vocabulary)]
    weight = jnp.pad(weight, padding).reshape(*weight.shape[:-1], blocks, size)

    def invert(weight, uniform):
        # XLA adds as a tree, so rounding lets sums rise or fall where the weight is 0.
        cumulative = jnp.cumsum(weight, axis=-1)
        reached = (cumulative > uniform[..., None] * cumulative[..., -1:]) & (weight > 0)
        first, likeliest = (jnp.argmax(x, axis=-1) for x in (reached, weight))
        return jnp.where(jnp.any(reached, axis=-1), first, likeliest)

    block = invert(jnp.sum(weight, axis=-1), uniform[..., 0])
    inside = jnp.take_along_axis(weight, block[..., None, None], axis=-2)[..., 0, :]
    return block * size + invert(inside, uniform[..., 1])
