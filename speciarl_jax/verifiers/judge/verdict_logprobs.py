"""Log-likelihoods of the six verdicts under a language model, on many pairs at once.

The instruction is run once a call and its keys and values serve all pairs of the batch
(`Decoder.extend`). A pair is a few tokens behind it, and the six verdicts are branches behind the
pair; the verdict is the branch with the largest log-likelihood.

Axes: R pairs, C tokens of a pair, K verdicts, S tokens of a verdict, A tokens of an answer,
F labels, T tokens of a row: a pair and the M tokens of the branches behind it.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speciarl_jax.models import qwen_text
from speciarl_jax.models.decoder.cache import PrefixCache
from speciarl_jax.models.decoder.decoder import Decoder
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.verifiers import parsing, prefilter
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import calibration, judge_prompt

VERDICTS = tuple(judge_prompt.LABELS)
_CATEGORY_K = np.array([judge_prompt.LABELS[name] for name in VERDICTS], np.int32)
# The order of the rows decides ties: the lower verdict wins.
assert np.all(np.diff(_CATEGORY_K) > 0)


@flax.struct.dataclass
class Scorer:
    """Log-likelihoods of the six verdicts on pairs of names.

    Attributes:
      weights: frozen state of a `Decoder` without LoRA.
      prefix_P: int32 tokens before the true label, the same for all pairs.
      truth_FC: int32 tokens of a true label and of what stands between it and the answer.
      truth_length_F: int32, how many they are.
      tail_C: int32 tokens from behind the answer to the verdict.
      verdict_KS: int32 tokens of the verdicts.
      verdict_length_K: int32, how many they are.
      offset_K: float32, added to the log-likelihoods (`calibration`); 0 without one.
      graphdef: static, joins `weights` into a decoder.
    """

    weights: nnx.State
    prefix_P: jax.Array
    truth_FC: jax.Array
    truth_length_F: jax.Array
    tail_C: jax.Array
    verdict_KS: jax.Array
    verdict_length_K: jax.Array
    offset_K: jax.Array
    graphdef: nnx.GraphDef = flax.struct.field(pytree_node=False)

    def prefill(self) -> tuple[Decoder, PrefixCache]:
        """The decoder, and the shared instruction's keys and values."""
        decoder = nnx.merge(self.graphdef, self.weights)
        tokens_1P = self.prefix_P[None]
        mask_1P = jnp.ones(tokens_1P.shape, bool)
        _, prefix = decoder.prefill(
            decoder.embed(tokens_1P), qwen_text.positions(mask_1P), mask_1P, use_lora=False
        )
        return decoder, prefix

    def context(
        self, label: jax.Array, answer_A: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens of one pair behind the prefix, padded on the left.

        Args:
          label: int32 index of the true label.
          answer_A: int32 tokens of the answer.
          length: int32, how many they are; at most A.

        Returns:
          int32 [C] and bool [C], where they are tokens.
        """
        truth_C, truth = self.truth_FC[label], self.truth_length_F[label]
        tail = self.tail_C.shape[0]
        size = truth_C.shape[0] + answer_A.shape[0] + tail
        # The last token stands in the last column, whatever the length.
        start = size - (truth + length + tail)
        tokens_C = jnp.zeros(size, jnp.int32)
        for part, count in ((truth_C, truth), (answer_A, length), (self.tail_C, tail)):
            place = jnp.arange(part.shape[0])
            slot = jnp.where(place < count, start + place, size)
            tokens_C = tokens_C.at[slot].set(part, mode="drop")
            start += count
        return tokens_C, jnp.arange(size) >= size - (truth + length + tail)

    def logp(
        self, decoder: Decoder, prefix: PrefixCache, tokens_RC: jax.Array, mask_RC: jax.Array
    ) -> jax.Array:
        """float32 log-likelihoods [R, K], sums over the tokens of a verdict, plus `offset_K`.

        A row runs its pair once and the K verdicts as branches behind it: each token of a verdict
        sees the prefix, the pair, and what comes before it in its own verdict.
        """
        (rows, context), (count, length) = tokens_RC.shape, self.verdict_KS.shape
        branch_M = self.verdict_KS[:, :-1].reshape(-1)
        depth_M, owner_M = (
            np.tile(np.arange(length - 1), count),
            np.repeat(range(count), length - 1),
        )
        behind_RM = jnp.broadcast_to(branch_M, (rows, branch_M.shape[0]))
        last_R1 = self.prefix_P.shape[0] + jnp.sum(mask_RC, axis=1, keepdims=True)
        position_RC = self.prefix_P.shape[0] + jnp.maximum(jnp.cumsum(mask_RC, axis=1) - 1, 0)
        hidden_1RTD = decoder.extend(
            jnp.concatenate([tokens_RC, behind_RM], axis=1)[None],
            jnp.concatenate([position_RC, last_R1 + depth_M], axis=1)[None],
            _branch_mask(mask_RC, owner_M, depth_M)[None],
            prefix,
            use_lora=False,
        )

        def of_tokens(hidden_RD, tokens):
            logits_RV = decoder.logits(hidden_RD)
            return logits_RV[:, tokens] - jax.nn.logsumexp(logits_RV, axis=-1, keepdims=True)

        first_RK = of_tokens(hidden_1RTD[0, :, context - 1], self.verdict_KS[:, 0])
        if length == 1:
            return first_RK + self.offset_K
        # A column at a time: logits of the whole vocabulary for all of them would not fit.
        hidden_MRD = jnp.moveaxis(hidden_1RTD[0, :, context:], 1, 0)
        target_M1 = self.verdict_KS[:, 1:].reshape(-1, 1)
        later_MR1 = jax.lax.map(lambda x: of_tokens(*x), (hidden_MRD, target_M1))
        later_RKS = later_MR1[..., 0].T.reshape(rows, count, length - 1)
        inside_KS = jnp.arange(1, length) < self.verdict_length_K[:, None]
        later_RK = jnp.sum(jnp.where(inside_KS, later_RKS, 0.0), axis=-1)
        return first_RK + later_RK + self.offset_K

    def logp_of_pairs(
        self, label_R: jax.Array, answer_RA: jax.Array, length_R: jax.Array
    ) -> jax.Array:
        """float32 log-likelihoods [R, K] of the verdicts on pairs of a label and answer tokens."""
        decoder, prefix = self.prefill()
        return self.logp(decoder, prefix, *jax.vmap(self.context)(label_R, answer_RA, length_R))


def _branch_mask(mask_RC: jax.Array, owner_M: np.ndarray, depth_M: np.ndarray) -> jax.Array:
    """bool [R, T, T], T = C + M: causal in a pair; a branch sees the pair and itself."""
    rows, context = mask_RC.shape
    same_MM = (owner_M[:, None] == owner_M) & (depth_M[:, None] >= depth_M)
    own_TT = np.zeros((context + len(owner_M),) * 2, bool)
    own_TT[:context, :context] = np.tri(context, dtype=bool)
    own_TT[context:, :context] = True
    own_TT[context:, context:] = same_MM
    is_token_RT = jnp.concatenate([mask_RC, jnp.ones((rows, len(owner_M)), bool)], axis=1)
    return jnp.asarray(own_TT) & is_token_RT[:, None, :]


def decide(
    stated: jax.Array, logp_K: jax.Array, min_probability: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Category, validity and probabilities from stated verdicts [...] and log-likelihoods [..., K].

    What is not finite, or below `min_probability`, is no verdict.
    """
    asked = stated == prefilter.ASK
    sound = jnp.all(jnp.isfinite(logp_K), axis=-1)
    probability = jax.nn.softmax(jnp.where(sound[..., None], logp_K, 0.0), axis=-1)
    judged = jnp.asarray(_CATEGORY_K)[jnp.argmax(probability, axis=-1)]
    certain = sound & (jnp.max(probability, axis=-1) >= min_probability)
    valid = ~asked | certain
    category = jnp.where(asked, jnp.where(certain, judged, int(Category.UNPARSED)), stated)
    one_hot = (stated[..., None] == jnp.asarray(_CATEGORY_K)).astype(jnp.float32)
    probability = jnp.where(asked[..., None], probability, one_hot)
    return category.astype(jnp.int32), valid, probability


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that has no special tokens of its own kind added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def make_scorer(
    decoder: Decoder,
    tokenizer: Any,
    prompt: judge_prompt.JudgePrompt,
    names: Sequence[str],
    calibrate: str = "",
) -> Scorer:
    """Cuts the judge's prompt around the pair, and encodes the pieces and the verdicts.

    Args:
      decoder: without LoRA.
      tokenizer: with a chat template.
      prompt: of the judge.
      names: of the labels.
      calibrate: as for `calibration.offsets`.

    Raises:
      ValueError: `calibrate` does not fit, the chat template loses the pair, a verdict begins
        another one in this tokenizer, an id of the tokenizer lies outside of the model's
        vocabulary, or the prompt is too long.
    """
    before, between, after = _around_the_pair(tokenizer, prompt)
    verdicts = [encode(tokenizer, name) for name in VERDICTS]
    for one, name in zip(verdicts, VERDICTS, strict=True):
        if any(other != one and other[: len(one)] == one for other in verdicts):
            raise ValueError(
                f"verdict {name!r} begins another one in the judge's tokens {verdicts}"
            )
    middle = encode(tokenizer, between)
    truths = [[*encode(tokenizer, parsing.normalize(name)), *middle] for name in names]
    prefix, tail = encode(tokenizer, before), encode(tokenizer, after)
    _check_fit(decoder.config, prefix, truths, tail, verdicts)
    graphdef, weights = nnx.split(decoder)
    truth_FC, truth_length_F = _padded(truths)
    verdict_KS, verdict_length_K = _padded(verdicts)
    scorer = Scorer(
        weights=weights,
        prefix_P=jnp.asarray(prefix, jnp.int32),
        truth_FC=truth_FC,
        truth_length_F=truth_length_F,
        tail_C=jnp.asarray(tail, jnp.int32),
        verdict_KS=verdict_KS,
        verdict_length_K=verdict_length_K,
        offset_K=jnp.zeros(len(VERDICTS), jnp.float32),
        graphdef=graphdef,
    )

    def score_empty_pairs():
        truths, answers = zip(*calibration.EMPTY_PAIRS, strict=True)
        plain = make_scorer(decoder, tokenizer, prompt, truths)
        answer_RA, length_R = _padded([encode(tokenizer, text) for text in answers])
        return jax.jit(Scorer.logp_of_pairs)(plain, jnp.arange(len(truths)), answer_RA, length_R)

    offset_K = calibration.offsets(calibrate, score_empty_pairs)
    return scorer if offset_K is None else scorer.replace(offset_K=jnp.asarray(offset_K))


def _around_the_pair(tokenizer: Any, prompt: judge_prompt.JudgePrompt) -> tuple[str, str, str]:
    """The text of the chat before the true label, between it and the answer, and from behind the
    answer to the verdict.

    Raises:
      ValueError: the chat template loses the pair.
    """
    # Names that no normal form changes and no prompt holds.
    truth, prediction, verdict = "qxtruthxq", "qxpredictionxq", "wrong"
    text = tokenizer.apply_chat_template(
        prompt.messages(truth, prediction),
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # Qwen3; other templates ignore it
    )
    if text.count(truth) != 1 or text.count(prediction) != 1:
        raise ValueError(
            f"the judge's chat template shows the pair {text.count(truth)} times; use a tokenizer "
            "whose template writes the user's message once"
        )
    before, rest = text.split(truth)
    between, after = rest.split(prediction)
    opening = "" if prompt.bare else judge_prompt.reply(verdict).split(verdict)[0]
    return before, between, after + opening


def _check_fit(config: TextConfig, prefix, truths, tail, verdicts) -> None:
    """Refuses tokens that the model does not have, and more of them than it has positions for."""
    highest = max(map(max, [prefix, tail, *verdicts, *truths]))
    if highest >= config.vocab_size:
        raise ValueError(
            f"the judge's tokenizer uses id {highest}, its model has {config.vocab_size}; "
            "do tokenizer and weights belong together?"
        )
    longest = len(prefix) + max(map(len, truths)) + len(tail) + max(map(len, verdicts))
    if longest >= config.max_position_embeddings:
        raise ValueError(
            f"the judge's prompt takes {longest} tokens without an answer, its model has positions "
            f"for {config.max_position_embeddings}; shorten the prompt"
        )


def _padded(rows: Sequence[Sequence[int]]) -> tuple[jax.Array, jax.Array]:
    length = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), length.max()), np.int32)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = row
    return jnp.asarray(tokens), jnp.asarray(length)


def frozen_decoder(decoder: Decoder) -> Decoder:
    """The policy's language model without LoRA; its weights are the same arrays, not copies."""

    def make():
        return Decoder(
            decoder.config,
            dtype=decoder.dtype,
            param_dtype=jnp.float32,
            lora_rank=0,
            lora_alpha=1.0,
            scan_unroll=decoder.scan_unroll,
            rngs=nnx.Rngs(0),
        )

    graphdef, _ = nnx.split(nnx.eval_shape(make))
    _, _, base = nnx.split(decoder, nnx.LoRAParam, ...)
    return nnx.merge(graphdef, base)
