"""Orders the images: shuffled in every epoch, split over processes, resumable."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from speciarl_jax.data import file_dataset

if TYPE_CHECKING:
    import grain.python as grain

# Field of a row whose image was in the same batch before: how often.
REPEAT = "repeat_in_batch"


def draw_id(row: Mapping[str, Any]) -> int:
    """Returns what decides the samples of a row: its image, and how often the batch had it before.

    An image that is in a batch once keeps its `image_id`.

    Returns:
      A number that fits uint32.
    """
    image_id, repeat = row["image_id"], row.get(REPEAT, 0)
    return file_dataset.stable_hash(f"repeat/{image_id}/{repeat}") >> 32 if repeat else image_id


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
) -> "grain.DatasetIterator":
    """Returns an endless iterator of batches; `get_state` and `set_state` resume it exactly.

    Every epoch holds each image once, in an order of its own. All processes see the same batches;
    each builds its own share of the rows. An image that a batch has several times, at the end of an
    epoch or in a mixture, is marked (`REPEAT`), so that it gets other samples each time. The marks
    depend on the place in the stream alone, so a resumed run has the same.

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
    import grain.python as grain  # a second that no refusal should wait for

    length = len(source_of_epoch(0))
    check_length(length, batch_size)
    if batch_size % processes:
        raise ValueError(
            f"config.train.batch_size {batch_size} does not divide over {processes} processes"
        )
    sources: dict[int, Sequence[Any]] = {}
    lock = threading.Lock()

    def source_at(index: int) -> Sequence[Any]:
        epoch = index // length
        with lock:
            if epoch not in sources:
                sources[epoch] = source_of_epoch(epoch)
                sources.pop(epoch - 2, None)
            return sources[epoch]

    positions = grain.MapDataset.range(length).seed(seed).shuffle().repeat()
    repeats = _Repeats(source_at, positions, length, batch_size)

    def read(index: int, position: int) -> Any:
        row = source_at(index)[position]
        repeat = repeats.of(index) if isinstance(row, Mapping) else 0
        return {**row, REPEAT: repeat} if repeat else row

    return iter(
        positions.map_with_index(read)[process::processes]
        .to_iter_dataset(
            grain.ReadOptions(
                num_threads=workers, prefetch_buffer_size=buffer * batch_size // processes
            )
        )
        .batch(batch_size // processes, batch_fn=build)
    )


class _Repeats:
    """Counts how often the image of a row was in its batch before."""

    def __init__(
        self,
        source_at: Callable[[int], Sequence[Any]],
        positions: Sequence[int],
        length: int,
        batch_size: int,
    ):
        """Prepares the counts; computes none.

        Args:
          source_at: place in the stream -> images of its epoch.
          positions: place in the stream -> index of the image in its epoch.
          length: images of an epoch.
          batch_size: images of a batch over all processes.
        """
        self._source_at, self._positions = source_at, positions
        self._length, self._batch_size = length, batch_size
        self._known: dict[int, list[int]] = {}
        self._lock = threading.Lock()

    def of(self, index: int) -> int:
        """Returns the count of the row at a place in the stream."""
        batch, place = divmod(index, self._batch_size)
        with self._lock:
            if batch not in self._known:
                self._known[batch] = self._count(batch)
                while len(self._known) > 16:  # those of batches that all threads have left
                    self._known.pop(min(self._known))
            return self._known[batch][place]

    def _count(self, batch: int) -> list[int]:
        seen: Counter = Counter()
        counts = []
        for index in range(batch * self._batch_size, (batch + 1) * self._batch_size):
            image = self._image_at(index)
            counts.append(seen[image])
            seen[image] += 1
        return counts

    def _image_at(self, index: int) -> Any:
        """Returns what an image is known by, without reading it."""
        source, position = self._source_at(index), self._positions[index]
        if hasattr(source, "describe"):
            return source.describe(position)["image_id"]
        # Such a source reads an image to tell its id; its rows are the same in all epochs.
        return position


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
