"""Answers that go on, moved together, so that decoding stops paying for those that have ended.

Images are moved within their own part of the batch, one part for each device that the batch is
cut over (axis S), so that no cache travels between devices.
"""

import flax.struct
import jax
import jax.numpy as jnp


def slot_sizes(images: int, answers: int, count: int) -> list[tuple[int, int]]:
    """Sizes (slots, answers in a slot) of a part's loops: the whole, and at most `count` halves.

    Answers are halved first: when half of them have ended, most images have some that go on.
    """
    sizes = [(images, answers)]
    while len(sizes) <= count and sizes[-1] != (1, 1):
        slots, width = sizes[-1]
        sizes.append((slots, -(-width // 2)) if width > 1 else (-(-slots // 2), 1))
    return sizes


def fits(done_BN: jax.Array, parts: int, size: tuple[int, int]) -> jax.Array:
    """bool, whether the answers of every part that go on find room in `size`; see `places`."""
    slots, width = size
    needed_B = -(-jnp.sum(~done_BN, axis=1) // width)
    return jnp.max(jnp.sum(needed_B.reshape(parts, -1), axis=1)) <= slots


def places(done_BN: jax.Array, parts: int, size: tuple[int, int]) -> "Places":
    """Gives each image as many slots of `size` as the answers need that go on.

    An image all of whose answers have ended gets none, one with many of them several: so no
    image holds up the others. A slot holds answers about one image, whose prompt it reads.

    Args:
      done_BN: bool, answers that have ended.
      parts: S, that the images are cut into.
      size: slots of a part, and answers in a slot; the answers must fit (`fits`).
    """
    _, answers = done_BN.shape
    index = jax.vmap(lambda done_bN: _part_places(done_bN, *size))
    answer_SRW = index(done_BN.reshape(parts, -1, answers))
    images = len(done_BN) // parts
    # The first place of a slot is never empty, unless the slot is.
    image_SR = jnp.minimum(answer_SRW[..., 0] // answers, images - 1)
    return Places(answer_SRW, image_SR, answer_SRW < images * answers)


def _part_places(done_BN: jax.Array, slots: int, width: int) -> jax.Array:
    """int32 [slots, width], the number b N + n of an answer, or B N for none."""
    images, answers = done_BN.shape
    running_B = jnp.sum(~done_BN, axis=1)
    needed_B = -(-running_B // width)
    end_B = jnp.cumsum(needed_B)
    slot_R = jnp.arange(slots)
    image_R = jnp.minimum(jnp.searchsorted(end_B, slot_R, side="right"), images - 1)
    # Which of the image's running answers: the first slots come first.
    turn_R = slot_R - (end_B - needed_B)[image_R]
    rank_RW = turn_R[:, None] * width + jnp.arange(width)
    order_BN = jnp.argsort(done_BN, axis=1, stable=True)
    number_RW = jnp.take_along_axis(order_BN[image_R], jnp.minimum(rank_RW, answers - 1), axis=1)
    taken_RW = rank_RW < running_B[image_R][:, None]
    index_RW = jnp.where(taken_RW, image_R[:, None] * answers + number_RW, images * answers)
    return index_RW.astype(jnp.int32)


@flax.struct.dataclass
class Places:
    """Where the answers that go on come from. R slots of W answers each, in each of S parts."""

    # int32, the number b N + n of an answer within its part; past the end for an empty place.
    answer_SRW: jax.Array
    image_SR: jax.Array  # int32, the image of a slot within its part
    taken_SRW: jax.Array  # bool, false at empty places

    def answers(self, x: jax.Array, axis: int = 0) -> jax.Array:
        """[..., B, N, ...] to [..., S R, W, ...]; `axis` is that of B."""
        lead, rest = x.shape[:axis], x.shape[axis + 2 :]
        parts, slots, width = self.answer_SRW.shape
        x = x.reshape(*lead, parts, -1, *rest)
        taken = _take(x, self.answer_SRW.reshape(parts, -1), axis)
        return taken.reshape(*lead, parts * slots, width, *rest)

    def images(self, x: jax.Array, axis: int = 0) -> jax.Array:
        """[..., B, ...] to [..., S R, ...]; `axis` is that of B."""
        return take_images(x, self.image_SR, axis)

    def empty(self) -> jax.Array:
        """bool [S R, W], places without an answer."""
        return ~self.taken_SRW.reshape(-1, self.taken_SRW.shape[2])

    def put_back(self, whole: jax.Array, moved: jax.Array) -> jax.Array:
        """`whole` [B, N, ...] with the rows of `moved` [S R, W, ...] where they came from."""
        index_SK = self.answer_SRW.reshape(len(self.answer_SRW), -1)
        split = (*index_SK.shape, *moved.shape[2:])
        parts = whole.reshape(len(index_SK), -1, *whole.shape[2:])

        def put(whole, index, moved):
            return whole.at[index].set(moved, mode="drop")

        return jax.vmap(put)(parts, index_SK, moved.reshape(split)).reshape(whole.shape)


def take_images(x: jax.Array, index_SR: jax.Array, axis: int = 0) -> jax.Array:
    """[..., B, ...] to [..., S R, ...]: `index_SR` of each part's images; `axis` is that of B."""
    lead, rest = x.shape[:axis], x.shape[axis + 1 :]
    x = x.reshape(*lead, len(index_SR), -1, *rest)
    return _take(x, index_SR, axis).reshape(*lead, index_SR.size, *rest)


def _take(x: jax.Array, index_SK: jax.Array, axis: int) -> jax.Array:
    """[..., S, b, ...] to [..., S, K, ...]; an index past the end takes the last."""

    def take(x, index):
        return jnp.take(x, index, axis=axis, mode="clip")

    return jax.vmap(take, (axis, 0), axis)(x, index_SK)
