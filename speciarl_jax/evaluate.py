r"""Evaluates policies on labelled images; goes on where a kill stopped it.

    python -m speciarl_jax.evaluate --workdir=runs/quickstart --best_of=64
    python -m speciarl_jax.evaluate --config=configs/quickstart.py --workdir=runs/prompts \
        --prompts=base,specific,calibrated,elimination
    python -m speciarl_jax.evaluate --config=configs/quickstart.py --workdir=runs/compared \
        --policies=base,old=runs/quickstart@20,exports/merged

Without --config the folder is that of a training run, and its base and trained policy are
evaluated; with --config it only receives the results, and the base policy is. What --policies takes
is listed in `speciarl_jax/training/policy_sources.py`.
Greedy answers of each policy about each data set under
each prompt, and with --best_of=N also N samples. Writes `predictions.jsonl` line by line, and
`metrics.json`, `report.md`, `report.html` and figures at the end (docs/evaluation.md).
"""

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from speciarl_jax.data import images
from speciarl_jax.data.prompt_builder import read_prompt
from speciarl_jax.data.sources import open_source
from speciarl_jax.evaluation import (
    metrics,
    open_world,
    predictions,
    provenance,
    report,
    results,
)
from speciarl_jax.evaluation.evaluator import Evaluator, answer_part
from speciarl_jax.evaluation.predictions import GREEDY, SAMPLES, Part
from speciarl_jax.experiment import host_verification, validate_config
from speciarl_jax.experiment.run import (
    Run,
    make_prompt_builder,
    open_sources,
    policy_run,
    with_data,
)
from speciarl_jax.runtime import checkpoint, compilation_cache, exit_codes, multihost, sharding
from speciarl_jax.runtime.workdir import open_workdir
from speciarl_jax.training import policy_sources


def with_prompt(run: Run, prompt: str) -> Run:
    """The same run with another prompt (`config.data.prompt`)."""
    builder = make_prompt_builder(
        run.config, run.model_config, run.tokenizer, run.builder.image_processor, prompt
    )
    return dataclasses.replace(run, builder=builder)


def data_sets(
    config: ml_collections.ConfigDict, files: Sequence[str]
) -> dict[str, ml_collections.ConfigDict]:
    """The configuration with each data set in turn, by the name of the set.

    Args:
      config: has `evaluation.sets`; the evaluation images of `data` if there are none.
      files: configurations whose evaluation images count instead; named after the files.

    Raises:
      ValueError: a file is no configuration, two have one name, or a set lacks its name.
    """
    _check_names("--sets", files)
    found = {}
    for file in files:
        other = policy_sources.config_from_file(epath.Path(file))
        options = {**other.data.options.to_dict(), **other.evaluation.options.to_dict()}
        found[epath.Path(file).stem] = _with_data(config, other.data.name, options)
    for name, part in config.evaluation.sets.items() if not files else ():
        if set(part) != {"name", "options"}:
            raise ValueError(
                f"config.evaluation.sets.{name} has the keys {sorted(part)}; it needs 'name', a "
                "module of speciarl_jax/data, and 'options' of its Source"
            )
        found[name] = _with_data(config, part.name, part.options.to_dict())
    return found or {config.data.name: config}


def _check_names(flag: str, files: Sequence[str]) -> None:
    """Refuses files that results would call by one name."""
    for name, count in collections.Counter(epath.Path(file).stem for file in files).items():
        if count > 1:
            raise ValueError(
                f"{flag} has {count} of the name {name!r} in {list(files)}; results go by the "
                "names of the files, so rename one"
            )


def _with_data(
    config: ml_collections.ConfigDict, name: str, options: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.data.name = name
        changed.data.options = ml_collections.ConfigDict(options)
        changed.evaluation.options = ml_collections.ConfigDict()
        changed.evaluation.sets = ml_collections.ConfigDict()
    return changed


def _with_model(
    config: ml_collections.ConfigDict, model: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.model.update(model)
    return changed


def _sources(config: ml_collections.ConfigDict, with_training: bool) -> list[Any]:
    """The images whose labels the verifier must know; the last are those of the evaluation."""
    if with_training:
        # The labels of the training run, so that the verdicts are those that it saw.
        return open_sources(config)
    source = open_source(config, config.evaluation.seed)
    if config.data.on_decode_error == "raise":
        images.check_files(source)
    images.check_first_row(source, config.data.name)
    return [source]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is evaluated.

    Attributes:
      policies: in the order of the tables.
      sets: name -> configuration with that data set.
      prompts: names or paths.
      own_data: the sets are that of the configuration alone, and its labels those of training, too.
      best_of: N samples an image; 0 for none.
      overwrite: as for `Predictions.begin`.
    """

    policies: Sequence[policy_sources.Policy]
    sets: Mapping[str, ml_collections.ConfigDict]
    prompts: Sequence[str]
    own_data: bool
    best_of: int = 0
    overwrite: bool = False

    def groups(self) -> Iterator[tuple[dict[str, Any], list[policy_sources.Policy]]]:
        """Policies that share a model."""
        groups: dict[str, list[policy_sources.Policy]] = {}
        for policy in self.policies:
            groups.setdefault(json.dumps(policy.model, sort_keys=True), []).append(policy)
        for model, members in groups.items():
            yield json.loads(model), members


def evaluate(plan: Plan, store: predictions.Predictions | None) -> dict[str, Any]:
    """Answers and verdicts of all parts of a plan, but for those that are there already.

    Args:
      plan: what.
      store: where the lines go; None in all processes but the first.

    Returns:
      Data set -> the names around its labels (`Run.labels`).

    Raises:
      ValueError: something does not fit, or the lines there were made with something else.
      host_verification.JudgeUnavailable: too many answers of a part have no verdict.
    """
    labels = {}
    for model, members in plan.groups():
        run, loras = None, {}
        for name, unchanged in plan.sets.items():
            config = _with_model(unchanged, model)
            if run is None:
                mesh = sharding.make_mesh(**config.mesh)
                validate_config.check(config, mesh)
                if plan.best_of:
                    validate_config.check_best_of(config, mesh)
                run = policy_run(config, mesh)
                loras = {policy.name: policy.adapters(run) for policy in members}
                base = provenance.of_base(run)
                known = {
                    key: base | provenance.of_adapters(run, lora) for key, lora in loras.items()
                }
            sources = _sources(config, with_training=plan.own_data)
            of_set = with_data(dataclasses.replace(run, config=config), *sources)
            labels[name] = of_set.labels
            for prompt in plan.prompts:
                asked = with_prompt(of_set, prompt)
                part = Part("", name, epath.Path(prompt).stem, GREEDY)
                _answer(asked, sources[-1], loras, known, part, plan, store)
            if host_verification.is_host(of_set):
                of_set.verifier.close()
    return labels


def _answer(run, source, loras, known, part, plan, store) -> None:
    """Greedy answers of policies of one model about one data set under one prompt, and samples."""
    options = run.config.evaluation
    passes = [(GREEDY, 1, options.batch_size, {})]
    if plan.best_of:
        sampling = {
            "temperature": options.best_of_temperature,
            "top_p": options.best_of_top_p,
        }
        passes.append((SAMPLES, plan.best_of, options.best_of_batch_size, sampling))
    for decoding, count, batch_size, sampling in passes:
        evaluator = Evaluator(run, num_rollouts=count, batch_size=batch_size, source=source)
        for name, lora in loras.items():
            answer_part(
                evaluator,
                lora,
                store,
                part._replace(policy=name, decoding=decoding),
                provenance.of_part(run, source, known[name], decoding=decoding, num_rollouts=count),
                overwrite=plan.overwrite,
                **sampling,
            )


def table(parts: Mapping[Part, results.Lines], weights: Mapping[str, float]) -> str:
    """A Markdown table of all runs, and of the best of their samples."""
    several = [len({part[i] for part in parts}) > 1 for i in (1, 2)]
    rows = {}
    for part, lines in parts.items():
        judged = predictions.verified(lines)
        if not judged:
            continue
        name = ", ".join([part.policy, *(part[i] for i in (1, 2) if several[i - 1])])
        category_BN = predictions.categories(judged)
        if part.decoding == SAMPLES:
            name += f", best of {category_BN.shape[1]}"
        rows[name] = metrics.score(metrics.best_of_n(category_BN), weights)
    return report.table(rows)


def make_plan(given: Any) -> tuple[ml_collections.ConfigDict, Plan]:
    """What the flags ask for.

    Raises:
      ValueError: a policy, data set or prompt that does not exist.
    """
    workdir = epath.Path(given.workdir)
    config = given.config if given.config is not None else policy_sources.read_config(workdir)
    step = policy_sources.BEST if given.best else given.step
    usual = (
        [policy_sources.BASE]
        if given.config is not None
        else [policy_sources.BASE, policy_sources.TRAINED]
    )
    plan = Plan(
        policies=policy_sources.named(given.policies or usual, workdir, step),
        sets=data_sets(config, given.sets),
        prompts=given.prompts or [config.data.prompt],
        own_data=not given.sets and not config.evaluation.sets,
        best_of=given.best_of,
        overwrite=given.overwrite,
    )
    _check_names("--prompts", plan.prompts)
    for prompt in plan.prompts:
        read_prompt(prompt)
    return config, plan


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not given.workdir:
        raise app.UsageError("give --workdir=FOLDER of a training run, and flags only")
    if given.best and given.step is not None:
        raise app.UsageError("give --best or --step, not both")
    multihost.start(given)
    checkpoint.quieten_orbax()
    config, plan = make_plan(given)  # reads; a wrong name makes no folder
    metrics.check_weights(config.evaluation.weights)
    workdir = open_workdir(given.workdir)
    compilation_cache.enable(config.compilation_cache)
    encoder = open_world.Encoder(given.embeddings) if given.embeddings else None
    store = judge = None
    if jax.process_index() == 0:
        judge = open_world.make_judge(config) if given.judge_inclusion else None
        store = predictions.Predictions(workdir)
    labels = evaluate(plan, store)
    if store is None:
        return
    weights, asked = dict(config.evaluation.weights), {}
    found = results.update(workdir, store, weights, labels=labels)
    if given.open_world or encoder or judge:
        asked = open_world.of_parts(store.parts(), encoder, judge)
        found = results.update(workdir, store, weights, labels=labels, open_world=asked)
    written = report.write(workdir)
    print(table(store.parts(), weights))
    for remark in results.remarks(found):
        print(remark)
    for part, row in asked.items():
        values = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
        print(f"{part}: {values}")
    print(*[workdir / results.FILE, workdir / predictions.LINES, *written], sep="\n")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration of data and base policy.")
    flags.DEFINE_string("workdir", None, "Folder of a training run, or with --config for results.")
    flags.DEFINE_list("policies", [], "What to evaluate: base, trained, NAME=PATH (policies.py).")
    flags.DEFINE_integer("step", None, "Checkpoint of `trained`; the latest by default.")
    flags.DEFINE_bool("best", False, "Evaluate the best checkpoint (config.checkpoint.keep_best).")
    flags.DEFINE_list("sets", [], "Configurations whose evaluation images are asked about.")
    flags.DEFINE_list("prompts", [], "Prompts to evaluate in turn; by default the configured one.")
    flags.DEFINE_integer("best_of", 0, "Also draw this many samples an image.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Replace answers that another configuration gave.")
    flags.DEFINE_bool("open_world", False, "Also text inclusion.")
    flags.DEFINE_string("embeddings", None, "Folder of a sentence encoder: also similarities.")
    flags.DEFINE_bool("judge_inclusion", False, "Also ask the judge of config.verifier.http_judge.")
    multihost.define_flags()
    app.run(exit_codes.guarded(main))
