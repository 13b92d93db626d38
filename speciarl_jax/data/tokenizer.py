"""Loads the tokenizer of a checkpoint, and maps its tokens to bytes."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from absl import logging

from speciarl_jax.models import safetensors_io
from speciarl_jax.runtime.messages import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The special tokens of Qwen's policies.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Files that transformers reads besides, if they are there.
_BESIDE = ("chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "merges.txt")


def load(folder: str | pathlib.Path, key: str = "config.model.path") -> "PreTrainedTokenizerBase":
    """Reads the tokenizer of a checkpoint folder.

    The chat template comes from `chat_template.jinja`, else from `chat_template.json`, else from
    `tokenizer_config.json`. Published folders have the last two: that of
    `chat_template.json` handles images, that of `tokenizer_config.json` text only.

    Args:
      folder: holds `tokenizer.json`.
      key: the configuration key that error messages name.

    Raises:
      ValueError: the folder holds no tokenizer, a damaged one, or one without a chat template.
    """
    # Seconds that no refusal of a configuration should wait for.
    from transformers import AutoTokenizer

    folder = pathlib.Path(folder)
    remedy = f"point {key} at a checkpoint folder with weights, tokenizer and image processor"
    safetensors_io.read_json(folder / "tokenizer.json", remedy)
    if (folder / "tokenizer_config.json").exists():
        safetensors_io.read_json(folder / "tokenizer_config.json")
    for path in (folder / name for name in _BESIDE):
        if path.is_file() and (said := safetensors_io.pointer(path)):
            raise ValueError(said)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(
            f"{folder / 'tokenizer.json'} and tokenizer_config.json make no tokenizer "
            f"({first_line(error)}); download them again"
        ) from error
    legacy = folder / "chat_template.json"
    if legacy.exists() and not (folder / "chat_template.jinja").exists():
        tokenizer.chat_template = safetensors_io.read_json(legacy).get("chat_template")
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer in {folder} has no chat template; add chat_template.jinja")
    return tokenizer


def token_id(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    """Returns the id of a token that must exist. ValueError: the vocabulary lacks it."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}, which prompts with images need")
    return found


def token_bytes(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> list[bytes]:
    """Returns the bytes of each token of a byte-level BPE; special tokens have none.

    Args:
      tokenizer: with a byte-level alphabet (GPT-2's mapping of bytes to printable characters).
      vocab_size: rows of the model's head; may be larger than the number of tokens.

    Returns:
      `vocab_size` byte strings; an id without a token has an empty one.

    Raises:
      ValueError: the tokenizer has more tokens than `vocab_size`, or is not byte-level.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
    special = set(tokenizer.all_special_ids)
    added = tokenizer.get_added_vocab()
    found = [b""] * vocab_size
    for token, index in tokenizer.get_vocab().items():
        if index >= vocab_size:
            raise ValueError(
                f"token {token!r} has id {index}, but the model's head has {vocab_size} rows; "
                "is this the tokenizer of this checkpoint?"
            )
        if index in special:
            continue
        if token in added:
            found[index] = token.encode()
            continue
        try:
            found[index] = bytes(alphabet[character] for character in token)
        except KeyError as error:
            raise ValueError(
                f"token {token!r} holds {error}, which no byte-level BPE does; the in-graph "
                "verifier needs a byte-level tokenizer"
            ) from None
    return found


def end_ids(
    tokenizer: "PreTrainedTokenizerBase", listed: Sequence[int], vocab_size: int
) -> tuple[int, ...]:
    """Lists the tokens that end a completion: the chat template's own, then those of the files.

    A template's end of turn that the tokenizer does not count among its special tokens becomes one
    of them: it is no text.

    Args:
      listed: `eos_token_id` of config.json and generation_config.json.
      vocab_size: rows of the model's head. A listed token beyond them can never be sampled, and is
        passed over.

    Raises:
      ValueError: the template ends a turn with what the tokenizer has not as one token or the head
        has no row for, or neither template nor files name a token.
    """
    place = tokenizer.name_or_path
    if beyond := [token for token in listed if token >= vocab_size]:
        logging.warning(
            "%s: passed over eos_token_id %s, beyond the %d rows of the head",
            *(place, beyond, vocab_size),
        )
    listed = [token for token in listed if token < vocab_size]
    end = _end_of_turn(tokenizer, listed)
    if end is not None and end >= vocab_size:
        raise ValueError(
            f"the chat template of {place} ends a turn with token {end}, "
            f"{tokenizer.convert_ids_to_tokens(end)!r}, but the model's head has {vocab_size} "
            "rows; is this the tokenizer of this checkpoint?"
        )
    if end is None and not listed:
        raise ValueError(
            f"nothing says which token ends a completion of {place}: neither its chat template nor "
            "eos_token_id in config.json or generation_config.json; add one"
        )
    if end is not None and end not in tokenizer.all_special_ids:
        from transformers import AddedToken

        token = AddedToken(tokenizer.convert_ids_to_tokens(end), special=True, normalized=False)
        tokenizer.add_special_tokens({"additional_special_tokens": [token]}, False)
    return tuple(dict.fromkeys([*([] if end is None else [end]), *listed]))


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase", listed: Sequence[int]) -> int | None:
    """Returns the token with which the chat template ends an answer; None if it writes no end.

    Raises:
      ValueError: it ends answers with text that is no single token.
    """
    text = _text_after_answer(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *listed}
    added = set(tokenizer.get_added_vocab().values())
    for known in (special, special | added):
        for token in ids:
            if token in known:
                return token
            if token not in added and tokenizer.decode([token]).strip():
                break  # text that is no token of its own
    if text.strip():
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} ends an answer with {text.strip()!r}, "
            f"which begins with no token of its own ({tokenizer.tokenize(text)[:8]}), so the "
            "policy can never end its turn; take tokenizer.json, tokenizer_config.json and the "
            "chat template of one checkpoint"
        )
    return None


def _text_after_answer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns what the chat template writes behind an answer; "" where it writes no answers."""
    question, answer = "What is this?", "A most peculiar answer"
    for content in (question, [{"type": "text", "text": question}]):
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except (TypeError, jinja2.TemplateError):
            continue
        return text.rpartition(answer)[2] if answer in text else ""
    return ""


def banned_tokens(
    tokenizer: "PreTrainedTokenizerBase", vocab_size: int, end_ids: Sequence[int]
) -> np.ndarray:
    """Marks the tokens that a completion may never hold.

    They are all special tokens except `end_ids`, and ids without a token.

    Returns:
      bool [V].
    """
    banned = np.ones(vocab_size, bool)
    banned[list(tokenizer.get_vocab().values())] = False
    banned[tokenizer.all_special_ids] = True
    banned[[token_id(tokenizer, token) for token in SPECIAL_TOKENS]] = True
    banned[list(end_ids)] = False
    return banned
