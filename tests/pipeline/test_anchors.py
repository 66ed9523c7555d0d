from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline import anchors, data_config
from pipeline.anchors import AnchorConfig
from pipeline.command import UserError

CONFIG = AnchorConfig()


def boxes_of(*rows: tuple[float, float, float, float]) -> anchors.Float32:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_cell_anchors_have_whole_symmetric_corners() -> None:
    cells = anchors.cell_anchors(CONFIG)
    assert cells.shape == (5, 3, 4) and cells.dtype == np.float32
    np.testing.assert_array_equal(cells[0], [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    np.testing.assert_array_equal(cells[4], [[-362, -181, 362, 181], [-256, -256, 256, 256], [-181, -362, 181, 362]])
    # Half to even: 33 / 2 = 16.5 becomes 16, 35 / 2 = 17.5 becomes 18.
    odd = anchors.cell_anchors(AnchorConfig(strides=(4, 8), sizes=(33, 35), aspect_ratios=(1.0,)))
    np.testing.assert_array_equal(odd[:, 0, 2], [16, 18])


def test_grid_is_in_the_order_level_row_column_ratio() -> None:
    assert anchors.level_shapes(CONFIG, 100, 130) == ((25, 33), (13, 17), (7, 9), (4, 5), (2, 3))
    grid = anchors.grid(CONFIG, 100, 130)
    assert grid.shape == (3 * (25 * 33 + 13 * 17 + 7 * 9 + 4 * 5 + 2 * 3), 4) and grid.dtype == np.float32
    cells = anchors.cell_anchors(CONFIG)
    np.testing.assert_array_equal(grid[:3], cells[0])  # row 0, column 0
    np.testing.assert_array_equal(grid[3], cells[0, 0] + [4, 0, 4, 0])  # column 1
    second_level = 3 * 25 * 33
    np.testing.assert_array_equal(grid[second_level + (2 * 17 + 5) * 3 + 1], cells[1, 1] + [40, 16, 40, 16])


def test_resized_size_is_bounded_by_both_edges() -> None:
    assert data_config.resized_size(480, 640, 800, 1333) == (800, 1067)
    assert data_config.resized_size(427, 640, 640, 1333) == (640, 959)
    assert data_config.resized_size(310, 640, 800, 1333) == (646, 1333)
    assert data_config.resized_size(2, 400, 800, 1333) == (7, 1333)
    assert data_config.resized_size(1, 10_000, 800, 1333) == (1, 1333)


def test_a_flipped_variant_mirrors_boxes() -> None:
    boxes = boxes_of((0.1, 0.2, 0.4, 0.9))
    np.testing.assert_allclose(anchors.variant_boxes(boxes, 100, 200, flipped=False), [[20, 20, 80, 90]])
    np.testing.assert_allclose(anchors.variant_boxes(boxes, 100, 200, flipped=True), [[120, 20, 180, 90]])


def test_corners_are_rows_of_the_grid() -> None:
    grid = anchors.grid(CONFIG, 100, 130)
    np.testing.assert_array_equal(anchors.corners(CONFIG, np.arange(len(grid)), 100, 130), grid)


def test_tensorflow_computes_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.random((7, 2, 2), np.float32), axis=1).reshape(-1, 4)
    boxes = anchors.variant_boxes(boxes, 333, 417, flipped=True)
    grid = anchors.grid(CONFIG, 333, 417)

    def twin(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        overlap = tf.maximum(tf.minimum(a[:, 2:], b[:, 2:]) - tf.maximum(a[:, :2], b[:, :2]), 0.0)
        intersection = overlap[:, 0] * overlap[:, 1]
        area_a, area_b = ((v[:, 2] - v[:, 0]) * (v[:, 3] - v[:, 1]) for v in (a, b))
        return intersection / ((area_a + area_b) - intersection)

    for box in boxes:
        got = tf.function(twin)(tf.constant(grid), tf.constant(box[None]))
        np.testing.assert_array_equal(got.numpy(), anchors.iou(grid, box))


def test_configuration_travels_through_json_and_is_checked() -> None:
    config = AnchorConfig(strides=(4, 8), sizes=(16, 40), aspect_ratios=(1.0,))
    assert AnchorConfig.from_json(config.to_json()) == config
    with pytest.raises(UserError, match=r"anchors.sizes=\[32, 64\]: must be"):
        AnchorConfig(sizes=(32, 64))
    with pytest.raises(UserError, match=r"anchors.negative_iou=0.8, .*: must be"):
        AnchorConfig(negative_iou=0.8)
    with pytest.raises(UserError, match="-3"):
        AnchorConfig(strides=(4,), sizes=(-3.0,))
