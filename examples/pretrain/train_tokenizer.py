"""Trains a small tokenizer like Qwen2's, with the answer tags as tokens."""

import pathlib
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from speciarl_jax.data.tokenizer import SPECIAL_TOKENS
from speciarl_jax.models import load_policy

ANSWER_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def train(texts: Iterable[str], vocab_size: int, folder: str | pathlib.Path) -> None:
    """Trains a byte-level BPE like Qwen2's and writes it to `folder`.

    The chat template is that of the policy that ships with the package.

    Args:
      vocab_size: number of tokens, special tokens and answer tags included.
      folder: receives `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.
    """
    bpe = Tokenizer(models.BPE())
    # Splits words (with the space before), single digits, punctuation, and line ends.
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
        initial_alphabet=sorted(bytes_to_unicode().values()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ANSWER_TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    template = load_policy.model_folder("emoji_tiny") / "chat_template.jinja"
    tokenizer.chat_template = template.read_text()
    tokenizer.save_pretrained(folder)
