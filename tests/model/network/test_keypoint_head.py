import numpy as np
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
