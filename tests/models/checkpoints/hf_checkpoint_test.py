"""Weights and numbers against transformers' torch implementation, both ways."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from speciarl_jax.models import safetensors_io
from speciarl_jax.models.checkpoints import hf_checkpoint, hf_names
from speciarl_jax.models.image_tokens import mrope_positions
from speciarl_jax.models.qwen2_5_vl.window_layout import vision_layout
from speciarl_jax.runtime import sharding

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
    """Rows with two images, one image and none, padded on one side."""
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
    return hf_checkpoint.load(folder, dtype=jnp.float32, param_dtype=jnp.float32, **options)


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
    config = hf_checkpoint.read_config(folder)
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
    hf_checkpoint.save(tmp_path, config, ours)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path).float().eval()
    tokens, mask, patches = make_batch(config)
    want = our_logits(config, ours, tokens, mask, patches)
    got = torch_logits(theirs, tokens, mask, patches)
    np.testing.assert_allclose(got[mask], want[mask], atol=1e-4 * np.abs(want).max())
    base = our_logits(*load32(saved[0]), tokens, mask, patches)
    assert np.abs(want - base)[mask].max() > 1e-2, "LoRA changed nothing, the test proves nothing"


def test_both_layouts_of_names_are_read(saved, tmp_path):
    tensors = load_file(saved[0] / "model.safetensors")
    short = {hf_names.short_name(name): t for name, t in tensors.items()}
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


UP = "model.layers.1.mlp.up_proj.weight"


def missing(tensors):
    del tensors[UP]


def unexpected(tensors):
    tensors["model.extra"] = np.zeros(3, np.float32)


def one_layer_more(tensors):
    tensors[UP.replace(".1.", ".3.")] = tensors[UP]


def short(tensors):
    tensors[UP] = tensors[UP][:-1]


def turned(tensors):
    tensors[UP] = np.ascontiguousarray(tensors[UP].T)


def flat(tensors):
    tensors[UP] = tensors[UP].ravel()


def scalar(tensors):
    tensors["visual.patch_embed.proj.weight"] = np.zeros((), np.float32)


def patches_of_grey(tensors):
    name = "visual.patch_embed.proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name][:, :1])


def integers(tensors):
    tensors[UP] = tensors[UP].astype(np.int8)


def fp8(tensors):
    tensors[UP] = tensors[UP].astype(ml_dtypes.float8_e4m3fn)
    tensors[UP.replace("weight", "weight_scale_inv")] = np.ones((1, 1), np.float32)


def both_names(tensors):
    tensors[UP.replace("model.", "model.language_model.")] = tensors[UP]


@pytest.mark.parametrize(
    "damage, said",
    [
        (missing, f"lacks tensors .*{UP}"),
        (unexpected, "has unexpected tensors .*model.extra"),
        (one_layer_more, r"has unexpected tensors .*layers\.3\.mlp"),
        (short, rf"{UP}.*\(63, 48\).*\(64, 48\)"),
        (turned, rf"{UP}.*\(48, 64\).*\(64, 48\)"),
        (flat, rf"{UP}.*\(3072,\).*\(64, 48\)"),
        (scalar, r"patch_embed.*shape \(\).*\(32, 96\)"),
        (patches_of_grey, r"patch_embed.*\(32, 1, 2, 4, 4\).*\(32, 96\)"),
        (integers, f"{UP}.*model.safetensors holds I8, but weights must be"),
        (fp8, f"{UP}.*holds F8_E4M3, .*quantized"),
        (both_names, rf"'{UP}' and 'model\.language_model.*same tensor"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name_before_it_is_read(
    saved, tmp_path, monkeypatch, damage, said
):
    tensors = {
        hf_names.short_name(k): v for k, v in load_file(saved[0] / "model.safetensors").items()
    }
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((saved[0] / "config.json").read_text())

    def read(*args):
        raise AssertionError("weights were read")

    monkeypatch.setattr(safetensors_io.Reader, "read", read)
    with pytest.raises(ValueError, match=said):
        load32(tmp_path)


def test_shards_of_transformers_are_read_and_ours_by_transformers(saved, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    saved[1].save_pretrained(theirs, max_shard_size="60KB")
    assert len(list(theirs.glob("*.safetensors"))) > 3
    config, model = load32(theirs)
    assert_same(nnx.state(model), nnx.state(load32(saved[0])[1]))
    hf_checkpoint.save(ours, config, model, max_shard_bytes=60_000)
    assert len(list(ours.glob("model-*-of-*.safetensors"))) > 3
    assert_same(nnx.state(load32(ours)[1]), nnx.state(model))
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(ours).state_dict()
    want = saved[1].state_dict()
    assert again.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(again[name], tensor), name


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("layers_at_once", [1, 2, 3])
@pytest.mark.parametrize("placed", [False, True])
def test_layers_land_in_their_places_however_many_are_read_at_once(
    saved, monkeypatch, layers_at_once, placed
):
    sizes, read = [], hf_checkpoint.Stored.read

    def watched(self, index):
        array = read(self, index)
        if self.source.names[0].endswith("layers.0.mlp.up_proj.weight"):
            sizes.append(len(array))
        return array

    monkeypatch.setattr(hf_checkpoint.Stored, "read", watched)
    # The kernels of the MLP, the largest of all, have 64 x 48 float32 a layer.
    monkeypatch.setattr(hf_checkpoint, "STACK_BYTES", layers_at_once * 64 * 48 * 4)
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    _, model = load32(saved[0], put=sharding.put_param(mesh) if placed else None)
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 3: [3]}[layers_at_once]
    for name in ("gate", "up", "down"):
        for layer, got in enumerate(model.decoder.layers[name][...]):
            theirs = saved[1].model.language_model.layers[layer].mlp
            want = getattr(theirs, f"{name}_proj").weight.detach().numpy().T
            np.testing.assert_array_equal(got, want)


def test_a_function_of_numpy_can_place_what_is_stored(saved):
    _, want = load32(saved[0])
    _, got = load32(saved[0], put=lambda path, array, axes: jnp.asarray(array))
    assert_same(nnx.state(got), nnx.state(want))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_weights_are_cast_to_what_is_asked_for(saved, tmp_path, kind):
    tensors = load_file(saved[0] / "model.safetensors")
    tensors = {name: tensor.astype(kind) for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((saved[0] / "config.json").read_text())
    _, model = hf_checkpoint.load(tmp_path, param_dtype=jnp.bfloat16)
    got = model.decoder.embedding[...]
    assert got.dtype == jnp.bfloat16
    name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    np.testing.assert_array_equal(got, tensors[name].astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "content, said",
    [
        (b"{", "config.json is no JSON"),
        (b"\xff\xfe\x00", "config.json is no JSON"),
        (b"[]", "config.json is no JSON object"),
        (b"{}", "model_type None"),
        (None, "config.json is missing"),
    ],
)
def test_a_configuration_that_is_none_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        hf_checkpoint.load(tmp_path)


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="'llama'.*qwen2_5_vl"):
        hf_checkpoint.read_config(tmp_path)


def test_a_stored_head_beside_a_tie_flag_gives_the_logits_of_transformers(tmp_path):
    """It drops the flag where the two differ, and so does this package, there and back."""
    make_torch(tied=True).save_pretrained(tmp_path / "tied")
    tensors = load_file(tmp_path / "tied" / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    rng = np.random.default_rng(0)
    tensors["lm_head.weight"] = rng.normal(0, 0.15, tensors[name].shape).astype(np.float32)
    save_file(tensors, tmp_path / "tied" / "model.safetensors", metadata={"format": "pt"})
    config, ours = load32(tmp_path / "tied")
    hf_checkpoint.save(tmp_path / "saved", config, ours)
    tokens, mask, patches = make_batch(config)
    got = our_logits(config, ours, tokens, mask, patches)
    again = our_logits(*load32(tmp_path / "saved"), tokens, mask, patches)
    np.testing.assert_array_equal(again, got)
    for folder in ("tied", "saved"):
        theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / folder)
        want = torch_logits(theirs.float().eval(), tokens, mask, patches)
        np.testing.assert_allclose(got[mask], want[mask], atol=1e-4 * np.abs(want).max())


def test_tokens_that_end_a_completion_are_those_of_both_files(saved, tmp_path):
    settings = json.loads((saved[0] / "config.json").read_text())
    for listed, found in (
        (None, (99,)),
        ({}, (99,)),
        ({"eos_token_id": None}, (99,)),
        ({"eos_token_id": 99}, (99,)),
        ({"eos_token_id": 5}, (99, 5)),
        ({"eos_token_id": [5, 99, 7]}, (99, 5, 7)),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        if listed is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(listed))
        assert hf_checkpoint.read_config(tmp_path).eos_token_id == found
    for value in ("</s>", [1, "2"], True, -1, {}):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(ValueError, match="generation_config.json has eos_token_id .* must be"):
            hf_checkpoint.read_config(tmp_path)
