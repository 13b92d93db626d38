"""Measures how far decoding in int8 is from the policy that learns.

    python -m benchmarks.int8_gap --config=configs/quickstart.py --images=256
    python -m benchmarks.int8_gap --config=configs/quickstart.py --images=256 \\
        --config.model.dtype=bfloat16 --config.model.param_dtype=bfloat16

Samples rollouts about images of training by the base policy of the configuration, with and without
int8, and asks the policy itself about the same tokens. Without int8 what is left is the rounding of
the dtype. Completions whose tokens differ anywhere from those without int8 (same keys, or greedy)
count as others.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from speciarl_jax.experiment.run import Run, prepare
from speciarl_jax.rl.losses import importance
from speciarl_jax.rollout import rescore
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime import compiler, exit_codes, sharding

# What is said of a setting -> config.rollout.decode_weights and kv_cache.
SETTINGS = {
    "nothing in int8": ("param_dtype", "dtype"),
    "weights": ("int8", "dtype"),
    "keys and values": ("param_dtype", "int8"),
    "both": ("int8", "int8"),
}


def draw(run: Run, images: int) -> Iterator[tuple[str, Rollout, Rollout, dict[str, float]]]:
    """Samples with each of `SETTINGS`, about the first images of training, in one batch.

    Yields:
      The setting; rollouts at `config.rollout.temperature`; greedy ones; and the means over tokens
      of `importance.mismatch` between the sampler and the policy.
    """
    config = run.config
    rollout = config.rollout
    source = run.train_source
    batch = sharding.put_batch(run.mesh, run.build([source[i] for i in range(images)], images))
    temperature, top_p = np.float32(rollout.temperature), np.float32(rollout.top_p)

    @jax.jit
    def gap(lora, base, batch, features_BMD, sampled):
        logp_BNT = rescore.answer_logp(
            lora,
            base,
            batch,
            features_BMD,
            sampled,
            graphdef=run.graphdef,
            parts=1,
            use_lora=True,
            banned_V=run.banned_V,
            temperature=temperature,
            chunk_size=config.train.logprob_chunk,
        )
        found = importance.mismatch(logp_BNT, sampled.logp_BNT, sampled.mask_BNT)
        tokens = jnp.sum(sampled.mask_BNT)
        return {
            name: jnp.sum(jnp.where(sampled.mask_BNT, x, 0)) / tokens for name, x in found.items()
        }

    for name, (weights, kv_cache) in SETTINGS.items():
        with config.unlocked():
            rollout.decode_weights, rollout.kv_cache = weights, kv_cache
        sample = jax.jit(run.sampler(rollout.num_rollouts, rollout.max_tokens, training=True))
        about = run.lora, run.base, batch, jax.random.key(0)
        features_BMD, sampled = sample(*about, temperature, top_p)
        _, greedy = sample(*about, np.float32(0), top_p)
        found = gap(run.lora, run.base, batch, features_BMD, sampled)
        yield name, sampled, greedy, {key: float(value) for key, value in found.items()}


def same(a: Rollout, b: Rollout) -> float:
    """Returns the share of completions whose tokens are all the same."""
    equal_BNT = np.asarray(a.tokens_BNT == b.tokens_BNT) | ~np.asarray(a.mask_BNT | b.mask_BNT)
    return float(equal_BNT.all(axis=-1).mean())


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or given.config is None:
        raise app.UsageError("give --config=FILE, and flags only")
    compiler.compile_quickly()
    config: ml_collections.ConfigDict = given.config
    print(f"{'in int8':16} {'KL, nats':>10} {'gap, nats':>10} {'sampled':>8} {'greedy':>8}")
    first = None
    for name, sampled, greedy, found in draw(prepare(config), given.images):
        first = first or (sampled, greedy)
        print(
            f"{name:16} {found['sampler_kl']:10.1e} {found['sampler_gap']:10.1e} "
            f"{same(sampled, first[0]):8.1%} {same(greedy, first[1]):8.1%}"
        )
    print("KL and gap: of a token; sampled, greedy: completions that are the same as without int8")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=False)
    flags.DEFINE_integer("images", 256, "Of training, in one batch.", lower_bound=1)
    exit_codes.run_tool("int8_gap", main)
