from __future__ import annotations

import io
import typing

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import image
from pipeline.data_config import ResizeRule, resized_size

RULES = typing.get_args(ResizeRule)
Pixels = NDArray[np.uint8]


def photograph(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth colours and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(coarse) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(pixels: Pixels, mode: str, file_format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, file_format)
    return file.getvalue()


@pytest.mark.parametrize(("mode", "file_format"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("P", "PNG")])
def test_decodes_to_pillows_pixels(mode: str, file_format: str) -> None:
    data = encoded(photograph(41, 57), mode, file_format)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(image.decode(tf.constant(data)), expected)


def with_exif(pixels: Pixels, file_format: str, block: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, exif=block)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_a_stored_orientation_turns_pixels_as_pillow_turns_them(file_format: str, orientation: int, byte_order: str) -> None:
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F], exif[0x0112] = "a maker", orientation
    data = with_exif(photograph(31, 43), file_format, exif.tobytes())
    assert image.stored_orientation(data) == image.stored_orientation(data[:65536]) == orientation
    stored = Image.open(io.BytesIO(data))
    shown = np.asarray(ImageOps.exif_transpose(stored))
    turned = image.upright(np.asarray(stored), orientation)
    np.testing.assert_array_equal(turned, shown)
    assert image.swaps_sides(orientation) == (turned.shape != (31, 43, 3))
    np.testing.assert_array_equal(image.upright(np.asarray(stored)[..., 0], orientation), shown[..., 0])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_an_orientation_that_cannot_be_read_is_none(file_format: str) -> None:
    pixels = photograph(31, 43)
    assert image.stored_orientation(encoded(pixels, "RGB", file_format)) == 1
    entry = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"
    assert image.stored_orientation(with_exif(pixels, file_format, entry + b"\x03\0\x01\0\0\0\x06\0\0\0")) == 6
    assert image.stored_orientation(with_exif(pixels, file_format, entry + b"\x04\0\x01\0\0\0\x06\0\0\0")) == 6
    for rest in (
        b"\x03\0\x01\0\0\0\x09\0\0\0",
        b"\x03\0\x01\0\0\0\0\0\0\0",
        b"\x03\0\x02\0\0\0\x06\0\0\0",
        b"\x0a\0\x01\0\0\0\x06\0\0\0",
        b"\x03\0",
    ):
        assert image.stored_orientation(with_exif(pixels, file_format, entry + rest)) == 1


def test_random_bytes_never_end_the_search_for_an_orientation() -> None:
    rng = np.random.default_rng(0)
    for i in range(6000):
        block = bytearray(b"Exif\0\0" + (b"II*\0", b"MM\0*")[i % 2] + rng.bytes(int(rng.integers(0, 200))))
        if i % 3:
            block[10:18] = b"\x08\0\0\0\x04\0\x12\x01"
        segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
        assert 1 <= image.stored_orientation(b"\xff\xd8" + segment + b"\xff\xd9") <= 8
        assert 1 <= image.stored_orientation(b"\xff\xd8" + rng.bytes(60)) <= 8
        assert 1 <= image.stored_orientation(image.PNG_SIGNATURE + b"\0\0\0\x40eXIf" + block) <= 8


def test_cmyk_becomes_rgb() -> None:
    data = encoded(photograph(40, 56), "CMYK", "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded = image.decode(tf.constant(data)).numpy()
    assert np.abs(decoded.astype(int) - expected).max() <= 2


def test_drops_alpha() -> None:
    pixels = photograph(20, 30)
    alpha = np.full((20, 30, 1), 100, np.uint8)
    data = io.BytesIO()
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(data, "PNG")
    np.testing.assert_array_equal(image.decode(tf.constant(data.getvalue())), pixels)


@pytest.mark.parametrize("data", [b"", b"GIF89a....", encoded(photograph(40, 50), "RGB", "JPEG")[:300]])
def test_other_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        image.decode(tf.constant(data))


@pytest.mark.parametrize("rule", RULES)
def test_resized_size_in_tensorflow_and_in_python(rule: ResizeRule) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 1500, (5000, 2))
    edges = np.stack([rng.integers(64, 900, 5000), rng.integers(900, 1400, 5000)], axis=1)
    sizes[:400, 0] = sizes[:400, 1]  # squares
    edges[400:900] = (800, 1333)
    height, width, short_edge, max_edge = (tf.constant(v) for v in (*sizes.T, *edges.T))
    result = np.stack(image.resized_size_tf(height, width, short_edge, max_edge, rule), axis=1)
    expected = [resized_size(int(h), int(w), int(s), int(m), rule) for (h, w), (s, m) in zip(sizes, edges, strict=True)]
    np.testing.assert_array_equal(result, expected)


def bilinear(pixels: Pixels, height: int, width: int) -> NDArray[np.float64]:
    """Half-pixel centres, by the formula."""

    def weights(before: int, after: int) -> NDArray[np.float64]:
        centre = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
        return np.asarray(np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(before))))

    rows, columns = weights(pixels.shape[0], height), weights(pixels.shape[1], width)
    return np.asarray(np.einsum("ij,jkc,lk->ilc", rows, pixels, columns))


@pytest.mark.parametrize("size", [(61, 83), (20, 30), (31, 43), (40, 200)])
def test_resize_rounds_bilinear_to_nearest(size: tuple[int, int]) -> None:
    pixels = photograph(31, 43)
    exact = bilinear(pixels, *size)
    resized = image.resize(tf.constant(pixels), *size)
    assert resized.dtype == tf.uint8
    assert np.abs(resized.numpy() - exact).max() < 0.5 + 1e-3


@pytest.mark.parametrize("size", [(61, 83), (20, 30), (31, 43), (40, 200)])
def test_resize_without_rounding(size: tuple[int, int]) -> None:
    pixels = photograph(31, 43)
    resized = image.resize(tf.constant(pixels), *size, "torchvision")
    assert resized.dtype == tf.float32
    np.testing.assert_allclose(resized, bilinear(pixels, *size), atol=1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_resize_keeps_white_white(rule: ResizeRule) -> None:
    white = np.full((31, 43, 3), 255, np.uint8)
    assert image.resize(tf.constant(white), 77, 99, rule).numpy().min() >= 255 - 1e-4


def test_flip_then_resize_is_resize_then_flip_but_for_rounding() -> None:
    pixels = tf.constant(photograph(31, 43))
    first = image.resize(image.flip(pixels), 61, 83).numpy().astype(int)
    last = image.flip(image.resize(pixels, 61, 83)).numpy()
    assert np.abs(first - last).max() <= 1


def test_place() -> None:
    pixels = photograph(31, 43)
    canvas = image.place(tf.constant(pixels), 64, 96).numpy()
    np.testing.assert_array_equal(canvas[:31, :43], pixels)
    assert canvas.shape == (64, 96, 3) and canvas[31:].max() == 0 and canvas[:, 43:].max() == 0
    np.testing.assert_array_equal(image.place(tf.constant(pixels), 31, 43), pixels)
