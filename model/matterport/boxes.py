"""Boxes of the old network: anchors, deltas, proposals, RoI pooling, detections.

Boxes are float32 y0, x0, y1, x1, in pixels of the canvas where nothing else is said; "normalised" ones are divided by its side.
Rules and their numbers are the original's; each is followed to the bit where whole pixels depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model.matterport.config import STRIDES, AnchorConfig, InferenceConfig, RpnConfig
from model.network.boxes import map_images

DELTA_SCALE = (0.1, 0.1, 0.2, 0.2)  # deltas of the RPN and of the class head are in these units
ROI_LEVELS = STRIDES[:4]  # heads pool from P2…P5
CANONICAL_SIZE = 224.0  # canvas pixels of the side of a box that is pooled from P4


def anchors(config: AnchorConfig, side: int) -> npt.NDArray[np.float32]:
    """The anchors of a canvas, [A, 4]: by level, row, column, ratio. Their centres are whole multiples of a level's stride."""
    levels = []
    for stride, scale in zip(STRIDES, config.scales, strict=True):
        ratios = np.sqrt(np.array(config.ratios))
        sizes = np.stack([scale / ratios, scale * ratios], axis=-1)  # [R, 2]
        along = np.arange(0, side, stride, dtype=np.float64)
        centres = np.stack(np.meshgrid(along, along, indexing="ij"), axis=-1)[:, :, np.newaxis]  # [rows, columns, 1, 2]
        boxes = np.concatenate([centres - 0.5 * sizes, centres + 0.5 * sizes], axis=-1)  # [rows, columns, R, 4]
        levels.append(boxes.reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def apply_deltas(boxes: tf.Tensor, deltas: tf.Tensor) -> tf.Tensor:
    """Moves and stretches boxes [..., 4] by deltas [..., 4]: dy, dx, log dh, log dw. A side may grow without a limit."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size + deltas[..., :2] * size
    size *= tf.exp(deltas[..., 2:])
    low = centre - 0.5 * size
    return tf.concat([low, low + size], axis=-1)


def clip(boxes: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Boxes [..., 4] within windows [..., 4]."""
    low, high = window[..., :2], window[..., 2:]
    corners = (tf.maximum(tf.minimum(boxes[..., part], high), low) for part in (slice(0, 2), slice(2, 4)))
    return tf.concat(list(corners), axis=-1)


def proposals(config: RpnConfig, scores: tf.Tensor, deltas: tf.Tensor, anchor_boxes: tf.Tensor, side: int) -> tf.Tensor:
    """What the RPN proposes.

    Args:
      scores: float32 [B, A], the probability of a person; deltas: [B, A, 4]; anchor_boxes: [A, 4].
      side: of the canvas, pixels.

    Returns:
      Normalised boxes [B, P, 4], best first, zeros behind the last. They are cut at the canvas, not at the image.
    """
    best, index = tf.math.top_k(scores, min(config.top_k, anchor_boxes.shape[0]))  # [B, N]; of equals the first comes first
    chosen = tf.gather(deltas, index, batch_dims=1) * tf.constant(DELTA_SCALE)  # [B, N, 4]
    boxes = apply_deltas(tf.gather(anchor_boxes, index), chosen)
    boxes = clip(boxes, tf.constant([0.0, 0.0, side, side])) / float(side)

    def of_one(boxes: tf.Tensor, scores: tf.Tensor) -> tuple[tf.Tensor]:
        kept, number = tf.raw_ops.NonMaxSuppressionV4(
            boxes=boxes,
            scores=scores,
            max_output_size=config.proposals,
            iou_threshold=config.nms_threshold,
            score_threshold=-np.inf,
            pad_to_max_output_size=True,
        )
        used = tf.range(config.proposals) < number
        return (tf.where(used[:, tf.newaxis], tf.gather(boxes, kept), 0.0),)

    (found,) = map_images(of_one, [boxes, best], (tf.float32,))
    return tf.ensure_shape(found, [None, config.proposals, 4])


def roi_level(boxes: tf.Tensor, side: int) -> tf.Tensor:
    """The level from which normalised boxes [..., 4] are pooled: int32 [...], 2…5. Boxes without an area are pooled from P2."""
    height, width = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    level = 4.0 + tf.round(tf.math.log(tf.sqrt(height * width) / (CANONICAL_SIZE / side)) / np.float32(np.log(2.0)))
    return tf.cast(tf.clip_by_value(level, 2.0, 5.0), tf.int32)  # of an empty box the logarithm is minus infinity


def pool(pyramid: Sequence[tf.Tensor], boxes: tf.Tensor, image_index: tf.Tensor, size: int, side: int) -> tf.Tensor:
    """The features of boxes: one bilinear sample for each place, the outer ones on the box's edges.

    As TensorFlow's crop_and_resize takes them, by gathers. Places of a map are points from 0 to its side less one; a box's
    edges are multiplied with the latter. What lies outside is 0.

    Args:
      pyramid: P2…P5, [B, side/stride, side/stride, C].
      boxes: normalised, [N, 4]; image_index: int32 [N].
      size: places a side.
      side: of the canvas, pixels.

    Returns:
      float32 [N, size, size, C].
    """
    channels = pyramid[0].shape[-1]
    sides = [side // stride for stride in ROI_LEVELS]  # places of each level
    starts = np.concatenate([[0], np.cumsum(np.square(sides))])  # of each level in the flat table
    table = tf.concat(
        [tf.reshape(features, [-1, places**2, channels]) for features, places in zip(pyramid, sides, strict=True)], 1
    )
    table = tf.reshape(table, [-1, channels])  # [B · places of all levels, C]

    level = roi_level(boxes, side) - 2  # [N]
    places = tf.gather(tf.constant(sides, tf.int32), level)  # [N]
    start = tf.gather(tf.constant(starts[:-1], tf.int32), level) + image_index * int(starts[-1])
    last = tf.cast(places - 1, tf.float32)[:, tf.newaxis, tf.newaxis]  # [N, 1, 1]
    low, high = boxes[:, :2, tf.newaxis], boxes[:, 2:, tf.newaxis]  # [N, 2, 1]
    # TensorFlow replaces an ordinary division by a constant with a product; its last bit moves scores of keypoints by 1e-6.
    step = tf.math.divide_no_nan((high - low) * last, float(size - 1))
    at = low * last + tf.range(size, dtype=tf.float32) * step  # [N, 2, size]: y, x
    inside = (at >= 0.0) & (at <= last)
    before = tf.floor(at)
    fraction = at - before
    limit = places[:, tf.newaxis, tf.newaxis] - 1
    first = tf.clip_by_value(tf.cast(before, tf.int32), 0, limit)
    second = tf.clip_by_value(tf.cast(tf.math.ceil(at), tf.int32), 0, limit)

    def rows(index: tf.Tensor) -> tf.Tensor:
        """[N, size, 1]: where the row begins in the table."""
        return (start[:, tf.newaxis] + index[:, 0] * places[:, tf.newaxis])[:, :, tf.newaxis]

    def columns(index: tf.Tensor) -> tf.Tensor:
        return index[:, 1, tf.newaxis, :]  # [N, 1, size]

    def values(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        return tf.gather(table, rows(row) + columns(column))  # [N, size, size, C]

    along_x = fraction[:, 1, tf.newaxis, :, tf.newaxis]  # [N, 1, size, 1]
    along_y = fraction[:, 0, :, tf.newaxis, tf.newaxis]  # [N, size, 1, 1]
    left = values(first, first)
    upper = left + (values(first, second) - left) * along_x
    left = values(second, first)
    lower = left + (values(second, second) - left) * along_x
    pooled = upper + (lower - upper) * along_y
    seen = inside[:, 0, :, tf.newaxis] & inside[:, 1, tf.newaxis, :]  # [N, size, size]
    pooled = tf.where(seen[..., tf.newaxis], pooled, 0.0)
    return tf.ensure_shape(pooled, [None, size, size, channels])


def detections(
    config: InferenceConfig, probabilities: tf.Tensor, deltas: tf.Tensor, rois: tf.Tensor, window: tf.Tensor, side: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """The objects of each image.

    Args:
      probabilities: float32 [B, P, classes], the background first; deltas: [B, P, classes, 4].
      rois: normalised proposals [B, P, 4]; window: float32 [B, 4], where the image lies on the canvas, pixels.
      side: of the canvas, pixels.

    Returns:
      Boxes [B, D, 4] in whole pixels of the canvas, classes int32 [B, D] (0: nobody), scores [B, D], best first, zeros behind
      the last; and their number int32 [B].
    """
    classes = tf.argmax(probabilities, axis=-1, output_type=tf.int32)  # [B, P]
    scores = tf.gather(probabilities, classes, batch_dims=2)
    own_deltas = tf.gather(deltas, classes, batch_dims=2) * tf.constant(DELTA_SCALE)  # [B, P, 4]
    boxes = tf.round(clip(apply_deltas(rois, own_deltas) * float(side), window[:, tf.newaxis]))  # a half to the even number
    wanted = (classes > 0) & (scores >= config.score_threshold)
    number = config.max_detections

    def of_one(
        boxes: tf.Tensor, classes: tf.Tensor, scores: tf.Tensor, wanted: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        # Classes are moved apart, so that none suppresses another.
        apart = boxes + tf.cast(classes, tf.float32)[:, tf.newaxis] * (2.0 * side)
        kept, found = tf.raw_ops.NonMaxSuppressionV4(
            boxes=apart,
            scores=tf.where(wanted, scores, -1.0),
            max_output_size=number,
            iou_threshold=config.nms_threshold,
            score_threshold=-0.5,
            pad_to_max_output_size=True,
        )
        used = tf.range(number) < found
        return (
            tf.where(used[:, tf.newaxis], tf.gather(boxes, kept), 0.0),
            tf.where(used, tf.gather(classes, kept), 0),
            tf.where(used, tf.gather(scores, kept), 0.0),
            found,
        )

    found = map_images(of_one, [boxes, classes, scores, wanted], (tf.float32, tf.int32, tf.float32, tf.int32))
    for tensor, shape in zip(found, ([number, 4], [number], [number], []), strict=True):
        tensor.set_shape([rois.shape[0], *shape])
    return found


def compacted(keep: tf.Tensor, *values: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Moves what is kept to the front, in its order.

    Args:
      keep: bool [B, D]; values: [B, D, ...].

    Returns:
      How many are kept, int32 [B], and the values with zeros behind the last.
    """
    number = tf.reduce_sum(tf.cast(keep, tf.int32), -1)
    places = keep.shape[1]
    order = tf.math.top_k(tf.cast(keep, tf.int32), places).indices  # of equals the first comes first
    used = tf.range(places)[tf.newaxis] < number[:, tf.newaxis]  # [B, D]

    def moved(value: tf.Tensor) -> tf.Tensor:
        value = tf.gather(value, order, batch_dims=1)
        mask = tf.reshape(used, [-1, places, *[1] * (value.shape.rank - 2)])
        return tf.where(mask, value, tf.zeros([], value.dtype))

    return (number, *(moved(value) for value in values))
