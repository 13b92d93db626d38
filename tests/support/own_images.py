"""Small folders and files of images, and the configuration of a small run on them."""

import io

import ml_collections
import numpy as np
from PIL import Image

from speciarl_jax.data import folder, table

LABELS = ("bird/duck/mallard", "bird/gull", "car/van")
BATCH = 4


def fill(root, shortest=18, longest=39):
    """18 images of many sizes; a name says which of them are its label's."""
    rng = np.random.default_rng(0)
    for label in LABELS:
        (root / label).mkdir(parents=True)
        for i in range(6):
            height, width = rng.integers(shortest, longest + 1, 2)
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


def own(small_config, folder, **changes):
    """`small_config` on the images of a folder, for training and evaluation alike."""
    config = small_config(
        **{
            "data__name": "folder",
            "data__bucket_growth": 1.5,
            "train__batch_size": BATCH,
            "evaluation__batch_size": BATCH,
            **changes,
        }
    )
    with config.unlocked():
        config.data.options = ml_collections.ConfigDict({"path": str(folder), "part": "all"})
        config.evaluation.options = ml_collections.ConfigDict({"part": "all"})
    return config


def draw(root, *names, size=(8, 6)):
    """Writes images of one colour each; the place among the names decides the colour."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 40, 90)).save(path)
    return root


def encoded(number):
    """The content of a PNG file whose red is a number."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 40, 90)).save(file, "PNG")
    return file.getvalue()


def open_folder(root, **options):
    """The images of a folder of folders."""
    return folder.Source(path=str(root), seed=0, **options)


def open_table(path, **options):
    """The images of a table."""
    return table.Source(path=str(path), seed=0, **options)
