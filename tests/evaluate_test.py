"""Several policies about several data sets, from the plan to the metrics."""

import dataclasses
import json
import types

import jax
import ml_collections
import numpy as np
import pytest
import small_run

from speciarl_jax import evaluate
from speciarl_jax.data.sources import open_source
from speciarl_jax.evaluation import evaluator, metrics, predictions, report, results
from speciarl_jax.evaluation.predictions import Part
from speciarl_jax.models import load_policy
from speciarl_jax.models.checkpoints import peft
from speciarl_jax.runtime import compilation_cache, sharding
from speciarl_jax.training import policy_sources
from speciarl_jax.verifiers import taxonomy

pytestmark = pytest.mark.usefixtures("shared_programs")
OPTIONS = {"split": "held_out", "image_size": 24, "domains": small_run.DOMAINS, "views": 1}


@pytest.fixture(scope="module")
def config(small_config):
    config = small_config()
    config.evaluation.sets = ml_collections.ConfigDict(
        {
            level: {"name": "emoji", "options": {**OPTIONS, "difficulty": level}}
            for level in ("easy", "hard")
        }
    )
    return config


@pytest.fixture(scope="module")
def plan(config, policy_folder, tmp_path_factory):
    return evaluate.Plan(
        policies=policy_sources.named(
            ["base", f"copy={policy_folder}"], tmp_path_factory.mktemp("none")
        ),
        sets=evaluate.data_sets(config, []),
        prompts=["base"],
        own_data=False,
    )


def test_a_batch_of_samples_that_the_mesh_cannot_cut_is_refused_before_anything_is_asked(
    plan, small_config, monkeypatch
):
    config = small_config(evaluation__best_of_batch_size=3, evaluation__batch_size=4)
    mesh = jax.sharding.AbstractMesh((2, 1, 1), sharding.AXES)
    monkeypatch.setattr(evaluate.sharding, "make_mesh", lambda **sizes: mesh)

    def load(config, mesh):
        raise RuntimeError("the policy is loaded")

    monkeypatch.setattr(evaluate, "policy_run", load)
    plan = dataclasses.replace(plan, sets={"emoji": config})
    with pytest.raises(ValueError, match="config.evaluation.best_of_batch_size is 3, .* 2 devices"):
        evaluate.evaluate(dataclasses.replace(plan, best_of=4), None)
    # Greedy answers do not need it.
    with pytest.raises(RuntimeError, match="is loaded"):
        evaluate.evaluate(plan, None)


def test_each_policy_is_asked_about_each_set_and_nothing_is_asked_twice(plan, config, tmp_path):
    store = predictions.Predictions(tmp_path)
    evaluate.evaluate(plan, store)
    parts = store.parts()
    assert list(parts) == [
        Part(policy, data, "base", "greedy") for policy in ("base", "copy") for data in plan.sets
    ]
    said = {part: [line["responses"] for line in lines] for part, lines in parts.items()}
    for data in plan.sets:
        # The same weights from another folder.
        base, copy = (Part(policy, data, "base", "greedy") for policy in ("base", "copy"))
        assert said[base] == said[copy]
        assert {line["difficulty"] for line in parts[base]} == {data}
        source = open_source(plan.sets[data], config.evaluation.seed)
        assert [line["index"] for line in parts[base]] == list(range(len(source)))
    assert (
        said[Part("base", "easy", "base", "greedy")] != said[Part("base", "hard", "base", "greedy")]
    )
    weights = metrics.configured_weights(config.evaluation.weights)
    found = results.of_parts(parts, weights)
    assert [(row["b"]["policy"], row["b"]["data"]) for row in found["comparisons"]] == [
        ("copy", "easy"),
        ("copy", "hard"),
    ]
    table = evaluate.table(parts, weights)
    assert "| base, easy " in table and "| copy, hard " in table

    # The report has the images of both, though the folder is none of a training run.
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    images = sum(len(lines) for part, lines in parts.items() if part.policy == "base")
    assert page.count("data:image/webp") == images

    before = (tmp_path / predictions.LINES).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator.Evaluator, "_build", None)
        evaluate.evaluate(plan, predictions.Predictions(tmp_path))
    assert (tmp_path / predictions.LINES).read_bytes() == before


def test_given_answers_stand_beside_the_base_and_are_checked_before_it_is_loaded(
    plan, config, tmp_path, monkeypatch
):
    lines = []
    for one in plan.sets.values():
        source = open_source(one, config.evaluation.seed)
        lines += [
            json.dumps({"image_id": source[i]["image_id"], "answer": source[i]["label"]}) + "\n"
            for i in range(len(source))
        ]
    path = tmp_path / "internvl.jsonl"
    path.write_text("".join(dict.fromkeys(lines)))
    (base,) = [policy for policy in plan.policies if policy.name == "base"]
    both = dataclasses.replace(
        plan, policies=[base], answers=evaluate.answer_file.read([str(path)])
    )
    store = predictions.Predictions(tmp_path)
    labels = evaluate.evaluate(both, store)
    weights = metrics.configured_weights(config.evaluation.weights)
    found = results.update(tmp_path, store, weights, labels=labels)
    scores = {(row["policy"], row["data"]): row["score"]["hm"] for row in found["runs"]}
    assert scores["internvl", "easy"] == scores["internvl", "hard"] == 1
    assert [(row["a"]["policy"], row["b"]["policy"]) for row in found["comparisons"]] == [
        ("base", "internvl")
    ] * 2
    assert not found["not_compared"]
    assert not any(row["differs"] for row in found["comparisons"])

    def load(config, mesh):
        raise RuntimeError("the policy is loaded")

    monkeypatch.setattr(evaluate, "policy_run", load)
    path.write_text(lines[0])
    damaged = dataclasses.replace(both, answers=evaluate.answer_file.read([str(path)]))
    with pytest.raises(ValueError, match="of the .* images of 'easy' have no line"):
        evaluate.evaluate(damaged, None)


FLAGS = {
    **{"policies": [], "sets": [], "prompts": [], "step": None, "best": False, "best_of": 0},
    **{"overwrite": False, "open_world": False, "embeddings": None, "judge_inclusion": False},
    **{"answers": [], "partial_answers": False, "rejudge": False, "rejudge_into": None},
    **{"distributed": False, "coordinator": None, "num_processes": None, "process_id": None},
    "heartbeat_timeout": 60,
}


def test_the_command_leaves_a_report_with_what_was_trained_if_anything_was(
    config, tmp_path, monkeypatch
):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.25}\n')
    given = FLAGS | {"config": config, "workdir": str(tmp_path)}
    monkeypatch.setattr(evaluate.flags, "FLAGS", types.SimpleNamespace(**given))
    monkeypatch.setattr(compilation_cache, "enable", lambda folder: None)
    evaluate.main([])
    text = (tmp_path / "report.md").read_text()
    for title in ("easy", "hard"):
        assert text.count(f"## {title}, prompt base\n") == 1
    assert text.count("| base ") == 2
    assert "| 1-1 | 0.250 |" in text
    for name in ("report.html", "metrics.json", "figures/trade_off.png"):
        assert (tmp_path / name).is_file()


def test_sets_come_from_files_of_configurations_too(config, tmp_path, policy_folder):
    path = tmp_path / "vehicles.py"
    path.write_text(
        "import small_run\n\n\ndef get_config():\n"
        f"    return small_run.small_config({str(policy_folder)!r}, data__options__views=3)\n"
    )
    sets = evaluate.data_sets(config, [str(path)])
    assert list(sets) == ["vehicles"]
    options = sets["vehicles"].data.options
    # Those of its evaluation come before those of its training.
    assert (options.split, options.views, options.image_size) == ("held_out", 1, 24)
    assert not sets["vehicles"].evaluation.options and config.evaluation.sets
    with pytest.raises(ValueError, match="there is no configuration .*missing.py"):
        evaluate.data_sets(config, [str(tmp_path / "missing.py")])
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="empty.py is no configuration; it needs a function"):
        evaluate.data_sets(config, [str(tmp_path / "empty.py")])


def test_sets_and_prompts_of_one_name_are_refused(config, policy_folder, tmp_path):
    paths = [tmp_path / folder / "birds.py" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(
            "import small_run\n\n\ndef get_config():\n"
            f"    return small_run.small_config({str(policy_folder)!r})\n"
        )
    with pytest.raises(ValueError, match="--sets has 2 of the name 'birds' in .*rename one"):
        evaluate.data_sets(config, [str(path) for path in paths])
    given = flags_of(tmp_path, config, prompts=["base", str(tmp_path / "base.txt")])
    with pytest.raises(ValueError, match="--prompts has 2 of the name 'base'"):
        evaluate.make_plan(given)


def flags_of(workdir, config, **given):
    usual = FLAGS | {"workdir": str(workdir), "config": config}
    return types.SimpleNamespace(**usual | given)


@pytest.fixture
def command(monkeypatch):
    """(given flags, lines) -> `evaluate.main` whose policy answers with these lines."""
    monkeypatch.setattr(evaluate.compilation_cache, "enable", lambda folder: None)
    monkeypatch.setattr(evaluate.report, "write", lambda workdir: [])

    def command(given, lines):
        def answered(plan, store):
            part = Part("base", "easy", "base", "greedy")
            if store.begin(part, {"policy": "base"}) == 0:
                store.append(part, lines)
            return {}

        monkeypatch.setattr(evaluate, "evaluate", answered)
        monkeypatch.setattr(evaluate.flags, "FLAGS", given)
        evaluate.main(["evaluate"])

    return command


LINES = [
    {"image_id": 1, "label": "car", "index": 0, "responses": ["x"], "categories": ["wrong"]},
    {"image_id": 2, "label": "bus", "index": 1, "responses": ["y"], "categories": ["specific"]},
]


def test_a_judge_that_cannot_be_asked_is_refused_before_anything_is_sampled(
    command, config, tmp_path
):
    given = flags_of(tmp_path / "out", config, judge_inclusion=True)
    with pytest.raises(ValueError, match="set config.verifier.http_judge.model"):
        command(given, None)  # would be a TypeError, were it asked for lines
    assert not list((tmp_path / "out").iterdir())


def test_results_are_written_before_the_open_world_metrics_and_these_stay(
    command, config, tmp_path, monkeypatch
):
    def failing(*args):
        raise RuntimeError("the encoder fails")

    given = flags_of(tmp_path, config, open_world=True)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.open_world, "measure", failing)
        with pytest.raises(RuntimeError, match="the encoder fails"):
            command(given, LINES)
    (row,) = json.loads((tmp_path / results.FILE).read_text())["runs"]
    assert row["images"] == 2 and "open_world" not in row
    command(given, LINES)
    measured = (tmp_path / results.FILE).read_bytes()
    (row,) = json.loads(measured)["runs"]
    assert row["open_world"] == {"text_inclusion": 0.0}
    command(flags_of(tmp_path, config), LINES)
    assert (tmp_path / results.FILE).read_bytes() == measured


def test_printed_scores_have_their_weights_the_best_constant_answer_and_unknown_answers(
    command, config, tmp_path, monkeypatch, capsys
):
    tree = {
        "version": 1,
        "groups": {"vehicle": ["vehicle"]},
        "leaves": {name: {"name": name, "generic": "vehicle"} for name in ("car", "bus")},
    }
    labels = {"easy": taxonomy.Taxonomy(tree)}
    write_results = evaluate.write_results
    monkeypatch.setattr(
        evaluate,
        "write_results",
        lambda config, workdir, store, _, measure: write_results(
            config, workdir, store, labels, measure
        ),
    )
    lines = [
        line | {"label_id": line["label"], "responses": [f"<answer>{said}</answer>"]}
        for line, said in zip(LINES, ("spaceship", "bus"), strict=True)
    ]
    config = config.copy_and_resolve_references()
    config.evaluation.weights.preset = "authors"
    command(flags_of(tmp_path, config), lines)
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if "best constant answer" in line]
    # Half of the images show a car; "vehicle" is right about all of them, but worth a fifth.
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[1:5] == ['best constant answer "car"', "0.500", "1.000", "0.667"]
    assert "Weights of specificity: authors (generic 0.2, less specific 0.6, specific 1," in printed
    assert (
        "the tree knows no name for 50.0% of the answers; most often: 'spaceship' (1)." in printed
    )
    found = json.loads((tmp_path / results.FILE).read_text())
    assert found["weights"]["name"] == "authors"
    assert found["runs"][0]["constant_answer"]["answer"] == "car"
    config.evaluation.weights.preset = "fourths"
    with pytest.raises(ValueError, match="preset is 'fourths'; choose one of"):
        command(flags_of(tmp_path, config), lines)


def test_a_second_export_under_the_same_name_is_not_taken_for_the_first(
    small_config, policy_folder, tmp_path
):
    export = tmp_path / "merged"
    export.mkdir()
    for path in policy_folder.iterdir():
        (export / path.name).write_bytes(path.read_bytes())
    config = small_config(model__path=str(export))
    plan = evaluate.Plan(
        policies=policy_sources.named(["base"], tmp_path),
        sets={"emoji": config},
        prompts=["base"],
        own_data=False,
    )
    store = predictions.Predictions(tmp_path)
    evaluate.evaluate(plan, store)
    count = len(store.lines(Part("base", "emoji", "base", "greedy")))
    weights = export / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1  # one bit of the last number
    weights.write_bytes(content)
    again = predictions.Predictions(tmp_path)
    with pytest.raises(ValueError, match="policy.weights: .* -> "):
        evaluate.evaluate(plan, again)
    assert len(again.lines(Part("base", "emoji", "base", "greedy"))) == count


def test_a_set_without_options_is_refused(small_config):
    config = small_config()
    config.evaluation.sets = ml_collections.ConfigDict({"mine": {"name": "folder"}})
    with pytest.raises(ValueError, match="evaluation.sets.mine has the keys .'name'.; it needs"):
        evaluate.data_sets(config, [])


def test_a_folder_of_peft_is_a_policy_with_its_own_rank(run, tmp_path):
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), run.lora)
    base = str(load_policy.model_folder(run.config.model.path))
    peft.save_adapter(tmp_path / "mine", run.model_config, peft.AdapterConfig(3, 12.0, base), lora)
    (policy,) = policy_sources.named([str(tmp_path / "mine")], tmp_path)
    assert policy.name == "mine"
    model = {"lora_rank": 3, "lora_alpha": 12.0, "lora_targets": ("decoder",)}
    assert policy.model == model | {"path": base}
    got, want = (small_run.arrays(x) for x in (policy.adapters(run), lora))
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)
    # One that names no base goes onto the configuration's.
    config_path = tmp_path / "mine" / "adapter_config.json"
    named = json.loads(config_path.read_text())
    config_path.write_text(json.dumps(named | {"base_model_name_or_path": ""}))
    (policy,) = policy_sources.named([str(tmp_path / "mine")], tmp_path)
    assert policy.model == model
