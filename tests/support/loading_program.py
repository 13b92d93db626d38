"""Loads a checkpoint in a process of its own, and says what memory and which bytes it took.

    python loading_program.py '{"folder": ..., "mesh": [1, 4, 2], ...}'

The last line printed is JSON. `PATTERN` is what the checkpoints of `loading_memory_test` hold.
"""

import json
import pathlib
import re
import sys
import time
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from speciarl_jax.models import safetensors_io
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.runtime import sharding

PATTERN = np.random.default_rng(0).normal(size=8191).astype(ml_dtypes.bfloat16)


def weights(name, shape):
    """Numbers that differ from tensor to tensor and from place to place."""
    return np.resize(np.roll(PATTERN, zlib.crc32(name.encode()) % len(PATTERN)), shape)


def memory(key):
    """Bytes, of "VmRSS" (now) or "VmHWM" (the most since `forget_peak`)."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) * 1024


def forget_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def measured(function):
    """(what it returns, seconds, the most memory it added at any time)"""
    forget_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    found = function()
    seconds = time.perf_counter() - start
    return found, seconds, memory("VmHWM") - before


def count_reading():
    """A list that grows by the bytes of every part that is read from a file."""
    read, sizes = safetensors_io.Reader.read, []

    def counted(self, name, index=()):
        array = read(self, name, index)
        sizes.append(array.nbytes)
        return array

    safetensors_io.Reader.read = counted
    return sizes


def same_as_pattern(config, policy):
    """Number of parameters that hold, layer by layer, what `weights` says of their names."""
    state, equal = dict(nnx.to_flat_state(nnx.state(policy))), 0
    for path, source in hf_checkpoint.sources(config).items():
        value = state[path][...]
        for layer, name in enumerate(source.names):
            got = np.asarray(value[layer] if source.stacked else value)
            if source.layout != "same":
                got = got.T
            np.testing.assert_array_equal(got, weights(name, got.shape), err_msg=name)
        equal += 1
    return equal


def main(folder, mesh, process=0, processes=1, port=0, save_to=None, shard_bytes=0, check=False):
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    data, fsdp, tensor = mesh
    put = sharding.put_param(sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor))
    jax.block_until_ready(jnp.zeros(8) + 1)  # the backend's own memory is no part of loading
    sizes = count_reading()
    (config, policy), seconds, added = measured(lambda: hf_checkpoint.load(folder, put=put))
    arrays = jax.tree.leaves(nnx.state(policy))
    found = {
        "seconds": seconds,
        "added": added,
        "parameters": sum(s.data.nbytes for array in arrays for s in array.addressable_shards),
        "read": sum(sizes),
    }
    if check:
        found["equal"], found["arrays"] = same_as_pattern(config, policy), len(arrays)
    if save_to:
        _, found["save_seconds"], found["save_added"] = measured(
            lambda: hf_checkpoint.save(save_to, config, policy, max_shard_bytes=shard_bytes)
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
