"""Formats, brightness, orientation and size of image files."""

import io
import os
import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from speciarl_jax.data import image_files, images

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
RGB = Image.fromarray(PIXELS)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(image, kind, **options):
    return images.decode(encode(image, kind, **options), "x")


@pytest.fixture
def limit():
    yield image_files.limit_pixels
    image_files.limit_pixels(None)


@pytest.mark.parametrize("most", [65535, 20000, 255, 1, 0])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_16_bits_are_divided_by_257_however_dark_the_image_is(kind, most):
    grey = np.linspace(0, most, 600).astype(np.uint16).reshape(20, 30)
    found = decode(Image.fromarray(grey), kind)
    np.testing.assert_array_equal(found[..., 0], np.rint(grey / 257))


def test_a_transparent_value_of_16_bits_is_white():
    grey = np.array([[300, 0, 65535, 257]], np.uint16)
    data = encode(Image.fromarray(grey), "PNG", transparency=300)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I;16" and image.info["transparency"] == 300
    assert images.decode(data, "x")[0, :, 0].tolist() == [255, 0, 255, 1]


def test_a_pointer_of_git_lfs_is_called_one():
    data = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
    with pytest.raises(images.BrokenImageError, match="x is a pointer of Git LFS, and not the im"):
        images.decode(data, "x")


@pytest.mark.parametrize("most", [1.0, 0.5, 0.001, 1.0005])
def test_float_values_up_to_1_are_multiplied_by_255(most):
    grey = np.linspace(0, most, 600, dtype=np.float32).reshape(20, 30)
    found = decode(Image.fromarray(grey), "TIFF")
    np.testing.assert_array_equal(found[..., 1], np.rint(np.clip(grey, 0, 1) * 255))


@pytest.mark.parametrize(
    "values, message",
    [
        (np.array([[0.0, 255.0]], np.float32), "float brightness values from 0 to 255"),
        (np.array([[-1.0, 1.0]], np.float32), "float brightness values from -1 to 1"),
        (np.array([[np.nan, 1.0]], np.float32), "float brightness"),
        (np.array([[np.inf, 1.0]], np.float32), "float brightness"),
        (np.array([[0, 65536]], np.int32), "brightness values from 0 to 65536"),
        (np.array([[-5, 300]], np.int32), "brightness values from -5 to 300"),
    ],
)
def test_values_without_a_known_white_are_refused(values, message):
    with pytest.raises(images.BrokenImageError, match=f"{message}.*save it with"):
        decode(Image.fromarray(values), "TIFF")


def test_32_bit_integers_count_as_16_bits():
    grey = np.arange(600, dtype=np.int32).reshape(20, 30) * 100
    np.testing.assert_array_equal(
        decode(Image.fromarray(grey), "TIFF")[..., 0], np.rint(grey / 257)
    )


def ifd(*tags):
    """An EXIF block of (tag, kind, count, four bytes), little-endian."""
    rows = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + rows + b"\0\0\0\0"


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")
# Far offsets, unknown kinds, absurd counts, sub-blocks that lie outside or refer to the first one.
ODD = {
    "far offset": (0x010F, 2, 5000, b"\xff\xff\xff\x7f"),
    "unknown kind": (0x0110, 99, 1, b"\0\0\0\0"),
    "endless": (0x0131, 5, 0xFFFFFFFF, b"\x10\0\0\0"),
    "exif block far away": (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    "exif block in a circle": (0x8769, 4, 1, b"\x08\0\0\0"),
    "gps block of letters": (0x8825, 2, 4, b"abcd"),
    "maker note": (0x927C, 7, 4, b"\xff\xfe\xfd\xfc"),
    "wrong kind of resolution": (0x011A, 2, 3, b"ab\0\0"),
    "thumbnail": (0x0201, 4, 1, b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_is_read_beside_odd_tags(kind, odd):
    tags = sorted([TURNED, ODD[odd]])
    options = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}[kind]
    plain = decode(RGB, kind, **options)
    found = decode(RGB, kind, exif=ifd(*tags), **options)
    np.testing.assert_array_equal(found, np.rot90(plain, -1))


GARBAGE = [
    b"Exif\0\0",
    b"Exif\0\0II*\0",
    b"Exif\0\0" + b"\xff" * 60,
    b"Exif\0\0MM\0*\0\0\xff\xff",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40,
    ifd((0x0112, 3, 1, b"\x63\0\0\0")),
    ifd((0x0112, 2, 4, b"abcd")),
    ifd((0x0112, 3, 0, b"\0\0\0\0")),
    ifd((0x0112, 5, 7, b"\xff\xff\xff\xff")),
    b"not exif at all",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_garbage_in_place_of_exif_is_ignored(kind, garbage):
    plain = encode(RGB, kind)
    if kind == "AVIF":
        good = encode(RGB, kind, exif=ifd((0x010F, 2, 4, b"abc\0"), TURNED))
        start = good.index(b"II*\0")
        body = garbage.removeprefix(b"Exif\0\0").ljust(26, b"\xff")[:26]
        data = good[:start] + body + good[start + 26 :]
        # The orientation of AVIF is a property of its own, not the one in EXIF.
        expected = images.decode(good, "x")
    else:
        data, expected = encode(RGB, kind, exif=garbage), images.decode(plain, "x")
    np.testing.assert_array_equal(images.decode(data, "x"), expected)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_with_odd_tags_is_turned_and_read(compression):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = 6
    good = encode(RGB, "TIFF", tiffinfo=tags, compression=compression)
    np.testing.assert_array_equal(images.decode(good, "x"), np.rot90(PIXELS, -1))
    tags[0x8769] = 2**31 - 5  # an EXIF block outside of the file
    odd = encode(RGB, "TIFF", tiffinfo=tags, compression=compression)
    np.testing.assert_array_equal(images.decode(odd, "x"), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_all_eight_orientations_are_those_of_pillow(kind, orientation):
    from PIL import ImageOps

    exif = RGB.getexif()
    exif[0x0112] = orientation
    data = encode(RGB, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(images.decode(data, "x"), expected)


@pytest.mark.parametrize(
    "kind, factor", [("JPEG", 2), ("JPEG", 4), ("JPEG2000", 2), ("JPEG2000", 4)]
)
def test_large_photographs_are_decoded_at_reduced_size(kind, factor, limit):
    smooth = np.add.outer(np.arange(160), np.arange(240))[..., None] * np.array([0.5, 0.3, 0.6])
    image = Image.fromarray(smooth.astype(np.uint8))
    whole = decode(image, kind)
    limit(160 * 240 // (factor**2 if factor == 2 else 8))
    found = decode(image, kind)
    assert found.shape == (160 // factor, 240 // factor, 3)
    near = np.asarray(Image.fromarray(whole).resize(found.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(found.astype(int) - near).mean() < 3


def test_a_reduced_photograph_is_turned_upright(limit):
    exif = RGB.getexif()
    exif[0x0112] = 6
    image = RGB.resize((240, 160))
    limit(160 * 240 // 4)
    assert decode(image, "JPEG", exif=exif).shape == (120, 80, 3)


@pytest.mark.parametrize("side, factor", [((10400, 10400), 1), ((16384, 12288), 2)])
def test_photographs_of_108_and_200_megapixels_are_read_as_the_configuration_is(
    side, factor, limit
):
    from configs import base

    limit(base.get_config().data.max_decoded_pixels)
    data = encode(Image.new("RGB", side, (200, 30, 40)), "JPEG", quality=20)
    found = images.decode(data, "x")
    assert found.shape == (side[1] // factor, side[0] // factor, 3)
    assert np.abs(found[0, 0].astype(int) - [200, 30, 40]).max() < 8


@pytest.mark.parametrize(
    "kind, most, message",
    [
        ("PNG", 599, "more than 599 pixels, too many to read; raise config.data.max_decoded"),
        ("JPEG", 70, "more than 560 pixels, too many even at reduced size; raise config.data."),
    ],
)
def test_what_cannot_be_reduced_is_refused_with_the_key(kind, most, message, limit):
    limit(most)
    with pytest.raises(images.BrokenImageError, match=message):
        decode(RGB, kind)


def test_the_limit_may_lie_above_that_of_pillow(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    limit(600)
    np.testing.assert_array_equal(decode(RGB, "PNG"), PIXELS)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ValueError, match="max_decoded_pixels is 0; it must be above 0"):
        limit(0)


@pytest.mark.parametrize("place", ["pipe", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path, place):
    path = "/dev/zero"
    if place != "device":
        path = str(tmp_path / "x.jpg")
        (os.mkfifo if place == "pipe" else os.mkdir)(path)
    with pytest.raises(images.BrokenImageError, match="cannot be read .it is no regular file"):
        images.read(path)


def test_a_sparse_file_of_many_bytes_is_not_read(tmp_path):
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(images.BrokenImageError, match="it has 8,589,934,592 bytes, too many for"):
        images.read(str(tmp_path / "x.png"))


def test_a_windows_path_gets_a_hint(tmp_path):
    with pytest.raises(images.BrokenImageError, match="on Windows, replace its backslashes by '/'"):
        images.read(f"{tmp_path}/img\\0.png")


def test_heic_needs_an_extra_and_says_which(monkeypatch):
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_files.reads_heif.cache_clear()
    try:
        assert ".heic" not in image_files.suffixes() and image_files.is_foreign(".heic")
        with pytest.raises(
            images.BrokenImageError, match=r"is HEIC, which needs pip install.*heic"
        ):
            images.decode(data, "x.heic")
        opened = []
        fake = types.SimpleNamespace(register_heif_opener=lambda: opened.append(1))
        monkeypatch.setitem(sys.modules, "pillow_heif", fake)
        image_files.reads_heif.cache_clear()
        assert ".heic" in image_files.suffixes() and opened == [1]
    finally:
        image_files.reads_heif.cache_clear()


def test_heic_is_read_where_pillow_heif_is():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    image = Image.fromarray(np.full((64, 96, 3), (200, 30, 40), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    found = decode(image, "HEIF", exif=exif.tobytes(), quality=90)
    assert found.shape == (96, 64, 3) and np.abs(found[0, 0].astype(int) - [200, 30, 40]).max() < 8
