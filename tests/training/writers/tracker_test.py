"""A service that is away, slow or breaks: training goes on, and the record is whole."""

import json
import threading
import time

import pytest
from etils import epath

from configs import quickstart
from speciarl_jax.runtime.metric_writer import MetricWriter
from speciarl_jax.training.writers import run_config, tracker
from speciarl_jax.training.writers.target import Target


class Service:
    """Keeps what arrives; `fails_at` and `waits` make it break or hang."""

    def __init__(self, first=0, fails_at=None, waits=None, delay=0.0):
        self.first, self.delay = first, delay
        self.got, self._fails_at, self._waits = [], fails_at, waits
        self.finished = False

    def log(self, place, step, values):
        if self._waits:
            self._waits.wait(60)
        if step == self._fails_at:
            raise ConnectionError("the network is away")
        self.got.append((place, step))

    def log_samples(self, place, step, samples):
        self.got.append((place, step))

    def finish(self):
        self.finished = True


def run(workdir, service, steps, first_step=1):
    """Writes steps; returns what the service was started with."""
    started = []

    def start(target, run_id, reached):
        started.append((run_id, reached))
        return service

    target = Target(epath.Path(workdir), quickstart.get_config(), first_step)
    writer = tracker.TrackerWriter("service", target, start)
    writer = MetricWriter(workdir, first_step=first_step, writers=[writer])
    for step in steps:
        writer.write(step, {"update/kl": 0.5})
        writer.write_samples(step, [])
        writer.flush()
    writer.close()
    return started


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().count("\n")


def test_a_service_that_breaks_gets_the_rest_at_the_next_start(tmp_path, caplog):
    broken, whole = Service(fails_at=3), Service(first=7)
    ((name, reached),) = run(tmp_path, broken, range(1, 6))
    assert reached == 0 and not broken.finished and lines(tmp_path) == 5
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "service gets nothing more from this process: ConnectionError: the network" in warning
    assert run(tmp_path, whole, range(5, 7), first_step=5) == [(name, 8)]
    # Metrics of 3 to 6, rollouts of those steps that this process sampled.
    assert whole.got == [(9, 3), (12, 4), (15, 5), (16, 5), (18, 6), (19, 6)] and whole.finished


def test_a_place_is_noted_when_a_kill_can_no_longer_lose_what_stands_before_it(tmp_path):
    def noted():
        return json.loads((tmp_path / "service.json").read_text())["next"]

    def wait_for(condition):
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.01)

    service = Service(delay=1.0)
    target = Target(epath.Path(tmp_path), quickstart.get_config())
    writer = tracker.TrackerWriter("service", target, lambda *_: service)
    begun = time.monotonic()
    writer.write(1, {"update/kl": 0.5})
    writer.flush()
    wait_for(lambda: service.got)
    assert noted() == 0 or time.monotonic() - begun >= 1.0
    # Nothing more is written, and it is noted all the same.
    wait_for(lambda: noted() == 4)
    assert time.monotonic() - begun >= 1.0
    # What is sent to the end is noted at the end.
    writer.write(2, {"update/kl": 0.5})
    writer.close()
    assert noted() == 7 and service.finished


def test_a_service_that_hangs_neither_stops_nor_slows_training(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracker, "_LONGEST_QUEUE", 8)
    monkeypatch.setattr(tracker, "_FINISH", 0.2)
    free = threading.Event()
    begun = time.monotonic()
    run(tmp_path, Service(waits=free), range(1, 100))
    assert time.monotonic() - begun < 5 and lines(tmp_path) == 99
    free.set()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "8 rows wait for it" in warning


def test_an_end_that_takes_too_long_is_left(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracker, "_FINISH", 0.2)
    free = threading.Event()
    run(tmp_path, Service(waits=free), [1])
    free.set()
    assert "it has not finished in 0.2 s" in caplog.text and lines(tmp_path) == 1


def test_a_service_that_cannot_start_is_no_error(tmp_path, caplog):
    def start(target, run_id, reached):
        raise TimeoutError("no answer")

    target = Target(epath.Path(tmp_path), quickstart.get_config())
    writer = MetricWriter(tmp_path, writers=[tracker.TrackerWriter("service", target, start)])
    writer.write(1, {"update/kl": 0.5})
    writer.close()
    assert "TimeoutError: no answer" in caplog.text and lines(tmp_path) == 1


@pytest.mark.parametrize(
    "text, shown",
    [
        ("see redis://:pw@host:1/0", "see redis://host:1/0"),
        ("https://me:pw@host/a?key=1#x", "https://host/a"),
        ("runs/a?b", "runs/a?b"),
    ],
)
def test_urls_lose_what_may_be_secret(text, shown):
    assert run_config.without_secrets(text) == shown


def test_values_under_the_names_of_secrets_are_hidden():
    config = quickstart.get_config()
    config.data.options = {"hub_token": "x", "max_tokens": 7, "tokenizer": "y", "password": ""}
    shown = run_config.public(config)["data"]["options"]
    hidden = run_config.HIDDEN
    assert shown == {"hub_token": hidden, "max_tokens": 7, "tokenizer": "y", "password": hidden}
    judge = run_config.public(config)["verifier"]["http_judge"]
    assert judge["server"] == judge["cache"] == judge["decoding"]["extra_body"] == hidden
