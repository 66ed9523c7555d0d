import numpy as np
import pytest
import tensorflow as tf

from model.config import RoiAlignConfig
from model.roi_align import assign_levels, roi_align

STRIDES = (4, 8, 16, 32)


def pooled_one_by_one(pyramid, boxes, image_index, resolution, ratio):
    """The definition, sample by sample (torchvision/csrc/ops/cpu/roi_align_kernel.cpp, aligned)."""
    out = np.zeros((len(boxes), resolution, resolution, pyramid[0].shape[-1]))
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        side = np.sqrt((x1 - x0) * (y1 - y0))
        level = int(np.clip(np.floor(4 + np.log2(side / 224 + 1e-8)), 2, 5)) - 2
        features, scale = pyramid[level][image_index[n]], 1 / STRIDES[level]
        height, width = features.shape[:2]

        def value(y, x, features=features, height=height, width=width):
            if not (-1 <= y <= height and -1 <= x <= width):
                return 0
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right, dy, dx = min(top + 1, height - 1), min(left + 1, width - 1), y - top, x - left
            upper = (1 - dx) * features[top, left] + dx * features[top, right]
            return (1 - dy) * upper + dy * ((1 - dx) * features[bottom, left] + dx * features[bottom, right])

        for i in range(resolution):
            for j in range(resolution):
                for a in range(ratio):
                    for b in range(ratio):
                        y = y0 * scale - 0.5 + (i + (a + 0.5) / ratio) * (y1 - y0) * scale / resolution
                        x = x0 * scale - 0.5 + (j + (b + 0.5) / ratio) * (x1 - x0) * scale / resolution
                        out[n, i, j] += value(y, x) / ratio**2
    return out


@pytest.fixture(scope="module")
def pyramid():
    random = np.random.default_rng(0)
    return [random.normal(size=(2, 256 // s, 320 // s, 4)).astype(np.float32) for s in STRIDES]


BOXES = np.array(
    [
        [10.3, 20.7, 60.1, 90.2],
        [0, 0, 320, 256],
        [-8, -6, 120, 250],
        [290, 200, 330, 270],
        [50, 60, 50, 60],
        [100, 10, 300, 250],
        [1, 1, 2, 3],
    ],
    np.float32,
)
INDEX = np.array([0, 1, 1, 0, 1, 0, 1], np.int32)


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_equals_the_definition(pyramid, ratio, compiled):
    pool = tf.function(
        lambda boxes: roi_align(RoiAlignConfig(), pyramid, STRIDES, boxes, INDEX, 3, ratio), jit_compile=compiled
    )
    np.testing.assert_allclose(pool(BOXES), pooled_one_by_one(pyramid, BOXES, INDEX, 3, ratio), atol=2e-5)


def test_a_linear_ramp_is_pooled_exactly():
    """Feature = x of its own centre in pixels, so each bin must hold the x of the bin's centre: the frame is right."""
    ramp = [
        np.broadcast_to(((np.arange(320 // s) + 0.5) * s)[None, None, :, None], (1, 256 // s, 320 // s, 1)) for s in STRIDES
    ]
    ramp = [level.astype(np.float32) for level in ramp]
    x0, x1 = 80.0, 150.0
    pooled = roi_align(RoiAlignConfig(), ramp, STRIDES, tf.constant([[x0, 70.0, x1, 140.0]]), tf.constant([0]), 7, 2)[
        0, 3, :, 0
    ]
    np.testing.assert_allclose(pooled, x0 + (np.arange(7) + 0.5) * (x1 - x0) / 7, rtol=1e-5)


def test_levels_follow_the_size_of_the_box():
    sides = tf.constant([10.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 5000.0])
    boxes = tf.stack([0 * sides, 0 * sides, sides, sides], -1)
    np.testing.assert_array_equal(assign_levels(boxes, 4), [0, 0, 1, 1, 2, 2, 3, 3])
