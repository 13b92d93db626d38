"""Processes that are killed in the middle of an epoch and resumed: every image once an epoch.

Each process reads with several workers and saves the state of its stream with the images it has
had, as a training run does with its checkpoint; what it read afterwards is read again.
"""

import json
import os
import pathlib
import signal
import sys
import time

import pytest

from speciarl_jax.data import pipeline

LENGTH, BATCH, PROCESSES = 26, 8, 2  # an epoch ends in the middle of a batch
EPOCHS = 4


def stream_of(process, workers):
    def source_of_epoch(epoch):
        return [(epoch, i) for i in range(LENGTH)]

    return pipeline.training_batches(
        source_of_epoch,
        list,
        batch_size=BATCH,
        seed=5,
        workers=workers,
        process=process,
        processes=PROCESSES,
    )


def read(folder, process, workers, batches, seconds):
    """Resumes from the state in `folder`, until `batches` batches have been read in all."""
    saved = pathlib.Path(folder) / f"process_{process}.json"
    stream, had = stream_of(process, workers), []
    if saved.exists():
        content = json.loads(saved.read_text())
        had = content["had"]
        stream.set_state(content["state"])
    while len(had) < batches:
        had.append(next(stream))
        time.sleep(seconds)
        # The file is whole at every moment.
        new = saved.with_suffix(".new")
        new.write_text(json.dumps({"had": had, "state": stream.get_state()}))
        os.replace(new, saved)
    return had


@pytest.mark.parametrize("workers", [1, 4])
def test_killed_and_resumed_processes_see_every_image_once_an_epoch(start, tmp_path, workers):
    batches = EPOCHS * LENGTH // BATCH
    files = [tmp_path / f"process_{process}.json" for process in range(PROCESSES)]

    def count(process):
        return len(json.loads(files[process].read_text())["had"]) if files[process].exists() else 0

    alive = {p: start(__file__, tmp_path, p, 3, batches, 0.3) for p in range(PROCESSES)}
    until = time.monotonic() + 300
    while alive:
        for process in list(alive):
            assert alive[process].poll() is None, alive[process].stdout.read()
            # At different positions, neither at the end of an epoch.
            if count(process) >= (2, 5)[process]:
                alive[process].send_signal(signal.SIGKILL)
                alive.pop(process).wait()
        assert time.monotonic() < until
        time.sleep(0.01)
    assert all(0 < count(process) < batches for process in range(PROCESSES))
    shares = [read(tmp_path, process, workers, batches, 0.0) for process in range(PROCESSES)]
    assert {len(share) for share in shares} == {batches}
    rows = [tuple(row) for share in shares for batch in share for row in batch]
    assert sorted(rows) == [(epoch, i) for epoch in range(EPOCHS) for i in range(LENGTH)]
    # And in the order without a kill.
    for process, share in enumerate(shares):
        whole = stream_of(process, 2)
        assert [[tuple(row) for row in batch] for batch in share] == [
            next(whole) for _ in range(batches)
        ]


if __name__ == "__main__":
    folder, *numbers, seconds = sys.argv[1:]
    read(folder, *map(int, numbers), float(seconds))
