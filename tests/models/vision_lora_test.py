"""Adapters on the vision encoder and its merger, of every family: trained, exported, read back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import random_policy
import small_run
import torch
import torch_policy
from flax import nnx
from random_policy import quick_jit

from speciarl_jax.experiment import validate_config
from speciarl_jax.models import lora
from speciarl_jax.models.checkpoints import hf_checkpoint, peft
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
RANK, ALPHA = 2, 4.0
# Seeds with several blocks, images and, of Qwen3-VL, parts for decoder layers.
SEED = 7


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    found = random_policy.make_case(SEED, folder, request.param)
    return found, folder


def load(folder, targets, adapters=None):
    config, policy = hf_checkpoint.load(
        folder,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        lora_rank=RANK,
        lora_alpha=ALPHA,
        lora_targets=targets,
    )
    if adapters is None:
        rng = np.random.default_rng(3)
        adapters = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype),
            nnx.state(policy, nnx.LoRAParam),
        )
    nnx.update(policy, adapters)
    return config, policy, adapters


@quick_jit
def features_of(policy, batch):
    images = batch.patches_BSC, batch.layout
    return policy.encode_images(*images), policy.encode_images(*images, use_lora=False)


@quick_jit
def logits_of(policy, batch):
    features = policy.encode_images(batch.patches_BSC, batch.layout)
    return policy(batch.tokens_BP, batch.positions_B3P.swapaxes(0, 1), batch.mask_BP, features)


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param(("merger",), marks=pytest.mark.slow),
        pytest.param(("encoder",), marks=pytest.mark.slow),
        ("decoder", "merger", "encoder"),
    ],
)
def test_peft_and_transformers_give_the_same_logits(case, targets, tmp_path):
    """Of the adapter on its base, and of the merged checkpoint; what is read back is the same."""
    (known, folder) = case
    config, policy, adapters = load(folder, targets)
    batch, mask = known.batch, known.batch.mask_BP
    want = np.asarray(logits_of(policy, batch))[mask]
    base = np.asarray(logits_of(known.policy, batch))[mask]
    assert np.abs(want - base).max() > 1e-2 * np.abs(base).max(), "the adapters changed nothing"
    settings = peft.AdapterConfig(RANK, ALPHA, str(folder), targets=targets)
    peft.save_adapter(tmp_path / "adapter", config, settings, adapters)
    theirs = hf_peft.PeftModel.from_pretrained(torch_policy.load(folder), tmp_path / "adapter")
    hf_checkpoint.save(tmp_path / "merged", config, policy)
    for model in (theirs, torch_policy.load(tmp_path / "merged")):
        with torch.no_grad():
            got = model(**known.torch_inputs(batch)).logits.float().numpy()[mask]
        torch_policy.assert_close(got, want)
    assert peft.read_adapter_config(tmp_path / "adapter") == settings
    found, read = peft.load_adapter(tmp_path / "adapter", config)
    assert found == settings
    jax.tree.map(np.testing.assert_array_equal, read, adapters)


def test_the_frozen_base_is_there_without_them(case):
    known, folder = case
    _, policy, _ = load(folder, ("merger", "encoder"))
    trained, frozen = features_of(policy, known.batch)
    want, _ = features_of(known.policy, known.batch)
    np.testing.assert_array_equal(frozen, want)
    assert np.abs(trained - want).max() > 1e-2 and policy.trains_encoder
    assert not known.policy.trains_encoder and not policy.decoder.lora


def test_fresh_adapters_change_nothing_and_the_default_has_none(case):
    known, folder = case
    options = {"dtype": jnp.float32, "param_dtype": jnp.float32, "lora_rank": RANK}
    _, plain = hf_checkpoint.load(folder, **options)
    assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(plain, nnx.LoRAParam))} == {
        "decoder"
    }
    _, policy = hf_checkpoint.load(folder, **options, lora_targets=lora.TARGETS)
    assert not any(
        np.asarray(weight).any()
        for path, weight in nnx.to_flat_state(nnx.state(policy, nnx.LoRAParam))
        if path[-1].endswith("_b")
    )
    # Products with zeros, which the compiler may add in another order.
    got, frozen = features_of(policy, known.batch)
    np.testing.assert_allclose(got, frozen, rtol=0, atol=1e-6 * np.abs(frozen).max())


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["policy_folder", "qwen3_folder"])
def test_a_step_moves_the_encoder_and_its_reference_stays(folder, request):
    """The update encodes images anew, and agrees with what sampling saw of them."""
    run = small_run.small_run(
        request.getfixturevalue(folder),
        model__lora_targets=lora.TARGETS,
        loss__kl_coefficient=0.01,
        train__mini_batches=1,
        train__micro_batches=2,
    )
    optimizer, state, state_sharding = state_lib.start(run)
    step = functools.partial(
        steps.train_step(run, optimizer, state_sharding), verifier=run.verifier
    )
    before = small_run.arrays(state.lora)
    batch, found = small_run.batch_of(run), []
    for number in range(2):
        state, metrics = step(state, run.base, batch=batch, number=np.uint32(number))
        found.append({name: np.asarray(x) for name, x in metrics.items() if np.ndim(x) == 0})
    after = small_run.arrays(state.lora)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert any("visual" in name and "blocks" in name for name in moved)
    assert any("visual" in name and "merger" in name for name in moved)
    # Fresh adapters are the reference policy, and trained ones are not.
    assert abs(found[0]["update/kl"]) < 1e-6 < found[1]["update/kl"] < 1.0
    assert found[1]["update/sampler_gap"] < 1e-4


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"lora_targets": ("vision",)}, r"lora_targets is \('vision',\).*'merger'"),
        ({"lora_targets": ()}, r"lora_targets is \(\).*one or more"),
        ({"cache": "host"}, r"data\.vision_cache\.place 'host'.*set that to 'none'"),
        ({"rounds": 2}, r"max_rounds 2.*set that to 0"),
    ],
)
def test_what_takes_features_as_fixed_is_refused(small_config, run, changes, said):
    config = small_config(model__lora_targets=changes.get("lora_targets", ("decoder", "merger")))
    config.data.vision_cache.place = changes.get("cache", "none")
    config.train.dynamic_sampling.max_rounds = changes.get("rounds", 0)
    config.train.dynamic_sampling.batch_size = 8
    with pytest.raises(ValueError, match=said):
        validate_config.check(config, run.mesh)
