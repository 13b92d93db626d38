"""Loads the tokenizer of a checkpoint, and maps its tokens to bytes."""

import pathlib

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from speciarl_jax.models import safetensors_io

# The special tokens of Qwen2.5-VL.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def load(folder: str | pathlib.Path, key: str = "config.model.path") -> PreTrainedTokenizerBase:
    """Reads the tokenizer of a checkpoint folder.

    The chat template comes from `chat_template.jinja`, else from `chat_template.json`, else from
    `tokenizer_config.json`. Published Qwen2.5-VL folders have the last two: that of
    `chat_template.json` handles images, that of `tokenizer_config.json` text only.

    Args:
      folder: holds `tokenizer.json`.
      key: the configuration key that error messages name.

    Raises:
      ValueError: the folder holds no tokenizer, a damaged one, or one without a chat template.
    """
    folder = pathlib.Path(folder)
    remedy = f"point {key} at a checkpoint folder with weights, tokenizer and image processor"
    safetensors_io.read_json(folder / "tokenizer.json", remedy)
    if (folder / "tokenizer_config.json").exists():
        safetensors_io.read_json(folder / "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(
            f"{folder / 'tokenizer.json'} and tokenizer_config.json make no tokenizer ({error}); "
            "download them again"
        ) from error
    legacy = folder / "chat_template.json"
    if legacy.exists() and not (folder / "chat_template.jinja").exists():
        tokenizer.chat_template = safetensors_io.read_json(legacy).get("chat_template")
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer in {folder} has no chat template; add chat_template.jinja")
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Returns the id of a token that must exist. ValueError: the vocabulary lacks it."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}, which Qwen2.5-VL prompts need")
    return found


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[bytes]:
    """Returns the bytes of each token of a byte-level BPE; special tokens have none.

    Args:
      tokenizer: with a byte-level alphabet (GPT-2's mapping of bytes to printable characters).
      vocab_size: rows of the model's head; may be larger than the number of tokens.

    Returns:
      `vocab_size` byte strings; an id without a token has an empty one.

    Raises:
      ValueError: the tokenizer has more tokens than `vocab_size`, or is not byte-level.
    """
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


def banned_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_id: int) -> np.ndarray:
    """Marks the tokens that a completion may never hold, bool [V].

    They are all special tokens except `eos_id`, and ids without a token.
    """
    banned = np.ones(vocab_size, bool)
    banned[list(tokenizer.get_vocab().values())] = False
    banned[tokenizer.all_special_ids] = True
    banned[[token_id(tokenizer, token) for token in SPECIAL_TOKENS]] = True
    banned[eos_id] = False
    return banned
