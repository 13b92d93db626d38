"""Training and evaluation with a judge behind HTTP, end to end, with and without faults."""

import json
import socket
import threading
import time

import judge_server
import judged_run
import numpy as np
import pytest
import small_run
from judge_server import JudgeServer
from judged_run import judged_config

from speciarl_jax import train
from speciarl_jax.evaluation import metrics, predictions
from speciarl_jax.evaluation.evaluator import Evaluator
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import prepare
from speciarl_jax.verifiers import label_mentions, parsing, prefilter
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import judge_prompt

pytestmark = pytest.mark.usefixtures("shared_programs")
# What depends on the clock, or on what the cache holds already.
OWN = {"time", "verify/cache_hits", "verify/asked", "verify/latency_p50", "verify/latency_p95"}


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_own(rows):
    return [
        {k: value for k, value in row.items() if k not in OWN and not k.startswith("time/")}
        for row in rows
    ]


def trained(workdir, url, cache="", **changes):
    """Rows of metrics, and the adapters, of a run in `workdir`."""
    run = prepare(judged_config(url, cache, **changes))
    try:
        lora, _ = train.train(run, workdir)
    finally:
        run.verifier.close()
    return rows_of(workdir), small_run.arrays(lora)


def assert_identical(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.fixture(scope="module")
def calm(compilation_cache, tmp_path_factory):
    """Rows and adapters of two steps that nothing disturbed."""
    with JudgeServer(seconds=0.01) as server:
        found = trained(tmp_path_factory.mktemp("calm"), server.url)
        assert server.requests
    return found


def test_a_policy_learns_from_what_a_judge_says(calm):
    rows, lora = calm
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["verify/unjudged"] == row["verify/groups_dropped"] == 0
        assert (
            row["verify/asked"] > 0 and row["verify/latency_p95"] >= row["verify/latency_p50"] > 0
        )
    assert rows[0]["verify/cache_hits"] == 0
    assert max(row["update/grad_norm"] for row in rows) > 0
    assert max(np.abs(value).max() for name, value in lora.items() if "_b" in name) > 1e-4


def test_faults_and_a_restart_of_the_judge_change_no_bit(calm, tmp_path):
    rng, lock = np.random.default_rng(0), threading.Lock()
    faults = list(judge_server.FAULTS.values())
    # Those after which a request is sent again. A reply that cannot be read is not: once is enough.
    passing = [judge_server.FAULTS[name] for name in ("429", "500", "503", "hang", "cut")]

    def script(body, number):
        those = passing if number else faults
        with lock:
            return those[rng.integers(len(those))] if rng.random() < 0.5 else None

    found, server = [], JudgeServer(script, seconds=0.01)
    # Less than a reply that hangs takes.
    limit = {"verifier__http_judge__server__timeout": 2.0}
    running = threading.Thread(target=lambda: found.append(trained(tmp_path, server.url, **limit)))
    running.start()
    while len(server.requests) < 8:
        assert running.is_alive()
        time.sleep(0.01)
    with server:
        pass
    asked = len(server.requests)
    time.sleep(1)
    with JudgeServer(script, port=server.port) as again:
        running.join()
        assert asked and again.requests
    rows, lora = found[0]
    assert without_own(rows) == without_own(calm[0])
    assert_identical(lora, calm[1])


def test_a_cache_takes_the_judges_place(calm, tmp_path):
    cache = tmp_path / "verdicts.sqlite"
    (tmp_path / "first").mkdir(), (tmp_path / "second").mkdir()
    with JudgeServer() as server:
        trained(tmp_path / "first", server.url, cache)
    # The judge is gone now.
    rows, lora = trained(tmp_path / "second", server.url, cache)
    assert without_own(rows) == without_own(calm[0])
    assert_identical(lora, calm[1])
    assert all(row["verify/asked"] == 0 and "verify/latency_p50" not in row for row in rows)
    assert all(row["verify/cache_hits"] > 0 for row in rows)


def test_a_run_whose_judge_stays_away_saves_and_stops_and_goes_on_later(calm, tmp_path):
    """The judge answers the questions of the first step and no others."""
    first = int(calm[0][0]["verify/asked"])
    seen = []

    def script(body, number):
        seen.append(body)
        return judge_server.status(500) if len(seen) > first else None

    with (
        JudgeServer(script) as server,
        pytest.raises(host_verification.JudgeUnavailable) as stopped,
    ):
        trained(
            tmp_path,
            server.url,
            checkpoint__save_every=100,
            verifier__max_unjudged_fraction=0.0,
            verifier__http_judge__server__attempts=3,
        )
    said = str(stopped.value)
    assert said.startswith("step 2: ") and "config.verifier.max_unjudged_fraction is 0.0%" in said
    assert server.url in said and "HTTP 500" in said and "start the same command again" in said
    assert [row["step"] for row in rows_of(tmp_path)] == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    with JudgeServer() as server:
        rows, lora = trained(tmp_path, server.url, checkpoint__save_every=100)
    assert without_own(rows) == without_own(calm[0])
    assert_identical(lora, calm[1])


def test_unverified_groups_are_counted_and_leave_the_update(calm, tmp_path):
    def script(body, number):
        pair = judge_server.pair_of(body)
        return judge_server.FAULTS["prose"] if hash_of(pair) % 3 == 0 else None

    def hash_of(pair):
        return sum(map(ord, pair["prediction"]))

    with JudgeServer(script) as server:
        rows, lora = trained(
            tmp_path,
            server.url,
            verifier__max_unjudged_fraction=1.0,
            verifier__http_judge__server__attempts=2,
        )
    row = rows[0]
    assert 0 < row["verify/unjudged"] < 1
    assert row["verify/groups_dropped"] * 4 >= row["verify/unjudged"] > 0
    assert any(np.any(lora[name] != value) for name, value in calm[1].items())


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_same(calm, tmp_path):
    with JudgeServer() as server:
        rows, lora = trained(tmp_path, server.url, verifier__num_chunks=2)
    for got, want in zip(without_own(rows), without_own(calm[0]), strict=True):
        assert got == pytest.approx(want, rel=1e-3, abs=1e-5)
    for name, value in calm[1].items():
        np.testing.assert_allclose(lora[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_evaluation_goes_by_the_judge_and_leaves_out_what_it_did_not_say(
    compilation_cache, tmp_path
):
    def sick(pair):
        return pair["truth"] in ("bicycle", "car")

    def script(body, number):
        return judge_server.status(404) if sick(judge_server.pair_of(body)) else None

    with JudgeServer(script) as server:
        run = prepare(judged_config(server.url, "", verifier__max_unjudged_fraction=0.9))
        evaluator = Evaluator(run)
        judged = evaluator(run.lora)
        unverified = 0
        labels = label_mentions.index(run.labels.names)
        limits = {"max_words": 8, "max_answer_bytes": 96}
        for row, said, category, valid in zip(
            judged.rows, judged.responses, judged.category_BN, judged.valid_BN, strict=True
        ):
            content = parsing.extract(said[0], tags="think")
            want = prefilter.screen(content, row["label"], labels=labels, **limits)
            pair = None
            if want is None:
                names = parsing.normalize(row["label"]), parsing.normalize(content)
                pair = dict(zip(("truth", "prediction"), names, strict=True))
                want = judge_prompt.LABELS[judge_server.verdict(pair)]
            if pair and sick(pair):
                unverified += 1
                assert not valid[0]
            else:
                assert valid[0] and category[0] == want
        assert 0 < unverified < len(judged.rows) / 2
        assert len(judged.verified) == len(judged.rows) - unverified
        score = evaluator.score(judged.verified)
        assert isinstance(score, metrics.Score)
        assert sum(score.histogram.values()) == len(judged.verified)
        small_run.write_answers(tmp_path / "answers.jsonl", judged)
        lines = (tmp_path / "answers.jsonl").read_text().splitlines()
        said = [json.loads(line)["categories"][0] for line in lines]
        assert said.count(predictions.UNVERIFIED) == unverified
        assert set(said) <= {c.name.lower() for c in Category} | {predictions.UNVERIFIED}
        run.config.verifier.max_unjudged_fraction = 0.0
        with pytest.raises(host_verification.JudgeUnavailable, match="^evaluation: .*'judge'"):
            evaluator(run.lora)
        run.verifier.close()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_two_processes_judge_their_own_rows_and_learn_the_same(start, tmp_path):
    """All three processes start at once: what takes time is that each compiles."""
    with JudgeServer() as alone, JudgeServer() as shared:
        servers, running = {1: alone, 2: shared}, []
        for processes, server in servers.items():
            workdir, port = tmp_path / f"run_{processes}", free_port()
            workdir.mkdir()
            options = {
                "url": server.url,
                "cache": "",
                "workdir": str(workdir),
                "out": str(tmp_path / f"lora_{processes}"),
                "processes": processes,
                "port": port,
                # One loop to decode in, not three: it is what takes longest to compile.
                "config": {"mesh__data": 2, "train__steps": 1, "rollout__num_compactions": 0},
            }
            running += [
                start(
                    judged_run.__file__,
                    json.dumps(options | {"process": process}),
                    devices=2 // processes,
                    quick=True,
                )
                for process in range(processes)
            ]
        printed = [process.communicate(timeout=900)[0] for process in running]
        assert not any(process.returncode for process in running), "\n".join(printed)
        requests = {
            n: {json.dumps(judge_server.pair_of(body)) for body in server.requests}
            for n, server in servers.items()
        }
    assert requests[1] == requests[2]
    answers = [(tmp_path / f"run_{n}" / "answers.jsonl").read_text() for n in (1, 2)]
    assert answers[0] == answers[1]
    one, two = (without_own(rows_of(tmp_path / f"run_{n}"))[0] for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    want = np.load(tmp_path / "lora_1_0.npz")
    for process in (0, 1):
        got = np.load(tmp_path / f"lora_2_{process}.npz")
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5, err_msg=name)
