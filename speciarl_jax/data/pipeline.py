"""The order in which images come: shuffled every epoch, cut by process, resumable."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain.python as grain


def check_length(length: int, batch_size: int) -> None:
    """Refuses a data set that does not fill a batch.

    Raises:
      ValueError: shows both numbers.
    """
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
    """Batches without end; the iterator's `get_state` and `set_state` resume it exactly.

    Every epoch has an order of its own and holds each image once. All processes agree on the
    batches; each builds its own share of the rows.

    Args:
      source_of_epoch: epoch -> random access to its images, all of one length.
      build: rows of this process -> batch.
      batch_size: images of a batch over all processes.
      seed: of the order.
      workers: threads that read images.
      process: number of this process.
      processes: how many there are; must divide `batch_size`.
      buffer: batches read ahead.

    Raises:
      ValueError: no image, fewer than a batch, or an indivisible batch.
    """
    length = len(source_of_epoch(0))
    check_length(length, batch_size)
    if batch_size % processes:
        raise ValueError(
            f"config.train.batch_size {batch_size} cannot be cut over {processes} processes"
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
    """The state of the batches of `now` processes where those of `was` processes stood.

    Raises:
      ValueError: it is no state of `training_batches`.
    """
    if was == now:
        return state
    if set(state) != {"next_index"} or state["next_index"] * was % now:
        raise ValueError(
            f"the position of the data, {state} of {was} processes, says nothing to {now}; resume "
            f"with {was} processes"
        )
    # Rows that one process has read; all have read as many.
    return {"next_index": state["next_index"] * was // now}


def evaluation_batches(
    source: Sequence[Any],
    batch_size: int,
    *,
    process: int = 0,
    processes: int = 1,
    start: int = 0,
) -> Iterator[tuple[list[int], list[Any]]]:
    """Each image once, in order: the indices of a batch and this process's rows of it.

    Process p has the p-th of `processes` neighbouring parts, so a batch put together from all
    processes is in order. The last batch may be short, and a process's part of it empty. The first
    image is number `start`.
    """
    share = batch_size // processes
    for first in range(start, len(source), batch_size):
        indices = list(range(first, min(first + batch_size, len(source))))
        mine = indices[process * share : (process + 1) * share]
        yield indices, [source[i] for i in mine]
