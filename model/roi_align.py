"""RoIAlign (He et al. 2017) over a feature pyramid, as gathers with bilinear weights.

Of the three ways to write it (gathers, dense products, crop_and_resize) this is the one that XLA compiles, that TFLite and ONNX
take with built-in operators, and whose cost does not depend on the size of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from model import boxes as box_ops
from model.fpn import level_shapes

CANONICAL_SIZE, CANONICAL_LEVEL = 224.0, 2  # a RoI of 224 pixels is pooled from P4, the third of P2…P5 (FPN, equation 1)


def assign_levels(boxes: tf.Tensor, num_levels: int) -> tf.Tensor:
    """The level, 0 for P2, from which each box [..., 4] is pooled: floor(4 + log2(side / 224)) − 2, kept within the pyramid."""
    side = tf.sqrt(tf.nn.relu(box_ops.area(boxes)))
    level = tf.floor(CANONICAL_LEVEL + tf.math.log(side / CANONICAL_SIZE + 1e-8) / tf.math.log(2.0))
    return tf.cast(tf.clip_by_value(level, 0.0, num_levels - 1.0), tf.int32)


def roi_align(
    pyramid: Sequence[tf.Tensor],
    strides: Sequence[int],
    boxes: tf.Tensor,
    image_index: tf.Tensor,
    resolution: int,
    sampling_ratio: int,
) -> tf.Tensor:
    """Pools the features of boxes, each from the level that fits its size.

    Args:
      pyramid: L levels [B, H_l, W_l, C].
      strides: canvas pixels per place, of each level.
      boxes: float32 [N, 4], canvas pixels.
      image_index: int32 [N], the picture of the batch that each box lies in.
      resolution: bins per side.
      sampling_ratio: samples per bin and axis, averaged.

    Returns:
      [N, resolution, resolution, C] in the pyramid's dtype. Places are centred ("aligned"): feature (i, j) lies at pixel
      ((j + 0.5) · stride, (i + 0.5) · stride). Samples up to one place outside take the border's value, those further out 0,
      as torchvision/csrc/ops/roi_align has it.
    """
    # Boxes of a model that diverges may be NaN: their gathers must stay in range, so that the check of the losses is reached.
    boxes = tf.where(tf.abs(boxes) < 1e6, boxes, 0.0)
    channels = pyramid[0].shape[-1]
    shapes = level_shapes(pyramid)
    rows = tf.stack([shape[0] for shape in shapes])  # [L]
    columns = tf.stack([shape[1] for shape in shapes])  # [L]
    offsets = tf.cumsum(rows * columns, exclusive=True)  # [L]: where each level begins in the flat list of places
    places = tf.reduce_sum(rows * columns)
    flat = tf.concat([tf.reshape(p, [tf.shape(p)[0], -1, channels]) for p in pyramid], axis=1)  # [B, places, C]
    flat = tf.reshape(flat, [-1, channels])  # [B · places, C]

    level = assign_levels(boxes, len(pyramid))  # [N]
    scale = tf.gather(tf.constant([1.0 / stride for stride in strides]), level)[:, tf.newaxis]  # [N, 1]
    start = image_index * places + tf.gather(offsets, level)  # [N]
    row_count, column_count = tf.gather(rows, level), tf.gather(columns, level)  # [N]
    samples = resolution * sampling_ratio
    fraction = (tf.range(samples, dtype=tf.float32) + 0.5) / samples  # [S]

    def axis(low: tf.Tensor, high: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Both neighbours of each sample along one axis, and their weights; [N, S] each."""
        position = low[:, tf.newaxis] * scale - 0.5 + fraction * (high - low)[:, tf.newaxis] * scale
        size = tf.cast(count, tf.float32)[:, tf.newaxis]
        inside = tf.cast((position >= -1.0) & (position <= size), tf.float32)
        position = tf.clip_by_value(position, 0.0, size - 1.0)
        before = tf.floor(position)
        after = tf.minimum(before + 1.0, size - 1.0)
        weight = position - before
        return tf.cast(before, tf.int32), tf.cast(after, tf.int32), (1.0 - weight) * inside, weight * inside

    top, bottom, top_weight, bottom_weight = axis(boxes[:, 1], boxes[:, 3], row_count)
    left, right, left_weight, right_weight = axis(boxes[:, 0], boxes[:, 2], column_count)

    def corner(row: tf.Tensor, column: tf.Tensor, row_weight: tf.Tensor, column_weight: tf.Tensor) -> tf.Tensor:
        index = (start[:, tf.newaxis] + row * column_count[:, tf.newaxis])[:, :, tf.newaxis] + column[:, tf.newaxis, :]
        weight = row_weight[:, :, tf.newaxis] * column_weight[:, tf.newaxis, :]  # [N, S, S]
        return tf.gather(flat, index) * tf.cast(weight, flat.dtype)[..., tf.newaxis]  # [N, S, S, C]

    pooled = (
        corner(top, left, top_weight, left_weight)
        + corner(top, right, top_weight, right_weight)
        + corner(bottom, left, bottom_weight, left_weight)
        + corner(bottom, right, bottom_weight, right_weight)
    )
    if sampling_ratio == 1:
        return pooled
    return tf.nn.avg_pool2d(pooled, sampling_ratio, sampling_ratio, "VALID")  # [N, resolution, resolution, C]
