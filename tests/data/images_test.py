"""Decoding: every kind of image to upright RGB, and damage that is named or left out."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from speciarl_jax.data import images

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(image, kind="PNG", **options):
    return images.decode(encode(image, kind, **options), "x")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_colours_are_kept(kind):
    few = Image.fromarray(PIXELS // 64 * 64).quantize(64).convert("RGB")
    np.testing.assert_array_equal(decode(few, kind), np.asarray(few))


def test_a_photograph_is_turned_upright():
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    np.testing.assert_array_equal(decode(image, exif=exif), np.rot90(PIXELS, -1))


def test_transparent_parts_are_white():
    rgba = np.dstack([PIXELS, np.zeros((20, 30), np.uint8)])
    rgba[5:10, :, 3] = 255
    found = decode(Image.fromarray(rgba))
    np.testing.assert_array_equal(found[5:10], PIXELS[5:10])
    assert np.all(found[:5] == 255) and np.all(found[10:] == 255)


def test_a_palette_with_a_transparent_colour_is_on_white():
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    found = decode(image, transparency=0)
    np.testing.assert_array_equal(found[0], [[255] * 3, [200, 100, 50]])


def test_16_bits_are_scaled_and_not_clipped():
    grey = (np.arange(600, dtype=np.uint16).reshape(20, 30)) * 100
    found = decode(Image.fromarray(grey))
    assert np.all(np.abs(found[..., 0].astype(float) - grey / 257) <= 1)
    assert np.all(found[..., :1] == found)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    found = decode(Image.fromarray(PIXELS).convert(mode), kind)
    assert found.shape == (20, 30, 3) and found.dtype == np.uint8


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "photos/a.jpg is empty"),
        (b"<html>not found</html>", "photos/a.jpg is no image"),
        (encode(Image.fromarray(PIXELS), "JPEG")[:400], "photos/a.jpg cannot be decoded"),
        (encode(Image.fromarray(PIXELS))[:-500], "photos/a.jpg cannot be decoded"),
        (encode(Image.new("RGB", (801, 4))), "801 x 4 px, too long and thin"),
    ],
)
def test_damage_is_named_with_what_to_do(data, message):
    with pytest.raises(images.BrokenImageError, match=message) as error:
        images.decode(data, "photos/a.jpg")
    assert "on_decode_error='skip'" in str(error.value)
    assert "speciarl_jax.tools.check_data" in str(error.value)


def test_an_image_of_absurd_size_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(images.BrokenImageError, match="has more than 500 pixels, too many"):
        decode(Image.fromarray(PIXELS))
    # Beyond twice the limit Pillow raises an error in place of a warning.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(images.BrokenImageError, match="has more than 100 pixels, too many"):
        decode(Image.fromarray(PIXELS))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(images.BrokenImageError, match="gone.jpg cannot be read"):
        images.read(str(tmp_path / "gone.jpg"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.binary(min_size=0, max_size=40))
def test_any_damage_is_a_broken_image_or_an_image(where, noise):
    data = bytearray(encode(Image.fromarray(PIXELS), "JPEG"))
    data[where : where + len(noise)] = noise
    try:
        found = images.decode(bytes(data), "x")
    except images.BrokenImageError:
        return
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


class Rows:
    """20 rows, of which some are broken."""

    def __init__(self, broken):
        self.broken, self.read = set(broken), 0

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.read += 1
        if index in self.broken:
            raise images.BrokenImageError(f"image {index}", "is empty")
        return {"image": PIXELS, **self.describe(index)}

    def describe(self, index):
        return {"image_id": index, "label_id": "a"}


def test_broken_rows_keep_their_place_and_weigh_nothing():
    source = images.WithoutBroken(Rows({3, 7}))
    rows = [source[i] for i in range(20)]
    assert [row["image_id"] for row in rows] == list(range(20))
    assert [i for i, row in enumerate(rows) if row.get("skipped")] == [3, 7]
    assert set(source.skipped) == {3, 7} and "image 3" in source.skipped[3]
    assert rows[3]["image"].shape[2] == 3
    source[3]
    assert len(source.skipped) == 2


class OneRow:
    """A source of one row; `read` holds the indices that were read."""

    def __init__(self, row):
        self._row, self.read = row, []

    def __len__(self):
        return 1 if self._row else 0

    def __getitem__(self, index):
        self.read.append(index)
        return self._row


GOOD_ROW = {"image": PIXELS, "image_id": 2**32 - 1, "label_id": "a", "label": "an a"}


@pytest.mark.parametrize("more", [{}, {"image_id": 0, "style": "flat"}])
def test_of_a_source_that_fits_only_the_first_row_is_read(more):
    source = OneRow({**GOOD_ROW, **more})
    images.check_first_row(source, "own")
    assert source.read == [0]


@pytest.mark.parametrize("lacking", GOOD_ROW)
def test_a_row_that_lacks_a_field_is_refused_by_the_name_of_its_set(lacking):
    row = {field: value for field, value in GOOD_ROW.items() if field != lacking}
    with pytest.raises(ValueError, match=rf"'own' lack \['{lacking}'\]; .* must give .*'label'"):
        images.check_first_row(OneRow(row), "own")


@pytest.mark.parametrize("image_id", [2**32, -1, "7", 1.0, np.uint64(7)])
def test_an_image_id_that_does_not_fit_is_refused(image_id):
    with pytest.raises(ValueError, match="image_id of the first row .*'own' is .*to 2..32 - 1"):
        images.check_first_row(OneRow({**GOOD_ROW, "image_id": image_id}), "own")


@pytest.mark.parametrize(
    "image", [PIXELS[..., :1], PIXELS / 255, [PIXELS, PIXELS[..., 0]], "a.png"]
)
def test_a_first_image_of_another_kind_is_refused(image):
    with pytest.raises(ValueError, match=r"it must be uint8 \[height, width, 3\]"):
        images.check_first_row(OneRow({**GOOD_ROW, "image": image}), "own")


def test_a_set_without_images_is_refused():
    with pytest.raises(ValueError, match="the data set 'own' has no images"):
        images.check_first_row(OneRow({}), "own")


def test_too_many_broken_images_are_no_accident():
    source = images.WithoutBroken(Rows(range(20)))
    for i in range(10):
        source[i]
    with pytest.raises(ValueError, match="11 of 20 images are broken.*tools.check_data.*image 10"):
        source[10]


def test_the_wrapper_has_no_attribute_that_its_source_lacks():
    source = images.WithoutBroken(Rows(()))
    assert not hasattr(source, "with_seed") and not hasattr(source, "fingerprint")
    Rows.with_seed = lambda self, seed: self
    try:
        assert source.with_seed(3) is source
    finally:
        del Rows.with_seed


def test_describing_a_row_reads_no_image_where_the_source_can_tell():
    rows = Rows(())
    assert images.describe(rows, 4) == {"image_id": 4, "label_id": "a"} and rows.read == 0
    plain = [{"image": PIXELS, "label_id": "b"}]
    assert images.describe(plain, 0) == {"label_id": "b"}
