r"""Evaluates policies on labelled images, and continues an evaluation that was killed.

    python -m speciarl_jax.evaluate --workdir=runs/quickstart --best_of=64
    python -m speciarl_jax.evaluate --config=configs/quickstart.py --workdir=runs/prompts \
        --prompts=base,specific,calibrated,elimination
    python -m speciarl_jax.evaluate --config=configs/quickstart.py --workdir=runs/compared \
        --policies=base,old=runs/quickstart@20,exports/merged
    python -m speciarl_jax.evaluate --workdir=runs/quickstart --answers=internvl.jsonl
    python -m speciarl_jax.evaluate --workdir=runs/quickstart --rejudge \
        --config=configs/quickstart.py --config.verifier.name=flax_judge

Without --config, --workdir is the folder of a training run, and its base and trained policy are
evaluated. With --config, --workdir only receives the results, and the base policy is evaluated.
`speciarl_jax/training/policy_sources.py` lists what --policies takes.

Each policy answers about each data set under each prompt: greedily, and with --best_of=N also by N
samples. Writes `predictions.jsonl` line by line, and `metrics.json`, `report.md`, `report.html` and
figures at the end (docs/evaluation.md).

--answers judges answers that another model gave. --rejudge has the answers of --workdir judged by
the verifier of --config, into a folder of its own below it.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from speciarl_jax.data.prompt_builder import read_prompt
from speciarl_jax.evaluation import (
    answer_file,
    constant_answer,
    evaluation_sets,
    given_answers,
    metrics,
    open_world,
    predictions,
    provenance,
    rejudge,
    remarks,
    report,
    results,
    text_judge,
)
from speciarl_jax.evaluation.evaluator import Evaluator, answer_part
from speciarl_jax.evaluation.predictions import GREEDY, SAMPLES, Part
from speciarl_jax.experiment import host_verification, validate_config
from speciarl_jax.experiment.run import (
    Run,
    evaluation_config,
    make_prompt_builder,
    policy_run,
    with_data,
)
from speciarl_jax.runtime import (
    checkpoint,
    compilation_cache,
    compiler,
    exit_codes,
    multihost,
    sharding,
)
from speciarl_jax.runtime.commands import note
from speciarl_jax.runtime.workdir import writing
from speciarl_jax.training import policy_sources


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is evaluated."""

    policies: Sequence[policy_sources.Policy]
    # Name of a data set -> configuration with its images.
    sets: Mapping[str, ml_collections.ConfigDict]
    prompts: Sequence[str]  # names or paths
    # Whether the only set is the configuration's own; then the verifier knows the labels of the
    # training images, too.
    own_data: bool
    best_of: int = 0  # N samples an image; 0 for none
    overwrite: bool = False  # answer anew, whatever is there
    answers: Sequence[answer_file.File] = ()  # that other models gave
    partial_answers: bool = False  # as for `given_answers.match`

    def by_model(self) -> Iterator[tuple[dict[str, Any], list[policy_sources.Policy]]]:
        """Groups the policies that differ in nothing but their adapters."""
        groups: dict[str, list[policy_sources.Policy]] = {}
        for policy in self.policies:
            groups.setdefault(json.dumps(policy.model, sort_keys=True), []).append(policy)
        for model, members in groups.items():
            yield json.loads(model), members


# Name of a policy -> its adapters, and the provenance of the whole policy.
Loaded = Mapping[str, tuple[Any, Mapping[str, Any]]]


def make_plan(given: Any) -> tuple[ml_collections.ConfigDict, Plan]:
    """Reads the configuration and the plan that the flags ask for.

    Raises:
      ValueError: a policy, data set or prompt does not exist, or names or weights do not fit.
    """
    workdir = epath.Path(given.workdir)
    if given.config is not None:
        config, usual = given.config, [policy_sources.BASE]
    else:
        config = policy_sources.read_config(workdir)
        usual = [policy_sources.BASE, policy_sources.TRAINED]
    config = evaluation_config(config)
    metrics.configured_weights(config.evaluation.weights)  # refused before any work
    step = policy_sources.BEST if given.best else given.step
    answers = answer_file.read(given.answers)
    policies = policy_sources.named(given.policies or ([] if answers else usual), workdir, step)
    if both := {file.name for file in answers} & {policy.name for policy in policies}:
        raise ValueError(
            f"--answers and --policies both have {sorted(both)}; write NAME=FILE.jsonl in --answers"
        )
    plan = Plan(
        policies=policies,
        sets=data_sets(config, given.sets),
        prompts=given.prompts or [config.data.prompt],
        own_data=not given.sets and not config.evaluation.sets,
        best_of=given.best_of,
        overwrite=given.overwrite,
        answers=answers,
        partial_answers=given.partial_answers,
    )
    _check_names("--prompts", plan.prompts)
    for prompt in plan.prompts:
        read_prompt(prompt)
    return config, plan


def data_sets(
    config: ml_collections.ConfigDict, files: Sequence[str]
) -> dict[str, ml_collections.ConfigDict]:
    """Lists the data sets, each as the configuration with its images.

    Args:
      config: whose `evaluation.sets` count, or, if there are none, its own evaluation images.
      files: configurations whose evaluation images count instead; sets are named after the files.

    Raises:
      ValueError: a file is no configuration, two have one name, or a set lacks its name.
    """
    _check_names("--sets", files)
    found = {}
    for file in files:
        other = policy_sources.config_from_file(epath.Path(file))
        options = {**other.data.options.to_dict(), **other.evaluation.options.to_dict()}
        stem = epath.Path(file).stem
        found[stem] = evaluation_sets.with_images(config, other.data.name, options)
    found |= {} if files else evaluation_sets.of_config(config)
    return found or {config.data.name: config}


def _check_names(flag: str, files: Sequence[str]) -> None:
    """Refuses files that results would call by one name."""
    for name, count in collections.Counter(epath.Path(file).stem for file in files).items():
        if count > 1:
            raise ValueError(
                f"{flag} has {count} of the name {name!r} in {list(files)}; results go by the "
                "names of the files, so rename one"
            )


def evaluate(plan: Plan, store: predictions.Predictions | None) -> dict[str, Any]:
    """Answers and judges all parts of a plan, except for lines that are there already.

    Args:
      store: receives the lines; None in all processes but the first.

    Returns:
      Data set -> its labels (`Run.labels`).

    Raises:
      ValueError: something does not fit, or the lines there have another provenance.
      host_verification.JudgeUnavailable: too many answers of a part have no verdict.
    """
    labels, judge_given = {}, _given(plan)
    for model, members in plan.by_model():
        sets = {name: config.copy_and_resolve_references() for name, config in plan.sets.items()}
        for config in sets.values():
            with config.unlocked():
                config.model.update(model)
        policy, loaded = _load(next(iter(sets.values())), members, plan.best_of)
        for name, config in sets.items():
            sources = evaluation_sets.sources(config, with_training=plan.own_data)
            run = with_data(dataclasses.replace(policy, config=config), *sources)
            labels[name] = run.labels
            for prompt in plan.prompts:
                part = Part("", name, epath.Path(prompt).stem, GREEDY)
                processor = run.builder.image_processor
                builder = make_prompt_builder(
                    config, run.model_config, run.tokenizer, processor, prompt
                )
                _answer(dataclasses.replace(run, builder=builder), loaded, part, plan, store)
            if host_verification.is_host(run):
                run.verifier.close()
    return labels | judge_given(store)


def _given(plan: Plan) -> Callable[[predictions.Predictions | None], Mapping[str, Any]]:
    """Finds the images of given answers, so that a mistake is told before a policy is loaded.

    Returns:
      What judges the answers and returns the labels of their data sets.
    """
    if not plan.answers:
        return lambda store: {}
    text_judge.refuse_several_processes("--answers")
    sets = {
        name: (one, evaluation_sets.sources(one, plan.own_data)) for name, one in plan.sets.items()
    }
    evaluated = {name: sources[-1] for name, (_, sources) in sets.items()}
    matched = given_answers.match(plan.answers, evaluated, partial=plan.partial_answers)
    prompt = epath.Path(plan.prompts[0]).stem
    return functools.partial(
        given_answers.judge, plan.answers, matched, sets, prompt, overwrite=plan.overwrite
    )


def _load(
    config: ml_collections.ConfigDict, members: Sequence[policy_sources.Policy], best_of: int
) -> tuple[Run, Loaded]:
    """Checks a configuration, and loads its policy and the adapters of policies that share it."""
    mesh = sharding.make_mesh(**config.mesh)
    validate_config.check(config, mesh)
    if best_of:
        size = config.evaluation.best_of_batch_size
        sharding.check_batch(mesh, "config.evaluation.best_of_batch_size", size)
    run = policy_run(config, mesh)
    loras = {policy.name: policy.adapters(run) for policy in members}
    base = provenance.of_base(run)
    known = {name: base | provenance.of_adapters(run, lora) for name, lora in loras.items()}
    return run, {name: (lora, known[name]) for name, lora in loras.items()}


def _answer(
    run: Run,
    loaded: Loaded,
    part: Part,
    plan: Plan,
    store: predictions.Predictions | None,
) -> None:
    """Answers about one data set under one prompt: greedily with all policies, then by samples."""
    options = run.config.evaluation
    passes = [(GREEDY, 1, options.batch_size, {})]
    if plan.best_of:
        sampling = {"temperature": options.best_of_temperature, "top_p": options.best_of_top_p}
        passes.append((SAMPLES, plan.best_of, options.best_of_batch_size, sampling))
    for decoding, count, batch_size, sampling in passes:
        evaluator = Evaluator(run, num_rollouts=count, batch_size=batch_size)
        for name, (lora, policy) in loaded.items():
            made = provenance.of_part(
                run, run.eval_source, policy, decoding=decoding, num_rollouts=count
            )
            mine = part._replace(policy=name, decoding=decoding)
            replace = {"overwrite": plan.overwrite, "anew": plan.overwrite}
            answer_part(evaluator, lora, store, mine, made, **replace, **sampling)


def table(
    parts: Mapping[Part, results.Lines],
    weights: Mapping[str, float],
    runs: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Writes a Markdown table with the scores of all parts, and the weights behind them.

    Args:
      parts: lines; of samples, the best of N is scored.
      weights: as for `metrics.score`.
      runs: of `metrics.json`, for the best constant answer of each data set.
    """
    several = [i for i in (1, 2) if len({part[i] for part in parts}) > 1]
    rows = {}
    for part, lines in parts.items():
        if judged := predictions.verified(lines):
            category_BN = predictions.categories(judged)
            best = [f"best of {category_BN.shape[1]}"] if part.decoding == SAMPLES else []
            name = ", ".join([part.policy, *(part[i] for i in several), *best])
            rows[name] = metrics.score(category_BN.max(axis=1), weights)
    rows |= constant_answer.scores(runs)
    return f"{report.table(rows)}\n\n{metrics.describe_weights(weights)}"


def write_results(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    store: predictions.Predictions,
    labels: Mapping[str, Any],
    measure: Any = None,
) -> None:
    """Writes metrics and report of an evaluation, and prints scores, remarks and paths.

    Args:
      config: its `evaluation.weights`.
      labels: as `evaluate` returns them.
      measure: computes open-world metrics (`open_world.of_parts`) of the parts, or None. It may
        fail, so all other metrics are written before.
    """
    weights = metrics.configured_weights(config.evaluation.weights)
    note(workdir, "evaluate")
    parts, measured = store.parts(), {}
    found = results.update(workdir, store, weights, labels=labels)
    if measure is not None:
        measured = measure(parts)
        found = results.update(workdir, store, weights, labels=labels, open_world=measured)
    written = report.write(workdir)
    print(table(parts, weights, found["runs"]), *remarks.about(found), sep="\n")
    for part, row in measured.items():
        print(f"{part}:", ", ".join(f"{name} {value:.3f}" for name, value in row.items()))
    print(*[workdir / results.FILE, workdir / predictions.LINES, *written], sep="\n")


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not given.workdir:
        raise app.UsageError("give --workdir=FOLDER of a training run, and flags only")
    if given.best and given.step is not None:
        raise app.UsageError("give --best or --step, not both")
    compiler.compile_quickly()
    multihost.start(given)
    checkpoint.quieten_orbax()
    if given.rejudge:
        return judge_anew(given)
    config, plan = make_plan(given)  # reads only: a wrong name makes no folder
    compilation_cache.enable(config.compilation_cache)
    with writing(given.workdir, "evaluate") as workdir:
        measure = open_world.asked_for(given, config)
        store = predictions.Predictions(workdir) if jax.process_index() == 0 else None
        labels = evaluate(plan, store)
        if store is not None:
            write_results(config, workdir, store, labels, measure)


def judge_anew(given: Any) -> None:
    """Has the answers of --workdir judged by another verifier, and writes the results."""
    workdir, plan = epath.Path(given.workdir), rejudge.make_plan(given)
    compilation_cache.enable(plan.config.compilation_cache)
    with writing(str(plan.folder), "evaluate --rejudge") as out:
        measure, store = open_world.asked_for(given, plan.config), predictions.Predictions(out)
        labels = rejudge.rejudge(workdir, store, plan.sets, overwrite=given.overwrite)
        write_results(plan.config, out, store, labels, measure)
        print(*rejudge.changes(predictions.read(workdir), store.parts()), sep="\n")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration of data and base policy.")
    flags.DEFINE_string("workdir", None, "Folder of a training run, or with --config for results.")
    flags.DEFINE_list("policies", [], "Policies: base, trained, NAME=PATH (policy_sources.py).")
    flags.DEFINE_integer("step", None, "Checkpoint of `trained`; the latest by default.")
    flags.DEFINE_bool("best", False, "Evaluate the best checkpoint (config.checkpoint.keep_best).")
    flags.DEFINE_list("sets", [], "Configurations whose evaluation images are used instead.")
    flags.DEFINE_list("prompts", [], "Prompts to evaluate in turn; by default the configured one.")
    flags.DEFINE_integer("best_of", 0, "Also draw this many samples an image.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Answer anew, and replace answers that are there.")
    flags.DEFINE_list("answers", [], "Answers that other models gave: FILE.jsonl, NAME=FILE.jsonl.")
    flags.DEFINE_bool("partial_answers", False, "Go on where --answers lack images.")
    flags.DEFINE_bool("rejudge", False, "Judge the answers of --workdir by another verifier.")
    flags.DEFINE_string("rejudge_into", None, "Folder for that; by default one below --workdir.")
    flags.DEFINE_bool("open_world", False, "Also compute text inclusion.")
    flags.DEFINE_string("embeddings", None, "Folder of a sentence encoder: also similarities.")
    flags.DEFINE_bool("judge_inclusion", False, "Also ask the judge of config.verifier.http_judge.")
    multihost.define_flags()
    app.run(exit_codes.guarded(main))
