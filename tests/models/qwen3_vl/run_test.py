"""Runs of a tiny Qwen3-VL: training, meshes, kills, exports, predictions, judges."""

import dataclasses
import json

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import random_policy
import small_run
import torch_policy
from flax import nnx

import configs
from speciarl_jax import train
from speciarl_jax.models import family, qwen_text
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.tools import convert
from speciarl_jax.verifiers.category import Category

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def run(qwen3_folder):
    return small_run.small_run(qwen3_folder)


@pytest.fixture(scope="module")
def batch(run):
    return small_run.batch_of(run)


@pytest.fixture(scope="module")
def adapters(run):
    """Adapters that change every layer."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), run.lora)


@pytest.fixture(scope="module")
def logits(run, adapters, batch):
    return torch_policy.our_logits(nnx.merge(run.graphdef, adapters, run.base), batch)


@pytest.fixture(scope="module")
def workdir(run, adapters, tmp_path_factory):
    """What a training run leaves behind, with adapters that are far from the start."""
    folder = tmp_path_factory.mktemp("run")
    small_run.leave_checkpoints(folder, run, {1: adapters})
    return folder


@flax.struct.dataclass
class Smooth:
    """The more tokens are below `limit`, the better the category."""

    limit: jax.Array

    def verify(self, tokens_BNT, mask_BNT, label_index_B):
        share_BN = jnp.sum(mask_BNT & (tokens_BNT < self.limit), axis=-1) / mask_BNT.sum(axis=-1)
        category_BN = jnp.floor(share_BN * int(Category.SPECIFIC)).astype(jnp.int32)
        return category_BN, jnp.ones(category_BN.shape, bool)


def rewards_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["reward/mean"] for row in rows if "reward/mean" in row])


def test_the_batch_has_features_with_deepstack_parts(run, batch):
    assert family.of(run.model_config).title == "Qwen3-VL"
    vision = run.model_config.vision
    policy = nnx.merge(run.graphdef, run.lora, run.base)
    shape = jax.eval_shape(policy.encode_images, batch.patches_BSC, batch.layout).shape
    assert shape == (8, 16, vision.feature_size) and vision.feature_size == 3 * 40


def test_logits_equal_those_of_transformers(run, batch, logits, qwen3_folder):
    ours = torch_policy.our_logits(nnx.merge(run.graphdef, run.lora, run.base), batch)
    theirs = torch_policy.load(qwen3_folder)
    image = run.model_config.image_token_id
    torch_policy.assert_close(ours, torch_policy.logits(theirs, batch, image))
    assert np.abs(logits - ours).max() > 0.1 * np.abs(ours).max(), "the adapters changed nothing"


def test_an_exported_adapter_gives_the_same_logits_in_peft(
    workdir, run, batch, logits, qwen3_folder, tmp_path
):
    convert.write_peft(tmp_path / "adapter", convert.read_run(workdir))
    theirs = hf_peft.PeftModel.from_pretrained(
        torch_policy.load(qwen3_folder), tmp_path / "adapter"
    )
    image = run.model_config.image_token_id
    torch_policy.assert_close(torch_policy.logits(theirs, batch, image), logits)


def test_a_merged_run_gives_the_same_logits_in_transformers_and_here(
    workdir, run, batch, logits, tmp_path
):
    convert.write_merged(tmp_path / "merged", convert.read_run(workdir), dtype="float32")
    theirs, image = torch_policy.load(tmp_path / "merged"), run.model_config.image_token_id
    torch_policy.assert_close(torch_policy.logits(theirs, batch, image), logits)
    config, ours = hf_checkpoint.load(
        tmp_path / "merged", dtype=jnp.float32, param_dtype=jnp.float32
    )
    assert config == run.model_config
    torch_policy.assert_close(torch_policy.our_logits(ours, batch), logits)


def test_an_int8_base_answers_nearly_as_the_whole_one(run, batch, qwen3_folder):
    whole = torch_policy.our_logits(nnx.merge(run.graphdef, run.lora, run.base), batch)
    options = {"dtype": jnp.float32, "param_dtype": jnp.float32, "base_weights": "int8"}
    _, rounded = hf_checkpoint.load(qwen3_folder, **options)
    error = np.abs(torch_policy.our_logits(rounded, batch) - whole).max() / np.abs(whole).max()
    assert 0 < error < 0.1


@pytest.mark.parametrize("attention", ["cudnn_by_xla", "splash_interpret"])
def test_other_kernels_give_the_same_logits(run, batch, qwen3_folder, attention):
    """Of the encoder too, whose tokens see their whole image."""
    whole = torch_policy.our_logits(nnx.merge(run.graphdef, run.lora, run.base), batch)
    options = {"dtype": jnp.float32, "param_dtype": jnp.float32, "attention": attention}
    _, policy = hf_checkpoint.load(qwen3_folder, **options)
    mask = np.asarray(batch.mask_BP)
    torch_policy.assert_close(torch_policy.our_logits(policy, batch)[mask], whole[mask])


def test_the_text_of_the_policy_can_judge(run):
    """Its decoder alone, on three equal positions, as `flax_judge` runs it with `policy_base`."""
    decoder = nnx.merge(run.graphdef, run.lora, run.base).decoder
    text = np.random.default_rng(0).integers(0, 300, 6).astype(np.int32)
    tokens, mask = np.zeros((2, 9), np.int32), np.zeros((2, 9), bool)
    tokens[0, 3:], mask[0, 3:] = text, True
    tokens[1, :6], mask[1, :6] = text, True
    found = np.asarray(random_policy.quick_jit(qwen_text.logits)(decoder, tokens, mask))
    np.testing.assert_allclose(found[0, 3:], found[1, :6], rtol=0, atol=1e-4 * np.abs(found).max())


def test_a_cache_keeps_features_with_their_deepstack_parts(run, qwen3_folder):
    cached = small_run.small_run(
        qwen3_folder, data__vision_cache__place="host", data__vision_cache__bytes=2**24
    )
    rows = [run.train_source[i] for i in range(8)]
    whole, first, second = (one.place(one.build(rows, 8)) for one in (run, cached, cached))

    @jax.jit
    def encode(lora, base, batch):
        policy = nnx.merge(run.graphdef, lora, base)
        return policy.encode_images(batch.patches_BSC, batch.layout)

    want = encode(run.lora, run.base, whole)
    assert first.features_BMD.shape == (8, 16, 3 * 40)
    np.testing.assert_allclose(first.features_BMD, want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(second.features_BMD, first.features_BMD)
    assert cached.place_metrics() == {"data/vision_cache_hits": 0.5}


@pytest.mark.slow
def test_training_raises_the_reward(qwen3_folder, tmp_path):
    """On the embedded benchmark, with verdicts that a random policy can learn to please."""
    config = small_run.small_config(
        qwen3_folder,
        train__steps=40,
        checkpoint__save_every=40,
        optimizer__learning_rate=2e-2,
        optimizer__epsilon=1e-8,
    )
    fixed = configs.load("static_map:1").reward
    config.reward.name = fixed.name
    with config.unlocked():
        config.reward.options = fixed.options
    run = small_run.prepared(config)
    train.train(dataclasses.replace(run, verifier=Smooth(jnp.int32(200))), tmp_path)
    found = rewards_of(tmp_path)
    assert found[-10:].mean() > found[:10].mean() + 0.1


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(qwen3_folder, tmp_path):
    whole = small_run.small_run(qwen3_folder, train__steps=4)
    first = small_run.small_run(qwen3_folder, train__steps=2)
    want, _ = train.train(whole, tmp_path / "calm")
    train.train(first, tmp_path / "stopped")
    got, _ = train.train(whole, tmp_path / "stopped")
    got, want = small_run.arrays(got), small_run.arrays(want)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].tobytes() == value.tobytes(), name
