"""A judge behind HTTP, and what it warns about."""

import logging

import pytest
from absl import flags
from absl import logging as absl_logging
from judged_pairs import NAMES
from ml_collections import config_flags

from configs import base
from speciarl_jax.verifiers import http_judge


@pytest.fixture
def make(tmp_path):
    """(server, section__key=value, ...) -> a judge."""
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    made = []

    def make(server, **changes):
        options = base.get_config().verifier.http_judge.to_dict()
        options |= {"path": str(tmp_path / "labels.txt"), "model": "judge", "cache": ""}
        options["server"] |= {"url": getattr(server, "url", server), "timeout": 20.0}
        options["server"] |= {"give_up_after": 30.0}
        for name, value in changes.items():
            *sections, key = name.split("__")
            part = options
            for section in sections:
                part = part[section]
            assert key in part
            part[key] = value
        made.append(http_judge.create([], None, **options)[1])
        return made[-1]

    yield make
    for judge in made:
        judge.close()


@pytest.fixture
def config_of():
    """Flags of a command line -> the options of the judge."""

    def config_of(*args):
        found = flags.FlagValues()
        argv = ["program", *args]
        config_flags.DEFINE_config_dict(
            "config", base.get_config(), flag_values=found, sys_argv=argv
        )
        found(argv)
        return found.config.verifier.http_judge.to_dict()

    return config_of


@pytest.fixture
def warnings(caplog, monkeypatch):
    """() -> the warnings so far."""
    monkeypatch.setattr(absl_logging.get_absl_logger(), "propagate", True)
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
