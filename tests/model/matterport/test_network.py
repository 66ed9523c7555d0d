"""Every array that the original recorded on two images at two sizes, stage by stage.

A stage is fed with our own answer of the stage before. The heads get the original's proposals and detections, since two of
nearly equal score may come in either order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.matterport import boxes as boxes_lib
from model.matterport.config import RpnConfig
from model.matterport.decoding import decode_places
from tests.model.matterport.conftest import Case

FEATURES = 1e-5  # of the largest value
SCORES = 1e-5


def assert_near(value: Any, reference: NDArray[Any], tolerance: float = FEATURES) -> None:
    """Within `tolerance` of the largest reference value."""
    value = np.asarray(value)
    assert value.shape == reference.shape
    np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance * np.abs(reference).max())


def sampled(features: tf.Tensor, cells: int) -> tf.Tensor:
    """Every k-th row and column of one image's features, so that `cells` of them stay."""
    step = features.shape[1] // cells
    return features[0, ::step, ::step]


def test_the_canvas_is_the_originals(case: Case) -> None:
    if "molded_u8" in case.arrays:
        np.testing.assert_array_equal(case.canvas[0], case.arrays["molded_u8"])
    height, width, _ = case.image.shape
    meta = case.arrays["image_meta"]
    assert meta[1:4].tolist() == [height, width, 3]
    y0, x0, y1, x1 = case.arrays["window"].tolist()
    assert meta[4:8].tolist() == [y0, x0, y1, x1]
    assert case.arrays["padding"].tolist() == [[y0, case.side - y1], [x0, case.side - x1], [0, 0]]
    assert abs(case.arrays["scale"] - (x1 - x0) / width) < 1e-3
    occupied = np.argwhere(case.canvas[0].numpy().any(axis=-1))
    assert occupied.min(axis=0).tolist() == [y0, x0]
    assert (occupied.max(axis=0) + 1).tolist() == [y1, x1]


def test_stem(case: Case) -> None:
    pixels = tf.pad(case.model.normalised(case.canvas), [[0, 0], [3, 3], [3, 3], [0, 0]])
    before = case.model.convolution(pixels, "conv1", stride=2, padding="VALID")
    after = case.model.normalised_convolution(pixels, "conv1", "bn_conv1", stride=2, padding="VALID")
    assert_near(before[0, ::16, ::16], case.arrays["conv1_s"])
    assert_near(after[0, ::16, ::16], case.arrays["bn_conv1_s"])


def test_stages_and_pyramid(case: Case) -> None:
    stages = case.model.stages(case.model.normalised(case.canvas))
    for name, features in zip(("res2c_out_s", "res3d_out_s", "res4w_out_s", "res5c_out_s"), stages, strict=True):
        if name in case.arrays:
            assert_near(sampled(features, 16), case.arrays[name])
    for level, features in zip(range(2, 7), case.pyramid, strict=True):
        reference = case.arrays[f"fpn_p{level}_s"]
        assert_near(sampled(features, len(reference)), reference)


def test_rpn(case: Case) -> None:
    logits, deltas = case.model.rpn(case.pyramid)
    probabilities = tf.nn.softmax(logits)[0, :, 1]
    every, every_delta = (1, 1) if case.side == 512 else (16, 64)
    np.testing.assert_allclose(probabilities[::every], case.arrays["rpn_fg_prob"], rtol=0, atol=SCORES)
    assert_near(deltas[0, ::every_delta], case.arrays["rpn_bbox" if case.side == 512 else "rpn_bbox_every64"])
    top = tf.math.top_k(probabilities, 6000)
    different = np.flatnonzero(top.indices.numpy() != case.arrays["rpn_top_ix"])
    assert len(different) < 60  # neighbours within the noise of nearly equal probabilities
    ours = tf.gather(probabilities, case.arrays["rpn_top_ix"][different]).numpy()
    np.testing.assert_allclose(top.values.numpy()[different], ours, rtol=0, atol=SCORES)


def test_proposals(case: Case) -> None:
    """From the original's own answers of the RPN: the same boxes in the same order."""
    arrays = case.arrays
    anchors = tf.constant(boxes_lib.anchors(case.model.config.anchors, case.side))
    if case.side == 512:
        scores, deltas = arrays["rpn_fg_prob"], arrays["rpn_bbox"]
    else:
        scores, deltas, anchors = arrays["rpn_top_prob"], arrays["rpn_top_bbox"], tf.gather(anchors, arrays["rpn_top_ix"])
    rois = boxes_lib.proposals(RpnConfig(), tf.constant(scores[None]), tf.constant(deltas[None]), anchors, case.side)
    np.testing.assert_allclose(rois[0], arrays["rpn_rois"], rtol=0, atol=2e-7)


def test_class_head_and_detections(case: Case) -> None:
    arrays, model = case.arrays, case.model
    rois = tf.constant(arrays["rpn_rois"])
    pooled = boxes_lib.pool(case.pyramid[:4], rois, tf.zeros([len(rois)], tf.int32), 7, case.side)
    if "pooled_class" in arrays:
        assert_near(pooled[:8], arrays["pooled_class"])
    first = model.normalised_convolution(pooled[:8], "mrcnn_class_conv1", "mrcnn_class_bn1", padding="VALID")
    assert_near(first[:, 0, 0], arrays["class_bn1"])
    assert_near(model.class_features(pooled)[:8], arrays["class_shared"])
    logits, deltas = model.classify(pooled)
    assert_near(logits, arrays["class_logits"])
    np.testing.assert_allclose(tf.nn.softmax(logits), arrays["mrcnn_class"], rtol=0, atol=SCORES)
    assert_near(deltas, arrays["mrcnn_bbox"])

    window = tf.constant(arrays["window"][None].astype(np.float32))
    inference = model.config.inference
    boxes, classes, scores, number = boxes_lib.detections(
        inference, tf.nn.softmax(logits)[None], deltas[None], rois[None], window, case.side
    )
    ours = np.concatenate([boxes[0], classes[0].numpy()[:, None]], axis=-1)
    np.testing.assert_array_equal(ours, arrays["detections"][:, :5])
    np.testing.assert_allclose(scores[0], arrays["detections"][:, 5], rtol=0, atol=SCORES)
    assert int(number[0]) == case.number


def test_people_from_pixels(case: Case) -> None:
    window = tf.constant(case.arrays["window"][None].astype(np.float32))
    boxes, scores, number = case.model.people(case.pyramid, window, case.side)
    assert int(number[0]) == case.number
    np.testing.assert_array_equal(boxes[0], case.arrays["detections"][:, :4])
    np.testing.assert_allclose(scores[0], case.arrays["detections"][:, 5], rtol=0, atol=SCORES)


def test_mask_head(case: Case) -> None:
    reference = case.arrays["mrcnn_mask"]
    boxes = case.boxes[: len(reference)]
    pooled = boxes_lib.pool(case.pyramid[:4], tf.constant(boxes), tf.zeros([len(boxes)], tf.int32), 14, case.side)
    if "pooled_mask" in case.arrays:
        assert_near(pooled[:3], case.arrays["pooled_mask"])
    np.testing.assert_allclose(case.model.masks(pooled), reference, rtol=0, atol=1e-5)


def test_keypoint_head(case: Case) -> None:
    arrays, model = case.arrays, case.model
    pooled = boxes_lib.pool(case.pyramid[:4], tf.constant(case.boxes), tf.zeros([case.number], tf.int32), 7, case.side)
    assert_near(pooled[: len(arrays["pooled_kp"])], arrays["pooled_kp"])
    first = model.normalised_convolution(pooled[:2], "mrcnn_keypoint_mask_conv1", "mrcnn_keypoint_mask_bn1")
    assert_near(first, arrays["kp_bn1"])
    maps = model.small_maps(pooled)
    assert_near(maps[: len(arrays["kp_deconv"])], arrays["kp_deconv"])
    heatmaps = model.heatmaps(pooled)
    if "kp_logits" in arrays:
        assert_near(tf.reshape(tf.transpose(heatmaps[:2], [0, 3, 1, 2]), [2, 17, -1]), arrays["kp_logits"])
    places, scores = decode_places(heatmaps, tf.zeros([case.number, 4]))
    np.testing.assert_array_equal(places[..., 1] * 56 + places[..., 0], arrays["kp_label"])
    np.testing.assert_allclose(scores, arrays["kp_score"], rtol=0, atol=1e-6)
