"""A folder of images of many sizes, and the configuration of a small run on it."""

import ml_collections
import numpy as np
from PIL import Image

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
