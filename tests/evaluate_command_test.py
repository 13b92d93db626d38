"""The commands around an evaluation, as processes: killed, gone on with, compared, used."""

import json
import signal
import time

import pytest
import small_run
from PIL import Image

from speciarl_jax.evaluation import predictions
from speciarl_jax.runtime import exit_codes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config_file(policy_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    changes = {"evaluation__batch_size": 4, "evaluation__best_of_batch_size": 4}
    path.write_text(
        "import small_run\n\n\ndef get_config():\n"
        f"    return small_run.small_config({str(policy_folder)!r}, **{changes})\n"
    )
    return path


@pytest.fixture(scope="module")
def start_both(start, config_file):
    """(workdir, flags) -> two processes with two devices each that evaluate together."""

    def start_both(workdir, *more):
        port = small_run.free_port()
        return [
            start(
                *("-m", "speciarl_jax.evaluate", f"--config={config_file}", f"--workdir={workdir}"),
                *("--config.mesh.data=4", "--best_of=3", f"--coordinator=127.0.0.1:{port}"),
                *("--num_processes=2", f"--process_id={i}", "--heartbeat_timeout=10", *more),
                devices=2,
                quick=True,
            )
            for i in range(2)
        ]

    return start_both


@pytest.fixture(scope="module")
def calm(start_both, tmp_path_factory):
    """The workdir of an evaluation that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("calm")
    finish(start_both(workdir))
    return workdir


def finish(both):
    printed = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(printed)
    return printed


def lines_of(workdir):
    path = workdir / predictions.LINES
    return path.read_bytes() if path.exists() else b""


@pytest.mark.parametrize("victim", [0, 1])
def test_an_evaluation_whose_process_is_killed_goes_on_to_the_same_files(
    start_both, calm, tmp_path, victim
):
    workdir, kept = tmp_path / "killed0", b""
    for share in (0.2, 0.7):
        both = start_both(workdir)
        while len(lines_of(workdir)) < share * len(lines_of(calm)):
            assert all(process.poll() is None for process in both)
            time.sleep(0.01)
        both[victim].send_signal(signal.SIGKILL)
        printed = [process.communicate(timeout=200)[0] for process in both]
        assert both[victim].returncode == -signal.SIGKILL
        # The other one does not go on alone, and does not say that the configuration is wrong.
        other = both[1 - victim].returncode
        assert other not in (0, exit_codes.REFUSED, exit_codes.STORAGE), printed[1 - victim]
        assert lines_of(workdir).startswith(kept)
        kept = lines_of(workdir)[: lines_of(workdir).rfind(b"\n") + 1]
        assert 0 < len(kept) < len(lines_of(calm))
    finish(start_both(workdir))
    assert lines_of(workdir).startswith(kept) and lines_of(workdir) == lines_of(calm)
    for name in ("metrics.json", "report.html", "report.md"):
        mine, theirs = (folder / name for folder in (workdir, calm))
        # A report says the name of its folder.
        mine = mine.read_text().replace(workdir.name, calm.name)
        assert mine == theirs.read_text(), name


def test_one_process_evaluates_as_two(start, config_file, calm, tmp_path):
    process = start(
        *("-m", "speciarl_jax.evaluate", f"--config={config_file}", f"--workdir={tmp_path}"),
        "--best_of=3",
        quick=True,
    )
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert lines_of(tmp_path) == lines_of(calm)


def test_what_was_trained_names_images_and_is_compared(start, config_file, calm, tmp_path):
    """Train, predict, compare: each reads the folder that another command wrote."""
    image, trained, out = tmp_path / "red.png", tmp_path / "trained", tmp_path / "compared"
    Image.new("RGB", (40, 30), "red").save(image)

    def command(name, *args):
        process = start("-m", f"speciarl_jax.{name}", *args, quick=True)
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed
        return printed

    command("train", f"--config={config_file}", f"--workdir={trained}", "--config.train.steps=2")
    printed = command("predict", image, f"--workdir={trained}", "--samples=4", "--json")
    (row,) = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert row["image"] == str(image)
    assert sum(row["answers"].values()) + row["declined"] + row["unread"] == 4
    command("tools.compare", trained, calm, f"--out={out}")
    found = json.loads((out / "comparison.json").read_text())
    assert {run["run"] for run in found["runs"]} == {str(trained), str(calm)}
    assert (out / "comparison.md").is_file() and (out / "best_of.png").is_file()
