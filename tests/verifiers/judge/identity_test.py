"""Which judge a kept verdict belongs to, and who may use it."""

import subprocess
import sys
import threading

import judge_server
import numpy as np
import pytest
from judged_pairs import NAMES, PAIRS, WANT, judged

from speciarl_jax.verifiers.judge import http_client, judge_prompt, verdict_cache


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"model": "other"}, 1),
        ({"decoding__temperature": 0.5}, 1),
        ({"decoding__extra_body": {"top_k": 1}}, 1),
        ({"prompt": "mine"}, 1),
        ({"prompt": "copy"}, 0),
        ({"server__concurrency": 3, "server__timeout": 2.0}, 0),
    ],
)
def test_a_verdict_is_found_by_what_decided_it(make, tmp_path, change, asked):
    text = (judge_prompt.PROMPTS / "v2.txt").read_text()
    (tmp_path / "mine").write_text(text.replace("You compare", "You kindly compare"))
    (tmp_path / "copy").write_text(text)
    if "prompt" in change:
        change = {"prompt": str(tmp_path / change["prompt"])}
    path = str(tmp_path / "verdicts.sqlite")
    with judge_server.JudgeServer() as server:
        judged(make(server, cache=path), PAIRS[:1])
        judged(make(server, cache=path, **change), PAIRS[:1])
    assert len(server.requests) == 1 + asked


@pytest.mark.parametrize("models", [{"judge": "/models/second"}, {"judge": None}, {}])
def test_another_judge_of_the_same_name_is_asked_anew(make, tmp_path, warnings, models):
    path = str(tmp_path / "verdicts.sqlite")

    def other(pair):
        return judge_server.LABELS[5 - judge_server.LABELS.index(judge_server.verdict(pair))]

    for serves, opinion in (({"judge": "/models/first"}, judge_server.verdict), (models, other)):
        for _ in range(2):
            with judge_server.JudgeServer(opinion=opinion, models=serves) as server:
                found = judged(make(server, cache=path))
            want = [[judge_prompt.LABELS[opinion({"truth": t, "prediction": p})]] for t, p in PAIRS]
            np.testing.assert_array_equal(found.category_BN, want)
        # The second time, all verdicts of this judge were known.
        assert found.cached_BN.all() and not server.requests
    said = [text for text in warnings() if "does not say which checkpoint" in text]
    assert bool(said) == (models != {"judge": "/models/second"})


def test_judges_whose_checkpoints_are_not_said_are_told_apart_by_their_verdicts(make, tmp_path):
    path = str(tmp_path / "verdicts.sqlite")
    for label in ("specific", "generic"):
        with judge_server.JudgeServer(opinion=lambda pair, label=label: label, models={}) as server:
            found = judged(make(server, cache=path), PAIRS[:2])
            assert len(server.requests) == 2 and len(server.probes) == 1 + len(http_client.PROBES)
        assert (found.category_BN == judge_prompt.LABELS[label]).all()


def test_an_identity_of_ones_own_takes_the_place_of_the_servers(make, tmp_path):
    path = str(tmp_path / "verdicts.sqlite")
    for number, models in enumerate(({}, {"judge": "/models/second"})):
        with judge_server.JudgeServer(models=models) as server:
            judged(make(server, cache=path, identity="mine"), PAIRS[:2])
            assert len(server.requests) == (0 if number else 2) and len(server.probes) == 1


def test_the_cache_takes_the_place_of_a_judge_that_is_away(make, tmp_path, warnings):
    """A judge that has answered before is away, and not misconfigured."""
    path = str(tmp_path / "verdicts.sqlite")
    with judge_server.JudgeServer() as server:
        judged(make(server, cache=path))
    judge = make(server, cache=path, server__attempts=1)
    judge.check()
    found = judged(judge, [*PAIRS, ("rose", "a plant")])
    np.testing.assert_array_equal(found.category_BN[:-1], WANT)
    assert found.cached_BN[:-1].all() and not found.valid_BN[-1]
    assert [text for text in warnings() if "going on with the cached verdicts of" in text]
    for change in ({"model": "other"}, {"decoding__temperature": 0.5}, {"prompt": "inclusion_v1"}):
        with pytest.raises(ValueError, match="no judge answers"):
            make(server, cache=path, **change).check()


RACE = """
import sys
from speciarl_jax.verifiers import http_judge
from configs import base
url, cache, labels = sys.argv[1:]
options = base.get_config().verifier.http_judge.to_dict()
options |= {"path": labels, "model": "judge", "cache": cache}
options["server"]["url"] = url
_, judge = http_judge.create([], None, **options)
said = [f"<think>x</think><answer>thing {i}</answer>" for i in range(40)]
print("ready", flush=True)
input()
found = judge.submit([said], [0]).result(timeout=60)
assert found.valid_BN.all()
print(found.category_BN[0].tolist(), flush=True)
judge.close()
"""


def test_two_processes_that_race_for_the_same_pairs_agree_and_lose_nothing(make, tmp_path):
    """The judge says something else every time; both must go by what was said first, and so must a
    process that comes later and asks nothing."""
    count = iter(range(10**6))
    lock = threading.Lock()

    def moody(pair):
        with lock:
            return judge_server.LABELS[next(count) % 6]

    path = tmp_path / "verdicts.sqlite"
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    with judge_server.JudgeServer(opinion=moody, seconds=0.02) as server:
        command = [sys.executable, "-c", RACE, server.url, str(path), str(tmp_path / "labels.txt")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        running = [subprocess.Popen(command, **pipes) for _ in range(2)]
        for process in running:
            assert process.stdout.readline() == "ready\n"
        found = []
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [process.communicate(timeout=60)[0] for process in running]
        assert not any(process.returncode for process in running)
        asked = len(server.requests)
        assert 40 <= asked <= 80
        later = subprocess.run(command, input="go\n", capture_output=True, text=True, timeout=60)
        assert later.stdout == f"ready\n{found[0]}" and len(server.requests) == asked
    assert found[0] == found[1]
    cache = verdict_cache.open_cache(str(path), create=False)
    kept = {row.prediction: row.category for row in cache.rows()}
    assert [kept[f"thing {i}"] for i in range(40)] == eval(found[0])
    cache.close()
