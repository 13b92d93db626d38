"""Verdicts of the judge on the devices for one batch of made-up responses, on a given mesh.

A program of its own, so that it can be started with several devices: policy, prompt, out, and the
sizes of the mesh.
"""

import sys

import jax
import numpy as np
import small_run

from speciarl_jax.experiment.run import prepare
from speciarl_jax.runtime import sharding

ANSWERS = ["<answer>Car</answer>", "<answer>big  truck</answer>", "<answer>none</answer>", "car"]
ANSWERS += ["<answer>car or bus</answer>", "<answer>a vehicle</answer>"]


def responses(tokenizer, images, size=32):
    """Tokens [B, N, T] and mask of `ANSWERS` about each image."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ANSWERS]
    tokens = np.zeros((images, len(ids), size), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for n, one in enumerate(ids):
        tokens[:, n, : len(one)], mask[:, n, : len(one)] = one, True
    return tokens, mask


def main(policy, prompt, out, data, fsdp, tensor):
    changes = {
        "mesh__data": int(data),
        "mesh__fsdp": int(fsdp),
        "mesh__tensor": int(tensor),
        "verifier__name": "flax_judge",
        "verifier__flax_judge__prompt": prompt,
        "verifier__flax_judge__tags": "answer",
        "verifier__flax_judge__rollouts_at_once": 4,
    }
    run = prepare(small_run.small_config(policy, **changes))
    tokens, mask = responses(run.tokenizer, 8)
    batch = sharding.put_batch(run.mesh, (tokens, mask, np.arange(8, dtype=np.int32)))
    program = jax.jit(lambda judge, batch: judge.judge(*batch))
    category, valid, probability = program(run.verifier, batch)
    kernel = run.verifier.scorer.weights["layers"]["gate"][...]
    np.savez(
        out,
        category=category,
        valid=valid,
        probability=probability,
        parts=len({str(shard.index) for shard in kernel.addressable_shards}),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
