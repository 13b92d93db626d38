"""The published sizes of Qwen2.5-VL (arXiv 2502.13923, table 1), without weights."""

from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig

# hidden, layers, heads, key-value heads, intermediate, vocabulary, tied head, vision intermediate
_DIMENSIONS = {
    "3B": (2048, 36, 16, 2, 11008, 151_936, True, 3420),
    "7B": (3584, 28, 28, 4, 18944, 152_064, False, 3420),
    "32B": (5120, 64, 40, 8, 27648, 152_064, False, 3456),
    "72B": (8192, 80, 64, 8, 29568, 152_064, False, 3456),
}


def _config(hidden, layers, heads, kv_heads, mlp, vocabulary, tied, vision_mlp) -> ModelConfig:
    return ModelConfig(
        text=TextConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            tie_word_embeddings=tied,
        ),
        vision=VisionConfig(
            depth=32,
            hidden_size=1280,
            intermediate_size=vision_mlp,
            num_heads=16,
            out_hidden_size=hidden,
        ),
    )


# Size -> dimensions, as in its `config.json`. They serve plans and abstract programs
# (`nnx.eval_shape`); a checkpoint brings its own.
CONFIGS = {size: _config(*row) for size, row in _DIMENSIONS.items()}
