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
SIZES = tuple(_DIMENSIONS)


def config(size: str) -> ModelConfig:
    """Returns the dimensions of a published size, one of `SIZES`, as in its `config.json`.

    They serve plans and abstract programs (`nnx.eval_shape`); a checkpoint brings its own.

    Raises:
      ValueError: no such size.
    """
    if size not in _DIMENSIONS:
        raise ValueError(f"Qwen2.5-VL was not published as {size!r}; choose one of {SIZES}")
    hidden, layers, heads, kv_heads, mlp, vocabulary, tied, vision_mlp = _DIMENSIONS[size]
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
        image_token_id=151_655,
        video_token_id=151_656,
        vision_start_token_id=151_652,
        vision_end_token_id=151_653,
        eos_token_id=(151_645,),
    )
