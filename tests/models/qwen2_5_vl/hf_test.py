"""Weights and numbers against transformers' torch implementation, both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from speciarl_jax.models.qwen2_5_vl import hf, names
from speciarl_jax.models.qwen2_5_vl.layout import mrope_positions, vision_layout

IMAGE = 90


def make_torch(tied=False, heads=4, kv_heads=2, seed=0):
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=100,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-6,
            tie_word_embeddings=tied,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 2, 48 // heads // 2 - 4],
            },
            eos_token_id=99,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=40,
            num_heads=2,
            out_hidden_size=48,
            patch_size=4,
            window_size=16,
            fullatt_block_indexes=[1],
        ),
        image_token_id=IMAGE,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
        tie_word_embeddings=tied,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


GRIDS = [[(8, 6), (4, 4)], [(6, 10)], []]


def make_batch(config, left=True, seed=0):
    """Rows with two pictures, one picture and none, padded on one side."""
    rng = np.random.default_rng(seed)
    rows = []
    for grids in GRIDS:
        row = list(rng.integers(0, 80, 3))
        for h, w in grids:
            row += [92, *[IMAGE] * (h * w // 4), 93, *rng.integers(0, 80, 4)]
        rows.append(row + list(rng.integers(0, 80, 5)))
    length = max(map(len, rows)) + 2
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        where = slice(length - len(row), None) if left else slice(0, len(row))
        tokens[i, where], mask[i, where] = row, True
    patches = [
        [rng.normal(size=(h * w, config.vision.patch_dim)).astype(np.float32) for h, w in grids]
        for grids in GRIDS
    ]
    return tokens, mask, patches


def torch_logits(model, tokens, mask, patches):
    flat = [p for row in patches for p in row]
    grids = [(1, h, w) for row in GRIDS for h, w in row]
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            pixel_values=torch.tensor(np.concatenate(flat)),
            image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=torch.tensor(tokens == IMAGE).int(),
        ).logits.numpy()


def our_logits(config, model, tokens, mask, patches):
    longest = max(sum(map(len, row)) for row in patches)
    padded = np.zeros((len(patches), longest, config.vision.patch_dim), np.float32)
    for i, row in enumerate(patches):
        if row:
            padded[i, : sum(map(len, row))] = np.concatenate(row)
    positions, _ = mrope_positions(tokens, mask, GRIDS, config)

    @nnx.jit
    def run(model, layout):
        return model(tokens, positions, mask, model.encode_images(padded, layout))

    return np.asarray(run(model, vision_layout(GRIDS, config.vision)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = make_torch()
    model.save_pretrained(folder)
    return folder, model


def load32(folder, **options):
    return hf.load(folder, dtype=jnp.float32, param_dtype=jnp.float32, **options)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("tied, heads, kv_heads", [(False, 4, 2), (True, 4, 1), (False, 2, 2)])
def test_logits_equal_those_of_transformers(tmp_path, left, tied, heads, kv_heads):
    theirs = make_torch(tied, heads, kv_heads)
    theirs.save_pretrained(tmp_path)
    config, ours = load32(tmp_path)
    tokens, mask, patches = make_batch(config, left)
    want = torch_logits(theirs, tokens, mask, patches)
    got = our_logits(config, ours, tokens, mask, patches)
    np.testing.assert_allclose(got[mask], want[mask], atol=1e-4 * np.abs(want).max())


def test_positions_equal_those_of_transformers(saved):
    folder, theirs = saved
    config = hf.read_config(folder)
    for left in (True, False):
        tokens, mask, _ = make_batch(config, left)
        want, delta = theirs.model.get_rope_index(
            torch.tensor(tokens).long(),
            mm_token_type_ids=torch.tensor(tokens == IMAGE).int(),
            image_grid_thw=torch.tensor([(1, h, w) for row in GRIDS for h, w in row]),
            attention_mask=torch.tensor(mask).long(),
        )
        got, following = mrope_positions(tokens, mask, GRIDS, config)
        np.testing.assert_array_equal(got[:, mask], want.numpy()[:, mask])
        np.testing.assert_array_equal(following, got.max(axis=(0, 2), where=mask, initial=0) + 1)


def test_what_is_saved_transformers_reads_with_the_same_logits(saved, tmp_path):
    config, ours = load32(saved[0], lora_rank=4, lora_alpha=8.0)
    for name in ("q_b", "down_b"):
        b = ours.decoder.lora[name]
        b.set_value(jax.random.normal(jax.random.key(1), b.shape))
    hf.save(tmp_path, config, ours)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path).float().eval()
    tokens, mask, patches = make_batch(config)
    want = our_logits(config, ours, tokens, mask, patches)
    got = torch_logits(theirs, tokens, mask, patches)
    np.testing.assert_allclose(got[mask], want[mask], atol=1e-4 * np.abs(want).max())
    base = our_logits(*load32(saved[0]), tokens, mask, patches)
    assert np.abs(want - base)[mask].max() > 1e-2, "LoRA changed nothing, the test proves nothing"


def test_both_layouts_of_names_are_read(saved, tmp_path):
    tensors = load_file(saved[0] / "model.safetensors")
    short = {names.published_name(name): t for name, t in tensors.items()}
    long = {}
    for name, tensor in short.items():
        head, _, rest = name.partition(".")
        prefix = {"visual": "model.visual.", "model": "model.language_model."}.get(head)
        long[prefix + rest if prefix else name] = tensor
    states = []
    for i, layout in enumerate((short, long)):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "config.json").write_text((saved[0] / "config.json").read_text())
        save_file(layout, folder / "model.safetensors")
        states.append(nnx.state(load32(folder)[1]))
    assert set(short) != set(long)
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape", "truncated", "none"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(saved, tmp_path, damage):
    tensors = {
        names.published_name(k): v for k, v in load_file(saved[0] / "model.safetensors").items()
    }
    name, message = "model.layers.1.mlp.up_proj.weight", "up_proj.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["model.extra"], message = np.zeros(3), "unexpected.*model.extra"
    elif damage == "shape":
        tensors[name], message = tensors[name][:-1], r"up_proj.weight.*\(63, 48\).*\(64, 48\)"
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        message = "model.safetensors is damaged"
    elif damage == "none":
        path.unlink()
        message = "neither"
    (tmp_path / "config.json").write_text((saved[0] / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        load32(tmp_path)


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="'llama'.*qwen2_5_vl"):
        hf.read_config(tmp_path)
