"""The order of images: whole epochs, the same for any number of processes, resumable."""

import numpy as np
import pytest

from speciarl_jax.data import pipeline

LENGTH, BATCH = 12, 4


def source_of_epoch(epoch):
    return [(epoch, i) for i in range(LENGTH)]


def batches(**changes):
    options = dict(batch_size=BATCH, seed=3, workers=2)
    return pipeline.training_batches(source_of_epoch, list, **{**options, **changes})


def take(stream, count):
    return [next(stream) for _ in range(count)]


def test_every_epoch_holds_each_image_once_in_an_order_of_its_own():
    stream = batches()
    orders = []
    for epoch in range(4):
        rows = [row for batch in take(stream, LENGTH // BATCH) for row in batch]
        assert {e for e, _ in rows} == {epoch}
        assert sorted(i for _, i in rows) == list(range(LENGTH))
        orders.append(tuple(i for _, i in rows))
    assert len(set(orders)) == 4
    assert tuple(range(LENGTH)) not in orders


def test_a_batch_may_span_two_epochs():
    rows = [row for batch in take(batches(batch_size=5), 12) for row in batch]
    assert [e for e, _ in rows] == [n // LENGTH for n in range(60)]
    assert sorted(rows) == [(e, i) for e in range(5) for i in range(LENGTH)]


def test_the_seed_decides_the_order_and_the_workers_do_not():
    assert take(batches(), 6) == take(batches(workers=1, buffer=1), 6)
    assert take(batches(), 6) != take(batches(seed=4), 6)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_have_the_batches_of_one(processes):
    whole = take(batches(), 7)
    parts = [take(batches(process=p, processes=processes), 7) for p in range(processes)]
    for n, batch in enumerate(whole):
        shares = [part[n] for part in parts]
        assert all(len(share) == BATCH // processes for share in shares)
        assert sorted(row for share in shares for row in share) == sorted(batch)


@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_a_saved_state_resumes_at_the_same_rows(done):
    stream = batches()
    take(stream, done)
    state = stream.get_state()
    want = take(stream, 6)
    fresh = batches()
    fresh.set_state(state)
    assert take(fresh, 6) == want
    assert take(stream, 1) == take(fresh, 1)


def test_rows_of_this_process_are_built_into_a_batch():
    stream = pipeline.training_batches(
        source_of_epoch, np.array, batch_size=BATCH, seed=0, workers=1, process=1, processes=2
    )
    assert next(stream).shape == (BATCH // 2, 2)


def test_sources_of_past_epochs_are_let_go():
    made = []

    def source(epoch):
        made.append(epoch)
        return source_of_epoch(epoch)

    stream = pipeline.training_batches(source, list, batch_size=BATCH, seed=0, workers=1)
    take(stream, 9)
    # Epoch 0 is asked once more for its length; no epoch is opened for every row.
    assert len(made) <= 6 and set(made) >= {0, 1, 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=13), "12 images and config.train.batch_size is 13.*more images"),
        (dict(processes=3), "batch_size 4 does not divide over 3 processes"),
    ],
)
def test_unfit_batches_are_refused_with_both_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        batches(**changes)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="0 images.*batch_size is 4"):
        pipeline.training_batches(lambda epoch: [], list, batch_size=4, seed=0, workers=1)


@pytest.mark.parametrize("length", [12, 13, 15, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_covers_each_image_once_in_order(length, processes):
    source = [f"image {i}" for i in range(length)]
    parts = [
        list(pipeline.evaluation_batches(source, BATCH, process=p, processes=processes))
        for p in range(processes)
    ]
    seen = []
    for batch in zip(*parts, strict=True):
        indices = batch[0][0]
        assert all(part[0] == indices for part in batch)  # all processes agree
        assert all(len(part[1]) <= BATCH // processes for part in batch)
        rows = [row for part in batch for row in part[1]]
        assert rows == [source[i] for i in indices]
        seen += indices
    assert seen == list(range(length))


class Rows:
    """Rows that know their ids without being read."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def describe(self, index):
        return {"image_id": self.ids[index]}

    def __getitem__(self, index):
        return self.describe(index)


def draws(ids, count, start=0, **changes):
    options = dict(batch_size=8, seed=3, workers=2) | changes
    stream = pipeline.training_batches(lambda epoch: Rows(ids), list, **options)
    if start:
        stream.set_state({"next_index": start * 8 // options.get("processes", 1)})
    return [[pipeline.draw_id(row) for row in next(stream)] for _ in range(count)]


@pytest.mark.parametrize("ids", [list(range(10)), [1, 1, 1, 2, 3, 4, 5, 6, 7]])
def test_an_image_that_is_in_a_batch_twice_is_drawn_anew(ids):
    found = draws(ids, 12)
    assert all(len(set(batch)) == 8 and max(batch) < 2**32 for batch in found)
    first = [image for batch in found for image in batch if image in ids]
    assert set(first) == set(ids)
    # A resumed run, and the shares of two processes, draw the same.
    assert draws(ids, 7, start=5) == found[5:]
    shares = [draws(ids, 12, process=p, processes=2) for p in range(2)]
    for whole, one, two in zip(found, *shares, strict=True):
        assert sorted(one + two) == sorted(whole)


def test_batches_without_repeats_keep_their_draws():
    assert all(max(batch) < 16 for batch in draws(list(range(16)), 6))
