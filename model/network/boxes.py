"""Arithmetic of boxes: areas, overlaps, deltas; and `map_images`, which applies a function of one image's boxes to a batch.

Boxes are float32 x0, y0, x1, y1 in canvas pixels, continuous: a box's width is x1 − x0, without + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# A side grows at most 1000/16-fold in one decoding (torchvision/models/detection/_utils.py, Detectron2's box_regression.py).
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """[..., 4] → [...], square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """[..., N, 4] and [..., M, 4] → [..., N, M], square pixels."""
    a, b = a[..., :, tf.newaxis, :], b[..., tf.newaxis, :, :]
    width = tf.minimum(a[..., 2], b[..., 2]) - tf.maximum(a[..., 0], b[..., 0])
    height = tf.minimum(a[..., 3], b[..., 3]) - tf.maximum(a[..., 1], b[..., 1])
    return tf.nn.relu(width) * tf.nn.relu(height)


def iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Intersection over union, [..., N, 4] and [..., M, 4] → [..., N, M]; 0 for two empty boxes."""
    shared = intersection(a, b)
    union = area(a)[..., :, tf.newaxis] + area(b)[..., tf.newaxis, :] - shared
    return tf.math.divide_no_nan(shared, union)


def share_inside(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The share of each `a`'s area that lies in each `b`, [..., N, 4] and [..., M, 4] → [..., N, M]."""
    return tf.math.divide_no_nan(intersection(a, b), area(a)[..., :, tf.newaxis])


def clip(boxes: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
    """Clips boxes [B, N, 4] to images of `image_size` [B, 2] (height, width)."""
    height_width = tf.expand_dims(tf.cast(image_size, boxes.dtype), 1)  # [B, 1, 2]
    limit = tf.concat([height_width[..., ::-1]] * 2, axis=-1)  # [B, 1, 4]: width, height, width, height
    return tf.clip_by_value(boxes, 0.0, limit)


def large_enough(boxes: tf.Tensor, min_size: float) -> tf.Tensor:
    """Whether boxes [..., 4] enclose anything, and have both sides of `min_size` or more; bool [...]."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return tf.reduce_all((sides > 0.0) & (sides >= min_size), axis=-1)


def smooth_l1(error: tf.Tensor, beta: float) -> tf.Tensor:
    """Girshick 2015, equation 3: quadratic up to ±`beta`, then |error| less a constant; |error| for a `beta` of 0."""
    error = tf.abs(error)
    return tf.where(error < beta, 0.5 * tf.square(error) / beta, error - 0.5 * beta) if beta > 0 else error


def _centre_and_size(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(boxes: tf.Tensor, anchors: tf.Tensor, weights: tuple[float, float, float, float]) -> tf.Tensor:
    """The deltas (dx, dy, dw, dh) that lead from `anchors` to `boxes` (Girshick 2015, appendix C of R-CNN), both [..., 4].

    Both must have sides above 0.
    """
    centre, size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    deltas = tf.concat([(centre - anchor_centre) / anchor_size, tf.math.log(size / anchor_size)], axis=-1)
    return deltas * tf.constant(weights)


def decode(deltas: tf.Tensor, anchors: tf.Tensor, weights: tuple[float, float, float, float]) -> tf.Tensor:
    """Inverse of `encode`, with a side growing at most `exp(MAX_LOG_SCALE)`-fold; [..., 4]."""
    deltas = deltas / tf.constant(weights)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = deltas[..., :2] * anchor_size + anchor_centre
    half = 0.5 * tf.exp(tf.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * anchor_size
    return tf.concat([centre - half, centre + half], axis=-1)


def map_images(
    function: Callable[..., Any], tensors: Sequence[tf.Tensor], dtypes: tuple[tf.DType, ...]
) -> tuple[tf.Tensor, ...]:
    """Calls `function` with each image's slice of `tensors` [B, …] and stacks its results.

    A batch of static size is unrolled: XLA and TFLite see no loop then. One of a size known late (serving) is a `tf.map_fn`.
    """
    batch = tensors[0].shape[0]
    if batch is None:
        return tuple(tf.map_fn(lambda slices: function(*slices), tuple(tensors), fn_output_signature=dtypes))
    results = [function(*(t[b] for t in tensors)) for b in range(batch)]
    return tuple(tf.stack(column) for column in zip(*results, strict=True))
