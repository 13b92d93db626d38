r"""Measures what the in-graph verifier costs beside a training step.

    python -m benchmarks.verifier_cost --tokenizer=CHECKPOINT --trees=caltech_birds2011,cars196 \
        --tokens=512 --repeats=3

Compiles and times `verify` of whole label trees with a real vocabulary on completions of so many
tokens, and the step of the small policy (random weights, completions of the same length) that they
belong to, in turns. Prints seconds and the share of a step; policies of real size make it smaller.
"""

import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import limits
from benchmarks.__main__ import Measurement
from benchmarks.workload import Options, Shape, Workload, model_config, random_policy
from speciarl_jax.data import tfds_images
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.runtime import compiler, exit_codes
from speciarl_jax.verifiers.taxonomy import Taxonomy, TaxonomyVerifier

IMAGES, ROLLOUTS = 16, 10


def completions(tokenizer, taxonomy: Taxonomy, size: int, seed: int) -> tuple[jax.Array, ...]:
    """Makes completions of `size` tokens that think and answer with names of the tree.

    Returns:
      int32 tokens and bool mask [B, N, T], and int32 labels [B].
    """
    rng = np.random.default_rng(seed)
    thoughts = tokenizer("The image shows something with a shape, colours and parts. " * size)
    tokens = np.zeros((IMAGES, ROLLOUTS, size), np.int32)
    for b in range(IMAGES):
        for n in range(ROLLOUTS):
            name = taxonomy.names[rng.integers(len(taxonomy.names))]
            end = tokenizer(f"</think><answer>A photo of a {name}</answer>")["input_ids"]
            start = tokenizer("<think>")["input_ids"]
            middle = thoughts["input_ids"][: size - len(start) - len(end)]
            row = [*start, *middle, *end][:size]
            tokens[b, n, : len(row)] = row
    labels = rng.integers(0, len(taxonomy.leaf_ids), IMAGES).astype(np.int32)
    return jnp.asarray(tokens), jnp.asarray(tokens > 0), jnp.asarray(labels)


def compiled(taxonomy: Taxonomy, tokenizer, vocabulary: int, batch):
    """Compiles `verify`; returns it as a function without arguments, and lines about it."""
    begun = time.perf_counter()
    verifier = TaxonomyVerifier(
        taxonomy,
        tokenizer_lib.token_bytes(tokenizer, vocabulary),
        max_response_bytes=4096,
        tags="think",
    )
    built = time.perf_counter() - begun
    size = sum(x.nbytes for x in jax.tree.leaves(verifier))
    begun = time.perf_counter()
    program = jax.jit(lambda v, *batch: v.verify(*batch)).lower(verifier, *batch).compile()
    seconds = time.perf_counter() - begun
    category_BN, _ = program(verifier, *batch)
    known = float(jnp.mean(category_BN > 0))
    about = (
        f"{len(taxonomy.names)} names, tables {size / 2**20:.0f} MiB built in {built:.1f} s, "
        f"compiled in {seconds:.1f} s, {known:.0%} of the answers correct"
    )
    return lambda: program(verifier, *batch), about


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not given.tokenizer:
        raise app.UsageError("give --tokenizer=FOLDER of a checkpoint, and flags only")
    compiler.compile_quickly()
    tokenizer = tokenizer_lib.load(given.tokenizer)
    clock, config = limits.Clock("wall"), model_config("small")
    shape = Shape(IMAGES, ROLLOUTS, 300, given.tokens, 8, (16,), (40,))
    options = Options()
    step = Measurement(Workload(config, shape, True, options, random_policy(config, options)))
    programs = {"step": step.run_step}
    for name in given.trees:
        taxonomy = Taxonomy.from_file(tfds_images.TREES / f"{name}.json")
        batch = completions(tokenizer, taxonomy, given.tokens, seed=0)
        programs[name], about = compiled(taxonomy, tokenizer, len(tokenizer), batch)
        print(f"{name}: {about}")
    seconds = {name: [] for name in programs}
    for _ in range(given.repeats):
        for name, program in programs.items():
            seconds[name].append(clock.time(program))
    found = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"step of the small policy, {given.tokens} tokens: {found['step']:.2f} s")
    for name in given.trees:
        print(f"{name}: verify {found[name]:.3f} s, {found[name] / found['step']:.2%} of the step")


if __name__ == "__main__":
    flags.DEFINE_string("tokenizer", None, "Folder of a checkpoint with the vocabulary.")
    flags.DEFINE_list("trees", ["caltech_birds2011", "cars196"], "Trees that ship.")
    flags.DEFINE_integer("tokens", 512, "T, of a completion.", lower_bound=64)
    flags.DEFINE_integer("repeats", 3, "Runs of each.", lower_bound=1)
    exit_codes.run_tool("verifier_cost", main)
