"""The image processor of a checkpoint folder: read wherever it stands, and refused if odd."""

import json

import numpy as np
import published
import pytest
from transformers import Qwen2VLImageProcessorPil

from speciarl_jax.data import image_processor

PATCH, MERGE = 4, 2
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (24, 32, 3)).astype(np.uint8)


def make_processor():
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        size={"shortest_edge": 64, "longest_edge": 24 * 32},
    )


def test_the_image_processor_of_a_folder_is_read_back(tmp_path):
    make_processor().save_pretrained(tmp_path)
    read = image_processor.load(tmp_path)
    image = IMAGE
    want = make_processor()(images=[image], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(read(images=[image], return_tensors="np")["pixel_values"], want)


def test_a_folder_without_an_image_processor_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no preprocessor_config.json"):
        image_processor.load(tmp_path)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("preprocessor_config.json", "{", "preprocessor_config.json is no JSON"),
        ("processor_config.json", "{", "processor_config.json is no JSON"),
        ("preprocessor_config.json", "{}", "preprocessor_config.json describes no image proc"),
        (
            "preprocessor_config.json",
            json.dumps(published.IMAGE_PROCESSOR | {"image_processor_type": "CLIPImageProcessor"}),
            "preprocessor_config.json describes a CLIP.*Qwen2VLImageProcessor",
        ),
        ("processor_config.json", '{"processor_class": "X"}', "holds no preprocessor_config"),
    ],
)
def test_a_file_that_describes_no_image_processor_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        image_processor.load(tmp_path)


def test_the_image_processor_inside_a_processor_is_read(tmp_path, published_folder):
    nested = {
        "image_processor": published.IMAGE_PROCESSOR,
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    image = np.resize(IMAGE, (40, 60, 3))
    for most in (None, 56 * 56):
        want, got = (
            image_processor.load(folder, most)(images=[image], return_tensors="np")
            for folder in (published_folder, tmp_path)
        )
        np.testing.assert_array_equal(got["pixel_values"], want["pixel_values"])


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "preprocessor_config.json").write_text(json.dumps(published.IMAGE_PROCESSOR))
    return folder


def test_a_limit_below_what_small_images_are_enlarged_to_is_refused(published_folder):
    assert image_processor.load(published_folder).size["longest_edge"] == 12845056
    assert image_processor.load(published_folder, 3136).size["longest_edge"] == 3136
    assert image_processor.load(published_folder, 10**9).size["longest_edge"] == 12845056
    with pytest.raises(ValueError, match="config.data.max_pixels is 3135, but .* 3136 pixels"):
        image_processor.load(published_folder, 3135)


def settings_with(**changes):
    """Published settings of the image processor without limits of pixels, and these instead."""
    kept = {k: v for k, v in published.IMAGE_PROCESSOR.items() if not k.endswith("_pixels")}
    return json.dumps(kept | changes)


@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 6272, "max_pixels": 50176},
        {"size": {"shortest_edge": 6272, "longest_edge": 50176}},
        {"size": {"min_pixels": 6272, "max_pixels": 50176}},
        {"size": {"min_pixels": 6272}, "max_pixels": 50176},
        {"size": {"shortest_edge": 1, "longest_edge": 2}, "min_pixels": 6272, "max_pixels": 50176},
        {"size": None, "min_pixels": 6272, "max_pixels": 50176},
    ],
)
@pytest.mark.parametrize("kind", ["Qwen2VLImageProcessorFast", "Qwen2_5_VLImageProcessor"])
def test_limits_of_pixels_are_read_wherever_a_file_has_them(tmp_path, limits, kind):
    text = settings_with(image_processor_type=kind, **limits)
    (tmp_path / "preprocessor_config.json").write_text(text)
    processor = image_processor.load(tmp_path)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (6272, 50176)
    for side, (height, width) in ((30, (84, 84)), (900, (224, 224))):
        image = np.resize(IMAGE, (side, side, 3))
        found = processor(images=[image], return_tensors="np")["image_grid_thw"][0]
        assert found.tolist() == [1, height // 14, width // 14]
    smaller = image_processor.load(tmp_path, 6272)
    assert smaller.size["longest_edge"] == 6272


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"size": 224}, "has size 224, which must be an object"),
        ({"size": {"min_pixels": "many"}}, "has min_pixels 'many', which must be a whole number"),
        ({"max_pixels": 0}, "has max_pixels 0, which must be a whole number"),
        ({"min_pixels": 9000, "max_pixels": 800}, "has min_pixels 9000 above max_pixels 800"),
        ({"image_processor_type": "Qwen3VLImageProcessor"}, "describes a Qwen3VLImageProcessor"),
        ({"crop_size": "q"}, "makes no image processor \\(Could not convert size"),
        ({"image_mean": "x" * 999}, "makes no image processor"),
        ({"patch_size": "14"}, "makes no image processor"),
    ],
)
def test_a_processor_with_odd_settings_is_refused_in_one_line(tmp_path, changes, said):
    (tmp_path / "preprocessor_config.json").write_text(settings_with(**changes))
    with pytest.raises(ValueError, match=f"preprocessor_config.json {said}") as refused:
        image_processor.load(tmp_path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700
