"""Files beside the weights in the form of the published folders: prompts, patches, positions."""

import json
import shutil

import numpy as np
import published
import pytest
import torch
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from speciarl_jax.data import image_processor, prompt_builder
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models import family

TOKENS = ("image_pad", "video_pad", "vision_start", "vision_end")


@pytest.fixture(scope="module")
def folder(policy_folder, tmp_path_factory):
    """A published configuration with the tokens of a small tokenizer; no weights."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copyfile(policy_folder / "tokenizer.json", folder / "tokenizer.json")
    settings = json.loads((policy_folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    vocabulary = tokenizer_lib.load(policy_folder).get_vocab()
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = published.copy_of(published.QWEN3_VL_CONFIGS["4B"])
    config |= {k: vocabulary[f"<|{t}|>"] for k, t in zip(keys, TOKENS, strict=True)}
    for name, content in {
        "tokenizer_config.json": settings,
        "config.json": config,
        "preprocessor_config.json": published.QWEN3_VL_PROCESSOR,
        "chat_template.json": {"chat_template": published.QWEN3_VL_TEMPLATE},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def builder_of(folder, **options):
    config = family.config_from_hf(json.loads((folder / "config.json").read_text()))
    processor = image_processor.load(folder)
    tokenizer = tokenizer_lib.load(folder)
    return prompt_builder.PromptBuilder(config, tokenizer, processor, "What is this?", **options)


def random_image(seed, *size):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_the_folder_gives_the_ids_and_patches_of_transformers(folder, system):
    images = [random_image(0, 275, 331), random_image(1, 300, 290)]
    batch = builder_of(folder, system=system)(
        [{"image": images, "image_id": 1, "label_index": 0}], 1
    )
    theirs = Qwen2VLImageProcessorPil.from_pretrained(folder)
    seen = theirs(images=images, input_data_format="channels_last", return_tensors="np")
    np.testing.assert_array_equal(batch.patches_BSC[0], seen["pixel_values"])
    content = [{"type": "image"}] * 2 + [{"type": "text", "text": "What is this?"}]
    messages = [{"role": "system", "content": system}] if system else []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": content}],
        chat_template=published.QWEN3_VL_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text.startswith("<|im_start|>system\nBe brief." if system else "<|im_start|>user\n<|vis")
    counts = [int(np.prod(grid)) // 4 for grid in seen["image_grid_thw"]]
    first, second, rest = text.split("<|image_pad|>")
    pads = ["<|image_pad|>" * count for count in counts]
    ids = tokenizer(first + pads[0] + second + pads[1] + rest, add_special_tokens=False)
    assert batch.tokens_BP[0].tolist() == ids["input_ids"]
    # An image token is 32 pixels a side.
    assert counts == [round(275 / 32) * round(331 / 32), round(300 / 32) * round(290 / 32)]


def test_positions_equal_those_of_transformers(folder):
    builder = builder_of(folder)
    rows = [
        {"image": random_image(seed, 256, 32 * (8 + seed)), "image_id": seed, "label_index": 0}
        for seed in range(2)
    ]
    batch = builder(rows, 2)
    settings = Qwen3VLConfig(**json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        theirs = Qwen3VLModel(settings)
    tokens = torch.tensor(batch.tokens_BP).long()
    want, delta = theirs.get_rope_index(
        input_ids=tokens,
        mm_token_type_ids=(tokens == builder.config.image_token_id).int(),
        image_grid_thw=torch.tensor([(1, 16, 16), (1, 16, 18)]),
        attention_mask=torch.tensor(batch.mask_BP).long(),
    )
    mask = batch.mask_BP
    got = batch.positions_B3P.swapaxes(0, 1)
    np.testing.assert_array_equal(got[:, mask], want.numpy()[:, mask])
    following = delta.numpy().ravel() + mask.sum(axis=1)
    np.testing.assert_array_equal(batch.next_position_B, following)
