"""Compares our step with torch and transformers, which share nothing, in one run.

    python benchmarks/baselines/torch_baseline.py --shapes=short,paper

Needs torch, transformers and peft (`launch/test.sh` installs them). The model has the dimensions
of `workload.SMALL` (benchmarks) and random weights; the images and prompts are
those of the bench.

- rollout: `generate(num_return_sequences=N)` on B images; no completion ends early.
- update: LoRA by peft on the linear layers of the language model; B x N whole sequences with their
  images in micro-batches of 32, logits at completion positions only, clipped surrogate, AdamW. With
  --kl_coefficient both sides also run the reference policy.

Ours is measured by `python -m benchmarks` in processes between the rounds of torch's.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import numpy as np
import ours
import peft
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path.insert(0, str(ours.ROOT))

from benchmarks import limits, workload

LINEARS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
MICRO_BATCH = 32


def inputs_of(config, shape, copies, seed):
    """Converts the bench's images and prompts for transformers, each `copies` times."""
    batch = workload.random_batch(config, shape, seed)
    tokens = torch.tensor(np.repeat(batch.tokens_BP, copies, axis=0)).long()
    patches = np.repeat(batch.patches_BSC, copies, axis=0)
    side = shape.side * config.vision.spatial_merge_size
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == config.image_token_id).int(),
        "pixel_values": torch.tensor(patches.reshape(-1, patches.shape[-1])),
        "image_grid_thw": torch.tensor([(1, side, side)] * len(tokens)),
    }


def rollout(model, config, shape, inputs):
    """Samples tokens [B x N, T]; the end of sequence is suppressed."""
    special = list(range(config.image_token_id, config.text.vocab_size))
    with torch.no_grad():
        found = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=shape.rollouts,
            max_new_tokens=shape.tokens,
            suppress_tokens=special,
            eos_token_id=None,
            pad_token_id=0,
        )
    return found[:, shape.prompt :]


def logprobs(model, inputs, completions):
    """Computes logp [rows, T] of the completions; a row is a whole sequence with its image."""
    extended = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], completions], dim=1),
        "attention_mask": torch.cat(
            [inputs["attention_mask"], torch.ones_like(completions)], dim=1
        ),
        "mm_token_type_ids": torch.cat(
            [inputs["mm_token_type_ids"], torch.zeros_like(completions, dtype=torch.int32)], dim=1
        ),
    }
    length = completions.shape[1]
    logits = model(**extended, logits_to_keep=length + 1, use_cache=False).logits[:, :-1].float()
    chosen = logits.gather(-1, completions[..., None])[..., 0]
    return chosen - torch.logsumexp(logits, dim=-1)


def update(model, optimizer, config, shape, inputs, completions, advantages, kl_coefficient):
    """Takes one step of AdamW on the clipped surrogate, with gradients over micro-batches."""
    rows, patches = len(completions), len(inputs["pixel_values"]) // len(completions)
    total = completions.numel()
    for start in range(0, rows, MICRO_BATCH):
        part = slice(start, start + MICRO_BATCH)
        some = {name: x[part] for name, x in inputs.items() if name != "pixel_values"}
        some["pixel_values"] = inputs["pixel_values"][start * patches : part.stop * patches]
        logp = logprobs(model, some, completions[part])
        ratio = torch.exp(logp - logp.detach())
        advantage = advantages[part, None]
        clipped = torch.clamp(ratio, 0.8, 1.2)
        loss = -torch.minimum(ratio * advantage, clipped * advantage).sum()
        if kl_coefficient:
            with torch.no_grad(), model.disable_adapter():
                reference = logprobs(model, some, completions[part])
            apart = reference - logp
            loss = loss + kl_coefficient * (torch.exp(apart) - apart - 1).sum()
        (loss / total).backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Torch:
    """Holds model, adapters, optimizer and inputs of one shape."""

    def __init__(self, config, shape, given):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config.to_hf())).eval()
        model.generation_config.eos_token_id = None
        adapters = peft.LoraConfig(
            r=given.lora_rank, lora_alpha=given.lora_rank, target_modules=LINEARS
        )
        self.config, self.shape, self.given = config, shape, given
        # Sampling runs without adapters, as if they were merged: the faster choice.
        self.plain = model
        self.inputs = inputs_of(config, shape, 1, 0)
        self.repeated = inputs_of(config, shape, shape.rollouts, 0)
        self.completions = rollout(model, config, shape, self.inputs)
        self.model = peft.get_peft_model(model, adapters)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=3e-5)
        self.advantages = torch.randn(len(self.completions))

    def measure(self, clock):
        """Returns the seconds of a rollout and of an update."""
        begun = clock()
        with self.model.disable_adapter():
            rollout(self.model, self.config, self.shape, self.inputs)
        middle = clock()
        update(
            self.model,
            self.optimizer,
            self.config,
            self.shape,
            self.repeated,
            self.completions,
            self.advantages,
            self.given.kl_coefficient,
        )
        return {"rollout_s": middle - begun, "update_s": clock() - middle}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="short,paper")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each side takes")
    parser.add_argument("--repeats", type=int, default=3, help="measurements a turn")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--kl_coefficient", type=float, default=0.0)
    parser.add_argument("--lora_rank", type=int, default=16)
    parser.add_argument("--json", help="file for the medians")
    given = parser.parse_args()
    clock = limits.Clock(given.clock)
    found = []
    for name in given.shapes.split(","):
        theirs = Torch(workload.SMALL, workload.SHAPES[name], given)
        theirs.measure(time.perf_counter)
        seconds = {"torch": [], "ours": []}
        for _ in range(given.rounds):
            seconds["ours"].append(
                ours.measure(
                    sys.executable,
                    name,
                    repeats=given.repeats,
                    kl_coefficient=given.kl_coefficient,
                    lora_rank=given.lora_rank,
                    clock=given.clock,
                )
            )
            seconds["torch"] += [theirs.measure(clock) for _ in range(given.repeats)]
        row = {"shape": name}
        for what in ("rollout_s", "update_s"):
            pair = [statistics.median(s[what] for s in seconds[side]) for side in ("torch", "ours")]
            row |= {
                f"torch_{what}": pair[0],
                what: pair[1],
                f"{what[:-2]}_ratio": pair[0] / pair[1],
            }
            print(
                f"{name:6} {what[:-2]:8} torch {pair[0]:7.3f} s  ours {pair[1]:7.3f} s  "
                f"{pair[0] / pair[1]:5.2f}x",
                flush=True,
            )
        found.append(row)
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
