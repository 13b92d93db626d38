"""Supervised training from nothing to a checkpoint folder that the rest of the package loads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from configs import quickstart_sft
from examples.pretrain import __main__ as pretrain
from examples.pretrain import datasets, fit
from speciarl_jax.models.checkpoints import hf_checkpoint


@pytest.fixture
def config():
    return make_config()


@pytest.fixture(scope="module")
def from_nothing(tmp_path_factory):
    """The workdir of both stages, their encoder, and the folder of the policy."""
    workdir, config = tmp_path_factory.mktemp("from_nothing"), make_config()
    encoder = pretrain.train_vision(config, workdir)
    return workdir, encoder, pretrain.train_answers(config, encoder, workdir)


def make_config():
    config = quickstart_sft.get_config()
    config.vision.depth = 2
    config.vision.hidden_size = 16
    config.vision.intermediate_size = 16
    config.vision.num_heads = 2
    config.vision.full_attention_layers = (1,)
    config.vision.out_hidden_size = 24
    config.vision_stage.cycles = (1, 1)
    config.vision_stage.batch_size = 326  # four steps an epoch
    config.vision_stage.warmup_steps = 1
    config.vision_stage.log_every = 2
    config.text.hidden_size = 24
    config.text.intermediate_size = 16
    config.text.num_layers = 2
    config.text.mrope_section = (1, 1, 1)
    config.answer_stage.epochs = 1
    config.answer_stage.batch_size = 163
    config.answer_stage.warmup_steps = 1
    config.answer_stage.answers = 1
    config.answer_stage.log_every = 4
    config.checkpoint.save_every = 2
    return config


@pytest.mark.slow
def test_a_policy_from_nothing_and_again_from_its_checkpoints(config, from_nothing):
    workdir, encoder, folder = from_nothing
    dimensions, policy = hf_checkpoint.load(folder, dtype="float32", param_dtype="float32")
    assert dataclasses.asdict(dimensions.vision)["depth"] == 2
    # The encoder is frozen while the decoder learns; both are stored in bfloat16.
    for path, trained in nnx.to_flat_state(nnx.state(encoder)):
        loaded = dict(nnx.to_flat_state(nnx.state(policy.visual)))[path]
        np.testing.assert_allclose(loaded[...], trained[...], rtol=1e-2, atol=1e-6)
    rows = (workdir / "answers" / "metrics.jsonl").read_text().splitlines()
    stage = config.answer_stage
    images = len(datasets.DataSet(config, "answer_stage").epoch(0))
    steps = images * stage.epochs // stage.batch_size
    logged = [n for n in range(1, steps + 1) if n % stage.log_every == 0 or n == steps]
    assert [json.loads(row)["step"] for row in rows] == logged and len(logged) >= 2

    # Finished stages are read back, not trained again.
    again = pretrain.train_vision(config, workdir)
    for a, b in zip(
        nnx.to_flat_state(nnx.state(encoder)), nnx.to_flat_state(nnx.state(again)), strict=True
    ):
        np.testing.assert_array_equal(a[1][...], b[1][...])
    config.vision_stage.learning_rate *= 2
    with pytest.raises(ValueError, match="learning_rate"):
        pretrain.train_vision(config, workdir)


def test_the_matrices_go_to_muon_and_biases_and_norms_do_not(config):
    config.vision_stage.warmup_steps = 0
    config.vision_stage.weight_decay = 0.0
    encoder = pretrain.VisionEncoder(pretrain.VisionConfig(**config.vision), rngs=nnx.Rngs(0))
    params = nnx.state(encoder)
    optimizer = fit.make_optimizer(config.vision_stage, 10)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for path, update in nnx.to_flat_state(updates):
        is_matrix = update.ndim == (3 if path[0] == "blocks" else 2) and path != ("patch_embed",)
        if is_matrix:
            # About orthogonal, layer by layer: the singular values are alike. Those of the random
            # gradient are not (the smallest of a square one is nearly 0 and stays small).
            def spread(matrix):
                values = np.linalg.svd(matrix[...], compute_uv=False)
                return values.max(-1) / np.quantile(values, 0.1, axis=-1)

            assert np.all(spread(update) < 3), path
        else:
            # The first step of Adam with Nesterov's momentum has one size everywhere, whatever the
            # gradient: lr (b1 (1 - b1) / (1 - b1^2) + 1), with b1 = .9; epsilon takes a little off
            # where the gradient is nearly 0.
            want = config.vision_stage.learning_rate * (0.9 * 0.1 / 0.19 + 1)
            np.testing.assert_allclose(np.abs(update[...]), want, rtol=2e-2, err_msg=str(path))


@pytest.mark.parametrize(
    "section, key, value, said",
    [
        ("answer_stage", "prompts", {"bass": 1.0}, "bass"),
        ("answer_stage", "options", {"difficulty": "hardest"}, "'hardest' is unknown; choose one"),
        ("habits", "level_shares", (0.5, 0.5, 0.5, 0.5), "sum to 1"),
        ("habits", "leanings", {"specific": (0.5, 0.6, 0.0, 0.0)}, "leanings.*sum to 1"),
        ("vision_stage", "watch", {"watched": {"split": "held-out"}}, "held-out"),
        ("data", "image_size", 56, "have 48 x 48 pixels and config.data.image_size is 56"),
    ],
)
def test_what_a_later_stage_reads_is_checked_before_the_first(config, section, key, value, said):
    pretrain.check(config)
    with config.unlocked():
        config[section][key] = ml_collections.ConfigDict(value) if type(value) is dict else value
    with pytest.raises(ValueError, match=said):
        pretrain.check(config)


def test_sections_with_equal_keys_do_not_hide_each_other(config):
    parts = ("answer_stage", "data", "vision", "text", "vision_stage.policy")
    known = fit.provenance_of(config, parts, {})
    assert known["vision_stage.policy"] == config.vision_stage.policy
    config.data.workers = 7
    assert fit.provenance_of(config, parts, {}) == known
    assert fit.provenance_of(config, parts, {"leaves": {}})["label_tree"] != known["label_tree"]
    for section, key, value in (("answer_stage", "batch_size", 9), ("vision", "depth", 9)):
        config[section][key] = value
        changed = {k for k, v in fit.provenance_of(config, parts, {}).items() if known[k] != v}
        assert f"{section}.{key}" in changed


@pytest.mark.slow
def test_a_decoder_on_the_encoder_of_a_policy_that_exists(config, from_nothing, tmp_path):
    *_, first = from_nothing
    config.vision_stage.policy = str(first)
    second = pretrain.train_answers(config, pretrain.read_encoder(config), tmp_path)
    one, two = (
        dict(nnx.to_flat_state(nnx.state(hf_checkpoint.load(f)[1].visual))) for f in (first, second)
    )
    for path, param in one.items():
        np.testing.assert_array_equal(param[...], two[path][...], err_msg=str(path))

    config.vision.depth = 3
    with pytest.raises(ValueError, match="depth=2.*depth=3"):
        pretrain.read_encoder(config)
