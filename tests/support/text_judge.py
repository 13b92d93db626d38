"""Random text checkpoints with tokenizers, for judges; and the same model in torch."""

import json
import pathlib

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from examples.pretrain import train_tokenizer

# Qwen2.5 calls itself qwen2; its small models have what is below.
SMALL_2_5 = {
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 1,
}
FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen2.5": (Qwen2Config, Qwen2ForCausalLM, SMALL_2_5),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 12, "tie_word_embeddings": True}),
}


def make_tokenizer(folder: pathlib.Path, vocab_size: int, texts) -> None:
    """A byte-level BPE with Qwen's special tokens and chat template."""
    train_tokenizer.train(texts, vocab_size, folder)


def make_judge(folder: pathlib.Path, family: str, tokenizer_folder: pathlib.Path, seed: int = 0):
    """Writes a random checkpoint with the tokenizer of another folder; returns the torch model."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(folder)
    config_class, model_class, changes = FAMILIES[family]
    options = {
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    torch.manual_seed(seed)
    model = model_class(
        config_class(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            **options | changes,
        )
    )
    model = model.float().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == family.split(".")[0]
    return model


def torch_logp(model, context: list[int], continuation: list[int]) -> float:
    """Log-likelihood of some tokens behind others, by transformers."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + continuation])).logits[0].double()
    logp = torch.log_softmax(logits, dim=-1).numpy()
    at = np.arange(len(continuation)) + len(context) - 1
    return float(logp[at, continuation].sum())
