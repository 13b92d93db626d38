"""Training and evaluation with a tree and a scripted judge: each decides what is its own."""

import json

import judge_server
import judged_run
import numpy as np
import pytest
import small_run
from judge_server import JudgeServer

from speciarl_jax import train
from speciarl_jax.data import emoji
from speciarl_jax.evaluation.evaluator import Evaluator
from speciarl_jax.experiment.run import prepare
from speciarl_jax.verifiers import label_mentions, parsing, prefilter
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge.judge_prompt import LABELS
from speciarl_jax.verifiers.taxonomy import Taxonomy

pytestmark = pytest.mark.usefixtures("shared_programs")
# What depends on the clock, or on how often a server had to be asked.
OWN = ("time", "verify/cache_hits", "verify/asked", "verify/latency_p50", "verify/latency_p95")


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory):
    """The embedded benchmark's tree with the labels' own names and groups alone."""
    tree = json.loads(emoji.TAXONOMY_PATH.read_text())
    for leaf in tree["leaves"].values():
        leaf.update(synonyms=[], ancestors=[], hyponyms=[])
    path = tmp_path_factory.mktemp("tree") / "small.json"
    path.write_text(json.dumps(tree))
    return path


def cascade(url, tree, **changes):
    return judged_run.judged_config(
        url,
        "",
        verifier__name="cascade",
        verifier__cascade__judge="http_judge",
        verifier__options__path=str(tree),
        verifier__http_judge__path=str(tree),
        **changes,
    )


def trained(config, workdir):
    run = prepare(config)
    try:
        lora, _ = train.train(run, workdir)
    finally:
        run.verifier.close()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in row.items() if k not in OWN and not k.startswith("time/")} for row in rows
    ]
    return kept, small_run.arrays(lora)


@pytest.fixture(scope="module")
def calm(compilation_cache, small_tree, tmp_path_factory):
    with JudgeServer() as server:
        rows, lora = trained(cascade(server.url, small_tree), tmp_path_factory.mktemp("calm"))
        return rows, lora, [judge_server.pair_of(body) for body in server.requests]


@pytest.mark.slow
def test_the_judge_is_asked_about_the_rest_alone(calm, small_tree):
    rows, _, asked = calm
    taxonomy = Taxonomy.from_file(small_tree)
    assert asked
    for pair in asked:
        found = taxonomy.explain(pair["prediction"], taxonomy.leaf_ids[0])
        assert not found.known, (pair, found)
    for row in rows:
        assert 0 < row["verify/by_tree"] < 1
        assert row["verify/unmatched"] == pytest.approx(1 - row["verify/by_tree"])


@pytest.mark.slow
def test_faults_of_the_judge_change_no_reward(calm, small_tree, tmp_path):
    rng = np.random.default_rng(0)
    faults = [judge_server.FAULTS[name] for name in ("429", "500", "503", "cut")]

    def script(body, number):
        return faults[rng.integers(len(faults))] if rng.random() < 0.3 else None

    with JudgeServer(script) as server:
        rows, lora = trained(cascade(server.url, small_tree), tmp_path)
    assert rows == calm[0]
    for name, value in calm[1].items():
        np.testing.assert_array_equal(lora[name], value, err_msg=name)


@pytest.mark.slow
def test_verdicts_are_those_of_the_parts(compilation_cache, small_tree):
    taxonomy = Taxonomy.from_file(small_tree)
    labels = label_mentions.index(taxonomy.leaf_names)
    by_judge = 0
    with JudgeServer() as server:
        run = prepare(cascade(server.url, small_tree))
        judged = Evaluator(run)(run.lora, temperature=1.0)
        run.verifier.close()
    assert judged.valid_BN.all()
    for row, (response,), (category,) in zip(
        judged.rows, judged.responses, judged.category_BN, strict=True
    ):
        content, truth = parsing.extract(response, tags="think"), row["label"]
        found = taxonomy.explain(content or "", row["label_id"])
        if content is None or found.known:
            want = found.category if content else Category.UNPARSED
        else:
            options = run.config.verifier.http_judge
            limits = {name: options[name] for name in ("max_words", "max_answer_bytes")}
            want = prefilter.screen(content, truth, labels=labels, **limits)
            if want is None:
                by_judge += 1
                names = map(parsing.normalize, (truth, content))
                pair = dict(zip(("truth", "prediction"), names, strict=True))
                want = LABELS[judge_server.verdict(pair)]
        assert category == want, (row["label_id"], response)
    assert by_judge
