"""Signatures that go a part of the way from pixels to people, for those who do the rest themselves; each for one image.

`raw` stops before the choice of people (NMS) and the decoding of heatmaps; `examples/finish_raw.py` does both in NumPy.
`find_people` and `find_keypoints` are the two stages of the whole, all shapes fixed, for delegates that want that. Boxes and
keypoints are in pixels of the image. The old network (`model.matterport`) has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from model.inference.serving import on_canvas
from model.inference.two_stages import LEVELS
from model.network import box_head
from model.network.keypoint_head import decode_fast
from model.network.keypoint_rcnn import KeypointRCNN, first_places
from model.network.rpn import NOTHING


def raw(model: KeypointRCNN, height: int | None = None, width: int | None = None) -> tf.types.experimental.ConcreteFunction:
    """The signature `raw`: what the network says of each box that may be a person's, before any of them is chosen.

    Args:
      model: a model of one class: of several, each box has logits and places of its own for each class.
      height, width: of the images; None: any.

    Returns:
      A function of `images` uint8 [1, H, W, 3], which gives
      `boxes` float32 [1, N, 4], x0, y0, x1, y1 within the image, best first; N is `rpn.proposals_test`. A place without a box,
        and one whose box is too small, has zeros.
      `logits` float32 [1, N, 2], of background and person; the person's softmax is the score. Behind the boxes 0.
      `heatmaps` float32 [1, M, S, S, K], logits, of the first M boxes: all whose score is at least
        `inference.score_threshold`, and at most seven more; M is a multiple of 8 (or N), and at least 1.
    """
    inference = model.config.inference

    def function(images: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels, size = on_canvas(images)
        size = tf.expand_dims(size, 0)  # [1, 2]
        pyramid, proposals, proposal_scores = model.propose(pixels, size)
        logits, deltas = model.classify(pyramid, proposals)
        boxes, scores = box_head.scored_boxes(inference, logits, deltas, proposals, proposal_scores, size)
        boxes, logits, scores = boxes[0], logits[0], scores[0]  # [N, 4], [N, 2], [N]
        scores, order = tf.math.top_k(scores, boxes.shape[0])
        exists = tf.expand_dims(scores > NOTHING, -1)  # [N, 1]
        boxes = tf.where(exists, tf.gather(boxes, order), 0.0)
        looked_at = boxes[: tf.size(first_places(scores >= inference.score_threshold))]  # [M, 4]: best first, so these are they
        heatmaps = model.heatmaps(pyramid, looked_at, tf.zeros_like(looked_at[:, 0], tf.int32))
        found = {"boxes": boxes, "logits": tf.where(exists, tf.gather(logits, order), 0.0), "heatmaps": heatmaps}
        return {name: tf.expand_dims(value, 0) for name, value in found.items()}

    return _concrete(function, tf.TensorSpec([1, height, width, 3], tf.uint8, name="images"))


def find_people(model: KeypointRCNN, height: int, width: int) -> tf.types.experimental.ConcreteFunction:
    """The signature `find_people`: the backbone, the proposals and the box head.

    Returns:
      A function of `images` uint8 [1, H, W, 3], which gives `num_detections` int32 [1], `boxes` float32 [1, D, 4], `scores`
      [1, D] and, of several classes, `classes` as `serve_images` does, and the levels `p2`…`p5` float32 [1, H / 4, W / 4, F]…
      [1, H / 32, W / 32, F].
    """

    def function(images: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels, size = on_canvas(images)
        size = tf.expand_dims(size, 0)  # [1, 2]
        pyramid, proposals, proposal_scores = model.propose(pixels, size)
        logits, deltas = model.classify(pyramid, proposals)
        who = box_head.detections(model.config.inference, logits, deltas, proposals, proposal_scores, size)
        levels = {name: tf.identity(level) for name, level in zip(LEVELS, pyramid, strict=False)}
        return {**who, **levels}

    return _concrete(function, tf.TensorSpec([1, height, width, 3], tf.uint8, name="images"))


def find_keypoints(model: KeypointRCNN, height: int, width: int, count: int) -> tf.types.experimental.ConcreteFunction:
    """The signature `find_keypoints`: the keypoint head and the decoding of its heatmaps, of `count` boxes of one image.

    Returns:
      A function of `boxes` float32 [count, 4] and the levels `p2`…`p5` of `find_people` (H × W is the size of its image), which
      gives `keypoints` float32 [count, K, 2] and `keypoint_scores` [count, K]. A box of zeros has keypoints that mean nothing.
    """
    channels = model.config.backbone.fpn_channels

    def function(boxes: tf.Tensor, p2: tf.Tensor, p3: tf.Tensor, p4: tf.Tensor, p5: tf.Tensor) -> dict[str, tf.Tensor]:
        pyramid = [p2, p3, p4, p5, p5]  # (the last one, P6, serves proposals alone)
        keypoints, scores = decode_fast(model.heatmaps(pyramid, boxes, tf.zeros([count], tf.int32)), boxes)
        return {"keypoints": keypoints - model.config.data.keypoint_offset, "keypoint_scores": scores}

    levels = [
        tf.TensorSpec([1, height // stride, width // stride, channels], name=name)
        for name, stride in zip(LEVELS, model.config.anchors.strides, strict=False)
    ]
    return _concrete(function, tf.TensorSpec([count, 4], name="boxes"), *levels)


def _concrete(function: Callable[..., Any], *signature: tf.TensorSpec) -> tf.types.experimental.ConcreteFunction:
    return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()
