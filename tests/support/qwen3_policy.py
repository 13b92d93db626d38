"""A tiny random Qwen3-VL on disk, with the tokenizer of another tiny policy."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import random_modules
from flax import nnx

from examples.pretrain import __main__ as pretrain
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.qwen3_vl.config import ModelConfig, VisionConfig
from speciarl_jax.models.vision_language import VisionLanguageModel

IMAGE_SIZE = 24  # pixels
TEXT = TextConfig(
    vocab_size=400,
    hidden_size=40,
    intermediate_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    mrope_section=(2, 2, 2),
    head_dim_override=12,
    tie_word_embeddings=True,
    qkv_bias=False,
    qk_norm=True,
    mrope_interleaved=True,
)
VISION = VisionConfig(
    depth=3,
    hidden_size=32,
    intermediate_size=48,
    num_heads=2,
    out_hidden_size=40,
    patch_size=3,
    num_position_embeddings=36,
    deepstack_layers=(0, 1),
)


def make_policy(folder: pathlib.Path, like: pathlib.Path) -> None:
    """Writes a random policy in the Hugging Face layout, with the tokenizer of the folder `like`.

    Its answers depend on the image, and some end early.
    """
    for pattern in ("tokenizer*", "chat_template*"):
        for path in like.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    pretrain.make_image_processor(VISION, IMAGE_SIZE).save_pretrained(folder)
    tokens = hf_checkpoint.read_config(like)
    config = ModelConfig(
        text=TEXT,
        vision=VISION,
        image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id,
        vision_start_token_id=tokens.vision_start_token_id,
        vision_end_token_id=tokens.vision_end_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    tokenizer_lib.load(folder)
    policy = random_modules.drawn(
        lambda: VisionLanguageModel(
            config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
    )
    rng = np.random.default_rng(0)
    for path, weight in nnx.to_flat_state(nnx.state(policy)):
        if weight.ndim > 1 and not path[-1].endswith(("norm", "bias", "norm1", "norm2")):
            noise = rng.normal(0, 1.5 / np.sqrt(weight.shape[-2]), weight.shape)
            weight.set_value(jnp.asarray(noise, jnp.float32))
    # The head is tied to the embedding: rows about as long as each other, but for the end's.
    table = rng.normal(0, 0.2, policy.decoder.embedding.shape)
    table[config.eos_token_id[0]] *= 3
    policy.decoder.embedding.set_value(jnp.asarray(table, jnp.float32))
    hf_checkpoint.save(folder, config, policy)
