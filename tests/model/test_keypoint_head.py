import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from model import keypoint_head

SIZE = 56


def heatmap_with_peak_at(place: np.ndarray) -> np.ndarray:
    """Logits [N, S, S, K] whose largest value is at place [N, K]."""
    heat = np.zeros((*place.shape, SIZE * SIZE), np.float32)
    np.put_along_axis(heat, place[..., None], 9.0, axis=-1)
    return heat.reshape(*place.shape, SIZE, SIZE).transpose(0, 2, 3, 1)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_decoding_what_was_encoded_gives_the_point_within_half_a_place(seed):
    random = np.random.default_rng(seed)
    corner = random.uniform(-50, 200, (5, 2))
    boxes = np.concatenate([corner, corner + random.uniform(1, 400, (5, 2))], -1).astype(np.float32)
    inside = random.uniform(0, 1, (5, 7, 2))
    points = boxes[:, None, :2] + inside * (boxes[:, None, 2:] - boxes[:, None, :2])
    keypoints = np.concatenate([points, random.integers(1, 3, (5, 7, 1))], -1).astype(np.float32)
    place, valid = keypoint_head.encode(keypoints, boxes, SIZE)
    decoded, _ = keypoint_head.decode(tf.constant(heatmap_with_peak_at(place.numpy())), boxes)
    half_place = 0.5 * (boxes[:, None, 2:] - boxes[:, None, :2]) / SIZE
    error = np.abs(decoded - keypoints[..., :2])
    assert np.all((error <= half_place * 1.02 + 1e-3)[valid.numpy()])
    assert valid.numpy().mean() > 0.9  # a point at the very edge may fall outside by rounding


def test_encode_at_the_edges():
    box = tf.constant([[10.0, 20.0, 66.0, 132.0]])  # a place is 1 wide and 2 high
    points = [[10, 20, 2], [66, 132, 2], [66, 20, 1], [9.99, 50, 2], [30, 132.1, 2], [30, 40, 0], [11.5, 23.9, 2]]
    place, valid = keypoint_head.encode(tf.constant([points], tf.float32), box, SIZE)
    np.testing.assert_array_equal(valid[0], [True, True, True, False, False, False, True])
    np.testing.assert_array_equal(place[0].numpy()[valid[0]], [0, SIZE * SIZE - 1, SIZE - 1, 1 * SIZE + 1])


def test_decode_finds_the_vertex_of_a_parabola():
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    heat = -((x - 20.8) ** 2 + (y - 33.3) ** 2).astype(np.float32)[None, :, :, None]
    points, scores = keypoint_head.decode(tf.constant(heat), tf.constant([[100.0, 200.0, 100.0 + SIZE, 200.0 + 2 * SIZE]]))
    np.testing.assert_allclose(points[0, 0], [120.8, 200 + 66.6], atol=1e-3)
    np.testing.assert_allclose(scores[0, 0], np.exp(heat.max()) / np.exp(heat).sum(), rtol=1e-5)


def test_decode_is_finite_on_flat_and_extreme_heatmaps():
    for value in (0.0, -1e4, 1e4):
        points, scores = keypoint_head.decode(tf.fill([2, SIZE, SIZE, 3], value), tf.constant([[0.0, 0.0, 0.0, 0.0]] * 2))
        assert np.isfinite(points).all()
        np.testing.assert_allclose(scores, 1 / SIZE**2, rtol=1e-4)


def test_loss_counts_labelled_points_inside_used_rois_only():
    boxes = tf.constant([[0.0, 0.0, 56.0, 56.0]] * 3)
    points = tf.constant([[[5.0, 5.0, 2.0], [60.0, 5.0, 2.0], [5.0, 5.0, 0.0], [7.0, 9.0, 1.0]]] * 3)
    heat = tf.zeros([3, SIZE, SIZE, 4])
    total, count = keypoint_head.keypoint_loss(heat, points, boxes, tf.constant([True, False, True]))
    assert float(count) == 4
    np.testing.assert_allclose(total, 4 * np.log(SIZE**2), rtol=1e-5)
    _, nothing = keypoint_head.keypoint_loss(heat, points, boxes, tf.constant([False] * 3))
    assert float(nothing) == 0
