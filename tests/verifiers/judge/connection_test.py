"""The start, the key and the end of the connection to a judge."""

import logging
import re
import subprocess
import sys
import threading
import time

import judge_server
import numpy as np
import pytest
from absl import logging as absl_logging
from judged_pairs import KEY, NAMES, PAIRS, WANT, fails_first, judged

from configs import base
from speciarl_jax.runtime import exit_codes, renamed


def test_the_options_of_earlier_runs_still_fit():
    options = base.get_config().verifier.http_judge.to_dict()
    del options["identity"], options["server"]["start_timeout"]
    options["server"] |= {"backoff": 1.0, "max_backoff": 60.0}
    found = renamed.config({"verifier": {"http_judge": options}})["verifier"]["http_judge"]
    assert found == base.get_config().verifier.http_judge.to_dict()


# --- the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, body, said",
    [
        (401, KEY.encode(), "HTTP 401: it does not accept the key .*'JUDGE_KEY'"),
        (403, KEY.encode(), "HTTP 403: it does not accept the key"),
        (404, b"no such model", "HTTP 404: no such address or model 'judge' .*serves .'other'."),
        (400, b"max_tokens is no parameter of mine", "HTTP 400 .max_tokens is no parameter"),
        (302, b"", "HTTP 302"),
    ],
)
def test_a_judge_that_refuses_is_refused_at_the_start(make, monkeypatch, number, body, said):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    fault = judge_server.status(number, body, Location="http://127.0.0.1:1/")
    script = fails_first(fault, 99)
    with judge_server.JudgeServer(probed=script, models={"other": None}) as server:
        judge = make(server, server__api_key_env="JUDGE_KEY")
        with pytest.raises(ValueError, match=said) as refused:
            judge.check()
        # Also where nobody checked.
        with pytest.raises(ValueError, match=said):
            judged(judge)
        assert not server.requests and len(server.probes) == 1
    assert KEY not in str(refused.value) and server.url in str(refused.value)
    assert exit_codes.code_of(refused.value, several=False) == exit_codes.REFUSED


def test_an_address_without_a_server_is_refused_at_the_start(make):
    with judge_server.JudgeServer() as server:
        pass
    with pytest.raises(ValueError, match="no judge answers at .*correct .*server.url") as refused:
        make(server).check()
    assert exit_codes.code_of(refused.value, several=False) == exit_codes.REFUSED
    with pytest.raises(exit_codes.RestartNeeded, match="not ready after 0.5 s: .*ConnectError"):
        make(server, server__start_timeout=0.5).check()


def test_a_server_that_is_still_starting_is_waited_for(make):
    with judge_server.JudgeServer() as server:
        pass
    judge = make(server, server__start_timeout=60.0)
    checking = threading.Thread(target=judge.check)
    checking.start()
    time.sleep(0.2)
    assert checking.is_alive()
    script = fails_first(judge_server.status(503), 2)
    with judge_server.JudgeServer(probed=script, port=server.port) as again:
        np.testing.assert_array_equal(judged(judge).category_BN, WANT)
        assert len(again.probes) == 3
    checking.join()
    cut = fails_first(judge_server.FAULTS["cut"])
    with judge_server.JudgeServer(probed=cut) as server:
        make(server, server__give_up_after=5.0).check()
    with judge_server.JudgeServer(probed=fails_first(judge_server.status(503), 99)) as server:
        with pytest.raises(exit_codes.RestartNeeded, match="not ready after 0.5 s: HTTP 503"):
            make(server, server__give_up_after=0.5).check()


CLOSED = """
import sys, warnings
warnings.simplefilter("error")
sys.unraisablehook = lambda found: print("unraisable", found.exc_value or found.err_msg)
import threading
from configs import base
from speciarl_jax.verifiers import http_judge
url, labels = sys.argv[1:]
options = base.get_config().verifier.http_judge.to_dict()
options |= {"path": labels, "model": "judge", "cache": ""}
options["server"]["url"] = url
_, judge = http_judge.create([], None, **options)
said = [f"<think>x</think><answer>thing {i}</answer>" for i in range(20)]
assert judge.submit([said], [0]).result(timeout=60).valid_BN.all()
judge.submit([[text.replace("thing", "slow") for text in said]], [0])
judge.close()
judge.close()
del judge
import gc
gc.collect()
print("threads", sorted(t.name for t in threading.enumerate() if t.name != "MainThread"))
"""


def test_nothing_is_left_open_at_the_end(tmp_path):
    def script(body, number):
        slow = judge_server.pair_of(body)["prediction"].startswith("slow")
        return judge_server.FAULTS["hang"] if slow else None

    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    with judge_server.JudgeServer(script) as server:
        command = [sys.executable, "-X", "dev", "-c", CLOSED]
        command += [server.url, str(tmp_path / "labels.txt")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "threads []\n" and "Warning" not in done.stderr, done.stderr
    assert "never retrieved" not in done.stderr and "destroyed" not in done.stderr


@pytest.mark.parametrize(
    ("number", "said"),
    [(401, "does not accept the key .*'JUDGE_KEY'"), (404, "'judge'"), (302, "")],
)
def test_what_waiting_does_not_mend_is_not_asked_again(make, monkeypatch, number, said):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    fault = judge_server.status(number, KEY.encode(), Location="http://127.0.0.1:1/")
    with judge_server.JudgeServer(fails_first(fault, 99)) as server:
        judge = make(server, server__api_key_env="JUDGE_KEY")
        assert not judged(judge, PAIRS[:3]).valid_BN.any()
        assert len(server.requests) == 3
    errors = judge.errors()
    assert f"HTTP {number}" in errors and KEY not in errors
    assert re.search(said, errors)


def test_the_key_is_sent_and_never_logged(make, monkeypatch, caplog, capfd, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(absl_logging.get_absl_logger(), "propagate", True)
    echo = judge_server.status(400, f"bad key {KEY}".encode())
    faults = [*judge_server.FAULTS.values(), echo, judge_server.status(403, KEY.encode())]

    def script(body, number):
        return faults[zip_index(body) % len(faults)] if number < 2 else None

    def zip_index(body):
        pair = judge_server.pair_of(body)
        return PAIRS.index((pair["truth"], pair["prediction"]))

    path = tmp_path / "verdicts.sqlite"
    with judge_server.JudgeServer(script) as server:
        judge = make(server, server__api_key_env="JUDGE_KEY", cache=str(path))
        found = judged(judge)
        assert server.headers["Authorization"] == f"Bearer {KEY}"
    assert found.valid_BN.any() and not found.valid_BN.all()
    said = capfd.readouterr()
    assert caplog.text
    for text in (caplog.text, said.out, said.err, judge.errors(), repr(judge), str(vars(judge))):
        assert KEY not in text
    judge.close()
    assert KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("value", [None, "", "sk\n-1", "sk-\u00e4", "sk 1"])
def test_a_key_that_is_missing_or_no_key_is_refused_unseen(make, monkeypatch, value):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ValueError, match="'JUDGE_KEY'") as error:
        make("http://127.0.0.1:1/v1", server__api_key_env="JUDGE_KEY")
    assert not value or value not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"server__url": "127.0.0.1:8000"}, "url is '127.0.0.1:8000'; give the address"),
        ({"server__url": "http://me:secret@host/v1"}, "must hold no user"),
        ({"decoding__structured": "grammar"}, "'grammar'; choose auto or one of"),
        (
            {"server__concurrency": 0},
            "config.verifier.http_judge.server.concurrency is 0; it must be",
        ),
        ({"server__attempts": 0}, "config.verifier.http_judge.server.attempts is 0"),
        ({"server__timeout": 0}, "timeout is 0"),
        ({"model": ""}, "set config.verifier.http_judge.model"),
        ({"path": ""}, "set config.verifier.http_judge.path"),
        ({"path": "/no/file.txt"}, "/no/file.txt: cannot read the label names"),
        ({"prompt": "no"}, "no judge prompt 'no'"),
        ({"cache": "http://host"}, "neither"),
        ({"max_words": 0}, "max_words"),
    ],
)
def test_options_that_do_not_fit_are_refused(make, change, said):
    with pytest.raises(ValueError, match=said) as error:
        make("http://127.0.0.1:1/v1", **change)
    assert "secret" not in str(error.value)
