"""From pictures to a `PromptBatch`: shapes, padding, placeholders, and what is refused."""

import numpy as np
import pytest
from transformers import Qwen2VLImageProcessorPil

from speciarl_jax.data import prompts
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig

PATCH, MERGE = 4, 2
VISION = VisionConfig(
    depth=1,
    hidden_size=16,
    intermediate_size=16,
    num_heads=2,
    out_hidden_size=24,
    patch_size=PATCH,
    window_size=16,
    full_attention_layers=(0,),
)
TEXT = TextConfig(
    vocab_size=320,
    hidden_size=24,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    mrope_section=(2, 2, 2),
)
INSTRUCTION = "What is this?"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_lib.train([INSTRUCTION, "<answer>eagle</answer>"] * 5, TEXT.vocab_size, folder)
    return tokenizer_lib.load(folder)


@pytest.fixture(scope="module")
def config(tokenizer):
    tokens = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "eos_token_id": "<|im_end|>",
    }
    ids = {name: tokenizer_lib.token_id(tokenizer, token) for name, token in tokens.items()}
    return ModelConfig(text=TEXT, vision=VISION, **ids)


def make_processor(patch_size=PATCH, most_pixels=24 * 32):
    return Qwen2VLImageProcessorPil(
        patch_size=patch_size,
        merge_size=MERGE,
        size={"shortest_edge": 64, "longest_edge": most_pixels},
    )


@pytest.fixture(scope="module")
def builder(config, tokenizer):
    return prompts.PromptBuilder(config, tokenizer, make_processor(), INSTRUCTION)


def example(height=16, width=16, number=0):
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return {"image": image, "image_id": 2**31 - 1 - number, "label_index": number}


def test_shapes_and_types_of_a_batch(builder, config):
    batch = builder([example(number=n) for n in range(3)], 3)
    length = len(builder.prompt_ids(4))
    assert batch.patches_BSC.shape == (3, 16, config.vision.patch_dim)
    assert batch.patches_BSC.dtype == np.float32
    assert batch.tokens_BP.shape == batch.mask_BP.shape == (3, length)
    assert batch.tokens_BP.dtype == np.int32 and batch.mask_BP.dtype == bool
    assert batch.positions_B3P.shape == (3, 3, length)
    assert batch.next_position_B.shape == (3,)
    assert batch.layout.token_index_BM.shape == (3, 4)
    assert batch.image_id_B.dtype == np.uint32 and batch.label_index_B.dtype == np.int32
    assert batch.image_id_B.tolist() == [2**31 - 1 - n for n in range(3)]
    assert batch.label_index_B.tolist() == [0, 1, 2]
    assert batch.weight_B.tolist() == [1, 1, 1]
    assert batch.mask_BP.all()


def test_the_prompt_is_the_chat_template_with_one_placeholder_a_token(builder, config, tokenizer):
    batch = builder([example()], 1)
    text = tokenizer.decode(batch.tokens_BP[0])
    assert text == builder.text.replace("<|image_pad|>", "<|image_pad|>" * 4)
    assert text.endswith(f"{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n")
    assert not text.startswith("<|im_start|>system")


def test_a_system_message_comes_first(config, tokenizer):
    told = prompts.PromptBuilder(config, tokenizer, make_processor(), "What?", system="Be brief.")
    assert told.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_pictures_of_several_sizes_are_padded_on_the_left(builder, config):
    sizes = [(16, 16), (24, 32), (8, 8)]
    batch = builder([example(h, w) for h, w in sizes], 3)
    counts = [h * w // (PATCH * MERGE) ** 2 for h, w in sizes]
    longest = len(builder.prompt_ids(max(counts)))
    assert batch.tokens_BP.shape[1] == longest
    pad = tokenizer_lib.token_id(builder.tokenizer, "<|endoftext|>")
    for row, count in enumerate(counts):
        ids = builder.prompt_ids(count)
        assert ids.count(config.image_token_id) == count
        assert batch.mask_BP[row].tolist() == [False] * (longest - len(ids)) + [True] * len(ids)
        assert batch.tokens_BP[row, longest - len(ids) :].tolist() == ids
        assert np.all(batch.tokens_BP[row, : longest - len(ids)] == pad)
        # As many features will stand in the row as the prompt has placeholders for.
        assert (batch.layout.token_index_BM[row] >= 0).sum() == count
        assert np.all(batch.patches_BSC[row, count * MERGE**2 :] == 0)


def test_a_picture_is_the_same_alone_and_among_larger_ones(builder):
    small = example(16, 16)
    alone, among = builder([small], 1), builder([example(24, 32), small], 2)
    length = alone.tokens_BP.shape[1]
    np.testing.assert_array_equal(among.tokens_BP[1, -length:], alone.tokens_BP[0])
    np.testing.assert_array_equal(among.positions_B3P[1][:, -length:], alone.positions_B3P[0])
    np.testing.assert_array_equal(among.patches_BSC[1, :16], alone.patches_BSC[0])
    assert among.next_position_B[1] == alone.next_position_B[0]


def test_patches_are_those_of_the_image_processor(builder):
    row = example(24, 32)
    want = make_processor()(images=[row["image"]], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(builder([row], 1).patches_BSC[0], want)


def test_missing_rows_repeat_the_last_and_weigh_nothing(builder):
    batch = builder([example(number=1), example(number=2)], 5)
    assert batch.weight_B.tolist() == [1, 1, 0, 0, 0]
    assert batch.label_index_B.tolist() == [1, 2, 2, 2, 2]
    for array in (batch.tokens_BP, batch.patches_BSC, batch.positions_B3P):
        np.testing.assert_array_equal(array[4], array[1])


@pytest.mark.parametrize("count", [0, 4])
def test_too_few_or_too_many_examples_are_refused(builder, count):
    with pytest.raises(ValueError, match=f"{count} examples do not make a batch of 3"):
        builder([example()] * count, 3)


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(config, tokenizer, builder):
    length = len(builder.prompt_ids(4))

    def limited(limit):
        return prompts.PromptBuilder(
            config, tokenizer, make_processor(), INSTRUCTION, max_prompt_tokens=limit
        )

    assert limited(length)([example()], 1).tokens_BP.shape == (1, length)
    with pytest.raises(ValueError, match=f"takes {length} tokens.*is {length - 1}.*max_pixels"):
        limited(length - 1)([example()], 1)


def test_an_image_processor_of_another_model_is_refused(config, tokenizer):
    with pytest.raises(ValueError, match="patches of 6 px.*reads 4 px"):
        prompts.PromptBuilder(config, tokenizer, make_processor(patch_size=6), INSTRUCTION)


def test_an_instruction_that_holds_a_placeholder_is_refused(config, tokenizer):
    with pytest.raises(ValueError, match="2 image placeholders"):
        prompts.PromptBuilder(config, tokenizer, make_processor(), "Is <|image_pad|> a bird?")


def test_the_image_processor_of_a_folder_is_read_back(tmp_path):
    make_processor().save_pretrained(tmp_path)
    read = prompts.load_image_processor(tmp_path)
    image = example(24, 32)["image"]
    want = make_processor()(images=[image], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(read(images=[image], return_tensors="np")["pixel_values"], want)


def test_a_folder_without_an_image_processor_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no preprocessor_config.json"):
        prompts.load_image_processor(tmp_path)


def test_shipped_prompts_ask_for_the_tags_and_allow_none():
    names = sorted(path.stem for path in prompts.TEXTS.glob("*.txt"))
    assert "base" in names and len({prompts.read_prompt(name) for name in names}) == len(names)
    for name in names:
        text = prompts.read_prompt(name)
        assert text == text.strip() and "<think>" in text and "<answer>" in text, name


def test_a_file_of_the_user_is_a_prompt(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("  Which bird?\n")
    assert prompts.read_prompt(str(path)) == "Which bird?"


def test_an_unknown_prompt_is_refused_with_the_known_names(tmp_path):
    with pytest.raises(ValueError, match="no prompt 'bsae'.*'base'.*path of a text file"):
        prompts.read_prompt("bsae")
    with pytest.raises(ValueError, match="no prompt"):
        prompts.read_prompt(str(tmp_path))  # a folder
