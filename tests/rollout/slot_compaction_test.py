"""Where answers go that are moved together, and that each comes back to its own place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.rollout import slot_compaction


def test_answers_are_halved_before_images():
    assert slot_compaction.slot_sizes(4, 10, 3) == [(4, 10), (4, 5), (4, 3), (4, 2)]
    assert slot_compaction.slot_sizes(6, 2, 9) == [(6, 2), (6, 1), (3, 1), (2, 1), (1, 1)]
    assert slot_compaction.slot_sizes(256, 1, 2) == [(256, 1), (128, 1), (64, 1)]
    assert slot_compaction.slot_sizes(1, 1, 5) == [(1, 1)] and slot_compaction.slot_sizes(
        3, 7, 0
    ) == [(3, 7)]


@pytest.mark.parametrize(
    "running, size, fit",
    [
        ([5, 5, 5, 5], (4, 5), True),
        ([6, 4, 1, 1], (4, 5), False),
        ([9, 4, 1, 0], (4, 5), True),  # the first takes the slot that the last does not need
        ([10, 10, 0, 0], (4, 5), True),
        ([3, 0, 0, 0], (4, 1), True),
        ([1, 1, 1, 0], (2, 1), False),
        ([0, 0, 0, 0], (0, 1), True),
    ],
)
def test_an_image_takes_as_many_slots_as_it_needs(running, size, fit):
    done = np.arange(10) >= np.array(running)[:, None]
    assert slot_compaction.fits(jnp.asarray(done), 1, size) == fit


def test_no_answer_moves_to_another_part():
    """Two parts of two images: the whole would fit, the first part does not."""
    done = np.arange(4) >= np.array([4, 2, 0, 0])[:, None]
    assert slot_compaction.fits(jnp.asarray(done), 1, (4, 2))
    assert not slot_compaction.fits(jnp.asarray(done), 2, (2, 2))
    done[1] = True
    places = slot_compaction.places(jnp.asarray(done), 2, (2, 2))
    assert places.answer_SRW.tolist() == [[[0, 1], [2, 3]], [[8, 8], [8, 8]]]
    assert places.image_SR[0].tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("axis", [0, 1])
def test_what_goes_on_keeps_its_image_and_comes_back(seed, axis):
    rng = np.random.default_rng(seed)
    parts, images, answers = 2, 6, 5
    done = rng.random((images, answers)) < 0.8
    size = next(
        size
        for size in reversed(slot_compaction.slot_sizes(images // parts, answers, 9))
        if slot_compaction.fits(jnp.asarray(done), parts, size)
    )
    number = np.arange(images * answers).reshape(images, answers)
    image = np.arange(images)
    lead = (2,) * axis

    @jax.jit
    def move(done, number, image):
        places = slot_compaction.places(done, parts, size)
        moved = places.answers(jnp.broadcast_to(number, (*lead, *number.shape)), axis)
        owner = places.images(jnp.broadcast_to(image, (*lead, *image.shape)), axis)
        back = places.put_back(number, moved[(0,) * axis] + 100)
        return moved, owner, places.empty(), back

    moved, owner, empty, back = jax.tree.map(np.asarray, move(done, number, image))
    assert moved.shape == (*lead, parts * size[0], size[1]) and owner.shape == moved.shape[:-1]
    moved, owner = moved[(0,) * axis], owner[(0,) * axis]
    assert sorted(moved[~empty]) == sorted(number[~done])
    np.testing.assert_array_equal(
        (moved // answers)[~empty], np.repeat(owner, size[1]).reshape(moved.shape)[~empty]
    )
    np.testing.assert_array_equal(back, np.where(done, number, number + 100))
