"""The published sizes: parameters, tensors and files, and where a mesh wants them."""

import functools
import math

import published
import pytest
import torch
from published_sizes import adapter_size, parameters, size_of, whole_and_share
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from speciarl_jax.models import family
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.qwen3_vl import presets
from speciarl_jax.models.qwen3_vl.config import ModelConfig

# As the model hub shows them.
PUBLISHED = {
    "2B": 2_127_532_032,
    "4B": 4_437_815_808,
    "8B": 8_767_123_696,
    "32B": 33_357_390_064,
}
MESHES = ((1, 16, 1), (1, 4, 4), (2, 4, 2), (4, 1, 4))


@pytest.mark.parametrize("size", presets.CONFIGS)
def test_a_size_has_as_many_parameters_as_the_published_weights(size):
    assert sum(map(size_of, parameters(presets.CONFIGS[size]).values())) == PUBLISHED[size]


@pytest.mark.parametrize("size", ["2B", "8B"])
def test_names_and_shapes_are_those_of_transformers(size):
    """Tied and untied heads, and both encoders."""
    config = presets.CONFIGS[size]
    with torch.device("meta"):
        theirs = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config.to_hf()))
    want = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    got = {}
    for path, source in hf_checkpoint.sources(config).items():
        shape = parameters(config)[path].shape
        shape = shape[1:] if source.stacked else shape
        if source.layout == "patches":
            sides = config.vision.temporal_patch_size, *[config.vision.patch_size] * 2
            shape = (shape[1], config.vision.in_channels, *sides)
        if source.layout == "transposed":
            shape = shape[::-1]
        assert len(source.names) == (parameters(config)[path].shape[0] if source.stacked else 1)
        got |= dict.fromkeys(source.names, shape)
    assert got == want and sources_count(size) == len(want)


def sources_count(size):
    return sum(len(s.names) for s in hf_checkpoint.sources(presets.CONFIGS[size]).values())


def test_the_published_index_of_the_8b_encoder_and_layers_has_749_tensors():
    """Of a model without a head, as the embedding model of that size is published."""
    names = {n for s in hf_checkpoint.sources(presets.CONFIGS["8B"]).values() for n in s.names}
    assert names - {"lm_head.weight"} == published.qwen3_vl_names(layers=36, blocks=27, deepstack=3)
    assert len(names) == 750


@pytest.mark.parametrize("size", presets.CONFIGS)
def test_a_size_is_read_back_from_the_config_that_transformers_makes_of_it(size):
    config = presets.CONFIGS[size]
    assert ModelConfig.from_hf(config.to_hf()) == config
    assert ModelConfig.from_hf(Qwen3VLConfig(**config.to_hf()).to_dict()) == config


@pytest.mark.parametrize("size", published.QWEN3_VL_CONFIGS)
def test_the_published_config_gives_the_dimensions_of_its_size(size):
    settings = published.QWEN3_VL_CONFIGS[size]
    assert family.config_from_hf(settings) == presets.CONFIGS[size]
    assert family.preset(f"qwen3_vl_{size}") == presets.CONFIGS[size]


def test_what_a_vision_config_leaves_out_is_what_transformers_takes():
    theirs = Qwen3VLConfig().vision_config
    settings = published.QWEN3_VL_CONFIGS["8B"]
    got = ModelConfig.from_hf(settings | {"vision_config": {"out_hidden_size": 4096}}).vision
    for name in ("depth", "hidden_size", "intermediate_size", "num_heads", "patch_size"):
        assert getattr(got, name) == getattr(theirs, name), name
    for name in ("temporal_patch_size", "spatial_merge_size", "num_position_embeddings"):
        assert getattr(got, name) == getattr(theirs, name), name
    assert got.deepstack_layers == tuple(theirs.deepstack_visual_indexes)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("model_type", "qwen3_vl_moe", "'qwen3_vl_moe'.*'qwen3_vl'.*none of them a mixture"),
        ("text_config.num_experts", 128, "128 experts; mixtures of experts are not implemented"),
        ("text_config.rope_scaling.rope_type", "yarn", "rope type 'yarn' is not implemented"),
        ("text_config.attention_bias", True, "attention_bias, which is not implemented"),
        ("text_config.hidden_act", "gelu", "hidden_act 'gelu' is not implemented"),
        ("text_config.rope_scaling.mrope_interleaved", False, "mrope_interleaved False"),
        ("text_config.rope_scaling.mrope_section", [24, 20], "three numbers must sum to half"),
        ("text_config.hidden_size", "48", "'48', which must be a whole number of at least 1"),
        ("vision_config.hidden_act", "silu", "vision hidden_act 'silu' is not implemented"),
        ("vision_config.num_position_embeddings", 2300, "2300 is not the square"),
        ("vision_config.deepstack_visual_indexes", [8, 8], "ascending order and each once"),
        ("vision_config.deepstack_visual_indexes", [8, 27], "some of the 27 blocks"),
        ("vision_config.out_hidden_size", 3584, "3584 channels, the decoder reads 4096"),
        ("text_config.num_hidden_layers", 2, "3 blocks.*as many decoder layers.*there are 2"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_its_key(key, value, said):
    settings = published.copy_of(published.QWEN3_VL_CONFIGS["8B"])
    *sections, name = key.split(".")
    place = functools.reduce(lambda part, section: part[section], sections, settings)
    place[name] = value
    with pytest.raises(ValueError, match=said):
        family.config_from_hf(settings)


def in_rope_parameters(settings):
    """As transformers 5 writes it."""
    text = settings["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}


def tied_in_the_text_alone(settings):
    settings.pop("tie_word_embeddings")


def tied_in_the_root_alone(settings):
    settings["text_config"].pop("tie_word_embeddings")


def without_tokens(settings):
    for key in ("image", "video", "vision_start", "vision_end"):
        settings.pop(f"{key}_token_id")


@pytest.mark.parametrize(
    "change",
    [in_rope_parameters, tied_in_the_text_alone, tied_in_the_root_alone, without_tokens],
)
def test_other_versions_write_the_same_dimensions_otherwise(change):
    settings = published.copy_of(published.QWEN3_VL_CONFIGS["4B"])
    change(settings)
    assert settings != published.QWEN3_VL_CONFIGS["4B"]
    assert family.config_from_hf(settings) == presets.CONFIGS["4B"]


def test_tokens_that_a_file_leaves_out_are_those_of_transformers():
    for theirs, own in (
        (Qwen3VLConfig(), presets.CONFIGS["8B"]),
        (Qwen2_5_VLConfig(), family.preset("7b")),
    ):
        for name in ("image", "video", "vision_start", "vision_end"):
            assert getattr(own, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("size", ["4B", "8B"])
def test_every_parameter_lies_on_a_mesh_of_16_devices(size, sizes):
    parts = math.prod(sizes[1:])
    whole, on_a_chip = whole_and_share(presets.CONFIGS[size], sizes)
    # Norms, biases and the table of positions are cut on one axis of the mesh only.
    assert whole / parts <= on_a_chip < 1.01 * whole / parts


def test_adapters_lie_on_every_linear_layer_of_the_decoder():
    width, heads, kv, mlp = 2560, 32 * 128, 8 * 128, 9728
    a_layer = 2 * (width + heads) + 2 * (width + kv) + 3 * (width + mlp)
    assert adapter_size(presets.CONFIGS["4B"], 64) == 36 * 64 * a_layer


def test_an_unknown_size_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'13B'.*'qwen2_5_vl_3b'.*'qwen2_5_vl_72b'"):
        family.preset("13B")
    with pytest.raises(ValueError, match="'qwen3_vl_7b'.*'qwen3_vl_4b'"):
        family.preset("qwen3_vl_7b")
