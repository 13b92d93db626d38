"""A language model on the devices as the judge: likeliest of six verdicts, so it can say no other.

Only what could be one label is asked (`screen`), in the form of `answer.normalize`, so nothing in
an answer can end the JSON string that it stands in, or the turn. How a pair is scored is in
`verdict_scorer`.

Axes: B images, N answers, T tokens of a response, C tokens of a pair, K verdicts, A tokens of an
answer, F labels.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from absl import logging

from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models import qwen_text, safetensors_io
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.decoder.decoder import Decoder
from speciarl_jax.verifiers import label_mentions, parsing, parsing_on_device, prefilter
from speciarl_jax.verifiers.base import InGraphVerdicts
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import judge_prompt
from speciarl_jax.verifiers.judge.retokenizing_judge import ReencodingJudge
from speciarl_jax.verifiers.judge.token_reuse import Reuse
from speciarl_jax.verifiers.judge.verdict_logprobs import (
    Scorer,
    decide,
    frozen_decoder,
    make_scorer,
)
from speciarl_jax.verifiers.label_tree import label_names
from speciarl_jax.verifiers.parsing_on_device import TokenBytes

# `weights` that mean the policy's own language model without LoRA.
POLICY_BASE = "policy_base"


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a judge may take from the policy.

    Attributes:
      decoder: its language model, LoRA and all.
      tokenizer: of its checkpoint.
      put: places a judge's own parameters on the mesh (`hf_checkpoint.Put`).
      put_alone: places them on the devices of this process, for programs that it runs alone.
      dtypes: `dtype` and `param_dtype` of the policy's arithmetic and frozen weights.
    """

    decoder: Decoder
    tokenizer: Any
    put: Any
    put_alone: Any
    dtypes: Mapping[str, Any]


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
      rollouts_at_once: static, answers to each image that are judged together, for memory.
      min_probability: static; a verdict below it counts as none.
    """

    scorer: Scorer
    tokens: TokenBytes
    screen: prefilter.Screen
    reuse: Reuse
    max_answer_tokens: int = flax.struct.field(pytree_node=False)
    max_response_bytes: int = flax.struct.field(pytree_node=False)
    rollouts_at_once: int = flax.struct.field(pytree_node=False)
    min_probability: float = flax.struct.field(pytree_node=False)

    def verify(
        self, tokens_BNT: jax.Array, mask_BNT: jax.Array, label_index_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """int32 `Category` [B, N] and bool [B, N], a verdict exists; traceable."""
        category_BN, valid_BN, _ = self.judge(tokens_BNT, mask_BNT, label_index_B)
        return category_BN, valid_BN

    def verify_in_detail(
        self, tokens_BNT: jax.Array, mask_BNT: jax.Array, label_index_B: jax.Array
    ) -> InGraphVerdicts:
        """`verify`, and the probability of the likeliest verdict where the judge was asked."""
        asked_BN, answer_BN, category_BN, valid_BN, probability_BNK = self._judge(
            tokens_BNT, mask_BNT, label_index_B
        )
        largest_BN = jnp.where(asked_BN, jnp.max(probability_BNK, axis=-1), jnp.nan)
        return InGraphVerdicts(category_BN, valid_BN, largest_BN, answer_BN=answer_BN)

    def judge(
        self, tokens_BNT: jax.Array, mask_BNT: jax.Array, label_index_B: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`verify`, and the probabilities [B, N, K] of the verdicts, in order of the categories.

        Args:
          tokens_BNT: int32 responses in the policy's tokens.
          mask_BNT: bool; where False, a token is not part of the response.
          label_index_B: int32; a row whose index is no label is not valid.

        Returns:
          Category, validity and float32 probabilities: those of one verdict against
          the others. A stated verdict has probability 1; what is UNPARSED has none at all.
        """
        return self._judge(tokens_BNT, mask_BNT, label_index_B)[2:]

    def _judge(self, tokens_BNT, mask_BNT, label_index_B):
        """Whether the judge was asked, `InGraphVerdicts.answer_BN`, and what `judge` returns."""
        labels = self.scorer.truth_FC.shape[0]
        known_B1 = ((label_index_B >= 0) & (label_index_B < labels))[:, None]
        label_B = jnp.clip(label_index_B, 0, labels - 1)
        over_n = jax.vmap(self._read, in_axes=(0, 0, None))
        read_BN = jax.vmap(over_n)(tokens_BNT, mask_BNT, label_B)
        stated_BN, answer_BN, tokens_BNC, context_BNC = read_BN
        decoder, prefix = self.scorer.prefill()
        logp_NBK = jax.lax.map(
            lambda pair: self.scorer.logp(decoder, prefix, *pair),
            (tokens_BNC.swapaxes(0, 1), context_BNC.swapaxes(0, 1)),
            batch_size=self.rollouts_at_once,
        )
        category_BN, valid_BN, probability_BNK = decide(
            stated_BN, logp_NBK.swapaxes(0, 1), self.min_probability
        )
        category_BN = jnp.where(known_B1, category_BN, int(Category.UNPARSED))
        asked_BN = (stated_BN == prefilter.ASK) & known_B1
        return asked_BN, answer_BN, category_BN, valid_BN & known_B1, probability_BNK

    def _read(self, tokens_T, mask_T, label):
        """Stated verdict (or `ASK`) on one response, what is compared as its answer, and its pair
        as tokens [C] and mask [C]."""
        mask_T = mask_T.astype(bool)
        size = min(self.max_response_bytes, tokens_T.shape[0] * self.tokens.longest)
        text_L, total = parsing_on_device.spell(self.tokens, tokens_T, mask_T, size)
        owner_L, within_L, _ = parsing_on_device.owners(self.tokens, tokens_T, mask_T, size)
        stated, normal_L, kept_L = self.screen(text_L, total, label)
        answer_A, length = self.reuse(
            self.tokens, tokens_T, owner_L, within_L, normal_L, kept_L, self.max_answer_tokens
        )
        too_long = (stated == prefilter.ASK) & (length > self.max_answer_tokens)
        stated = jnp.where(too_long, int(Category.WRONG), stated)
        length = jnp.minimum(length, self.max_answer_tokens)
        answer = parsing_on_device.text_hash(normal_L, kept_L & (stated != int(Category.UNPARSED)))
        return stated, answer, *self.scorer.context(label, answer_A, length)


def create(
    token_bytes: Sequence[bytes],
    dataset_path: str | os.PathLike | None,
    *,
    policy: Policy,
    path: str,
    prompt: str,
    weights: str,
    calibration: str,
    max_words: int,
    max_answer_bytes: int,
    max_response_bytes: int,
    max_answer_tokens: int,
    rollouts_at_once: int,
    judge_batch_size: int,
    min_probability: float,
    tags: str,
) -> tuple[label_names.LabelNames, FlaxJudge | ReencodingJudge]:
    """What `config.verifier.name = "flax_judge"` stands for.

    Args:
      token_bytes: of the policy's vocabulary.
      dataset_path: label tree that the data set brings, or None.
      policy: whose language model, tokenizer and mesh may be used.
      path: names of the labels (`label_names.read`); "" for the data set's own tree.
      prompt: name or path (`load`).
      weights: folder of a Qwen2, Qwen2.5 or Qwen3 text checkpoint, or "policy_base".
      calibration: "", "content_free", or a file of offsets (`judge/calibration.py`).
      max_words: a longer answer is WRONG.
      max_answer_bytes: a longer answer is WRONG.
      max_response_bytes: a longer response is UNPARSED (in-graph only).
      max_answer_tokens: an answer of more of the judge's tokens is WRONG.
      rollouts_at_once: answers to each image judged together (in-graph), for memory.
      judge_batch_size: pairs judged together where answers are encoded anew on the host.
      min_probability: a verdict less probable than this is none; 0 takes all.
      tags: as for `answer.extract`.

    Returns:
      The names on the host, whose `leaf_index` numbers the labels, and the verifier: in-graph if
      the vocabularies agree, on the host if not.

    Raises:
      ValueError: an option or a checkpoint that does not fit.
    """
    parsing.check_tags(tags)
    if not (path or dataset_path):
        raise ValueError(
            "this data set brings no label tree; set config.verifier.flax_judge.path to a file of "
            "label names (verify/label_names.py)"
        )
    _check(max_answer_tokens=max_answer_tokens, rollouts_at_once=rollouts_at_once)
    _check(judge_batch_size=judge_batch_size, max_response_bytes=max_response_bytes)
    if not 0 <= min_probability <= 1:
        raise ValueError(
            f"config.verifier.flax_judge.min_probability is {min_probability}; it must lie between "
            "0 and 1"
        )
    labels = label_names.read(path or dataset_path)
    tokenizer, vocabulary = _vocabulary(weights, policy)
    reuse, agree = Reuse.create(token_bytes, tokenizer_lib.token_bytes(tokenizer, vocabulary))
    decoder = _decoder(weights, policy, policy.put if agree else policy.put_alone)
    asked = judge_prompt.load(prompt)
    scorer = make_scorer(decoder, tokenizer, asked, labels.names, calibration)
    limits = {
        "max_words": max_words,
        "max_answer_bytes": max_answer_bytes,
        "tags": tags,
        "labels": label_mentions.index(labels.names, labels.further),
    }
    both = {"max_answer_tokens": max_answer_tokens, "min_probability": min_probability}
    if not agree:
        logging.info("flax_judge: the judge has another vocabulary; answers are encoded anew")
        return labels, ReencodingJudge(
            scorer, labels.names, tokenizer, judge_batch_size=judge_batch_size, **limits, **both
        )
    return labels, FlaxJudge(
        scorer=scorer,
        tokens=TokenBytes.create(token_bytes),
        screen=prefilter.Screen.create(labels.names, **limits),
        reuse=reuse,
        max_response_bytes=max_response_bytes,
        rollouts_at_once=rollouts_at_once,
        **both,
    )


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"config.verifier.flax_judge.{name} is {value}; it must be at least 1")


def _vocabulary(weights: str, policy: Policy) -> tuple[Any, int]:
    """The judge's tokenizer, and how many tokens its model has."""
    if weights == POLICY_BASE:
        return policy.tokenizer, policy.decoder.config.vocab_size
    if not os.path.isdir(weights):
        raise ValueError(
            f"config.verifier.flax_judge.weights is {weights!r}, which is no folder; give the "
            f"folder of a Qwen2, Qwen2.5 or Qwen3 text checkpoint, or {POLICY_BASE!r}"
        )
    safetensors_io.refuse_gguf(weights)
    tokenizer = tokenizer_lib.load(weights, "config.verifier.flax_judge.weights")
    return tokenizer, hf_checkpoint.read_config(weights, qwen_text.config_from_hf).vocab_size


def _decoder(weights: str, policy: Policy, put: Any) -> Decoder:
    if weights == POLICY_BASE:
        return frozen_decoder(policy.decoder)
    _, decoder = qwen_text.load(weights, put=put, **policy.dtypes)
    return decoder
