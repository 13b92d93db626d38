"""Turns a drawing on a transparent ground into an image of a chosen difficulty, from a seed."""

import dataclasses

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class AugmentParams:
    """Ranges of uniform draws."""

    scale: tuple[float, float] = (0.95, 0.95)  # side of the drawing as a share of the image's side
    rotation: float = 0.0  # largest rotation in either direction, degrees
    flip: float = 0.0  # probability of a left-right flip
    # "white", "plain" (one colour) or "busy" (also gradients, stripes, noise).
    background: str = "white"
    # Factor by which the image is scaled down, and up again.
    downscale: tuple[float, float] = (1.0, 1.0)
    # Share of the image's area that opaque blocks cover.
    occlusion: tuple[float, float] = (0.0, 0.0)
    colour: float = 0.0  # strength of the change of hue, brightness and contrast, 0 to 1
    # Probability of a change of drawing style (grey, few tones, outline, line drawing, negative or
    # faded).
    restyle: float = 0.0


LEVELS = {
    "clean": AugmentParams(),
    "easy": AugmentParams(scale=(0.8, 1.0), rotation=8, flip=0.5, background="plain"),
    "moderate": AugmentParams(
        scale=(0.7, 1.0),
        rotation=15,
        flip=0.5,
        background="busy",
        downscale=(1.0, 2.5),
        occlusion=(0.0, 0.2),
    ),
    "hard": AugmentParams(
        scale=(0.6, 0.9),
        rotation=25,
        flip=0.5,
        background="busy",
        downscale=(2.5, 6.0),
        occlusion=(0.2, 0.5),
    ),
}
# For the training of a vision encoder, so that style is no clue; not a level of evaluation.
PRETRAINING = AugmentParams(
    scale=(0.6, 1.05),
    rotation=20,
    flip=0.5,
    background="busy",
    downscale=(1.0, 2.5),
    occlusion=(0.0, 0.15),
    colour=0.5,
    restyle=0.3,
)
# Probabilities with which "mixed" draws a level for each image.
MIXED = {"clean": 0.3, "easy": 0.35, "moderate": 0.25, "hard": 0.1}
DIFFICULTIES = (*LEVELS, "mixed", "pretraining")


def parameters(difficulty: str, rng: np.random.Generator) -> tuple[str, AugmentParams]:
    """Returns the level of an image, and its ranges. ValueError: an unknown name."""
    if difficulty == "pretraining":
        return difficulty, PRETRAINING
    if difficulty == "mixed":
        difficulty = str(rng.choice(list(MIXED), p=list(MIXED.values())))
    if difficulty not in LEVELS:
        raise ValueError(f"difficulty {difficulty!r} is unknown; choose one of {DIFFICULTIES}")
    return difficulty, LEVELS[difficulty]


def compose(
    rgba: np.ndarray, rng: np.random.Generator, params: AugmentParams, image_size: int
) -> np.ndarray:
    """Draws an augmented image, uint8 [image_size, image_size, 3].

    Args:
      rgba: the drawing, uint8 [h, w, 4].
      rng: is advanced; the same state gives the same image.
      image_size: side of the result, pixels.
    """
    if params.flip and rng.random() < params.flip:
        rgba = rgba[:, ::-1]
    rgb, alpha = rgba[..., :3].astype(np.float32), rgba[..., 3:].astype(np.float32) / 255
    if params.colour:
        rgb = _change_colour(rgb, rng, params.colour)
    if params.restyle and rng.random() < params.restyle:
        rgb, alpha = _change_style(rgb, alpha, rng)
    # Premultiplied, so that interpolation does not bleed the colour of transparent pixels.
    drawing = np.concatenate([rgb * alpha, alpha * 255], axis=-1).clip(0, 255).astype(np.uint8)
    placed = _place(drawing, rng, params, image_size).astype(np.float32)
    ground = _background(rng, params.background, image_size)
    image = placed[..., :3] + ground * (1 - placed[..., 3:] / 255)
    image = image.clip(0, 255).astype(np.uint8)
    factor = rng.uniform(*params.downscale)
    if factor > 1.05:
        small = max(4, round(image_size / factor))
        image = np.asarray(
            Image.fromarray(image)
            .resize((small, small), Image.Resampling.BOX)
            .resize((image_size, image_size), Image.Resampling.BILINEAR)
        )
    return _occlude(image, rng, rng.uniform(*params.occlusion))


def _place(drawing, rng, params, image_size):
    side = drawing.shape[0]
    scale = rng.uniform(*params.scale) * image_size / side
    angle = np.deg2rad(rng.uniform(-params.rotation, params.rotation))
    slack = max(0.0, image_size - scale * side) / 2
    shift = rng.uniform(-slack, slack, 2) if params.rotation else np.zeros(2)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = image_size / 2 + shift
    matrix = (cos, sin, side / 2 - cos * x - sin * y, -sin, cos, side / 2 + sin * x - cos * y)
    # "RGBa" is PIL's premultiplied mode; it would multiply "RGBA" by alpha a second time.
    image = Image.frombytes("RGBa", (side, side), np.ascontiguousarray(drawing).tobytes())
    size = (image_size, image_size)
    transformed = image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.frombuffer(transformed.tobytes(), np.uint8).reshape(image_size, image_size, 4)


def _background(rng, kind, size):
    if kind == "white":
        return np.full((size, size, 3), 255, np.float32)
    first, second = rng.uniform(0, 255, (2, 3))
    if rng.random() < 0.5:  # mostly light, as photographs are
        first = 255 - first / 3
    pattern = rng.integers(4) if kind == "busy" else 0
    if pattern == 0:
        return np.broadcast_to(first, (size, size, 3)).astype(np.float32)
    second = 0.6 * first + 0.4 * second
    if pattern == 3:
        coarse = rng.uniform(0, 255, (4, 4)).astype(np.uint8)
        mix = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
        mix = mix.astype(np.float32) / 255
    else:
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[0:size, 0:size] / size - 0.5
        mix = np.cos(angle) * x + np.sin(angle) * y + 0.5
        if pattern == 2:
            mix = (np.sin(mix * rng.uniform(10, 40)) > 0).astype(np.float32)
    return (first + (second - first) * mix[..., None]).astype(np.float32)


def _occlude(image, rng, share):
    """Covers about `share` of the image with blocks of one colour each."""
    if share < 0.02:
        return image
    image = image.copy()
    size = image.shape[0]
    covered = np.zeros((size, size), bool)
    while covered.mean() < share:
        # Blocks of up to a third of the side; the last ones may overshoot by a little.
        height, width = rng.integers(size // 8, size // 3 + 1, 2)
        y, x = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
        image[y : y + height, x : x + width] = rng.integers(0, 256, 3)
        covered[y : y + height, x : x + width] = True
    return image


def _change_colour(rgb, rng, strength):
    """Mixes the channels by a random matrix near the identity, and draws gain and offset."""
    mix = np.eye(3) + strength * rng.uniform(-0.4, 0.4, (3, 3))
    mix /= mix.sum(axis=1, keepdims=True)
    gain = 1 + strength * rng.uniform(-0.6, 0.6)
    offset = strength * rng.uniform(-60, 60)
    return ((rgb @ mix.T.astype(np.float32) - 128) * gain + 128 + offset).clip(0, 255)


def _change_style(rgb, alpha, rng):
    grey = rgb.mean(axis=-1, keepdims=True)
    kind = rng.integers(5)
    if kind == 0:  # grey
        return np.repeat(grey, 3, axis=-1), alpha
    if kind == 1:  # few tones
        step = 255 / rng.integers(2, 5)
        return np.round(rgb / step) * step, alpha
    if kind == 2:  # dark outline around the drawing and at strong edges
        return np.where(_edges(grey, alpha), 20.0, rgb), alpha
    if kind == 3:  # line drawing
        ground = rng.uniform(180, 255)
        return np.where(_edges(grey, alpha), 20.0, np.full_like(rgb, ground)), alpha
    return 255 - rgb if rng.random() < 0.3 else rgb * 0.5 + 127, alpha  # negative or faded


def _edges(grey, alpha):
    both = np.concatenate([grey * alpha, alpha * 255], axis=-1)
    change = np.zeros(grey.shape, np.float32)
    for axis in (0, 1):
        difference = np.abs(np.diff(both, axis=axis, prepend=0)).max(axis=-1, keepdims=True)
        change = np.maximum(change, difference)
    return change > 40
