import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.network import boxes as box_ops

corners = hnp.arrays(np.float32, (6, 2), elements=st.floats(-300, 300, width=32))
sides = hnp.arrays(np.float32, (6, 2), elements=st.floats(1, 500, width=32))


@given(corners, sides, corners, sides)
@settings(max_examples=50, deadline=None)
def test_decode_inverts_encode(corner, side, anchor_corner, anchor_side):
    boxes, anchors = (
        np.concatenate([corner, corner + side], -1),
        np.concatenate([anchor_corner, anchor_corner + anchor_side], -1),
    )
    weights = (10.0, 10.0, 5.0, 5.0)
    grows_too_much = np.any(side / anchor_side > 1000 / 16, axis=-1)
    decoded = box_ops.decode(box_ops.encode(boxes, anchors, weights), anchors, weights).numpy()
    np.testing.assert_allclose(decoded[~grows_too_much], boxes[~grows_too_much], rtol=1e-4, atol=2e-2)


def test_a_side_grows_at_most_62_5_fold():
    anchor = tf.constant([[0.0, 0.0, 10.0, 10.0]])
    decoded = box_ops.decode(tf.constant([[0.0, 0.0, 100.0, 0.0]]), anchor, (1.0, 1.0, 1.0, 1.0)).numpy()[0]
    np.testing.assert_allclose(decoded[2] - decoded[0], 625.0, rtol=1e-5)


def test_iou_of_known_boxes():
    a = tf.constant([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    b = tf.constant([[2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 4.0, 4.0], [5.0, 5.0, 6.0, 6.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(box_ops.iou(a, b), np.array([[4 / 28, 1, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(box_ops.share_inside(b, a)[:, 0], [0.25, 1, 0, 0])


def test_clip_keeps_boxes_within_their_own_image():
    boxes = tf.constant([[[-5.0, -5.0, 50.0, 50.0]], [[10.0, 20.0, 90.0, 95.0]]])
    clipped = box_ops.clip(boxes, tf.constant([[30, 40], [60, 80]]))
    np.testing.assert_array_equal(clipped[:, 0], [[0, 0, 40, 30], [10, 20, 80, 60]])
