import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from model.network import keypoint_head

SIZE = 56


def test_encode_at_the_edges():
    box = tf.constant([[10.0, 20.0, 66.0, 132.0]])  # a place is 1 wide and 2 high
    points = [[10, 20, 2], [66, 132, 2], [66, 20, 1], [9.99, 50, 2], [30, 132.1, 2], [30, 40, 0], [11.5, 23.9, 2]]
    place, valid = keypoint_head.encode(tf.constant([points], tf.float32), box, SIZE)
    np.testing.assert_array_equal(valid[0], [True, True, True, False, False, False, True])
    np.testing.assert_array_equal(place[0].numpy()[valid[0]], [0, SIZE * SIZE - 1, SIZE - 1, 1 * SIZE + 1])


@settings(max_examples=200, deadline=None)
@given(
    cell=st.tuples(*[st.integers(0, 63)] * 2),
    eighth=st.tuples(*[st.integers(0, 7)] * 2),
    width=st.tuples(*[st.integers(1, 16)] * 2),
    corner=st.tuples(*[st.integers(-100, 100)] * 2),
)
def test_a_place_is_a_half_open_cell(cell, eighth, width, corner):
    """Place d holds every point from d to just below d + 1; 64 places and eighths of one are exact in float32."""
    cell, eighth, width, corner = (np.array(value, np.float32) for value in (cell, eighth, width, corner))
    point = corner + (cell + eighth / 8) * width
    box = np.concatenate([corner, corner + 64 * width])
    place, valid = keypoint_head.encode(tf.constant([[[*point, 2.0]]], tf.float32), tf.constant([box]), 64)
    assert bool(valid[0, 0]) and int(place[0, 0]) == int(cell[1]) * 64 + int(cell[0])


def test_loss_counts_labelled_points_inside_used_rois_only():
    boxes = tf.constant([[0.0, 0.0, 56.0, 56.0]] * 3)
    points = tf.constant([[[5.0, 5.0, 2.0], [60.0, 5.0, 2.0], [5.0, 5.0, 0.0], [7.0, 9.0, 1.0]]] * 3)
    heat = tf.zeros([3, SIZE, SIZE, 4])
    total, count = keypoint_head.keypoint_loss(heat, points, boxes, tf.constant([True, False, True]))
    assert float(count) == 4
    np.testing.assert_allclose(total, 4 * np.log(SIZE**2), rtol=1e-5)
    _, nothing = keypoint_head.keypoint_loss(heat, points, boxes, tf.constant([False] * 3))
    assert float(nothing) == 0


LOSSES = {"softmax": keypoint_head.keypoint_loss, "mask": keypoint_head.mask_loss}


def test_masks_hold_several_ones_in_small_boxes_and_one_in_large_ones() -> None:
    boxes = tf.constant([[0.0, 0.0, 14.0, 14.0], [0.0, 0.0, 560.0, 560.0], [100.0, 40.0, 156.0, 96.0]])
    points = tf.constant([[[7.3, 3.9, 2.0]], [[285.2, 11.0, 2.0]], [[123.6, 70.2, 1.0]]])
    masks = keypoint_head.mask_targets(points, boxes, 56).numpy().reshape(3, 56, 56)
    np.testing.assert_allclose(masks.sum(axis=(1, 2)), 1.0, rtol=1e-6)
    assert [(mask > 0).sum() > 1 for mask in masks] == [True, False, False]
    rows, columns = np.nonzero(masks[0])
    # The pixel at (7, 3) is four places wide: places 28…31 of row 12…15, and what bilinear resizing rounds up beside them.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 15, 28, 31)
    assert np.argwhere(masks[1]).tolist() == [[1, 28]]
    assert np.argwhere(masks[2]).tolist() == [[30, 23]]


@pytest.mark.parametrize("name", LOSSES)
def test_both_losses_fall_on_one_batch_and_decoding_finds_the_points(name: str) -> None:
    boxes = tf.constant([[10.0, 20.0, 40.0, 80.0], [0.0, 0.0, 200.0, 300.0]])
    random = np.random.default_rng(3)
    inside = random.uniform(0.05, 0.95, (2, 5, 2)).astype(np.float32)
    points = boxes[:, None, :2] + inside * (boxes[:, None, 2:] - boxes[:, None, :2])
    keypoints = tf.concat([points, tf.constant(2.0, shape=[2, 5, 1])], axis=-1)
    heatmaps = tf.Variable(tf.zeros([2, 56, 56, 5]))
    values = []
    for _ in range(60):
        with tf.GradientTape() as tape:
            total, count = LOSSES[name](heatmaps, keypoints, boxes, tf.constant([True, True]))
            loss = total / count
        heatmaps.assign_sub(20.0 * tape.gradient(loss, heatmaps))
        values.append(float(loss))
    assert values[0] == pytest.approx(np.log(56 * 56), rel=1e-3)
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
    decoded, _ = keypoint_head.decode_fast(heatmaps, boxes)
    pixel_or_place = np.maximum(1.0, np.array([[30, 60], [200, 300]])[:, None] / 56)
    assert (np.abs(decoded - points) <= pixel_or_place).all()


def test_the_mask_loss_counts_what_the_other_counts() -> None:
    """Labelled points inside of used RoIs; in a box whose places are pixels, a single place is a mask's only one."""
    boxes = tf.constant([[0.0, 0.0, 56.0, 56.0], [0.0, 0.0, 56.0, 56.0]])
    points = tf.constant([[[3.5, 4.5, 2.0], [9.5, 60.0, 2.0], [5.0, 5.0, 0.0]], [[1.5, 1.5, 1.0]] * 3])
    heat = tf.random.stateless_normal([2, 56, 56, 3], [1, 2])
    used = tf.constant([True, False])
    (mask, number), (softmax, same) = (loss(heat, points, boxes, used) for loss in LOSSES.values())
    assert float(number) == float(same) == 1.0
    assert float(mask) == pytest.approx(float(softmax), rel=1e-3)
