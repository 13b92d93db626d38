"""Open-world metrics (Conti et al., ICCV 2025) of free-form answers, without a label tree.

  text_inclusion       the lower-cased truth is a part of the lower-cased answer
  judge_inclusion      a language model says that the answer names the truth
  semantic_similarity  cosine of the sentence embeddings of truth and answer
  concept_similarity   the largest cosine of the truth with the answer or one of its noun chunks

The answer is the content of the answer tags, or the whole response if no answer can be read. Noun
chunks are found by a rule, not by a parser (`noun_chunks`).
"""

import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import tokenizers

from speciarl_jax.evaluation import results
from speciarl_jax.evaluation.predictions import GREEDY, Part
from speciarl_jax.models import sentence_encoder
from speciarl_jax.verifiers import http_judge, parsing
from speciarl_jax.verifiers.category import Category

# Words between noun chunks: articles, pronouns, prepositions, conjunctions, auxiliaries, and verbs
# that often describe images.
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
_ROUND = 16  # texts are padded to a multiple of so many tokens: few programs are compiled


def noun_chunks(text: str) -> list[str]:
    """Finds the different runs of words between punctuation and the words of `_BETWEEN`.

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
    """Computes sentence embeddings with a BERT encoder such as all-MiniLM-L6-v2."""

    def __init__(self, folder: str | pathlib.Path):
        """Reads the weights and the tokenizer.

        Raises:
          ValueError: the folder holds no encoder of that kind, or no `tokenizer.json`.
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
        """Returns the embeddings of `texts`, float32 [len(texts), D], of length 1."""
        encoded = [e.ids for e in self._tokenizer.encode_batch(list(texts))]
        # Sorted by length, batches have little padding and few shapes.
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            length = -(-len(encoded[chosen[-1]]) // _ROUND) * _ROUND
            tokens_BS = np.zeros((_BATCH, length), np.int32)
            mask_BS = np.zeros((_BATCH, length), bool)
            mask_BS[:, 0] = True  # rows that pad the batch need one token, too
            for row, i in enumerate(chosen):
                tokens_BS[row, : len(encoded[i])] = encoded[i]
                mask_BS[row, : len(encoded[i])] = True
            vectors_BD = np.asarray(self._program(self._weights, tokens_BS, mask_BS))
            found |= {i: vectors_BD[row] for row, i in enumerate(chosen)}
        return np.stack([found[i] for i in range(len(texts))])


def similarities(
    pairs: Sequence[tuple[str, str]], encode: Callable[[Sequence[str]], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the semantic and the concept similarity of pairs, float [len(pairs)] each.

    Args:
      pairs: (truth, answer).
      encode: texts -> embeddings of length 1, [len(texts), D].
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


# Pairs (truth, answer) -> whether the answer names the truth, None without a verdict.
Judge = Callable[[Sequence[tuple[str, str]]], list[bool | None]]


def make_judge(config: ml_collections.ConfigDict) -> Judge:
    """Connects to the judge of `config.verifier.http_judge`, with the prompt `inclusion_v1`.

    That section also names the cache of verdicts, and says how a failing judge is asked again.
    Options are checked here, before anything is sampled; no request is sent yet.

    Raises:
      ValueError: an option that does not fit.
    """
    options = config.verifier.http_judge.to_dict() | {"prompt": "inclusion_v1"}
    del options["path"]
    client = http_judge.connect((), **options)

    def judge(pairs):
        names = [tuple(map(parsing.normalize, pair)) for pair in pairs]
        verdicts = client.judge_pairs(names)
        # The prompt offers two verdicts; any other one is no inclusion either.
        included = (Category.SPECIFIC, Category.MORE_SPECIFIC)
        return [None if verdicts[n] is None else verdicts[n] in included for n in names]

    return judge


def measure(
    lines: results.Lines,
    encode: Callable[[Sequence[str]], np.ndarray] | None = None,
    judge: Judge | None = None,
) -> dict[str, float]:
    """Computes the metrics of greedy answers, averaged over images.

    Args:
      lines: of `predictions.jsonl`; at least one.
      encode: as for `similarities`; None leaves both similarities out.
      judge: None leaves judge inclusion out. Its mean is over answers with a verdict;
        "judge_unverified" is the share of the others.
    """
    said = [line["responses"][0] for line in lines]
    texts = [parsing.extract(response) or response.strip() for response in said]
    pairs = [(line["label"], text) for line, text in zip(lines, texts, strict=True)]
    included = [truth.lower() in text.lower() for truth, text in pairs]
    found = {"text_inclusion": float(np.mean(included))}
    if judge:
        verdicts = judge(pairs)
        known = [x for x in verdicts if x is not None]
        found["judge_unverified"] = 1 - len(known) / len(verdicts)
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
    """Computes `measure` of each greedy part."""
    return {
        part: measure(lines, encode, judge)
        for part, lines in parts.items()
        if part.decoding == GREEDY and lines
    }


def asked_for(given: Any, config: ml_collections.ConfigDict) -> Callable[..., Any] | None:
    """Returns what computes the metrics that the flags of `evaluate` ask for, or None."""
    encoder = Encoder(given.embeddings) if given.embeddings else None
    asked = given.judge_inclusion and jax.process_index() == 0
    judge = make_judge(config) if asked else None
    wanted = given.open_world or encoder or judge
    return functools.partial(of_parts, encode=encoder, judge=judge) if wanted else None
