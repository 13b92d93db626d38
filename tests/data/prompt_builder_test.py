"""From images to a `PromptBatch`: shapes, padding, placeholders, and what is refused."""

import copy
import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import random_modules
import random_policy
from flax import nnx
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from examples.pretrain import train_tokenizer
from speciarl_jax.data import image_processor, prompt_builder
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.image_tokens import mrope_positions
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig
from speciarl_jax.models.qwen2_5_vl.vision import VisionEncoder

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
    train_tokenizer.train([INSTRUCTION, "<answer>eagle</answer>"] * 5, TEXT.vocab_size, folder)
    return tokenizer_lib.load(folder)


@pytest.fixture(scope="module")
def config(tokenizer):
    tokens = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    ids = {name: tokenizer_lib.token_id(tokenizer, token) for name, token in tokens.items()}
    ends = (tokenizer_lib.token_id(tokenizer, "<|im_end|>"),)
    return ModelConfig(text=TEXT, vision=VISION, eos_token_id=ends, **ids)


def make_processor(patch_size=PATCH, most_pixels=24 * 32):
    return Qwen2VLImageProcessorPil(
        patch_size=patch_size,
        merge_size=MERGE,
        size={"shortest_edge": 64, "longest_edge": most_pixels},
    )


@pytest.fixture(scope="module")
def builder(config, tokenizer):
    return prompt_builder.PromptBuilder(config, tokenizer, make_processor(), INSTRUCTION)


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
    builder = prompt_builder.PromptBuilder(
        config, tokenizer, make_processor(), "What?", system="Be brief."
    )
    assert builder.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_images_of_several_sizes_are_padded_on_the_left(builder, config):
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


def test_an_image_is_the_same_alone_and_among_larger_ones(builder):
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


def test_rows_may_have_several_images_or_none(builder, config, tokenizer):
    a, b = example(16, 16, 1)["image"], example(24, 32, 2)["image"]
    rows = [{"image": image, "image_id": 0, "label_index": 0} for image in ([a, b], [], [b], a)]
    batch = builder(rows, 4)
    assert (batch.layout.token_index_BM >= 0).sum(axis=1).tolist() == [4 + 12, 0, 12, 4]
    for row, counts in enumerate(((4, 12), (), (12,), (4,))):
        ids = batch.tokens_BP[row][batch.mask_BP[row]].tolist()
        assert ids == builder.prompt_ids(*counts)
        text = tokenizer.decode(ids)
        assert text.count("<|vision_start|>") == len(counts)
        assert text.endswith(f"{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n")
    alone = builder([{**rows[3], "image": b}], 1)
    np.testing.assert_array_equal(batch.patches_BSC[0, 16:64], alone.patches_BSC[0])
    np.testing.assert_array_equal(batch.patches_BSC[2, :48], alone.patches_BSC[0])
    grids = [[(4, 4), (6, 8)], [], [(6, 8)], [(4, 4)]]
    want, following = mrope_positions(batch.tokens_BP, batch.mask_BP, grids, config)
    np.testing.assert_array_equal(batch.positions_B3P.swapaxes(0, 1), want)
    np.testing.assert_array_equal(batch.next_position_B, following)


def test_a_batch_of_text_alone_has_no_image_tokens(builder):
    batch = builder([{"image": [], "image_id": 0, "label_index": 0}], 2)
    assert not (batch.layout.token_index_BM >= 0).any() and not batch.patches_BSC.any()
    assert batch.tokens_BP[0].tolist() == builder.prompt_ids()
    np.testing.assert_array_equal(batch.positions_B3P[0, 0], np.arange(batch.tokens_BP.shape[1]))


def make_bucketed(config, tokenizer, growth=1.25, **options):
    processor = make_processor(most_pixels=160 * 160)
    return prompt_builder.PromptBuilder(
        config, tokenizer, processor, INSTRUCTION, bucket_growth=growth, **options
    )


def programs(builder, encoder, batches):
    """Compiled programs of the vision encoder for those batches, and the shares of padding.

    The shares are of image tokens: padding of smaller images to the largest of their batch, and
    of that to the bucket size. The arrays of the prompt get no other shapes than the encoder's.
    """
    traced, shapes, real, largest, held = [], set(), 0, 0, 0

    @random_policy.quick_jit
    def encode(encoder, patches_BSC, layout):
        traced.append(patches_BSC.shape)
        return encoder(patches_BSC, layout)

    for rows in batches:
        batch = builder(rows, len(rows))
        features = np.asarray(encode(encoder, batch.patches_BSC, batch.layout))
        count = (batch.layout.token_index_BM >= 0).sum(axis=1)
        assert np.isfinite(features).all() and features[0, : count[0]].any()
        shapes.add(tuple(x.shape for x in jax.tree.leaves(batch)))
        real, largest = real + count.sum(), largest + count.max() * len(rows)
        held += batch.layout.token_index_BM.size
    assert len(shapes) == len(traced)
    return len(traced), 1 - real / largest, 1 - largest / held


@pytest.mark.parametrize(
    "growth, size, most_programs, most_padding",
    [(1.25, 1, 13, 0.15), (1.5, 1, 9, 0.25), (1.25, 4, 6, 0.15)],
)
def test_images_of_random_sizes_need_a_handful_of_programs(
    config, tokenizer, growth, size, most_programs, most_padding
):
    """40 images of 40 to 160 pixels a side: 25 to 400 image tokens, almost all differ."""
    rng = np.random.default_rng(0)
    rows = [example(*rng.integers(40, 161, 2), number) for number in range(40)]
    batches = [rows[i : i + size] for i in range(0, 40, size)]
    encoder = random_modules.drawn(
        lambda: VisionEncoder(VISION, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    count, between_rows, to_bucket = programs(
        make_bucketed(config, tokenizer, growth), encoder, batches
    )
    print(f"{count} programs, padding {between_rows:.3f} between rows, {to_bucket:.3f} to bucket")
    assert count <= most_programs and to_bucket < most_padding, (count, to_bucket)
    assert (between_rows == 0) == (size == 1)


def test_images_of_one_size_are_not_padded(config, tokenizer):
    rows = [example(40, 72, number) for number in range(3)]
    exact = make_bucketed(config, tokenizer, growth=1.0)
    for batch in (exact(rows, 3), exact(rows[:1], 3)):
        assert batch.mask_BP.all() and (batch.layout.token_index_BM >= 0).all()
        assert prompt_builder.batch_sizes(batch) == (12, 45, len(exact.prompt_ids(45)))
        assert batch.patches_BSC.shape[1] == 45 * 4


def test_bucket_sizes_stay_within_the_limit_of_prompts(config, tokenizer):
    length = len(make_bucketed(config, tokenizer).prompt_ids(20 * 20))
    builder = make_bucketed(config, tokenizer, max_prompt_tokens=length)
    batch = builder([example(160, 160)], 1)
    assert batch.tokens_BP.shape == (1, length) and batch.layout.token_index_BM.shape[1] > 400


def test_all_processes_pad_their_shares_to_the_largest(config, tokenizer, monkeypatch):
    builder = make_bucketed(config, tokenizer)
    shares = [builder([example(*size)], 1) for size in ((40, 40), (150, 90), (16, 160))]
    assert len({prompt_builder.batch_sizes(share) for share in shares}) == 3
    assert builder.pad_to_largest_host(shares[0]) is shares[0]
    gathered = [prompt_builder.batch_sizes(share) for share in shares]
    monkeypatch.setattr(prompt_builder.jax, "process_count", lambda: 3)
    monkeypatch.setattr(prompt_builder.multihost, "allgather", lambda sizes: gathered)
    agreed = [builder.pad_to_largest_host(share) for share in shares]
    assert {prompt_builder.batch_sizes(share) for share in agreed} == {
        tuple(np.max(gathered, axis=0))
    }
    assert len({tuple(x.shape for x in jax.tree.leaves(share)) for share in agreed}) == 1
    for before, after in zip(shares, agreed, strict=True):
        assert after.tokens_BP[after.mask_BP].tolist() == before.tokens_BP[before.mask_BP].tolist()


def test_bucket_sizes_must_grow(config, tokenizer):
    with pytest.raises(ValueError, match="config.data.bucket_growth is 0.8"):
        make_bucketed(config, tokenizer, growth=0.8)


@random_policy.quick_jit
def numbers_of(policy, batch):
    """Features, logits, and the gradient of a made-up loss in all weights and in the pixels."""
    graphdef, weights = nnx.split(policy)

    def loss(weights, patches_BSC):
        policy = nnx.merge(graphdef, weights)
        features = policy.encode_images(patches_BSC, batch.layout)
        positions = batch.positions_B3P.swapaxes(0, 1)
        logits = policy(batch.tokens_BP, positions, batch.mask_BP, features)
        return jnp.sum(jnp.sin(logits) * batch.mask_BP[..., None]), (features, logits)

    (_, (features, logits)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        weights, batch.patches_BSC
    )
    return features, logits, jax.tree.leaves(gradients[0]), gradients[1]


def test_more_padding_changes_no_number():
    _, policy, batch, grids = random_policy.draw(4)
    assert len({len(row) for row in grids}) > 1 and max(map(len, grids)) > 1
    small = prompt_builder.batch_sizes(batch)
    roomy = prompt_builder.enlarge(
        batch,
        prompt_builder.BatchSizes(small.slots + 3, small.image_tokens + 5, small.prompt_tokens + 7),
        random_policy.PAD,
    )
    want, got = numbers_of(policy, batch), numbers_of(policy, roomy)
    mask, more = batch.mask_BP, roomy.mask_BP

    def same(got, want):
        assert np.isfinite(got).all()
        scale = max(np.abs(want).max(), 1e-6)
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * scale)

    same(got[0][:, : small.image_tokens], want[0])
    assert not np.asarray(got[0][:, small.image_tokens :]).any()
    same(np.asarray(got[1])[more], np.asarray(want[1])[mask])
    assert np.isfinite(got[1]).all()
    for a, b in zip(got[2], want[2], strict=True):
        assert np.abs(b).max() > 0
        same(a, b)
    same(got[3][:, : batch.patches_BSC.shape[1]], want[3])
    assert not np.asarray(got[3][:, batch.patches_BSC.shape[1] :]).any()


def test_a_batch_does_not_shrink(builder):
    batch = builder([example()], 1)
    sizes = prompt_builder.batch_sizes(batch)
    assert prompt_builder.enlarge(batch, sizes, 0) is batch
    with pytest.raises(ValueError, match="cannot be enlarged"):
        prompt_builder.enlarge(batch, sizes._replace(image_tokens=3), 0)


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
        return prompt_builder.PromptBuilder(
            config, tokenizer, make_processor(), INSTRUCTION, max_prompt_tokens=limit
        )

    assert limited(length)([example()], 1).tokens_BP.shape == (1, length)
    with pytest.raises(ValueError, match=f"takes {length} tokens.*is {length - 1}.*max_pixels"):
        limited(length - 1)([example()], 1)


def test_an_image_processor_of_another_model_is_refused(config, tokenizer):
    for key, value, wanted in (
        ("patch_size", 6, PATCH),
        ("temporal_patch_size", 1, 2),
        ("merge_size", 1, MERGE),
    ):
        processor = make_processor()
        setattr(processor, key, value)
        with pytest.raises(
            ValueError, match=f" {key} {value}, the model's vision encoder {wanted};"
        ):
            prompt_builder.PromptBuilder(config, tokenizer, processor, INSTRUCTION)


@pytest.mark.parametrize("placeholder", ["<|image_pad|>", "<|video_pad|>"])
def test_words_that_hold_a_placeholder_are_refused_by_their_key(config, tokenizer, placeholder):
    words, own = f"What is {placeholder}?", {"system": f"<|vision_start|>{placeholder}"}
    for key, instruction, options in (("prompt", words, {}), ("system", INSTRUCTION, own)):
        with pytest.raises(ValueError, match=f"config.data.{key} holds .*{re.escape(placeholder)}"):
            prompt_builder.PromptBuilder(
                config, tokenizer, make_processor(), instruction, **options
            )


@pytest.mark.parametrize(
    "shape, dtype",
    [((9, 9), np.uint8), ((9, 9, 1), np.uint8), ((9, 9, 4), np.uint8), ((9, 9, 3), np.float32)],
)
def test_arrays_that_are_no_image_in_bytes_are_refused(builder, shape, dtype):
    row = example() | {"image": [example()["image"], np.zeros(shape, dtype)]}
    said = re.escape(f"an image is {np.dtype(dtype)} {list(shape)}; it must be uint8")
    with pytest.raises(ValueError, match=said):
        builder([row], 1)


def test_the_published_template_makes_a_prompt(config, tokenizer):
    theirs = copy.deepcopy(tokenizer)
    theirs.chat_template = published.CHAT_TEMPLATE
    builder = prompt_builder.PromptBuilder(config, theirs, make_processor(), INSTRUCTION)
    assert builder.text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|><|image_pad|><|vision_end|>{INSTRUCTION}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "template, said",
    [
        (published.TEXT_TEMPLATE, r"cannot write a prompt with 1 image\(s\) \(can only concat"),
        ("{{ raise_exception('no images') }}", r"cannot write .* \(no images\)"),
        ("{% for", "cannot write a prompt"),
        ("hello", "puts 0 image placeholders"),
    ],
)
def test_a_template_that_does_not_fit_says_which_does(config, tokenizer, template, said):
    theirs = copy.deepcopy(tokenizer)
    theirs.chat_template = template
    with pytest.raises(ValueError, match=f"{said}.*chat_template.json or chat_template.jinja"):
        prompt_builder.PromptBuilder(config, theirs, make_processor(), INSTRUCTION)


def test_shipped_prompts_ask_for_the_tags_and_allow_none():
    names = {path.stem for path in prompt_builder.TEXTS.glob("*.txt")}
    assert names == {"base", "specific", "calibrated", "elimination", "high_precision",
                     "max_correctness", "max_specificity"}  # fmt: skip
    assert len({prompt_builder.read_prompt(name) for name in names}) == len(names)
    for name in names:
        text = prompt_builder.read_prompt(name)
        assert text == text.strip() and "\n" not in text and len(text) < 400, name
        for tag in ("think", "answer"):
            assert text.count(f"<{tag}></{tag}>") == 1, name
        assert text.index("<think>") < text.index("<answer>"), name
        # The finest label is never None; all others may be.
        assert ("or None" in text or "and None" in text) == (name != "max_specificity"), name
    assert "None is no answer" in prompt_builder.read_prompt("max_specificity")


def test_a_file_of_the_user_is_a_prompt(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("  Which bird?\n")
    assert prompt_builder.read_prompt(str(path)) == "Which bird?"


def test_an_unknown_prompt_is_refused_with_the_known_names(tmp_path):
    with pytest.raises(ValueError, match="no prompt 'bsae'.*'base'.*path of a text file"):
        prompt_builder.read_prompt("bsae")
    with pytest.raises(ValueError, match="no prompt"):
        prompt_builder.read_prompt(str(tmp_path))  # a folder


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "preprocessor_config.json").write_text(json.dumps(published.IMAGE_PROCESSOR))
    return folder


def size_by_the_rule(height, width, fewest, most):
    """Sides are multiples of 28 pixels, nearest to the image's, with an area within the limits.

    (Qwen2-VL's rule, which Qwen2.5-VL keeps; written down from its description.)
    """
    sides = [28 * round(side / 28) for side in (height, width)]
    area, whole = math.prod(sides), height * width
    if area > most:
        sides = [
            max(28, 28 * math.floor(side * (most / whole) ** 0.5 / 28)) for side in (height, width)
        ]
    elif area < fewest:
        sides = [28 * math.ceil(side * (fewest / whole) ** 0.5 / 28) for side in (height, width)]
    return sides


def patches_by_hand(image, height, width):
    """Resizes, normalises, and splits into patches: 2 x 2 neighbours in turn, two equal frames."""
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    mean, std = (np.array(published.IMAGE_PROCESSOR[f"image_{key}"]) for key in ("mean", "std"))
    pixels = (np.asarray(resized, np.float64) / 255 - mean) / std
    out = []
    for top in range(0, height, 28):
        for left in range(0, width, 28):
            for y in (top, top + 14):
                for x in (left, left + 14):
                    patch = pixels[y : y + 14, x : x + 14].transpose(2, 0, 1)
                    out.append(np.stack([patch, patch], axis=1).ravel())
    return np.array(out)


@pytest.mark.parametrize(
    "height, width, max_pixels",
    [
        (97, 131, None),
        (3, 200, None),  # three rows of pixels are no channels
        (20, 31, None),  # enlarged to min_pixels
        (333, 500, None),
        (333, 500, 200 * 200),  # shrunk to max_pixels
        (42, 70, None),  # both sides halfway between multiples
        (28, 900, 28 * 28 * 16),
    ],
)
def test_pixels_are_those_of_the_published_image_processor(
    tokenizer, config, published_folder, height, width, max_pixels
):
    vision = dataclasses.replace(config.vision, patch_size=14, window_size=112)
    config = dataclasses.replace(config, vision=vision)
    processor = image_processor.load(published_folder, max_pixels)
    builder = prompt_builder.PromptBuilder(config, tokenizer, processor, INSTRUCTION)
    row = example(height, width)
    batch = builder([row], 1)
    new_height, new_width = size_by_the_rule(height, width, 3136, max_pixels or 12845056)
    assert batch.patches_BSC.shape[1] == new_height * new_width // 14**2
    assert batch.layout.hw_BS2[0].max(axis=0).tolist() == [
        new_height // 14 - 1,
        new_width // 14 - 1,
    ]
    want = patches_by_hand(row["image"], new_height, new_width)
    np.testing.assert_allclose(batch.patches_BSC[0], want, atol=1e-5)
