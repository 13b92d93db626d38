"""Adapters in PEFT's layout: the same bits back, PEFT's own numbers, and what is refused."""

import json
import pathlib
import re
import shutil

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

from speciarl_jax.models import stored_weights
from speciarl_jax.models.checkpoints import hf_checkpoint, peft

RANK, ALPHA = 3, 6.0
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
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
        ({"use_scaling_of_tomorrow": True}, "use_scaling_of_tomorrow=True, which is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"peft_type": "LOHA"}, "describes no LoRA"),
        ({"r": 0}, "r 0 and lora_alpha 6; r must be a whole number"),
        ({"lora_alpha": "6"}, "lora_alpha '6'"),
        ({"lora_alpha": 0}, "lora_alpha 0; .* a finite number above 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan; .* a finite number above 0"),
        ({"lora_alpha": float("inf")}, "lora_alpha inf; .* a finite number above 0"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path ..x.., which must be text"),
        (
            {"target_modules": ["q_proj", "v_proj"]},
            "does not name modules that have tensors, .*10 in all",
        ),
        ({"target_modules": r".*self_attn.*"}, "does not name modules that have tensors"),
        ({"target_modules": ["qkv"]}, "does not name modules that have tensors"),
        ({"target_modules": "("}, "target_modules '.'.* that name no modules"),
        ({"layers_to_transform": [0], "target_modules": LINEARS}, "does not name .*layers.1.mlp"),
        ({"exclude_modules": ["v_proj"]}, "does not name .*layers.0.self_attn.v_proj.*(2 in all)"),
        ({"r": 4}, r"down_proj.lora_A.weight' .* \(3, 64\), which is rank 3, .* r=4"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(saved, config, changes, message):
    (saved / peft.CONFIG).write_text(json.dumps(settings_of(saved) | changes))
    with pytest.raises(ValueError, match=message):
        peft.load_adapter(saved, config)


@pytest.mark.parametrize(
    "targets",
    [
        LINEARS,
        ["self_attn.q_proj", "k_proj", "v_proj", "o_proj", "mlp.gate_proj", "up_proj", "down_proj"],
        r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*",
        r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",  # of older transformers
        "all-linear",
        None,
    ],
)
def test_targets_may_be_written_in_many_ways(saved, config, lora, targets):
    settings = settings_of(saved) | {"target_modules": targets}
    (saved / peft.CONFIG).write_text(json.dumps(settings))
    assert_same_bits(peft.load_adapter(saved, config)[1], lora)


@pytest.mark.parametrize(
    "options, missing",
    [
        ({"target_modules": ["q_proj", "v_proj"]}, ("k", "o", "gate", "up", "down")),
        ({"target_modules": r".*language_model.*\.down_proj"}, ("q", "k", "v", "o", "gate", "up")),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, ("v", "down")),
    ],
)
def test_an_adapter_on_fewer_layers_gives_the_logits_of_peft(
    tmp_path, config, batch, policy_folder, policy_with, options, missing
):
    options = hf_peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)
    theirs = hf_peft.get_peft_model(torch_policy.load(policy_folder), options)
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.eval().save_pretrained(tmp_path)
    adapter, lora = peft.load_adapter(tmp_path, config)
    arrays = {path[-1]: np.asarray(v[...]) for path, v in nnx.to_flat_state(lora)}
    for name in missing:
        assert not arrays[f"{name}_a"].any() and not arrays[f"{name}_b"].any()
    policy = policy_with(adapter.rank, adapter.alpha, lora)
    got, want = (
        torch_policy.our_logits(policy, batch),
        torch_policy.logits(theirs, batch, config.image_token_id),
    )
    torch_policy.assert_close(got, want)
    # What can be trained on computes the same, and no pair of halves is without a gradient.
    fresh = nnx.state(policy_with(adapter.rank, adapter.alpha, lora), nnx.LoRAParam)
    fresh = jax.tree.map(lambda x: np.ones(x.shape, np.float32), fresh)
    ready = peft.trainable(lora, fresh)
    arrays = {path[-1]: np.asarray(v[...]) for path, v in nnx.to_flat_state(ready)}
    for name, array in arrays.items():
        assert name.endswith("_b") or array.any(axis=(1, 2)).all(), name
    again = torch_policy.our_logits(policy_with(adapter.rank, adapter.alpha, ready), batch)
    np.testing.assert_array_equal(again, got)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.removeprefix("base_model.model.model.language_model."),
        lambda name: name.replace("base_model.model.model.language_model.", "language_model."),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".policy.weight"),
        lambda name: name.removesuffix(".weight"),
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("model.language_model", "language_model.model"),
    ],
)
def test_keys_are_read_as_they_circulate(saved, config, lora, rename):
    rewrite(saved, lambda tensors: {rename(name): t for name, t in tensors.items()})
    assert rename(f"{FIRST}.lora_A.weight") != f"{FIRST}.lora_A.weight"
    assert_same_bits(peft.load_adapter(saved, config)[1], lora)


def test_whoever_may_read_a_new_file_may_read_an_adapter(saved):
    (saved / "new").touch()
    assert (saved / peft.WEIGHTS).stat().st_mode == (saved / "new").stat().st_mode


def other_base(source, target, factor=1.01):
    """A checkpoint of the same sizes with other weights."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    name = next(name for name in tensors if "mlp.up_proj" in name)
    save_file(tensors | {name: tensors[name] * factor}, target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    "named, fingerprint, warned",
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", False, "names the base 'Qwen/Qwen2.5-VL-7B-Instruct'"),
        ("org/OTHER", False, ""),
        ("", False, ""),
        ("POLICY", False, "trained on .*whose weights are not those of .*other"),
        ("org/other", True, "trained on .*whose weights are not those of .*other"),
        ("", True, "trained on .*whose weights are not those of .*other"),
    ],
)
def test_an_adapter_of_another_base_is_put_on_with_a_warning(
    saved, config, lora, policy_folder, caplog, named, fingerprint, warned
):
    other = other_base(policy_folder, saved / "other")
    known = stored_weights.fingerprint(policy_folder) if fingerprint else ""
    named = named.replace("POLICY", str(policy_folder))
    peft.save_adapter(saved, config, peft.AdapterConfig(RANK, ALPHA, named, known), lora)
    adapter, _ = peft.load_adapter(saved, config)
    assert adapter.base_weights == known
    with caplog.at_level("WARNING"):
        peft.warn_of_other_base(adapter, saved, other)
    assert bool(caplog.text) == bool(warned) and re.search(warned, caplog.text)
    # On its own base, and on a copy of that, nothing is said, but where only the name is known.
    caplog.clear()
    copy = shutil.copytree(policy_folder, saved / "copy" / "qwen2.5-vl-7b-instruct")
    with caplog.at_level("WARNING"):
        peft.warn_of_other_base(adapter, saved, copy)
    assert bool(caplog.text) == (named == "org/OTHER" and not known)


def test_options_left_empty_are_no_reason_to_refuse(saved, config):
    """PEFT writes every option it knows."""
    known = hf_peft.LoraConfig(r=RANK, lora_alpha=6, target_modules="all-linear").to_dict()
    written = {k: v for k, v in known.items() if isinstance(v, str | int | float | dict | None)}
    (saved / peft.CONFIG).write_text(json.dumps(written | {"peft_type": "LORA"}))
    assert {"use_dora", "rank_pattern", "modules_to_save", "lora_bias"} <= written.keys()
    assert peft.load_adapter(saved, config)[0].rank == RANK


def test_an_unknown_option_is_said_and_an_empty_one_is_not(saved, config, caplog):
    options = {
        "scale_of_tomorrow": 2.0,
        "other_of_tomorrow": None,
        "megatron_core": "megatron.core",
    }
    (saved / peft.CONFIG).write_text(json.dumps(settings_of(saved) | options))
    assert peft.load_adapter(saved, config)[0].rank == RANK
    assert "sets ['scale_of_tomorrow'], which is not known here" in caplog.text


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


def diverged(tensors):
    tensors[f"{FIRST}.lora_A.weight"][1, 2] = np.nan
    return tensors


def infinite(tensors):
    tensors[f"{FIRST}.lora_B.weight"][0, 0] = -np.inf
    return tensors


def twice(tensors):
    name = f"{FIRST}.lora_A.weight"
    return tensors | {name.replace(".weight", ".default.weight"): tensors[name]}


def without_a_module(tensors):
    return {name: t for name, t in tensors.items() if not name.startswith(f"{FIRST}.")}


def nothing(tensors):
    return {}


def integers(tensors):
    name = f"{FIRST}.lora_A.weight"
    return tensors | {name: tensors[name].astype(np.int32)}


@pytest.mark.parametrize(
    "change, message",
    [
        (diverged, "q_proj.lora_A.weight' in .* holds NaN or infinite numbers"),
        (infinite, "q_proj.lora_B.weight' in .* holds NaN or infinite numbers"),
        (twice, "holds '.*q_proj.lora_A.weight' under two names"),
        (without_a_module, "names modules without tensors, .*layers.0.self_attn.q_proj"),
        (nothing, "lacks tensors"),
        (integers, "q_proj.lora_A.weight' in .* holds I32, but weights must be"),
        (without_one, r"lacks tensors \['base_model.*q_proj.lora_B.weight'\] \(1 in all\)"),
        (with_vision, r"lacks tensors \['base_model.model.model.visual.*lora_B.*another base"),
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
