"""Small vectors for every utility of the original: resizing, anchors, RoI pooling, enlarging, deltas, NMS, decoding, masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.matterport import boxes as boxes_lib
from model.matterport import decoding
from model.matterport.config import AnchorConfig
from model.matterport.masks import legacy_mask
from model.matterport.network import enlarged
from pipeline import data_config, image
from tests.model.matterport.conftest import bits

Arrays = dict[str, NDArray[Any]]


def test_resized_sizes_and_windows(utils: Arrays) -> None:
    for height, width, short_edge, max_edge, *window, top, bottom, left, right, scale in utils["resize_table"].tolist():
        resized = data_config.resized_size(int(height), int(width), int(short_edge), int(max_edge), "matterport")
        in_graph = image.resized_size_tf(
            tf.constant(int(height)), tf.constant(int(width)), int(short_edge), int(max_edge), "matterport"
        )
        assert tuple(int(side) for side in in_graph) == resized
        low = decoding.window_of(tf.constant([resized]), int(max_edge)).numpy()[0]
        assert low.tolist() == window
        assert [top, left] == window[:2]
        assert [max_edge - bottom, max_edge - right] == window[2:]
        assert resized == (round(height * scale), round(width * scale))


def test_resizing_is_pillows(utils: Arrays) -> None:
    for name, size in (("up", (80, 114)), ("down", (20, 31)), ("mixed", (60, 30))):
        resized = image.resize(tf.constant(utils["imresize_in"]), *size, "matterport")
        np.testing.assert_array_equal(resized, utils[f"imresize_{name}"])


def test_anchors(utils: Arrays) -> None:
    for side in (512, 1024):
        anchors = boxes_lib.anchors(AnchorConfig(), side)
        assert len(anchors) == utils[f"anchors{side}_count"]
        np.testing.assert_allclose(anchors[::61], utils[f"anchors{side}_every61"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(anchors[:9], utils[f"anchors{side}_first"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(anchors[-9:], utils[f"anchors{side}_last"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(anchors.sum(0, dtype=np.float64), utils[f"anchors{side}_sum"], rtol=1e-7)


def test_roi_levels_and_pooling(utils: Arrays) -> None:
    assert str(utils["roi_fm_note"]).startswith("feature maps: f(l,y,x,c)=sin(0.37*y*(c+1)+0.21*x)+0.1*l")
    pyramid = []
    for level in range(2, 6):
        places = 512 // 2**level
        y, x, c = np.meshgrid(np.arange(places), np.arange(places), np.arange(3), indexing="ij")
        pyramid.append(tf.constant((np.sin(0.37 * y * (c + 1) + 0.21 * x) + 0.1 * level)[None].astype(np.float32)))
    boxes = tf.constant(utils["roi_boxes"])
    np.testing.assert_array_equal(boxes_lib.roi_level(boxes, 512), utils["roi_level"])
    pooled = boxes_lib.pool(pyramid, boxes, tf.zeros([len(boxes)], tf.int32), 7, 512)
    np.testing.assert_allclose(pooled, utils["roi_pool7"], rtol=0, atol=2e-5)


def test_enlarging(utils: Arrays) -> None:
    small = tf.constant(utils["up_in"])
    np.testing.assert_allclose(enlarged(small, 28), utils["up_28"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(enlarged(enlarged(small, 28), 56), utils["up_56"], rtol=0, atol=1e-6)


def test_deltas_clipping_and_nms(utils: Arrays) -> None:
    refined = boxes_lib.apply_deltas(tf.constant(utils["delta_boxes"]), tf.constant(utils["delta_deltas"]))
    np.testing.assert_allclose(refined, utils["delta_refined"], rtol=1e-6, atol=1e-6)
    clipped = boxes_lib.clip(refined, tf.constant([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(clipped, utils["delta_clipped"], rtol=1e-6, atol=1e-6)
    kept, number = tf.raw_ops.NonMaxSuppressionV4(
        boxes=tf.constant(utils["delta_clipped"]),
        scores=tf.constant(utils["delta_scores"]),
        max_output_size=100,
        iou_threshold=0.3,
        score_threshold=-np.inf,
        pad_to_max_output_size=True,
    )
    np.testing.assert_array_equal(kept[: int(number)], utils["delta_nms03"])


def test_places_become_whole_pixels(utils: Arrays) -> None:
    y0, x0, y1, x1 = utils["decode_box"].astype(np.float32).T
    places = np.stack([utils["decode_label"] % 56, utils["decode_label"] // 56], axis=-1).astype(np.float32)
    found = {
        "num_detections": tf.constant([1, 1, 1]),
        "boxes": tf.constant(np.stack([x0, y0, x1, y1], axis=-1)[:, None]),
        "scores": tf.ones([3, 1]),
        "keypoints": tf.constant(places[:, None]),
        "keypoint_scores": tf.constant(utils["decode_score"][:, None]),
    }
    answer = decoding.legacy_pixels(found, tf.ones([3, 2]), tf.constant([[500, 500]] * 3), 0.0)
    np.testing.assert_array_equal(answer["keypoints"][:, 0], utils["decode_out"][..., :2])
    np.testing.assert_array_equal(answer["keypoint_scores"][:, 0] > 0.005, utils["decode_out"][..., 2] > 0)


def test_masks_with_the_relative_threshold(utils: Arrays) -> None:
    original = bits(utils, "unmold_mask_out", "unmold_mask_out_shape")
    for probabilities, box, mask in zip(utils["unmold_mask_in"], utils["unmold_mask_box"], original, strict=True):
        np.testing.assert_array_equal(legacy_mask(probabilities, box[[1, 0, 3, 2]], *mask.shape), mask)
