"""The encoder of the published 8B on TPU: its heads of 72 are no multiple of the kernel's lanes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speciarl_jax.models.decoder import splash
from speciarl_jax.models.qwen3_vl import presets
from speciarl_jax.models.qwen3_vl.layout import vision_layout
from speciarl_jax.models.qwen3_vl.vision import VisionEncoder
from speciarl_jax.tools.plan import chips

pytestmark = pytest.mark.slow
VISION = presets.CONFIGS["8B"].vision


def test_the_encoder_with_its_adapters_compiles():
    """Forward and backward, with the kernel that stores no scores and the whole position table."""
    config = dataclasses.replace(VISION, depth=2, deepstack_layers=(0,))
    options = {"attention": "splash", "lora_rank": 8, "lora_targets": ("encoder", "merger")}
    _, devices = chips.devices("v5e:2x2")
    layout = vision_layout([[(32, 24), (16, 16)]], config)
    patches = layout.image_BS.shape[1]

    def abstract(tree, dtype=None):
        where = jax.sharding.SingleDeviceSharding(np.ravel(devices)[0])
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=where), tree
        )

    encoder = nnx.eval_shape(lambda: VisionEncoder(config, **options, rngs=nnx.Rngs(0)))
    graphdef, adapters, base = nnx.split(encoder, nnx.LoRAParam, ...)

    def total(adapters, base, patches_BSC, layout):
        features = nnx.merge(graphdef, adapters, base)(patches_BSC, layout)
        return jnp.sum(features.astype(jnp.float32))

    images = abstract(jax.ShapeDtypeStruct((1, patches, config.patch_dim), jnp.float32))
    lowered = jax.jit(jax.grad(total)).lower(
        abstract(adapters), abstract(base), images, abstract(layout)
    )
    assert config.head_dim == 72 and "tpu_custom_call" in lowered.as_text()
    text = lowered.compile().as_text()
    assert "tpu_custom_call" in text
    assert f"{config.num_heads},{patches},{patches}]" not in text, "scores are stored"


def test_heads_of_72_attend_as_in_xla():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 20, 2, 72)), jnp.float32) for _ in range(3))
    segment = jnp.asarray([[1] * 8 + [2] * 9 + [0] * 3])
    same = segment[:, None, :, None] == segment[:, None, None, :]
    want = jax.nn.dot_product_attention(q, k, v, mask=same)
    got = splash.full(q, k, v, segment, "splash_interpret")
    np.testing.assert_allclose(got[:, :17], want[:, :17], atol=2e-5)
