"""Orders the images: shuffled in every epoch, split over processes, resumable."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain.python as grain


def check_length(length: int, batch_size: int) -> None:
    """Refuses a data set that is smaller than a batch (ValueError)."""
    if length < batch_size:
        raise ValueError(
            f"the data set has {length} images and config.train.batch_size is {batch_size}; "
            "lower the batch size, or give more images (config.data.options)"
        )


def training_batches(
    source_of_epoch: Callable[[int], Sequence[Any]],
    build: Callable[[Sequence[Any]], Any],
    *,
    batch_size: int,
    seed: int,
    workers: int,
    process: int = 0,
    processes: int = 1,
    buffer: int = 4,
) -> grain.DatasetIterator:
    """Returns an endless iterator of batches; `get_state` and `set_state` resume it exactly.

    Every epoch holds each image once, in an order of its own. All processes see the same batches;
    each builds its own share of the rows.

    Args:
      source_of_epoch: epoch -> random access to its images; all epochs have the same length.
      build: rows of this process -> batch.
      batch_size: images of a batch over all processes.
      workers: threads that read images.
      processes: number of processes; must divide `batch_size`.
      buffer: number of batches read ahead.

    Raises:
      ValueError: fewer images than a batch, or a batch that does not divide over the processes.
    """
    length = len(source_of_epoch(0))
    check_length(length, batch_size)
    if batch_size % processes:
        raise ValueError(
            f"config.train.batch_size {batch_size} does not divide over {processes} processes"
        )
    sources: dict[int, Sequence[Any]] = {}
    lock = threading.Lock()

    def read(index: int, position: int) -> Any:
        epoch = index // length
        with lock:
            if epoch not in sources:
                sources[epoch] = source_of_epoch(epoch)
                sources.pop(epoch - 2, None)
            source = sources[epoch]
        return source[position]

    rows = grain.MapDataset.range(length).seed(seed).shuffle().repeat().map_with_index(read)
    return iter(
        rows[process::processes]
        .to_iter_dataset(
            grain.ReadOptions(
                num_threads=workers, prefetch_buffer_size=buffer * batch_size // processes
            )
        )
        .batch(batch_size // processes, batch_fn=build)
    )


def state_for(state: dict[str, Any], was: int, now: int) -> dict[str, Any]:
    """Translates the state of `training_batches` from `was` processes to `now` processes.

    Raises:
      ValueError: the state is not one of `training_batches`, or lies inside of a batch.
    """
    if was == now:
        return state
    if set(state) != {"next_index"} or state["next_index"] * was % now:
        raise ValueError(
            f"the position of the data, {state} of {was} processes, has no counterpart with {now}; "
            f"resume with {was} processes"
        )
    # `next_index` counts the rows that one process has read; all have read the same number.
    return {"next_index": state["next_index"] * was // now}


def evaluation_batches(
    source: Sequence[Any],
    batch_size: int,
    *,
    process: int = 0,
    processes: int = 1,
    start: int = 0,
) -> Iterator[tuple[list[int], list[Any]]]:
    """Yields the indices of each batch and this process's rows of it; each image once, in order.

    Process p reads the p-th of `processes` consecutive parts of a batch. The last batch may be
    short, and a process's part of it empty. Image number `start` is the first.
    """
    share = batch_size // processes
    for first in range(start, len(source), batch_size):
        indices = list(range(first, min(first + batch_size, len(source))))
        mine = indices[process * share : (process + 1) * share]
        yield indices, [source[i] for i in mine]
