"""Every configuration builds in shapes alone: names, numbers, meshes, and all programs of a step.

The policy has the dimensions of the published checkpoint, and no weights.
"""

import functools
import json
import pathlib
import re

import jax
import plans
import pytest

import configs
from configs import base, static_map
from speciarl_jax.data import prompt_builder
from speciarl_jax.experiment import algorithm, validate_config
from speciarl_jax.models import family, load_policy
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.runtime import plugins, sharding
from speciarl_jax.tools.plan import programs
from speciarl_jax.training import rl_step

FOLDER = pathlib.Path(base.__file__).parent
# What stands behind the colon of a file that needs an argument.
ARGUMENTS = {
    "information": ("1.0", "bits:0.5"),
    "label_noise": ("0.05", "0.10", "0.25"),
    "rank_aware": ("0.5",),
    "brier": ("0.5",),
    "moving_reference": ("0.9",),
    "prompt": sorted(path.stem for path in prompt_builder.TEXTS.glob("*.txt")),
    "static_map": sorted(static_map.MAPS),
}
# Of `examples.pretrain`, which has keys of its own (tests/sft_test.py).
OTHER_PROGRAM = {"__init__", "cifar100_sft", "own_folder_sft", "quickstart_sft"}
FILES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in OTHER_PROGRAM)
METHODS = [f for f in FILES if "(parent: str" in (FOLDER / f"{f}.py").read_text()]
NAMES = [f"{f}:{a}" for f in ARGUMENTS for a in ARGUMENTS[f]]
CHAINED = [f"{name}:quickstart" for name in [*NAMES, *METHODS]]
NAMES += [f for f in FILES if f not in ARGUMENTS]
# Devices of the mesh: a pod for the published models unless the file says otherwise.
DEVICES = {
    "cub_3b_one_gpu": 1,
    "cub_3b_one_chip": 1,
    "cub_3b_v5e4": 4,
    "cub_v5p8": 4,
    "cub_v6e8": 8,
    "cub_qwen3_vl_2b": 4,
    "cub_qwen3_vl_2b_one_chip": 1,
    "cub_qwen3_vl_4b": 4,
    "cub_qwen3_vl_4b_one_chip": 1,
    "cub_qwen3_vl_8b_v6e8": 8,
}
# What decides the programs of a step, but for the size of the images.
SECTIONS = "model mesh rollout verifier label_noise reward advantage loss optimizer train".split()


def is_tiny(name):
    """Whether the policy is one that ships."""
    return configs.load(name).model.path is not None


def mesh_of(name, config):
    devices = DEVICES.get(name, 1 if is_tiny(name) else 16)
    data, fsdp, tensor = (config.mesh[axis] for axis in sharding.AXES)
    fsdp = devices // (data * tensor) if fsdp == -1 else fsdp
    assert data * fsdp * tensor == devices
    return jax.sharding.AbstractMesh((data, fsdp, tensor), sharding.AXES)


def dimensions(name):
    if is_tiny(name):
        return hf_checkpoint.read_config(load_policy.model_folder(configs.load(name).model.path))
    size = re.search(r"qwen3_vl_\d+b", name)
    return family.preset(size.group() if size else "3b" if "3b" in name else "7b")


@pytest.mark.parametrize("name", [*NAMES, *CHAINED])
def test_names_resolve_and_numbers_fit_together(name):
    config = configs.load(name)
    assert config.is_locked
    mesh = mesh_of(name, config)
    validate_config.check(config, mesh)
    algorithm.check(config)
    prompt_builder.read_prompt(config.data.prompt)
    plugins.find("data", config.data.name, "Source")
    plugins.find("verifiers", config.verifier.name, "create")
    # The cuts of a batch, counted again: everything that is cut over the mesh is whole.
    train, parts = config.train, sharding.batch_parts(mesh)
    updates = train.mini_batches * train.micro_batches
    assert train.batch_size % (updates * parts) == 0
    assert config.evaluation.batch_size % parts == 0
    assert config.evaluation.best_of_batch_size % parts == 0
    dynamic = train.dynamic_sampling
    if dynamic.max_rounds:
        assert dynamic.batch_size % parts == 0 and dynamic.batch_size >= train.batch_size


def distinct():
    """Names with programs that no name before them has; those that differ in kind are not slow."""
    quick = {"base", "dapo", "sft", "gspo:quickstart"}
    found, seen = [], set()
    for name in [*sorted(NAMES, key=lambda n: n not in quick), *CHAINED]:
        config = configs.load(name)
        key = dimensions(name), json.dumps([config[s].to_json() for s in SECTIONS])
        if key in seen:
            continue
        seen.add(key)
        found.append(pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]))
    return found


@functools.cache
def programs_of(name):
    config = configs.load(name)
    # 640 x 640 pixels and about a hundred tokens of text; the drawings of the quickstart.
    grid, prompt_tokens = ((8, 8), 80) if is_tiny(name) else ((46, 46), 648)
    plan = plans.plan(config, dimensions(name), mesh_of(name, config), grid, prompt_tokens)
    trained = list(programs.programs(plan))
    return config, {p.name: p for p in [*trained, *programs.programs(plan, ("evaluate",))]}


@pytest.mark.parametrize("name", distinct())
def test_the_programs_have_the_shapes_of_the_configuration(name):
    config, found = programs_of(name)
    rollouts, length = config.rollout.num_rollouts, config.rollout.max_tokens
    _, greedy = plans.outputs(found["evaluate"])
    assert greedy.tokens_BNT.shape == (config.evaluation.batch_size, 1, length)
    if "rollout" in found:
        sampled = validate_config.sampled_images(config)
        assert plans.outputs(found["rollout"])[1].logp_BNT.shape == (sampled, rollouts, length)
        assert plans.outputs(found["verify"])[0].shape == (sampled, rollouts)
    last = found["step" if "step" in found else "update"]
    (state, metrics), before = plans.outputs(last), last.arguments[0]
    assert jax.tree.structure(state) == jax.tree.structure(before)
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
    samples = metrics.pop(rl_step.SAMPLES, None)
    assert samples is None or samples.reward_KN.shape == (config.train.num_logged_images, rollouts)
    assert all(value.shape == () for value in metrics.values())
    adapters = sum(x.size for x in jax.tree.leaves(state.lora))
    if dimensions(name) == family.preset("7b"):
        assert round(adapters / 1e6, 1) == 161.5  # the paper's figure for r = 64
