"""A file holds the pixels that were written, and nothing else."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipeline.image_writer import encode

COARSE = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
PIXELS = np.asarray(Image.fromarray(COARSE).resize((80, 60), Image.Resampling.BICUBIC))


def test_a_png_is_exact() -> None:
    read = Image.open(io.BytesIO(encode(PIXELS[:, ::-1], "png")))
    assert read.format == "PNG" and not read.info
    np.testing.assert_array_equal(np.asarray(read), PIXELS[:, ::-1])


def test_a_jpeg_is_close_and_smaller_at_a_lower_quality() -> None:
    read = Image.open(io.BytesIO(encode(PIXELS, "jpeg")))
    assert read.format == "JPEG" and read.size == (80, 60)
    assert np.abs(np.asarray(read).astype(int) - PIXELS).mean() < 3
    assert len(encode(PIXELS, "jpeg", quality=60)) < len(encode(PIXELS, "jpeg"))
