import functools

import numpy as np
import pytest
import tensorflow as tf

from model.config import RoiAlignConfig
from model.network import adaptive_roi_align
from model.network.roi_align import assign_levels, roi_align

STRIDES = (4, 8, 16, 32)


def pooled_one_by_one(pyramid, boxes, image_index, resolution, ratio, aligned=True):
    """The definition, sample by sample (torchvision/csrc/ops/cpu/roi_align_kernel.cpp)."""
    out = np.zeros((len(boxes), resolution, resolution, pyramid[0].shape[-1]))
    for n, box in enumerate(boxes):
        side = np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        level = int(np.clip(np.floor(4 + np.log2(side / 224 + 1e-8)), 2, 5)) - 2
        features = pyramid[level][image_index[n]]
        height, width = features.shape[:2]
        x0, y0, x1, y1 = box / STRIDES[level] - (0.5 if aligned else 0)
        sizes = np.array([y1 - y0, x1 - x0])
        sizes = sizes if aligned else np.maximum(sizes, 1)
        counts = [ratio or int(np.ceil(size / resolution)) for size in sizes]

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
                for a in range(counts[0]):
                    for b in range(counts[1]):
                        y = y0 + (i + (a + 0.5) / counts[0]) * sizes[0] / resolution
                        x = x0 + (j + (b + 0.5) / counts[1]) * sizes[1] / resolution
                        out[n, i, j] += value(y, x) / (counts[0] * counts[1])
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


@pytest.fixture(scope="module")
def expected(pyramid):
    """The definition's answers for `BOXES`, each worked out once: plain Python takes its time."""
    return functools.cache(lambda ratio, aligned: pooled_one_by_one(pyramid, BOXES, INDEX, 3, ratio, aligned))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_equals_the_definition(pyramid, expected, ratio, compiled, aligned):
    config = RoiAlignConfig(aligned=aligned)
    pool = tf.function(
        lambda boxes: roi_align(config, pyramid, STRIDES, boxes, INDEX, 3, ratio), jit_compile=compiled, autograph=False
    )
    np.testing.assert_allclose(pool(BOXES), expected(ratio, aligned), atol=2e-5)


def many_boxes(count):
    random = np.random.default_rng(1)
    size = np.exp(random.uniform(np.log(4), np.log(400), (count, 2)))
    centre = random.uniform(0, 1, (count, 2)) * (320, 256)
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return np.clip(corners, 0, [320, 256, 320, 256]).astype(np.float32), random.integers(0, 2, count).astype(np.int32)


@pytest.mark.parametrize("late", [False, True])
def test_many_boxes_of_different_numbers_of_samples_keep_their_order(pyramid, late, monkeypatch):
    """Sampled in chunks of 7, the last one not full; whether their number is known early or late."""
    monkeypatch.setattr(adaptive_roi_align, "BINS_AT_ONCE", 7 * 3**2)
    boxes, index = many_boxes(30)
    spec = [tf.TensorSpec([None if late else len(boxes), 4]), tf.TensorSpec([None if late else len(boxes)], tf.int32)]
    pool = tf.function(
        lambda b, i: roi_align(RoiAlignConfig(), pyramid, STRIDES, b, i, 3, 0), input_signature=spec, autograph=False
    )
    np.testing.assert_allclose(pool(boxes, index), pooled_one_by_one(pyramid, boxes, index, 3, 0), atol=2e-5)


@pytest.mark.parametrize(("dtype", "compiled"), [(tf.float32, False), (tf.float32, True), (tf.bfloat16, False)])
def test_the_gradient_of_adaptive_sampling_is_its_transpose(pyramid, compiled, dtype):
    """Pooling is linear in the features, so ⟨pool(a), w⟩ = ⟨a, gradient of ⟨pool(b), w⟩⟩ for any a and b."""
    boxes, index = many_boxes(20)
    weights = tf.constant(np.random.default_rng(2).normal(size=(20, 3, 3, 4)).astype(np.float32))

    @tf.function(jit_compile=compiled, autograph=False)
    def both(boxes, index, *levels):
        with tf.GradientTape() as tape:
            tape.watch(levels)
            product = tf.reduce_sum(
                tf.cast(roi_align(RoiAlignConfig(), levels, STRIDES, boxes, index, 3, 0), tf.float32) * weights
            )
        return product, tape.gradient(product, levels)

    levels = [tf.cast(level, dtype) for level in pyramid]
    product, gradients = both(boxes, index, *levels)
    assert all(gradient.dtype == dtype for gradient in gradients)
    other = sum(tf.reduce_sum(tf.cast(a, tf.float32) * tf.cast(b, tf.float32)) for a, b in zip(levels, gradients, strict=True))
    np.testing.assert_allclose(product, other, rtol=1e-4 if dtype == tf.float32 else 0.02)


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
    almost = tf.constant([[0.0, 0.0, 224.0, np.float32(224 * (1 - 3e-7))]])
    assert [int(assign_levels(almost, 4, tolerance)[0]) for tolerance in (0.0, 1e-6)] == [1, 2]
