"""The published sizes of dense Qwen3-VL (arXiv 2511.21631), without weights."""

from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.qwen3_vl.config import ModelConfig, VisionConfig

# depth, width, intermediate, blocks whose states become features
_SMALL_ENCODER = (24, 1024, 4096, (5, 11, 17))
_LARGE_ENCODER = (27, 1152, 4304, (8, 16, 24))
# hidden, layers, heads, intermediate, tied head, encoder
_DIMENSIONS = {
    "2B": (2048, 28, 16, 6144, True, _SMALL_ENCODER),
    "4B": (2560, 36, 32, 9728, True, _SMALL_ENCODER),
    "8B": (4096, 36, 32, 12288, False, _LARGE_ENCODER),
    "32B": (5120, 64, 64, 25600, False, _LARGE_ENCODER),
}


def _config(hidden, layers, heads, mlp, tied, encoder) -> ModelConfig:
    depth, width, vision_mlp, deepstack = encoder
    return ModelConfig(
        text=TextConfig(
            vocab_size=151_936,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=8,
            mrope_section=(24, 20, 20),
            rope_theta=5_000_000.0,
            max_position_embeddings=262_144,
            head_dim_override=None if heads * 128 == hidden else 128,
            tie_word_embeddings=tied,
            qkv_bias=False,
            qk_norm=True,
            mrope_interleaved=True,
        ),
        vision=VisionConfig(
            depth=depth,
            hidden_size=width,
            intermediate_size=vision_mlp,
            num_heads=16,
            out_hidden_size=hidden,
            deepstack_layers=deepstack,
        ),
    )


# Size -> dimensions, as in its `config.json`. They serve plans and abstract programs
# (`nnx.eval_shape`); a checkpoint brings its own.
CONFIGS = {size: _config(*row) for size, row in _DIMENSIONS.items()}
