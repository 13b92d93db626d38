r"""Evaluates the base policy and a trained one on the held-out pictures.

    python -m speciarl_jax.evaluate --workdir=runs/quickstart
    python -m speciarl_jax.evaluate --config=configs/quickstart.py --workdir=runs/prompts \
        --prompts=base,specific,calibrated,elimination

Greedy answers of both, and with --best_of=64 the best of that many samples of each. With --config
the base policy alone, and no training run is needed; with --prompts, the prompting baselines.
Writes `evaluation.json` and the answers (`answers_*.jsonl`) to the workdir.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from speciarl_jax import assemble, checkpoint, compilation_cache, metrics, report
from speciarl_jax.data import prompts
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


def with_prompt(run: assemble.Run, prompt: str) -> assemble.Run:
    """The same run with another prompt (`config.data.prompt`)."""
    data = run.config.data
    builder = prompts.PromptBuilder(
        run.model_config,
        run.tokenizer,
        run.builder.image_processor,
        prompts.read_prompt(prompt),
        system=data.system,
        max_prompt_tokens=data.max_prompt_tokens,
        bucket_growth=data.bucket_growth,
    )
    return dataclasses.replace(run, builder=builder)


def trained_adapters(run: assemble.Run, workdir: pathlib.Path, step: int | None) -> Any:
    """Adapters of a checkpoint of a training run; the latest when `step` is None."""
    _, state, _ = assemble.init_state(run)
    checkpoints = checkpoint.Checkpoints(
        workdir / "checkpoints", save_every=1, keep=1, create=False
    )
    trained, _ = checkpoints.restore(state, {}, step)
    checkpoints.close()
    return trained.lora


def scores_of(
    run: assemble.Run, policies: Mapping[str, Any], workdir: pathlib.Path, best_of: int
) -> dict[str, metrics.Score]:
    """Scores of the greedy answers of each policy and, if `best_of`, of its best samples.

    The greedy answers are written to `workdir`.
    """
    greedy, found = Evaluator(run), {}
    for name, lora in policies.items():
        judged = greedy(lora, name=name)
        write_answers(workdir / f"answers_{name.replace(', prompt ', '_')}.jsonl", judged)
        found[name] = greedy.score(judged.verified)
    if best_of:
        options = run.config.evaluation
        sampled = Evaluator(run, num_rollouts=best_of, batch_size=options.best_of_batch_size)
        for name, lora in policies.items():
            judged = sampled(
                lora,
                temperature=options.best_of_temperature,
                top_p=options.best_of_top_p,
                name=f"{name}, best of {best_of}",
            )
            best = metrics.best_of_n(judged.verified)
            found[f"{name}, best of {best_of}"] = sampled.score(best)
    return found


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not given.workdir:
        raise app.UsageError("give --workdir=FOLDER of a training run, and flags only")
    checkpoint.quieten_orbax()
    workdir = pathlib.Path(given.workdir)
    if given.config is None:
        config = read_config(workdir)
        compilation_cache.enable(config.compilation_cache)
        run = assemble.prepare(config)
        policies = {"base": run.lora, "trained": trained_adapters(run, workdir, given.step)}
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        compilation_cache.enable(given.config.compilation_cache)
        run = assemble.prepare(given.config)
        policies = {"base": run.lora}
    if given.prompts:
        found = {}
        for prompt in given.prompts:
            named = {f"{k}, prompt {pathlib.Path(prompt).stem}": v for k, v in policies.items()}
            found |= scores_of(with_prompt(run, prompt), named, workdir, given.best_of)
    else:
        found = scores_of(run, policies, workdir, given.best_of)
    if jax.process_index() == 0:
        rows = {name: dataclasses.asdict(value) for name, value in found.items()}
        (workdir / "evaluation.json").write_text(json.dumps(rows, indent=2) + "\n")
        print(report.table(found))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration, to evaluate its base policy.")
    flags.DEFINE_string("workdir", None, "Folder of a training run, or with --config for results.")
    flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the latest by default.")
    flags.DEFINE_integer("best_of", 0, "Also score the best of this many samples.")
    flags.DEFINE_list("prompts", [], "Prompts to evaluate in turn; by default the configured one.")
    app.run(main)
