from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import anchors
from pipeline.anchors import AnchorConfig, Matching
from pipeline.loading import online_matching
from pipeline.loading.image_grid import ImageGrid

CONFIGS = (
    AnchorConfig(),
    AnchorConfig(rounded=False),  # Detectron2's
    AnchorConfig(canvas_strides=True),  # torchvision's
    AnchorConfig(strides=(4, 8), sizes=(16, 40), aspect_ratios=(1.0, 2.0)),
    AnchorConfig(strides=(7, 20), sizes=(21.3, 55.5), aspect_ratios=(0.3, 1.7), positive_iou=0.5, negative_iou=0.4),
    AnchorConfig(strides=(64,), sizes=(8,), rounded=False),  # anchors do not touch each other, and miss many boxes
)


@functools.cache
def matcher(config: AnchorConfig) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    size = tf.TensorSpec([2], tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32), size, size])
    def match(boxes: tf.Tensor, image: tf.Tensor, canvas: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return online_matching.match(ImageGrid.of(config, (image[0], image[1]), (canvas[0], canvas[1])), boxes)

    return match  # type: ignore[no-any-return]


def assert_matching(
    config: AnchorConfig, boxes: anchors.Float32, size: tuple[int, int], canvas: tuple[int, int], expected: Matching
) -> None:
    positive, box, ignored = (values.numpy() for values in matcher(config)(boxes, size, canvas))
    assert positive.dtype == box.dtype == ignored.dtype == np.int32
    np.testing.assert_array_equal(positive, expected.positive)
    np.testing.assert_array_equal(box, expected.positive_box)
    np.testing.assert_array_equal(ignored, expected.ignored)


sides = st.integers(20, 400)
unit = st.integers(0, 2**20).map(lambda n: n / 2**20)  # (TensorFlow takes subnormal numbers for zero)


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(sides, sides),
    st.tuples(st.integers(0, 150), st.integers(0, 150)),
    st.lists(st.tuples(unit, unit, unit, unit), max_size=8),
    st.booleans(),
    st.sampled_from(CONFIGS),
)
@example((64, 64), (0, 32), [(0.25, 0.25, 0.5, 0.5), (0.25, 0.25, 0.5, 0.5)], True, CONFIGS[0])
@example((400, 333), (16, 19), [(0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.501, 0.501), (0, 0, 1, 1)], False, CONFIGS[1])
@example((300, 300), (20, 20), [], False, CONFIGS[2])
def test_matches_as_the_definition_does(
    size: tuple[int, int],
    padding: tuple[int, int],
    corners: list[tuple[float, float, float, float]],
    on_whole_pixels: bool,
    config: AnchorConfig,
) -> None:
    height, width = size
    canvas = (-(-(height + padding[0]) // 32) * 32, -(-(width + padding[1]) // 32) * 32)
    table = np.array(corners, np.float32).reshape(-1, 2, 2)
    boxes = np.sort(table, axis=1).reshape(-1, 4) * np.array([width, height, width, height], np.float32)
    if on_whole_pixels:  # ties
        boxes = np.round(boxes)
    with np.errstate(invalid="ignore"):
        assert_matching(config, boxes, size, canvas, anchors.match(config, boxes, *size, canvas))


@pytest.mark.parametrize("config", CONFIGS[:3])
def test_large_images_far_from_the_origin(config: AnchorConfig) -> None:
    """Where corners off the whole pixels lose most of their bits."""
    rng = np.random.default_rng(3)
    size, canvas = (1320, 1301), (1344, 1312)
    centre, half = rng.uniform(200, 1250, (12, 2)), np.exp(rng.uniform(-3, 5.5, (12, 2)))
    boxes = np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, 1300).astype(np.float32)
    assert_matching(config, boxes, size, canvas, anchors.match(config, boxes, *size, canvas))
