"""A short run of the shipped policy whose verifier is a judge behind HTTP, and a program for it.

`python judged_run.py OPTIONS` with the JSON that `program` takes.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import small_run

from speciarl_jax import train
from speciarl_jax.evaluation import evaluator
from speciarl_jax.experiment.run import prepare


def judged_config(url, cache, **changes):
    """`small_run.small_config` with the shipped policy, so that answers can be read."""
    defaults = {
        "data__options__image_size": 48,
        "rollout__max_tokens": 24,
        "train__logprob_chunk": 24,
        "train__batch_size": 4,
        "train__steps": 2,
        "optimizer__learning_rate": 1e-3,
        "evaluation__batch_size": 24,
        "verifier__name": "http_judge",
        "verifier__http_judge__model": "judge",
        "verifier__http_judge__cache": str(cache),
        "verifier__http_judge__server__url": url,
        "verifier__http_judge__server__attempts": 1000,
    }
    return small_run.small_config("emoji_tiny", **defaults | changes)


def program(url, cache, workdir, out, process, processes, port, config):
    """Evaluates and trains as process `process` of `processes`."""
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    run = prepare(judged_config(url, cache, **config))
    judged = evaluator.Evaluator(run)(run.lora)
    if process == 0:
        small_run.write_answers(pathlib.Path(workdir) / "answers.jsonl", judged)
    lora, _ = train.train(run, pathlib.Path(workdir))
    np.savez(f"{out}_{process}.npz", **small_run.arrays(lora))


if __name__ == "__main__":
    program(**json.loads(sys.argv[1]))
