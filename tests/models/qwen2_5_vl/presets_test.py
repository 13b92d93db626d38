"""The published sizes: every parameter is there, and lies where a mesh of 16 devices wants it."""

import math

import jax
import published
import pytest
import torch
from flax import nnx
from jax.sharding import AbstractMesh
from published_sizes import adapter_size, parameters, size_of, whole_and_share
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from speciarl_jax.models import int8
from speciarl_jax.models.qwen2_5_vl import presets
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig
from speciarl_jax.runtime import sharding

# As the model hub shows them; 72B as transformers counts it from the published dimensions.
PUBLISHED = {
    "3B": 3_754_622_976,
    "7B": 8_292_166_656,
    "32B": 33_452_718_336,
    "72B": 73_410_777_344,
}
MESHES = ((1, 16, 1), (1, 8, 2), (1, 4, 4), (2, 4, 2), (4, 4, 1), (4, 1, 4))


@pytest.mark.parametrize("size", presets.CONFIGS)
def test_a_size_has_as_many_parameters_as_the_published_weights(size):
    config = Qwen2_5_VLConfig(**presets.CONFIGS[size].to_hf())
    with torch.device("meta"):
        theirs = Qwen2_5_VLForConditionalGeneration(config)
    assert sum(p.numel() for p in theirs.parameters()) == PUBLISHED[size]
    assert sum(map(size_of, parameters(presets.CONFIGS[size]).values())) == PUBLISHED[size]


@pytest.mark.parametrize("size", presets.CONFIGS)
def test_a_size_is_read_back_from_the_config_that_transformers_makes_of_it(size):
    config = presets.CONFIGS[size]
    assert ModelConfig.from_hf(Qwen2_5_VLConfig(**config.to_hf()).to_dict()) == config


@pytest.mark.parametrize("size", published.CONFIGS)
def test_the_published_config_gives_the_dimensions_of_its_size(size):
    settings = published.CONFIGS[size]
    assert ModelConfig.from_hf(settings) == presets.CONFIGS[size]
    assert ModelConfig.from_hf(Qwen2_5_VLConfig(**settings).to_dict()) == presets.CONFIGS[size]


def test_what_a_vision_config_leaves_out_is_what_transformers_takes():
    theirs = Qwen2_5_VLConfig().vision_config
    vision = {"hidden_size": 1280, "out_hidden_size": 5120}
    got = ModelConfig.from_hf(published.CONFIGS["32B"] | {"vision_config": vision}).vision
    for name in ("depth", "intermediate_size", "num_heads", "patch_size", "temporal_patch_size"):
        assert getattr(got, name) == getattr(theirs, name), name
    for name in ("spatial_merge_size", "window_size", "in_channels"):
        assert getattr(got, name) == getattr(theirs, name), name
    assert got.full_attention_layers == tuple(theirs.fullatt_block_indexes)


@pytest.mark.parametrize("root, text, tied", [(1, 0, True), (0, 1, True), (0, 0, False)])
def test_the_head_is_tied_if_either_part_says_so(root, text, tied):
    settings = presets.CONFIGS["7B"].to_hf() | {"tie_word_embeddings": bool(root)}
    settings["text_config"]["tie_word_embeddings"] = bool(text)
    assert ModelConfig.from_hf(settings).text.tie_word_embeddings is tied
    assert Qwen2_5_VLConfig(**settings).tie_word_embeddings is tied


@pytest.mark.parametrize(
    "root, text, found",
    [(None, 7, (7,)), ([5, 6], 7, (5, 6, 7)), (None, [8, 9], (8, 9)), (7, 7, (7,))],
)
def test_every_token_that_either_part_lists_ends_an_answer(root, text, found):
    settings = presets.CONFIGS["7B"].to_hf() | {"eos_token_id": root}
    settings["text_config"]["eos_token_id"] = text
    assert ModelConfig.from_hf(settings).eos_token_id == found


def test_an_empty_place_for_rotary_settings_leaves_them_to_the_older_one():
    settings = presets.CONFIGS["7B"].to_hf()
    text = settings["text_config"]
    text["rope_scaling"], text["rope_parameters"] = text["rope_parameters"], {}
    assert ModelConfig.from_hf(settings) == presets.CONFIGS["7B"]


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("text_config.hidden_size", "48", "'48', which must be a whole number of at least 1"),
        ("text_config.num_key_value_heads", None, "None, which must be a whole number"),
        ("text_config.num_attention_heads", 0, "0, which must be a whole number of at least 1"),
        ("text_config.rms_norm_eps", "tiny", "'tiny', which must be a number above 0"),
        ("text_config.rope_parameters", [1], r"\[1\], which must be an object"),
        ("vision_config.depth", None, "None, which must be a whole number"),
        ("vision_config.depth", True, "True, which must be a whole number"),
        ("vision_config.fullatt_block_indexes", [7, "8"], r"\[7, '8'\], which must be a list"),
        ("vision_config", [], r"\[\], which must be an object"),
        ("text_config", "x", "'x', which must be an object"),
        ("image_token_id", None, "None, which must be a whole number of at least 0"),
        ("eos_token_id", "</s>", "'</s>', which must be a whole number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(key, value, said):
    settings = presets.CONFIGS["7B"].to_hf()
    *sections, name = key.split(".")
    (settings[sections[0]] if sections else settings)[name] = value
    with pytest.raises(ValueError, match=f"config.json has {key} {said}"):
        ModelConfig.from_hf(settings)


@pytest.mark.parametrize("key", ["vocab_size", "num_key_value_heads", "rms_norm_eps"])
def test_a_key_without_a_sound_default_must_be_there(key):
    settings = {name: value for name, value in published.CONFIGS["7B"].items() if name != key}
    with pytest.raises(ValueError, match=f"config.json lacks '{key}'"):
        ModelConfig.from_hf(settings)


def test_what_transformers_takes_for_granted_agrees():
    """Its defaults are those of 72B, but for a few that the published files set."""
    theirs, config = Qwen2_5_VLConfig(), presets.CONFIGS["72B"]
    text, vision = theirs.text_config, theirs.vision_config
    for mine, name in {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
    }.items():
        assert getattr(config.text, mine) == getattr(text, name), mine
    assert config.text.rope_theta == text.rope_parameters["rope_theta"]
    for name in ("depth", "num_heads", "patch_size", "temporal_patch_size", "window_size"):
        assert getattr(config.vision, name) == getattr(vision, name), name
    assert config.vision.full_attention_layers == tuple(vision.fullatt_block_indexes)
    for name in ("image", "video", "vision_start", "vision_end"):
        assert getattr(config, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name
    assert config.eos_token_id == (text.eos_token_id,)


def test_lora_of_the_paper_has_the_parameters_of_every_linear_layer():
    hidden, kv, mlp = 3584, 512, 18944
    a_layer = 2 * 64 * (hidden + hidden) + 2 * 64 * (hidden + kv) + 3 * 64 * (hidden + mlp)
    assert adapter_size(presets.CONFIGS["7B"], 64) == 28 * a_layer == 161_480_704


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("size", presets.CONFIGS)
def test_every_parameter_of_every_size_lies_on_a_mesh_of_16_devices(size, sizes):
    parts = math.prod(sizes[1:])
    whole, on_a_chip = whole_and_share(presets.CONFIGS[size], sizes)
    # Norms and biases are cut on one axis of the mesh only.
    assert whole / parts <= on_a_chip < 1.005 * whole / parts


@pytest.mark.parametrize("sizes", MESHES)
def test_int8_weights_lie_where_their_kernels_would(sizes):
    mesh = AbstractMesh(sizes, sharding.AXES)
    state = nnx.State({"q": parameters(presets.CONFIGS["7B"])["decoder", "layers", "q"]})
    [want] = jax.tree.leaves(sharding.shardings_of(mesh, state))
    quantized = jax.eval_shape(lambda state: jax.tree.map(int8.quantize, state), state)
    values, scales = jax.tree.leaves(sharding.shardings_of(mesh, quantized))
    assert values == want and values.shard_shape((28, 3584, 3584)) != (28, 3584, 3584)
    assert scales.shard_shape((28, 1, 3584)) == (28, 1, 3584 // mesh.shape["tensor"])
