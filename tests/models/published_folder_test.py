"""A folder in the form of the published ones: flat configuration, five shards, two templates."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import published
import pytest
from safetensors.numpy import save_file
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from speciarl_jax.data import image_processor, prompt_builder
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models import safetensors_io
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.qwen2_5_vl import presets

WIDTH, MLP, HEAD, VISION_WIDTH, VISION_MLP, ROWS = 256, 48, 128, 32, 40, 400
LAYERS, BLOCKS, SHARDS = 28, 32, 5
TOKENS = {
    "eos_token_id": "<|im_end|>",
    "bos_token_id": "<|endoftext|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def text_layer(i):
    """Published name -> shape of the tensors of a decoder layer, two heads that share a key."""
    sizes = {"q": 2 * HEAD, "k": HEAD, "v": HEAD}
    name = f"model.layers.{i}"
    return {
        f"{name}.input_layernorm.weight": (WIDTH,),
        f"{name}.post_attention_layernorm.weight": (WIDTH,),
        **{f"{name}.self_attn.{x}_proj.weight": (n, WIDTH) for x, n in sizes.items()},
        **{f"{name}.self_attn.{x}_proj.bias": (n,) for x, n in sizes.items()},
        f"{name}.self_attn.o_proj.weight": (WIDTH, 2 * HEAD),
        **{f"{name}.mlp.{x}_proj.weight": (MLP, WIDTH) for x in ("gate", "up")},
        f"{name}.mlp.down_proj.weight": (WIDTH, MLP),
    }


def vision_block(i):
    name = f"visual.blocks.{i}"
    linears = {
        "attn.qkv": (3 * VISION_WIDTH, VISION_WIDTH),
        "attn.proj": (VISION_WIDTH, VISION_WIDTH),
        "mlp.gate_proj": (VISION_MLP, VISION_WIDTH),
        "mlp.up_proj": (VISION_MLP, VISION_WIDTH),
        "mlp.down_proj": (VISION_WIDTH, VISION_MLP),
    }
    return {
        **{f"{name}.norm{n}.weight": (VISION_WIDTH,) for n in (1, 2)},
        **{f"{name}.{x}.weight": shape for x, shape in linears.items()},
        **{f"{name}.{x}.bias": shape[:1] for x, shape in linears.items()},
    }


def tensors_of(layers, blocks):
    shapes = {
        "lm_head.weight": (ROWS, WIDTH),
        "model.embed_tokens.weight": (ROWS, WIDTH),
        "model.norm.weight": (WIDTH,),
        "visual.patch_embed.proj.weight": (VISION_WIDTH, 3, 2, 14, 14),
        "visual.merger.ln_q.weight": (VISION_WIDTH,),
        "visual.merger.mlp.0.weight": (4 * VISION_WIDTH, 4 * VISION_WIDTH),
        "visual.merger.mlp.0.bias": (4 * VISION_WIDTH,),
        "visual.merger.mlp.2.weight": (WIDTH, 4 * VISION_WIDTH),
        "visual.merger.mlp.2.bias": (WIDTH,),
    }
    for i in range(layers):
        shapes |= text_layer(i)
    for i in range(blocks):
        shapes |= vision_block(i)
    return shapes


def test_the_index_of_the_published_7b_has_the_tensors_of_its_dimensions():
    names = tensors_of(LAYERS, BLOCKS).keys()
    assert len(names) == 729
    sources = hf_checkpoint.sources(presets.CONFIGS["7B"])
    assert names == {name for source in sources.values() for name in source.names}


@pytest.fixture(scope="module")
def folder(policy_folder, tmp_path_factory):
    """Two layers and two blocks of the 7B in small, with all files beside them."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copyfile(policy_folder / "tokenizer.json", folder / "tokenizer.json")
    settings = json.loads((policy_folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = published.TEXT_TEMPLATE
    vocabulary = tokenizer_lib.load(policy_folder).get_vocab()
    ids = {key: vocabulary[token] for key, token in TOKENS.items()}
    config = published.CONFIGS["7B"] | ids
    vision = {"depth": 2, "hidden_size": VISION_WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    config |= {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": ROWS}
    vision |= {"intermediate_size": VISION_MLP, "fullatt_block_indexes": [1]}
    config["vision_config"] = config["vision_config"] | vision
    ends = [ids["eos_token_id"], ids["bos_token_id"]]
    for name, content in {
        "tokenizer_config.json": settings,
        "config.json": config,
        "generation_config.json": published.GENERATION | {"eos_token_id": ends},
        "preprocessor_config.json": published.IMAGE_PROCESSOR,
        "chat_template.json": {"chat_template": published.CHAT_TEMPLATE},
    }.items():
        (folder / name).write_text(json.dumps(content))
    rng, weight_map = np.random.default_rng(0), {}
    shapes = list(tensors_of(2, 2).items())
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        part = dict(shapes[number::SHARDS])
        weights = {
            n: rng.normal(0, 0.1, shape).astype(ml_dtypes.bfloat16) for n, shape in part.items()
        }
        save_file(weights, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / safetensors_io.INDEX).write_text(json.dumps(index))
    return folder


def test_the_folder_gives_the_ids_and_patches_of_transformers(folder):
    """The template is that of the processor, the tokenizer's own is for text alone."""
    config, policy = hf_checkpoint.load(folder)
    tokenizer = tokenizer_lib.load(folder)
    ends = tokenizer_lib.end_ids(tokenizer, config.eos_token_id, config.text.vocab_size)
    assert tokenizer.convert_ids_to_tokens(list(ends)) == ["<|im_end|>", "<|endoftext|>"]
    processor = image_processor.load(folder)
    builder = prompt_builder.PromptBuilder(config, tokenizer, processor, "What is this?")
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    batch = builder([{"image": image, "image_id": 1, "label_index": 0}], 1)

    theirs = Qwen2VLImageProcessorPil.from_pretrained(folder)
    seen = theirs(images=[image], input_data_format="channels_last", return_tensors="np")
    np.testing.assert_array_equal(batch.patches_BSC[0], seen["pixel_values"])
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=published.CHAT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    count = int(np.prod(seen["image_grid_thw"][0])) // 4
    text = text.replace("<|image_pad|>", "<|image_pad|>" * count)
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    assert batch.tokens_BP[0].tolist() == ids and ids.count(config.image_token_id) == count > 4
    features = policy.encode_images(batch.patches_BSC, batch.layout)
    positions = batch.positions_B3P.swapaxes(0, 1)
    logits = policy(batch.tokens_BP, positions, batch.mask_BP, features)
    assert jnp.isfinite(logits).all() and logits.std() > 0
