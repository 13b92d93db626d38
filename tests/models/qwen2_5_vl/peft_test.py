"""Adapters in PEFT's layout: the same bits back, PEFT's own numbers, and what is refused."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import peft as hf_peft
import pytest
import small_run
import torch
import torch_policy
from flax import nnx
from safetensors.numpy import load_file, save_file

from speciarl_jax.models.qwen2_5_vl import hf_checkpoint, peft

RANK, ALPHA = 3, 6.0
FIRST = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def config(policy_folder):
    return hf_checkpoint.read_config(policy_folder)


@pytest.fixture(scope="module")
def lora(config):
    rng = np.random.default_rng(0)
    abstract = peft.abstract_lora(config, RANK)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), abstract)


@pytest.fixture
def saved(tmp_path, config, lora, policy_folder):
    adapter = peft.AdapterConfig(RANK, ALPHA, str(policy_folder))
    peft.save_adapter(tmp_path, config, adapter, lora)
    return tmp_path


@pytest.fixture(scope="module")
def batch(run):
    return small_run.batch_of(run)


@pytest.fixture(scope="module")
def policy_with(policy_folder):
    """(rank, alpha, adapters) -> the policy with these adapters."""

    def policy_with(rank, alpha, lora):
        _, policy = hf_checkpoint.load(
            policy_folder,
            dtype=np.float32,
            param_dtype=np.float32,
            lora_rank=rank,
            lora_alpha=alpha,
        )
        nnx.update(policy, lora)
        return policy

    return policy_with


def assert_same_bits(got, want):
    got, want = small_run.arrays(got), small_run.arrays(want)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype and got[name].tobytes() == value.tobytes(), name


def settings_of(folder):
    return json.loads((folder / peft.CONFIG).read_text())


def rewrite(folder, change):
    """Saves the adapter's tensors again, after `change(tensors)`."""
    tensors = load_file(folder / peft.WEIGHTS)
    save_file(change(dict(tensors)), folder / peft.WEIGHTS)


def test_adapters_come_back_bit_for_bit(saved, config, lora, policy_folder):
    adapter, got = peft.load_adapter(saved, config)
    assert adapter == peft.AdapterConfig(RANK, ALPHA, str(policy_folder))
    assert_same_bits(got, lora)


def test_peft_gives_the_base_the_same_logits(
    saved, config, lora, batch, policy_folder, policy_with
):
    base = torch_policy.load(policy_folder)
    before = torch_policy.logits(base, batch, config.image_token_id)
    theirs = hf_peft.PeftModel.from_pretrained(base, saved)
    got = torch_policy.logits(theirs, batch, config.image_token_id)
    torch_policy.assert_close(got, torch_policy.our_logits(policy_with(RANK, ALPHA, lora), batch))
    assert np.abs(got - before).max() > 0.1 * np.abs(before).max(), "the adapters changed nothing"
    # Every tensor of the file has found its place, and nothing has one that is not in the file.
    names = {name for name, _ in theirs.named_parameters() if "lora_" in name}
    assert {name.replace(".default", "") for name in names} == set(load_file(saved / peft.WEIGHTS))


def test_what_peft_has_trained_is_read_with_the_same_logits(
    tmp_path, config, batch, policy_folder, policy_with
):
    targets = settings_of_new(tmp_path, config)["target_modules"]
    options = hf_peft.LoraConfig(
        r=5, lora_alpha=8, target_modules=targets, lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    theirs = hf_peft.get_peft_model(torch_policy.load(policy_folder), options)
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    adapter, lora = peft.load_adapter(tmp_path / "theirs", config)
    assert (adapter.rank, adapter.alpha, adapter.base) == (5, 8.0, str(policy_folder))
    got = torch_policy.our_logits(policy_with(adapter.rank, adapter.alpha, lora), batch)
    torch_policy.assert_close(got, torch_policy.logits(theirs, batch, config.image_token_id))


def settings_of_new(folder, config):
    """`adapter_config.json` of fresh adapters."""
    fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), peft.abstract_lora(config, 1))
    peft.save_adapter(folder / "fresh", config, peft.AdapterConfig(1, 1.5, ""), fresh)
    return settings_of(folder / "fresh")


def test_alpha_need_not_be_whole(tmp_path, config):
    assert settings_of_new(tmp_path, config)["lora_alpha"] == 1.5
    assert peft.read_adapter_config(tmp_path / "fresh") == peft.AdapterConfig(1, 1.5, "")


def test_names_of_older_transformers_and_halved_precision_are_read(saved, config, lora):
    def older(tensors):
        return {
            name.replace("model.language_model.layers", "model.layers"): t.astype(
                ml_dtypes.bfloat16
            )
            for name, t in tensors.items()
        }

    rewrite(saved, older)
    _, got = peft.load_adapter(saved, config)
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), lora)
    assert_same_bits(got, rounded)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"use_rslora": True}, "use_rslora=True, which is not supported"),
        ({"use_dora": True}, "use_dora=True, which is not supported"),
        ({"bias": "all"}, "bias='all'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"peft_type": "LOHA"}, "describes no LoRA"),
        ({"r": 0}, "r 0 and lora_alpha 6; r must be a whole number"),
        ({"lora_alpha": "6"}, "lora_alpha '6'"),
        ({"r": 4}, r"down_proj.lora_A.weight' .* \(3, 64\), which is rank 3, .* r=4"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(saved, config, changes, message):
    (saved / peft.CONFIG).write_text(json.dumps(settings_of(saved) | changes))
    with pytest.raises(ValueError, match=message):
        peft.load_adapter(saved, config)


def test_options_left_empty_are_no_reason_to_refuse(saved, config):
    """PEFT writes every option it knows."""
    known = hf_peft.LoraConfig(r=RANK, lora_alpha=6, target_modules="all-linear").to_dict()
    written = {k: v for k, v in known.items() if isinstance(v, str | int | float | dict | None)}
    (saved / peft.CONFIG).write_text(json.dumps(written | {"peft_type": "LORA"}))
    assert {"use_dora", "rank_pattern", "modules_to_save", "lora_bias"} <= written.keys()
    assert peft.load_adapter(saved, config)[0].rank == RANK


def without_one(tensors):
    del tensors[f"{FIRST}.lora_B.weight"]
    return tensors


def with_vision(tensors):
    extra = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"
    return tensors | {extra: np.zeros((3, 32), np.float32)}


def one_of_another_rank(tensors):
    tensors[f"{FIRST}.lora_B.weight"] = np.zeros((48, 2), np.float32)
    return tensors


def wider(tensors):
    tensors[f"{FIRST}.lora_A.weight"] = np.zeros((3, 96), np.float32)
    return tensors


def integers(tensors):
    name = f"{FIRST}.lora_A.weight"
    return tensors | {name: tensors[name].astype(np.int32)}


@pytest.mark.parametrize(
    "change, message",
    [
        (integers, "q_proj.lora_A.weight' in .* holds I32, but weights must be"),
        (without_one, r"lacks tensors \['base_model.*q_proj.lora_B.weight'\] \(1 in all\)"),
        (with_vision, r"unexpected tensors \['base_model.model.model.visual.*target_modules"),
        (one_of_another_rank, r"q_proj.lora_B.weight.* \(48, 2\), which is rank 2, .* r=3"),
        (wider, r"q_proj.lora_A.weight.* \(3, 96\), the base needs \(3, 48\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(saved, config, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        peft.load_adapter(saved, config)


def cut_short(folder):
    data = (folder / peft.WEIGHTS).read_bytes()
    (folder / peft.WEIGHTS).write_bytes(data[: len(data) // 2])


def pickled(folder: pathlib.Path):
    (folder / peft.WEIGHTS).rename(folder / "adapter_model.bin")


def not_json(folder):
    (folder / peft.CONFIG).write_text("{")


def folder_as_file(folder):
    (folder / peft.WEIGHTS).unlink()
    (folder / peft.WEIGHTS).mkdir()


def no_settings(folder):
    (folder / peft.CONFIG).unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut_short, "adapter_model.safetensors is damaged .*cut short at .*lora_"),
        (folder_as_file, "adapter_model.safetensors is damaged"),
        (pickled, "adapter_model.safetensors is missing; adapters are read from safetensors only"),
        (not_json, "adapter_config.json is no JSON"),
        (no_settings, "adapter_config.json is missing; give the folder of a PEFT adapter"),
    ],
)
def test_damaged_files_are_refused_by_name(saved, config, damage, message):
    damage(saved)
    with pytest.raises(ValueError, match=message):
        peft.load_adapter(saved, config)
