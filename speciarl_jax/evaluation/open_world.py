"""The open-world metrics of Conti et al. (ICCV 2025): for free-form answers, without a label tree.

  text_inclusion       the lower-cased truth is a part of the lower-cased answer
  judge_inclusion      a language model says that the answer names the truth
  semantic_similarity  cosine of the sentence embeddings of truth and answer
  concept_similarity   the largest cosine of the truth with the answer or one of its noun chunks

The answer is what stands between the answer tags; where no answer can be read, the whole response.
Noun chunks are found by a stated rule, not by a parser: runs of words between function words,
frequent verbs of image descriptions, and punctuation (`noun_chunks`).
"""

import asyncio
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import tokenizers
from absl import logging

from speciarl_jax.evaluation import results
from speciarl_jax.evaluation.predictions import GREEDY, Part
from speciarl_jax.models import sentence_encoder
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import judge_prompt, verdict_cache
from speciarl_jax.verifiers.judge.http_client import JudgeClient, NoVerdict

# No part of a noun chunk: articles, pronouns, prepositions, conjunctions, auxiliaries, and verbs
# with which images are described.
_BETWEEN = frozenset(
    "a an the this that these those it its he she they them his her their i you we my your our "
    "one some any each every no none not and or but nor so than then as if of in on at by for "
    "with from to into onto over under above below near behind beside between against through "
    "about is are was were be been being am has have had do does did can could may might must "
    "shall should will would there here which who whom whose what where when while because very "
    "quite rather probably possibly likely perhaps maybe just only also looks look looking like "
    "appears appear seems seem shows show showing depicts depict depicting features featuring "
    "contains containing sitting standing lying holding wearing called known".split()
)
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_BATCH = 64  # texts a call of the encoder
_ROUND = 16  # tokens; a text is padded to a multiple, so that few programs are compiled


def answer_text(response: str) -> str:
    """What a response says: the content of its answer tags, or all of it."""
    return parsing.extract(response) or response.strip()


def text_inclusion(truth: str, said: str) -> bool:
    """Whether the lower-cased truth is a substring of the lower-cased answer."""
    return truth.lower() in said.lower()


def noun_chunks(text: str) -> list[str]:
    """Runs of words between punctuation and words that are no part of a noun chunk.

    "A small bird, an eagle of the sea" -> ["small bird", "eagle", "sea"].
    """
    chunks = []
    for clause in re.split(r"[^\w\s'\u2019-]+|_", text):
        run: list[str] = []
        for word in [*_WORD.findall(clause), "the"]:
            if word.lower() not in _BETWEEN:
                run.append(word)
            elif run:
                chunks.append(" ".join(run))
                run = []
    return list(dict.fromkeys(chunks))


class Encoder:
    """Sentence embeddings of texts, from a folder such as that of all-MiniLM-L6-v2."""

    def __init__(self, folder: str | pathlib.Path):
        """Reads the weights and the tokenizer.

        Raises:
          ValueError: the folder holds no such encoder, or no `tokenizer.json`.
        """
        config, weights = sentence_encoder.load(folder)
        path = pathlib.Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing; give the whole folder of the sentence encoder")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(config.max_tokens)
        self._weights = jax.device_put(weights)
        self._program = jax.jit(functools.partial(sentence_encoder.encode, config))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [len(texts), D] embeddings of length 1."""
        encoded = [e.ids for e in self._tokenizer.encode_batch(list(texts))]
        # Texts of like length together: little padding, few shapes.
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            length = -(-len(encoded[chosen[-1]]) // _ROUND) * _ROUND
            tokens_BS = np.zeros((_BATCH, length), np.int32)
            mask_BS = np.zeros((_BATCH, length), bool)
            mask_BS[:, 0] = True  # of rows that pad the batch
            for row, i in enumerate(chosen):
                tokens_BS[row, : len(encoded[i])] = encoded[i]
                mask_BS[row, : len(encoded[i])] = True
            vectors_BD = np.asarray(self._program(self._weights, tokens_BS, mask_BS))
            found |= {i: vectors_BD[row] for row, i in enumerate(chosen)}
        return np.stack([found[i] for i in range(len(texts))])


def similarities(
    pairs: Sequence[tuple[str, str]], encode: Callable[[Sequence[str]], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Semantic and concept similarity of pairs of truth and answer, float [len(pairs)] each.

    Args:
      pairs: (truth, answer).
      encode: texts -> embeddings of length 1.
    """
    concepts = [[said, *noun_chunks(said)] for _, said in pairs]
    texts = list(dict.fromkeys([t for t, _ in pairs] + [c for chunks in concepts for c in chunks]))
    place = {text: i for i, text in enumerate(texts)}
    vectors = encode(texts)
    cosines = [
        [float(vectors[place[truth]] @ vectors[place[c]]) for c in chunks]
        for (truth, _), chunks in zip(pairs, concepts, strict=True)
    ]
    return np.array([c[0] for c in cosines]), np.array([max(c) for c in cosines])


# Pairs of truth and answer -> whether the answer names the truth, None where the judge is silent.
Judge = Callable[[Sequence[tuple[str, str]]], list[bool | None]]


def make_judge(config: ml_collections.ConfigDict) -> Judge:
    """Asks the server of `config.verifier.http_judge` with the prompt `inclusion_v1`.

    Verdicts go to the cache of that section; it also says how a judge that fails is asked again.
    What is wrong with the options is found here, before anything is sampled; nothing is sent.

    Raises:
      ValueError: an option that does not fit.
    """
    options = config.verifier.http_judge
    if not options.model:
        raise ValueError("set config.verifier.http_judge.model to what the server calls the judge")
    fields = {
        name: value
        for name, value in options.decoding.items()
        if name not in ("structured", "extra_body") and value is not None
    } | options.decoding.extra_body.to_dict()
    prompt = judge_prompt.load("inclusion_v1")
    structured = options.decoding.structured
    identity = verdict_cache.Judge(options.model, prompt.text, fields | {"structured": structured})

    def client():
        return JudgeClient(
            {"model": options.model, **fields}, prompt, structured=structured, **options.server
        )

    def judge(pairs):
        cache = verdict_cache.open_cache(options.cache)
        try:
            return asyncio.run(_ask(pairs, client(), cache, identity))
        finally:
            cache.close()

    asyncio.run(client().close())
    verdict_cache.open_cache(options.cache).close()
    return judge


async def _ask(pairs, client, cache, identity) -> list[bool | None]:
    wanted = {
        pair: (parsing.normalize(pair[0]), parsing.normalize(pair[1]))
        for pair in dict.fromkeys(pairs)
    }
    keys = {names: identity.key(*names) for names in wanted.values()}
    known = _in_cache(cache.get, list(keys.values())) or {}
    verdicts: dict[tuple[str, str], Category | None] = {n: known.get(k) for n, k in keys.items()}

    async def ask(names):
        try:
            verdicts[names] = await client.ask(*names)
        except NoVerdict:
            return
        _in_cache(cache.put, identity.row(*names, verdicts[names]))

    try:
        await asyncio.gather(*(ask(names) for names, v in verdicts.items() if v is None))
    finally:
        await client.close()
    found = [verdicts[wanted[pair]] for pair in pairs]
    # The prompt offers two verdicts; the others are not an inclusion either.
    return [None if v is None else v in (Category.SPECIFIC, Category.MORE_SPECIFIC) for v in found]


def _in_cache(what: Callable, given: Any) -> Any:
    """A call of the cache; None if it fails, for a judge can do without."""
    try:
        return what(given)
    except verdict_cache.Unavailable as error:
        logging.log_every_n_seconds(
            logging.WARNING, "the verdict cache fails, going on without it: %s", 60, error
        )
        return None


def measure(
    lines: Iterable[Mapping[str, Any]],
    encode: Callable[[Sequence[str]], np.ndarray] | None = None,
    judge: Judge | None = None,
) -> dict[str, float]:
    """The metrics of greedy answers, averaged over images.

    Args:
      lines: of `predictions.jsonl`; at least one.
      encode: as for `similarities`; None leaves both similarities out.
      judge: None leaves judge inclusion out. Answers on which it is silent are left out of its
        mean, and their share is `judge_unverified`.
    """
    pairs = [(line["label"], answer_text(line["responses"][0])) for line in lines]
    found = {"text_inclusion": float(np.mean([text_inclusion(*pair) for pair in pairs]))}
    if judge:
        said = judge(pairs)
        known = [x for x in said if x is not None]
        found["judge_unverified"] = 1 - len(known) / len(said)
        if known:
            found["judge_inclusion"] = float(np.mean(known))
    if encode:
        semantic, concept = similarities(pairs, encode)
        found["semantic_similarity"] = float(semantic.mean())
        found["concept_similarity"] = float(concept.mean())
    return found


def of_parts(
    parts: Mapping[Part, results.Lines], encode: Any, judge: Judge | None
) -> dict[Part, dict[str, float]]:
    """`measure` of each greedy part."""
    return {
        part: measure(lines, encode, judge)
        for part, lines in parts.items()
        if part.decoding == GREEDY and lines
    }
