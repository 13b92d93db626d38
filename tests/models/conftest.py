"""The largest errors of the parity sweeps, printed at the end whether or not they passed."""

import pytest

_ERRORS = pytest.StashKey[dict]()


def pytest_configure(config):
    config.stash[_ERRORS] = {}


@pytest.fixture
def record_error(request):
    """(sweep, error, unit) -> None; the largest error of each sweep is shown in the summary."""

    def record(sweep: str, error: float, unit: str = "of the largest value") -> None:
        found = request.config.stash[_ERRORS].setdefault(sweep, [0, 0.0, unit])
        found[0] += 1
        found[1] = max(found[1], float(error))

    return record


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[_ERRORS]:
        terminalreporter.section("largest errors of the sweeps")
        for sweep, (count, error, unit) in config.stash[_ERRORS].items():
            terminalreporter.write_line(f"{sweep:<58} {error:9.2e} {unit} ({count} cases)")
