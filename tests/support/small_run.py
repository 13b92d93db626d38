"""A policy and a run so small that a test can afford them, and a program that trains it.

The program is for tests that need processes of their own (several devices, several processes, a
kill): `python small_run.py NAME OPTIONS`, with one of `PROGRAMS` and the JSON that it takes.
"""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import sys
import time
import types

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from configs import quickstart, quickstart_sft
from examples.pretrain import __main__ as pretrain
from speciarl_jax import train
from speciarl_jax.data import emoji
from speciarl_jax.evaluation.evaluator import Evaluator, lines_of
from speciarl_jax.experiment.run import Run, prepare
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.rollout.types import Groups
from speciarl_jax.runtime import exit_codes, multihost, sharding
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps, train_logger

DOMAINS = ("vehicle",)


@flax.struct.dataclass
class TokenVerifier:
    """Gives every category to some answers of a random policy: the verdict hashes the tokens.

    Attributes:
      shift: int32 scalar; an array, as a verifier's tables are.
    """

    shift: jax.Array

    def verify(self, tokens_BNT, mask_BNT, label_index_B):
        total_BN = jnp.sum(jnp.where(mask_BNT, tokens_BNT, 0), axis=-1)
        category_BN = (total_BN + label_index_B[:, None] + self.shift) % 7 - 1
        return category_BN.astype(jnp.int32), jnp.ones(category_BN.shape, bool)


def make_policy(folder: pathlib.Path) -> None:
    """Writes a random policy in the Hugging Face layout."""
    config = quickstart_sft.get_config()
    config.text.vocab_size = 400
    config.text.hidden_size = 48
    config.text.intermediate_size = 64
    config.text.num_layers = 2
    config.text.num_heads = 4
    config.text.num_kv_heads = 2
    config.text.mrope_section = (2, 2, 2)
    config.vision.depth = 2
    config.vision.hidden_size = 32
    config.vision.intermediate_size = 48
    config.vision.num_heads = 2
    config.vision.full_attention_layers = (1,)
    config.vision.out_hidden_size = 48
    config.data.image_size = 24
    builders, policy = pretrain.new_policy(config, emoji.concepts("benchmark", DOMAINS), folder)
    # Large enough that the image and the tokens before decide what is said.
    rng = np.random.default_rng(0)
    for path, weight in nnx.to_flat_state(nnx.state(policy)):
        if weight.ndim > 1:
            size = 6.0 if path[-1] == "merger_out" else 1.5
            noise = rng.normal(0, size / np.sqrt(weight.shape[-2]), weight.shape)
            weight.set_value(jnp.asarray(noise, jnp.float32))
    # The head is tied to the embedding. Its rows have to be about as long as each other, but for
    # the token that ends an answer: some answers must end early.
    table = rng.normal(0, 0.2, policy.decoder.embedding.shape)
    table[builders["base"].config.eos_token_id[0]] *= 3
    policy.decoder.embedding.set_value(jnp.asarray(table, jnp.float32))
    hf_checkpoint.save(folder, builders["base"].config, policy)


def small_config(folder, **changes):
    """`configs/quickstart.py`, smaller; `changes` maps "section__key" to a value."""
    config = quickstart.get_config()
    config.model.path = str(folder)
    config.model.lora_rank = 3
    config.model.lora_alpha = 6.0
    config.model.scan_unroll = 1
    config.data.options.image_size = 24
    config.data.options.domains = DOMAINS
    config.rollout.num_rollouts = 4
    config.rollout.max_tokens = 8
    config.rollout.temperature = 1.0
    config.data.options.difficulty = "easy"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 0
    config.optimizer.decay_steps = 0
    # Where a gradient is nearly zero, rounding must not decide about the sign of a whole step.
    config.optimizer.epsilon = 1e-4
    config.train.steps = 3
    config.train.batch_size = 8
    config.train.logprob_chunk = 8
    config.train.samples_every = 0
    config.evaluation.options.views = 1
    config.evaluation.batch_size = 16
    config.checkpoint.save_every = 1
    for name, value in changes.items():
        *sections, key = name.split("__")
        part = config
        for section in sections:
            part = part[section]
        part[key] = value
    return config


def small_run(folder, devices=None, **changes) -> Run:
    """Like `prepare`, with a verifier that a random policy can please."""
    return prepared(small_config(folder, **changes), devices)


def prepared(config, devices=None) -> Run:
    """The same for a whole configuration."""
    run = prepare(config, devices)
    verifier = jax.device_put(TokenVerifier(np.int32(3)), sharding.replicated(run.mesh))
    return dataclasses.replace(run, verifier=verifier)


def arrays(tree) -> dict[str, np.ndarray]:
    """The leaves of a pytree by their path, whole, in every process."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    if jax.process_count() > 1:
        leaves = [(path, multihost_utils.process_allgather(x, tiled=True)) for path, x in leaves]
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def batch_of(run, first=0):
    """A batch of `config.train.batch_size` images, on the devices."""
    source, size = run.train_source, run.config.train.batch_size
    return sharding.put_batch(run.mesh, run.build([source[first + i] for i in range(size)], size))


def write_answers(path, judged):
    """One JSON line an image: what it is, what was said, and the verdicts."""
    lines = lines_of(judged, range(len(judged.rows)))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def leave_checkpoints(folder, run, adapters):
    """Writes what a training run leaves behind: its configuration, and a checkpoint for each step
    of `adapters`."""
    (folder / "config.json").write_text(run.config.to_json())
    checkpoints = Checkpoints(folder / "checkpoints", save_every=1, keep=9)
    for step, lora in adapters.items():
        _, state, _ = state_lib.start(dataclasses.replace(run, lora=lora))
        checkpoints.save(step, state, {"stream": {}, "seconds": 1.0}, {})
    checkpoints.close()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def train_program(policy, workdir, config=None, seconds_a_row=0.0):
    """Trains in `workdir`; writes metrics no faster than `seconds_a_row`."""
    write = train_logger.MetricWriter.write

    def slow_write(*args):
        time.sleep(seconds_a_row)
        write(*args)

    train_logger.MetricWriter.write = slow_write
    train.train(small_run(policy, **(config or {})), pathlib.Path(workdir))


def profiled_program(policy, workdir, config):
    """Trains; after the first step a signal asks for a profile."""
    exit_codes.guarded(
        lambda _: train.train(
            small_run(policy, **config),
            pathlib.Path(workdir),
            on_first_step=lambda: os.kill(os.getpid(), signal.SIGUSR1),
        )
    )([])


def resumable_program(policy, workdir, config, process, processes, port):
    """Trains as `speciarl_jax.train` does as one of several processes, with its exit codes."""
    given = types.SimpleNamespace(
        distributed=False,
        coordinator=f"127.0.0.1:{port}",
        num_processes=processes,
        process_id=process,
        heartbeat_timeout=60,
    )

    def main(_):
        multihost.start(given)
        train.train(small_run(policy, **config), pathlib.Path(workdir))

    exit_codes.guarded(main)([])


def mesh_program(policy, out, meshes, config=None):
    """A step on each mesh: tokens, categories and updated adapters, written to `out`."""
    found = {}
    for data, fsdp, tensor in meshes:
        sizes = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
        sizes |= {"train__fused": False, "rollout__temperature": 1.0}
        # Of all devices together.
        sizes |= {"advantage__normalize_by_std": True, "advantage__std_over": "batch"}
        sizes |= config or {}
        run = small_run(policy, jax.devices()[: data * fsdp * tensor], **sizes)
        optimizer, state, state_sharding = state_lib.start(run)
        step = steps.programs(run, optimizer, state_sharding)
        batch = batch_of(run)
        features, rollout = step["rollout"](state.lora, run.base, batch, steps.key_of(run, 7))
        category, valid, *_ = step["verify"](run.verifier, batch, rollout)
        groups = Groups(batch, features, rollout, category, valid)
        state, metrics = step["update"](state, run.base, groups)
        found |= {
            f"{data}{fsdp}{tensor} {name}": value
            for name, value in arrays(
                {"lora": state.lora, "rollout": rollout, "category": category, "metrics": metrics}
            ).items()
        }
    np.savez(out, **found)


def processes_program(policy, workdir, out, process, processes, port, config=None):
    """Evaluates, trains and evaluates as process `process` of `processes`."""
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    run = small_run(policy, **(config or {}))
    evaluator = Evaluator(run)
    workdir = pathlib.Path(workdir)
    before = evaluator(run.lora)
    lora, _ = train.train(run, workdir)
    after = evaluator(lora)
    if process == 0:
        write_answers(workdir / "before.jsonl", before)
        write_answers(workdir / "after.jsonl", after)
    found = arrays(lora)
    np.savez(f"{out}_{process}.npz", devices=jax.device_count(), **found)


def records_program(policy, workdir, data_dir):
    """Trains two steps on the aircraft in `data_dir`; says whether TensorFlow was imported."""
    config = small_config(
        policy,
        data__name="tfds_images",
        data__bucket_growth=1.5,
        train__batch_size=2,
        train__steps=2,
        evaluation__batch_size=2,
    )
    options = {"dataset": "fgvc_aircraft", "data_dir": data_dir, "check_sizes": False}
    with config.unlocked():
        config.data.options = ml_collections.ConfigDict({**options, "split": "train"})
        config.evaluation.options = ml_collections.ConfigDict({"split": "test"})
    run = prepare(config)
    lora, _ = train.train(run, pathlib.Path(workdir))
    assert len(Evaluator(run)(lora).rows) == 1
    print("tensorflow" if "tensorflow" in sys.modules else "no tensorflow")


PROGRAMS = {
    f.__name__: f
    for f in (
        *(train_program, resumable_program, mesh_program),
        *(profiled_program, processes_program, records_program),
    )
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](**json.loads(sys.argv[2]))
