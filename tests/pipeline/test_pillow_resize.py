from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.pillow_resize import pillow_resize

RESIZE = tf.function(
    pillow_resize,
    input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int32)],
)


def assert_pillows(before: tuple[int, int], after: tuple[int, int]) -> None:
    pixels = np.random.default_rng(sum(before)).integers(0, 256, (*before, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((after[1], after[0]), Image.Resampling.BILINEAR))
    resized = RESIZE(pixels, *after)
    assert resized.dtype == tf.uint8
    np.testing.assert_array_equal(resized, expected)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((40, 60), (80, 120)),  # doubled: every other pixel is a mean of two, often a half
        ((40, 60), (40, 60)),
        ((40, 60), (40, 90)),
        ((300, 200), (30, 77)),
        ((1, 1), (5, 7)),
        ((640, 480), (1, 1)),
        ((50, 3), (20, 300)),
    ],
)
def test_equals_pillow(before: tuple[int, int], after: tuple[int, int]) -> None:
    assert_pillows(before, after)


def test_equals_pillow_at_any_size() -> None:
    for before_height, before_width, height, width in np.random.default_rng(1).integers(1, 250, (60, 4)).tolist():
        assert_pillows((before_height, before_width), (height, width))
