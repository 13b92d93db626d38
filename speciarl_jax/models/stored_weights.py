"""Questions about the weights of a checkpoint folder that its files answer without a model."""

import dataclasses
import functools
import hashlib
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging

from speciarl_jax.models import safetensors_io
from speciarl_jax.models.checkpoints.hf_names import short_name

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Bytes of a tensor that are compared or read at once.
_BLOCK_BYTES = 2**26
# A fingerprint reads so many numbers of a larger tensor, as blocks of rows at even distances.
_SAMPLE_SIZE, _SAMPLES = 2**17, 4


def untied_if_stored(config: Any, folder: pathlib.Path) -> Any:
    """Returns the configuration with an untied head where the checkpoint stores one of its own.

    Some writers set `tie_word_embeddings` and store `lm_head.weight` all the same. Equal to the
    embedding it is a copy; otherwise it is the head, as transformers takes it.

    Args:
      config: dimensions with `tie_word_embeddings`, or with a part `text` that has it.

    Raises:
      ValueError: the files of the weights cannot be read.
    """
    text = getattr(config, "text", config)
    weights = any((folder / file).exists() for file in safetensors_io.ENTRIES)
    if not text.tie_word_embeddings or not weights or not _has_own_head(_stamps(folder)):
        return config
    logging.warning(
        "%s stores a head (%s) that differs from the embedding, although config.json ties them "
        "(tie_word_embeddings); the stored head is used",
        *(folder, HEAD),
    )
    text = dataclasses.replace(text, tie_word_embeddings=False)
    return text if not hasattr(config, "text") else dataclasses.replace(config, text=text)


def fingerprint(folder: str | pathlib.Path) -> str:
    """Identifies the weights of a checkpoint by samples of every tensor.

    It stays the same under other file names, other cuts into files, the other layout of tensor
    names, a second copy of a tied head, and a cast from bfloat16 to float32 or back.

    Raises:
      ValueError: the files of the weights cannot be read.
    """
    return _fingerprint(_stamps(pathlib.Path(folder)))


def _stamps(folder: pathlib.Path) -> tuple[Any, ...]:
    """Returns the folder with sizes and times of its weights, by which answers are remembered."""
    files = sorted(folder.glob("*.safetensors*"))
    return (folder, *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=16)
def _has_own_head(stamps: tuple[Any, ...]) -> bool:
    reader = safetensors_io.Reader(stamps[0])
    stored = {short_name(name): name for name in reader}
    if HEAD not in stored or EMBEDDING not in stored:
        return False
    head, embedding = (reader.header(stored[name]) for name in (HEAD, EMBEDDING))
    if head.shape != embedding.shape:
        return True
    at_once = max(1, _BLOCK_BYTES * head.shape[0] // max(1, head.nbytes))
    for first in range(0, head.shape[0], at_once):
        rows = (slice(first, min(first + at_once, head.shape[0])),)
        pair = (reader.read(stored[name], rows) for name in (HEAD, EMBEDDING))
        if not np.array_equal(*(part.astype(np.float32) for part in pair)):
            return True
    return False


@functools.lru_cache(maxsize=16)
def _fingerprint(stamps: tuple[Any, ...]) -> str:
    reader = safetensors_io.Reader(stamps[0])
    found = {short_name(name): _sample(reader, name) for name in reader}
    head = found.pop(HEAD, None)
    # A head that is the embedding is no second tensor, under whichever name it is stored.
    if head is not None and found.setdefault(EMBEDDING, head) != head:
        found[HEAD] = head
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:32]


def _sample(reader: safetensors_io.Reader, name: str) -> str:
    header = reader.header(name)
    digest = hashlib.sha256(repr(header.shape).encode())
    parts = [()]
    if header.shape and (size := math.prod(header.shape)) > _SAMPLE_SIZE:
        rows = header.shape[0]
        count = max(1, rows * _SAMPLE_SIZE // size // _SAMPLES)
        firsts = np.linspace(0, rows - count, min(_SAMPLES, rows)).astype(int)
        parts = [(slice(int(first), int(first) + count),) for first in firsts]
    for part in parts:
        # Rounded, so that a checkpoint and its cast are the same weights.
        digest.update(reader.read(name, part).astype(ml_dtypes.bfloat16).tobytes())
    return digest.hexdigest()
