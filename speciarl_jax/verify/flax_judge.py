"""A language model on the devices as the judge: likeliest of six verdicts, so it can say no other.

The instruction is run once a call and its keys and values serve all pairs of the batch
(`Decoder.extend`). A pair is a few tokens behind it, and the six verdicts are branches behind the
pair; the verdict is the branch with the largest log-likelihood. Only what could be one label is
asked (`screen`), in the form of `answer.normalize`, so nothing in an answer can end the JSON string
that it stands in, or the turn.

Axes: B images, N answers, R pairs, C tokens of a pair, K verdicts, S tokens of a verdict, A tokens
of an answer, F labels, V vocabulary of the policy.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models import qwen_text
from speciarl_jax.models.qwen2_5_vl.cache import PrefixCache
from speciarl_jax.models.qwen2_5_vl.decoder import Decoder
from speciarl_jax.verify import answer, byte_text, judge_prompt, label_names
from speciarl_jax.verify import screen as screen_lib
from speciarl_jax.verify.byte_text import TokenBytes
from speciarl_jax.verify.category import Category
from speciarl_jax.verify.host_verifier import HostVerifier, Verdicts

# `weights` that mean the policy's own text tower without LoRA.
POLICY_BASE = "policy_base"
_VERDICTS = tuple(judge_prompt.LABELS)
_CATEGORY_K = np.array([judge_prompt.LABELS[name] for name in _VERDICTS], np.int32)
# The order of the rows decides ties: the lower verdict wins.
assert np.all(np.diff(_CATEGORY_K) > 0)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a judge may take from the policy.

    Attributes:
      decoder: its text tower, LoRA and all.
      tokenizer: of its checkpoint.
      put: places a judge's own parameters on the mesh (`hf.Put`).
      dtypes: `dtype` and `param_dtype` of the policy's arithmetic and frozen weights.
    """

    decoder: Decoder
    tokenizer: Any
    put: Any
    dtypes: Mapping[str, Any]


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
      graphdef: static, joins `weights` into a decoder.
    """

    weights: nnx.State
    prefix_P: jax.Array
    truth_FC: jax.Array
    truth_length_F: jax.Array
    tail_C: jax.Array
    verdict_KS: jax.Array
    verdict_length_K: jax.Array
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
        """float32 log-likelihoods [R, K], sums over the tokens of a verdict.

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
            return first_RK
        # A column at a time: logits of the whole vocabulary for all of them would not fit.
        hidden_MRD = jnp.moveaxis(hidden_1RTD[0, :, context:], 1, 0)
        target_M1 = self.verdict_KS[:, 1:].reshape(-1, 1)
        later_MR1 = jax.lax.map(lambda x: of_tokens(*x), (hidden_MRD, target_M1))
        later_RKS = later_MR1[..., 0].T.reshape(rows, count, length - 1)
        inside_KS = jnp.arange(1, length) < self.verdict_length_K[:, None]
        return first_RK + jnp.sum(jnp.where(inside_KS, later_RKS, 0.0), axis=-1)

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


@flax.struct.dataclass
class Reuse:
    """Which of the judge's tokens stand for those of the policy, in the form of `normalize`.

    Attributes:
      whole_V: int32, the judge's token with the same bytes in that form, or -1.
      bare_V: int32, the same without the leading space, or -1.
      byte_256: int32, the judge's token of each single byte; -1 for bytes that the form never has.
    """

    whole_V: jax.Array
    bare_V: jax.Array
    byte_256: jax.Array

    @classmethod
    def create(
        cls, policy_bytes: Sequence[bytes], judge_bytes: Sequence[bytes]
    ) -> tuple["Reuse", bool]:
        """The tables, and whether the vocabularies agree.

        They agree if each token of the policy that consists of letters, digits, dashes and a
        leading space in that form, as it is, is one of the judge's.

        Raises:
          ValueError: the judge has no token for some byte.
        """
        table, found = screen_lib.normal_table(), {}
        for index, spelt in enumerate(judge_bytes):
            if spelt:
                found.setdefault(spelt, index)
        whole_V = np.full(len(policy_bytes), -1, np.int32)
        bare_V, agree = whole_V.copy(), True
        for index, spelt in enumerate(policy_bytes):
            normal = table[np.frombuffer(spelt, np.uint8)].tobytes()
            if not normal or b" " in normal[1:]:
                continue
            whole_V[index] = found.get(normal, -1)
            bare_V[index] = found.get(normal[1:], -1) if normal[:1] == b" " else -1
            agree &= normal != spelt or whole_V[index] >= 0
        byte_256 = np.array([found.get(bytes([b]), -1) for b in range(256)], np.int32)
        lacking = [b for b in np.unique(table).tolist() if byte_256[b] < 0]
        if lacking:
            raise ValueError(
                f"the judge's tokenizer has no token for the single bytes {lacking[:8]}; it must "
                "be a byte-level BPE, as Qwen's are"
            )
        return cls(*map(jnp.asarray, (whole_V, bare_V, byte_256))), agree

    def __call__(
        self,
        tokens: TokenBytes,
        tokens_T: jax.Array,
        owner_L: jax.Array,
        within_L: jax.Array,
        normal_L: jax.Array,
        kept_L: jax.Array,
        size: int,
    ) -> tuple[jax.Array, jax.Array]:
        """The answer in the judge's tokens: those of the policy where they are whole, else bytes.

        Args:
          tokens: bytes of the policy's tokens.
          tokens_T: int32 response.
          owner_L: int32, from `byte_text.owners`.
          within_L: int32, likewise.
          normal_L: uint8, from `Screen`.
          kept_L: bool, likewise.
          size: A, static.

        Returns:
          int32 [A], and the int32 number of tokens, which may exceed A.
        """
        kept_T = jnp.zeros(tokens_T.shape[0], jnp.int32).at[owner_L].add(kept_L.astype(jnp.int32))
        token_L = tokens_T[owner_L]
        lost_L = tokens.length_V[token_L] - kept_T[owner_L]
        # Where one byte is lost, it must be the first: the space that begins a word.
        first_T = jnp.zeros(tokens_T.shape[0], bool).at[owner_L].max(kept_L & (within_L == 0))
        one_L = (lost_L == 1) & ~first_T[owner_L]
        one_L = jnp.where(one_L, self.bare_V[token_L], -1)
        one_L = jnp.where(lost_L == 0, self.whole_V[token_L], one_L)
        starts_L = within_L == jnp.where(lost_L == 0, 0, 1)
        emits_L = kept_L & ((one_L < 0) | starts_L)
        value_L = jnp.where(one_L < 0, self.byte_256[normal_L], one_L)
        count_L = jnp.cumsum(emits_L.astype(jnp.int32))
        slot_L = jnp.where(emits_L, count_L - 1, size)
        return jnp.zeros(size, jnp.int32).at[slot_L].set(value_L, mode="drop"), count_L[-1]


@flax.struct.dataclass
class FlaxJudge:
    """The judge inside compiled programs: response tokens in, categories out.

    Attributes:
      scorer: the model and its prompt.
      tokens: bytes of the policy's vocabulary.
      screen: stated verdicts.
      reuse: from the policy's tokens to the judge's.
      max_answer_tokens: static, A; an answer that takes more is WRONG.
      max_response_bytes: static; a longer response is UNPARSED.
      answers_at_once: static, answers to each picture that are judged together, for memory.
      min_probability: static; a verdict below it counts as none.
    """

    scorer: Scorer
    tokens: TokenBytes
    screen: screen_lib.Screen
    reuse: Reuse
    max_answer_tokens: int = flax.struct.field(pytree_node=False)
    max_response_bytes: int = flax.struct.field(pytree_node=False)
    answers_at_once: int = flax.struct.field(pytree_node=False)
    min_probability: float = flax.struct.field(pytree_node=False)

    def verify(
        self, tokens_BNT: jax.Array, mask_BNT: jax.Array, label_index_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """int32 `Category` [B, N] and bool [B, N], a verdict exists; traceable."""
        category_BN, valid_BN, _ = self.judge(tokens_BNT, mask_BNT, label_index_B)
        return category_BN, valid_BN

    def judge(
        self, tokens_BNT: jax.Array, mask_BNT: jax.Array, label_index_B: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`verify`, and the probabilities [B, N, K] of the verdicts, in the order of the ladder.

        Args:
          tokens_BNT: int32 responses in the policy's tokens.
          mask_BNT: bool; where False, a token is not part of the response.
          label_index_B: int32; a row whose index is no label is not valid.

        Returns:
          Category, validity and float32 probabilities: those of one verdict of the ladder against
          the others. A stated verdict has probability 1; what is UNPARSED has none at all.
        """
        labels = self.scorer.truth_FC.shape[0]
        known_B1 = ((label_index_B >= 0) & (label_index_B < labels))[:, None]
        label_B = jnp.clip(label_index_B, 0, labels - 1)
        over_n = jax.vmap(self._read, in_axes=(0, 0, None))
        stated_BN, tokens_BNC, context_BNC = jax.vmap(over_n)(tokens_BNT, mask_BNT, label_B)
        decoder, prefix = self.scorer.prefill()
        logp_NBK = jax.lax.map(
            lambda pair: self.scorer.logp(decoder, prefix, *pair),
            (tokens_BNC.swapaxes(0, 1), context_BNC.swapaxes(0, 1)),
            batch_size=self.answers_at_once,
        )
        category_BN, valid_BN, probability_BNK = decide(
            stated_BN, logp_NBK.swapaxes(0, 1), self.min_probability
        )
        category_BN = jnp.where(known_B1, category_BN, int(Category.UNPARSED))
        return category_BN, valid_BN & known_B1, probability_BNK

    def _read(self, tokens_T, mask_T, label):
        """Stated verdict (or `ASK`) on one response, and its pair as tokens [C] and mask [C]."""
        mask_T = mask_T.astype(bool)
        size = min(self.max_response_bytes, tokens_T.shape[0] * self.tokens.longest)
        text_L, total = byte_text.spell(self.tokens, tokens_T, mask_T, size)
        owner_L, within_L, _ = byte_text.owners(self.tokens, tokens_T, mask_T, size)
        stated, normal_L, kept_L = self.screen(text_L, total, label)
        answer_A, length = self.reuse(
            self.tokens, tokens_T, owner_L, within_L, normal_L, kept_L, self.max_answer_tokens
        )
        too_long = (stated == screen_lib.ASK) & (length > self.max_answer_tokens)
        stated = jnp.where(too_long, int(Category.WRONG), stated)
        length = jnp.minimum(length, self.max_answer_tokens)
        return stated, *self.scorer.context(label, answer_A, length)


def decide(
    stated: jax.Array, logp_K: jax.Array, min_probability: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Category, validity and probabilities from stated verdicts [...] and log-likelihoods [..., K].

    What is not finite, or below `min_probability`, is no verdict.
    """
    asked = stated == screen_lib.ASK
    sound = jnp.all(jnp.isfinite(logp_K), axis=-1)
    probability = jax.nn.softmax(jnp.where(sound[..., None], logp_K, 0.0), axis=-1)
    judged = jnp.asarray(_CATEGORY_K)[jnp.argmax(probability, axis=-1)]
    certain = sound & (jnp.max(probability, axis=-1) >= min_probability)
    valid = ~asked | certain
    category = jnp.where(asked, jnp.where(certain, judged, int(Category.UNPARSED)), stated)
    one_hot = (stated[..., None] == jnp.asarray(_CATEGORY_K)).astype(jnp.float32)
    probability = jnp.where(asked[..., None], probability, one_hot)
    return category.astype(jnp.int32), valid, probability


class ReencodingJudge(HostVerifier):
    """The same judge where the vocabularies differ: answers are encoded anew on the host.

    Equal pairs of a call are judged once.
    """

    def __init__(
        self,
        scorer: Scorer,
        names: Sequence[str],
        tokenizer: Any,
        *,
        max_words: int,
        max_answer_bytes: int,
        max_answer_tokens: int,
        pairs_at_once: int,
        min_probability: float,
        require_think: bool,
    ):
        """Compiles nothing yet; one program of `pairs_at_once` rows serves all calls."""
        screen_lib.check_limits(names, max_words=max_words, max_answer_bytes=max_answer_bytes)
        self._scorer, self._names, self._tokenizer = scorer, list(names), tokenizer
        self._limits = {"max_words": max_words, "max_answer_bytes": max_answer_bytes}
        self._size, self._rows = max_answer_tokens, pairs_at_once
        self._require_think = require_think

        def program(scorer, stated_R, label_R, answer_RA, length_R):
            logp_RK = scorer.logp_of_pairs(label_R, answer_RA, length_R)
            return decide(stated_R, logp_RK, min_probability)

        self._program = jax.jit(program)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "flax_judge")

    def submit(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> concurrent.futures.Future[Verdicts]:
        """See `HostVerifier`."""
        return self._thread.submit(lambda: self.judge(responses, label_index)[0])

    def judge(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> tuple[Verdicts, np.ndarray]:
        """Verdicts on N responses about each of B pictures, and probabilities [B, N, K]."""
        rows = [
            self._look(text, int(label))
            for group, label in zip(responses, label_index, strict=True)
            for text in group
        ]
        shape = (len(responses), len(responses[0]) if len(responses) else 0)
        found = self._judge(sorted(set(rows)))
        category, valid, probability = ([found[row][i] for row in rows] for i in range(3))
        nothing = np.zeros(shape, bool)
        verdicts = Verdicts(
            category_BN=np.array(category, np.int32).reshape(shape),
            valid_BN=np.array(valid, bool).reshape(shape),
            cached_BN=nothing,
            seconds_BN=np.full(shape, np.nan, np.float32),
        )
        return verdicts, np.array(probability, np.float32).reshape(*shape, len(_VERDICTS))

    def troubles(self) -> str:
        """See `HostVerifier`."""
        return ""

    def close(self) -> None:
        """See `HostVerifier`."""
        self._thread.shutdown()

    def _look(self, response: str, label: int) -> tuple[int, int, tuple[int, ...]]:
        """(stated verdict or `ASK`, label, tokens of the answer)."""
        content = answer.extract(response, require_think=self._require_think)
        stated = screen_lib.screen(content, self._names[label], **self._limits)
        if stated is not None:
            return int(stated), label, ()
        ids = encode(self._tokenizer, answer.normalize(content))
        if len(ids) > self._size:
            return int(Category.WRONG), label, ()
        return screen_lib.ASK, label, tuple(ids)

    def _judge(self, rows: Sequence[tuple[int, int, tuple[int, ...]]]) -> dict:
        found = {}
        for first in range(0, len(rows), self._rows):
            part = rows[first : first + self._rows]
            stated = np.full(self._rows, int(Category.UNPARSED), np.int32)
            label, length = np.zeros_like(stated), np.zeros_like(stated)
            tokens = np.zeros((self._rows, self._size), np.int32)
            for i, (verdict, index, ids) in enumerate(part):
                stated[i], label[i], length[i] = verdict, index, len(ids)
                tokens[i, : len(ids)] = ids
            out = self._program(self._scorer, stated, label, tokens, length)
            found |= zip(part, zip(*map(np.asarray, out), strict=True), strict=False)
        return found


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that has no special tokens of its own kind added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def make_scorer(
    decoder: Decoder, tokenizer: Any, prompt: judge_prompt.JudgePrompt, names: Sequence[str]
) -> Scorer:
    """Cuts the judge's prompt around the pair, and encodes the pieces and the verdicts.

    Args:
      decoder: without LoRA.
      tokenizer: with a chat template.
      prompt: of the judge.
      names: of the labels.

    Raises:
      ValueError: the chat template loses the pair, a verdict begins another one in this tokenizer,
        an id of the tokenizer lies outside of the model's vocabulary, or the prompt is too long.
    """
    # Names that no normal form changes and no prompt holds.
    truth, prediction, verdict = "qxtruthxq", "qxpredictionxq", "wrong"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt.fill(truth, prediction)}],
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
    after += judge_prompt.reply(verdict).split(verdict)[0]
    verdicts = [encode(tokenizer, name) for name in _VERDICTS]
    for one, name in zip(verdicts, _VERDICTS, strict=True):
        if any(other != one and other[: len(one)] == one for other in verdicts):
            raise ValueError(
                f"verdict {name!r} begins another one in the judge's tokens {verdicts}"
            )
    middle = encode(tokenizer, between)
    truths = [[*encode(tokenizer, answer.normalize(name)), *middle] for name in names]
    prefix, tail = encode(tokenizer, before), encode(tokenizer, after)
    highest = max(map(max, [prefix, tail, *verdicts, *truths]))
    if highest >= decoder.config.vocab_size:
        raise ValueError(
            f"the judge's tokenizer uses id {highest}, its model has {decoder.config.vocab_size}; "
            "do tokenizer and weights belong together?"
        )
    longest = len(prefix) + max(map(len, truths)) + len(tail) + max(map(len, verdicts))
    if longest >= decoder.config.max_position_embeddings:
        raise ValueError(
            f"the judge's prompt takes {longest} tokens without an answer, its model has positions "
            f"for {decoder.config.max_position_embeddings}; shorten the prompt"
        )
    graphdef, weights = nnx.split(decoder)
    truth_FC, truth_length_F = _padded(truths)
    verdict_KS, verdict_length_K = _padded(verdicts)
    return Scorer(
        weights=weights,
        prefix_P=jnp.asarray(prefix, jnp.int32),
        truth_FC=truth_FC,
        truth_length_F=truth_length_F,
        tail_C=jnp.asarray(tail, jnp.int32),
        verdict_KS=verdict_KS,
        verdict_length_K=verdict_length_K,
        graphdef=graphdef,
    )


def _padded(rows: Sequence[Sequence[int]]) -> tuple[jax.Array, jax.Array]:
    length = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), length.max()), np.int32)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = row
    return jnp.asarray(tokens), jnp.asarray(length)


def frozen_tower(decoder: Decoder) -> Decoder:
    """The policy's text tower without LoRA; its weights are the same arrays, not copies."""

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


def create(
    token_bytes: Sequence[bytes],
    dataset_path: str | os.PathLike | None,
    *,
    policy: Policy,
    path: str,
    prompt: str,
    weights: str,
    max_words: int,
    max_answer_bytes: int,
    max_response_bytes: int,
    max_answer_tokens: int,
    answers_at_once: int,
    pairs_at_once: int,
    min_probability: float,
    require_think: bool,
) -> tuple[label_names.LabelNames, FlaxJudge | ReencodingJudge]:
    """What `config.verifier.name = "flax_judge"` stands for.

    Args:
      token_bytes: of the policy's vocabulary.
      dataset_path: label tree that the data set brings, or None.
      policy: whose text tower, tokenizer and mesh may be used.
      path: names of the labels (`label_names.read`); "" for the data set's own tree.
      prompt: name or path (`judge_prompt.load`).
      weights: folder of a Qwen2, Qwen2.5 or Qwen3 text checkpoint, or "policy_base".
      max_words: a longer answer is WRONG.
      max_answer_bytes: a longer answer is WRONG.
      max_response_bytes: a longer response is UNPARSED (in-graph only).
      max_answer_tokens: an answer of more of the judge's tokens is WRONG.
      answers_at_once: answers to each picture judged together (in-graph), for memory.
      pairs_at_once: pairs judged together where answers are encoded anew on the host.
      min_probability: a verdict less probable than this is none; 0 takes all.
      require_think: as for `answer.extract`.

    Returns:
      The names on the host, whose `leaf_index` numbers the labels, and the verifier: in-graph if
      the vocabularies agree, on the host if not.

    Raises:
      ValueError: an option or a checkpoint that does not fit.
    """
    if not (path or dataset_path):
        raise ValueError(
            "this data set brings no label tree; set config.verifier.flax_judge.path to a file of "
            "label names (verify/label_names.py)"
        )
    _check(max_answer_tokens=max_answer_tokens, answers_at_once=answers_at_once)
    _check(pairs_at_once=pairs_at_once, max_response_bytes=max_response_bytes)
    if not 0 <= min_probability <= 1:
        raise ValueError(f"min_probability is {min_probability}; it must lie between 0 and 1")
    labels = label_names.read(path or dataset_path)
    decoder, tokenizer = _model(weights, policy)
    scorer = make_scorer(decoder, tokenizer, judge_prompt.load(prompt), labels.names)
    own_bytes = tokenizer_lib.token_bytes(tokenizer, decoder.config.vocab_size)
    reuse, agree = Reuse.create(token_bytes, own_bytes)
    limits = {
        "max_words": max_words,
        "max_answer_bytes": max_answer_bytes,
        "require_think": require_think,
    }
    if not agree:
        logging.info("flax_judge: the judge has another vocabulary; answers are encoded anew")
        if jax.process_count() > 1:
            raise ValueError(
                f"the vocabulary of the judge in {weights} is not the policy's, and answers are "
                "encoded anew on one host only; run one process, or choose another judge"
            )
        return labels, ReencodingJudge(
            scorer,
            labels.names,
            tokenizer,
            **limits,
            max_answer_tokens=max_answer_tokens,
            pairs_at_once=pairs_at_once,
            min_probability=min_probability,
        )
    return labels, FlaxJudge(
        scorer=scorer,
        tokens=TokenBytes.create(token_bytes),
        screen=screen_lib.Screen.create(labels.names, **limits),
        reuse=reuse,
        max_answer_tokens=max_answer_tokens,
        max_response_bytes=max_response_bytes,
        answers_at_once=answers_at_once,
        min_probability=min_probability,
    )


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"config.verifier.flax_judge.{name} is {value}; it must be at least 1")


def _model(weights: str, policy: Policy) -> tuple[Decoder, Any]:
    if weights == POLICY_BASE:
        return frozen_tower(policy.decoder), policy.tokenizer
    if not os.path.isdir(weights):
        raise ValueError(
            f"config.verifier.flax_judge.weights is {weights!r}, which is no folder; give the "
            f"folder of a Qwen2, Qwen2.5 or Qwen3 text checkpoint, or {POLICY_BASE!r}"
        )
    tokenizer = tokenizer_lib.load(weights, "config.verifier.flax_judge.weights")
    _, decoder = qwen_text.load(weights, put=policy.put, **policy.dtypes)
    return decoder, tokenizer
