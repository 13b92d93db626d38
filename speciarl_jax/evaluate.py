"""Evaluates the base policy and a trained one on the held-out pictures.

    python -m speciarl_jax.evaluate --workdir=runs/quickstart

Greedy answers of both, and with --best_of=64 the best of that many samples of each. Writes
`evaluation.json` and the answers (`answers_*.jsonl`) to the workdir.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import ml_collections
from absl import app, flags

from speciarl_jax import assemble, checkpoint, metrics, report
from speciarl_jax.evaluation import Evaluator, write_answers


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The configuration that a training run wrote.

    Raises:
      ValueError: the folder holds none.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; give the --workdir of a run of python -m speciarl_jax.train"
        )
    return ml_collections.ConfigDict(json.loads(path.read_text()))


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not given.workdir:
        raise app.UsageError("give --workdir=FOLDER of a training run, and flags only")
    checkpoint.quieten_orbax()
    workdir = pathlib.Path(given.workdir)
    run = assemble.prepare(read_config(workdir))
    _, state, _ = assemble.init_state(run)
    checkpoints = checkpoint.Checkpoints(
        workdir / "checkpoints", save_every=1, keep=1, create=False
    )
    trained, _ = checkpoints.restore(state, {}, given.step)
    checkpoints.close()
    policies = {"base": run.lora, "trained": trained.lora}
    greedy = Evaluator(run)
    found = {}
    for name, lora in policies.items():
        judged = greedy(lora, name=name)
        write_answers(workdir / f"answers_{name}.jsonl", judged)
        found[name] = greedy.score(judged.verified)
    if given.best_of:
        options = run.config.evaluation
        sampled = Evaluator(run, num_rollouts=given.best_of, batch_size=options.best_of_batch_size)
        for name, lora in policies.items():
            judged = sampled(
                lora,
                temperature=options.best_of_temperature,
                top_p=options.best_of_top_p,
                name=f"{name}, best of {given.best_of}",
            )
            best = metrics.best_of_n(judged.verified)
            found[f"{name}, best of {given.best_of}"] = sampled.score(best)
    if jax.process_index() == 0:
        rows = {name: dataclasses.asdict(value) for name, value in found.items()}
        (workdir / "evaluation.json").write_text(json.dumps(rows, indent=2) + "\n")
        print(report.table(found))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the latest by default.")
    flags.DEFINE_integer("best_of", 0, "Also score the best of this many samples.")
    app.run(main)
