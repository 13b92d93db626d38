"""Loading a checkpoint's tokenizer, what its tokens mean as bytes, and training a small one."""

import pathlib
from collections.abc import Iterable

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from speciarl_jax.models import safetensors_io

# Qwen2.5-VL's own, so that prompts and checkpoints are handled alike.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ANSWER_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def load(folder: str | pathlib.Path, key: str = "config.model.path") -> PreTrainedTokenizerBase:
    """Reads the tokenizer of a checkpoint folder; `key` is what errors tell to mend.

    Its chat template is that of `chat_template.jinja`, else of `chat_template.json`, else of
    `tokenizer_config.json`. The published Qwen2.5-VL folders have two: the second writes images,
    and is read by the processors of transformers only; the third is Qwen2.5's, for text alone.

    Raises:
      ValueError: the folder holds no tokenizer, a damaged one, or one without a chat template.
    """
    folder = pathlib.Path(folder)
    if not (folder / "tokenizer.json").exists():
        raise ValueError(
            f"{folder} holds no tokenizer.json; point {key} at a checkpoint folder "
            "with weights, tokenizer and preprocessor_config.json"
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            safetensors_io.read_json(folder / name)
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
    """The id of a token that must exist.

    Raises:
      ValueError: the vocabulary lacks it.
    """
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}, which Qwen2.5-VL prompts need")
    return found


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[bytes]:
    """The bytes of each token of a byte-level BPE; special tokens have none.

    Args:
      tokenizer: with a byte-level alphabet (GPT-2's mapping of bytes to printable characters).
      vocab_size: rows of the model's head, which may be more than the tokenizer's tokens.

    Returns:
      `vocab_size` byte strings; ids without a token are empty.

    Raises:
      ValueError: the tokenizer has more tokens than `vocab_size`, or is not byte-level.
    """
    alphabet = {character: byte for byte, character in _byte_alphabet().items()}
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
    """Which tokens an answer may never hold: special ones but the end, and ids without a token.

    Returns:
      bool [V].
    """
    banned = np.ones(vocab_size, bool)
    banned[list(tokenizer.get_vocab().values())] = False
    banned[tokenizer.all_special_ids] = True
    banned[[token_id(tokenizer, token) for token in SPECIAL_TOKENS]] = True
    banned[eos_id] = False
    return banned


def train(texts: Iterable[str], vocab_size: int, folder: str | pathlib.Path) -> None:
    """Trains a byte-level BPE in the manner of Qwen2 and writes it to `folder`.

    Args:
      texts: what the model will read and write.
      vocab_size: tokens in all, special ones and answer tags included.
      folder: receives `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # Words with their space, numbers by digit, punctuation and line ends apart.
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(ANSWER_TAGS),
        initial_alphabet=sorted(_byte_alphabet().values()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ANSWER_TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


# The turns of Qwen's chat format; an image is one placeholder between its two markers.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def _byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level BPE."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in alphabet)
    alphabet.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return alphabet
