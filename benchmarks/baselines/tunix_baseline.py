"""Compares our step with a GRPO step of google-tunix on the bench's decoder, text only.

In an environment of its own, which holds neither torch nor this package's other requirements:

    python3 -m venv tunix && tunix/bin/pip install google-tunix==0.1.7 jax==0.10.2
    tunix/bin/python benchmarks/baselines/tunix_baseline.py --shape=short --python=.venv/bin/python

The decoder has the dimensions of `SMALL` in benchmarks/workload.py, float32 and
random weights; LoRA of rank 16 by qwix on the same linear layers; B prompts of P random tokens, N
completions of at most T tokens, which random weights nearly always reach. Tunix has no
images in RL, so it runs no vision encoder, and text stands where ours has an image. A learner step
samples, rewards, scores the reference (unless --kl_coefficient=0) and updates. `rollout` is the
call of the cluster's `generate`, `rest` is all else. The first step compiles and is left out. Ours
is measured before and after, by `python -m benchmarks` with the interpreter --python.
Prints medians and ratios.
"""

import argparse
import json
import pathlib
import statistics
import time

import jax
import numpy as np
import optax
import ours
import qwix
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

# The dimensions and shapes of benchmarks/workload.py, which this environment cannot
# import: images, rollouts, prompt, tokens.
SHAPES = {"short": (16, 10, 98, 64), "paper": (16, 10, 300, 96)}
DECODER = {
    "num_layers": 4,
    "vocab_size": 4096,
    "embed_dim": 256,
    "hidden_dim": 512,
    "num_heads": 4,
    "head_dim": 64,
    "num_kv_heads": 2,
    "rope_theta": 1_000_000,
    "norm_eps": 1e-6,
}
LINEARS = ".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
PAD, BOS, EOS = 4093, 4092, 4094


class Numbers:
    """Tokenizes text whose words are the numbers of the tokens."""

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(str(int(i)) for i in ids)

    def pad_id(self):
        return PAD

    def bos_id(self):
        return BOS

    def eos_id(self):
        return EOS


def models():
    """Makes the actor with adapters, and the reference: the same weights without."""
    base = qwen2.Qwen2(qwen2.ModelConfig(**DECODER), rngs=nnx.Rngs(0))
    provider = qwix.LoraProvider(module_path=LINEARS, rank=16, alpha=16.0)
    return qwix.apply_lora_to_model(base, provider, **base.get_model_input()), base


def cluster_of(given, mesh, steps):
    images, num_rollouts, prompt, tokens = SHAPES[given.shape]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-5, weight_decay=0.01))
    actor, reference = models()
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    return rl_cluster.RLCluster(
        actor=actor,
        reference=reference if given.kl_coefficient else None,
        tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer,
                eval_every_n_steps=10**6,
                max_steps=steps,
                mini_batch_size=images,
                train_micro_batch_size=given.micro_batch,
                rollout_micro_batch_size=images,
                compute_logps_micro_batch_size=given.micro_batch,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=tokens,
                max_prompt_length=prompt,
                # Tunix pads prompts to a power of two.
                kv_cache_size=2 ** (prompt - 1).bit_length() + tokens + 8,
                temperature=1.0,
                top_p=1.0,
            ),
        ),
    )


def batches(given, steps):
    """Yields prompts of random tokens."""
    images, _, prompt, _ = SHAPES[given.shape]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        words = rng.integers(0, BOS, (images, prompt))
        yield {"prompts": np.array([" ".join(map(str, row)) for row in words])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="short", choices=sorted(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kl_coefficient", type=float, default=0.01)
    parser.add_argument("--micro_batch", type=int, default=2, help="prompts of an update's part")
    parser.add_argument("--python", required=True, help="of an environment with speciarl_jax")
    parser.add_argument("--json", help="file for the medians")
    given = parser.parse_args()
    num_rollouts, steps = SHAPES[given.shape][1], given.repeats + 1
    automatic = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(automatic, automatic))
    rollouts, lengths, rewards = [], [], []
    before = ours.measure(
        given.python, given.shape, repeats=given.repeats, kl_coefficient=given.kl_coefficient
    )
    with mesh:
        cluster = cluster_of(given, mesh, steps)
        generate = cluster.generate

        def timed(*args, **kwargs):
            begun = time.perf_counter()
            found = generate(*args, **kwargs)
            jax.block_until_ready(found.left_padded_prompt_tokens)
            rollouts.append(time.perf_counter() - begun)
            lengths.append(np.mean([len(x) for x in found.tokens]))
            return found

        def reward(prompts, completions, **_):
            rewards.append(time.perf_counter())
            return [float(sum(map(ord, text)) % 6) for text in completions]

        cluster.generate = timed
        learner = grpo_learner.GRPOLearner(
            rl_cluster=cluster,
            reward_fns=reward,
            algo_config=grpo_learner.GRPOConfig(
                num_generations=num_rollouts, num_iterations=1, beta=given.kl_coefficient
            ),
        )
        learner.train(batches(given, steps))
        jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
    # From reward to reward: batches are asked for ahead, rewards are not.
    whole = np.diff(rewards).tolist()
    row = {
        "shape": given.shape,
        "rollout_s": statistics.median(rollouts[1:]),
        "step_s": statistics.median(whole),
        "tokens": float(np.mean(lengths)),
        "all": {"rollout_s": rollouts, "step_s": whole},
    }
    row["rest_s"] = row["step_s"] - row["rollout_s"]
    after = ours.measure(
        given.python, given.shape, repeats=given.repeats, kl_coefficient=given.kl_coefficient
    )
    # What is beside the rollout in our step is the update, and a reward that costs nothing.
    for theirs, name in (("rollout_s", "rollout_s"), ("rest_s", "update_s"), ("step_s", "step_s")):
        row[f"ours_{name}"] = statistics.mean((before[name], after[name]))
        row[f"{name[:-2]}_ratio"] = row[theirs] / row[f"ours_{name}"]
    print(json.dumps(row, indent=1))
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
