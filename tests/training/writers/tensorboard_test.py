"""What reaches TensorBoard, read back from its files."""

import struct
import time

import pytest

from speciarl_jax.training.writers.sample import Sample
from speciarl_jax.training.writers.tensorboard import TensorBoard, as_markdown


def board_steps(folder):
    """Steps of the scalars in the TensorBoard files, read record by record (TFRecord framing)."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while len(data) > 16:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_values_reach_tensorboard_with_their_step(tmp_path):
    writer = TensorBoard(tmp_path)
    for step in (1, 2):
        writer.write(step, {"reward/mean": step / 3, "update/kl": 0.5})
    writer.close()
    found = board_steps(tmp_path)
    assert [(step, tag) for step, tag, _ in found] == [
        (1, "reward/mean"),
        (1, "update/kl"),
        (2, "reward/mean"),
        (2, "update/kl"),
    ]
    assert found[2][2] == pytest.approx(2 / 3) and found[3][2] == 0.5


def test_a_value_is_on_disk_soon_though_nothing_is_closed(tmp_path):
    writer = TensorBoard(tmp_path)
    writer.write(1, {"reward/mean": 1.0})
    until = time.monotonic() + 60
    while not board_steps(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert [step for step, _, _ in board_steps(tmp_path)] == [1]
    writer.close()


def test_nothing_that_a_model_says_is_markup():
    said = ["x | <script>\ny"]
    text = as_markdown(Sample(None, 1, "a*b", "What is it?", said, ["less_specific"], [None]))
    assert r"**a\*b**" in text
    assert text.splitlines()[-1] == r"| x \| \<script\> y | less specific |  |"
