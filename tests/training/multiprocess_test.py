"""Two processes with two devices each do what one process with four devices does."""

import json

import numpy as np
import pytest
import small_run

pytestmark = pytest.mark.slow  # three processes that compile side by side
STEPS = {
    "train__steps": 2,
    "mesh__data": 2,
    "mesh__fsdp": 2,
    # Both make the processes exchange numbers before each step.
    "data__bucket_growth": 1.25,
    "data__vision_cache__place": "host",
    "train__samples_every": 1,
    "train__num_logged_images": 8,
}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def both(policy_folder, start_program, tmp_path_factory):
    """Number of processes -> (workdir, adapters of each process)."""
    folder = tmp_path_factory.mktemp("processes")
    running = []
    for processes in (1, 2):
        workdir, port = folder / f"run_{processes}", small_run.free_port()
        workdir.mkdir()
        running += [
            start_program(
                "processes_program",
                devices=4 // processes,
                policy=str(policy_folder),
                workdir=str(workdir),
                out=str(folder / f"lora_{processes}"),
                process=process,
                processes=processes,
                port=port,
                config=STEPS,
            )
            for process in range(processes)
        ]
    printed = [process.communicate(timeout=900)[0] for process in running]
    assert not any(process.returncode for process in running), "\n".join(printed)
    return {
        n: (
            folder / f"run_{n}",
            [dict(np.load(folder / f"lora_{n}_{i}.npz")) for i in range(n)],
        )
        for n in (1, 2)
    }


def test_two_processes_train_the_same_adapters(both):
    (_, (want,)), (_, got) = both[1], both[2]
    assert want.pop("devices") == 4
    for lora in got:
        assert lora.pop("devices") == 4
        assert lora.keys() == want.keys()
        for name, value in want.items():
            np.testing.assert_allclose(lora[name], value, rtol=0, atol=1e-5, err_msg=name)
    assert max(np.abs(value).max() for name, value in want.items() if "_b" in name) > 5e-3


def test_two_processes_give_the_same_answers_and_verdicts(both):
    (one, _), (two, _) = both[1], both[2]
    assert lines(two / "before.jsonl") == lines(one / "before.jsonl")
    assert lines(two / "after.jsonl") == lines(one / "after.jsonl")
    assert lines(one / "before.jsonl") != lines(one / "after.jsonl")


def test_two_processes_write_each_row_once(both):
    (one, _), (two, _) = both[1], both[2]
    got, want = lines(two / "metrics.jsonl"), lines(one / "metrics.jsonl")
    assert [row["step"] for row in got] == [1, 2]
    for mine, theirs in zip(got, want, strict=True):
        assert mine.keys() == theirs.keys()
        for name in (name for name in mine if not name.startswith("time")):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name
    assert sorted(p.name for p in (two / "checkpoints").iterdir()) == ["1", "2"]


def test_two_processes_write_the_samples_of_the_whole_batch_once(both):
    (one, _), (two, _) = both[1], both[2]
    got, want = (
        {(row["step"], row["image_id"]): row for row in lines(path / "rollout_samples.jsonl")}
        for path in (two, one)
    )
    assert len(got) == len(lines(two / "rollout_samples.jsonl")) == 2 * 8
    assert got.keys() == want.keys()
    # The processes deal the rows out in turns, and only the first one's images are at hand.
    images = ["image" in row for row in got.values()]
    assert sum(images) == 8 and all("image" in row for row in want.values())
    first = [key for key in want if key[0] == 1]
    for key in first:
        for name in ("responses", "categories", "rewards"):
            assert got[key][name] == want[key][name], (key, name)
