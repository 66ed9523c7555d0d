"""RoIAlign (He et al. 2017) over a feature pyramid, as gathers with bilinear weights.

Of the three ways to write it (gathers, dense products, crop_and_resize) this is the one that XLA compiles, that TFLite and ONNX
take with built-in operators, and whose cost does not depend on the size of the image. Here the number of samples per bin is
fixed; `adaptive_roi_align` chooses it for each box.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from model.config import RoiAlignConfig
from model.network import boxes as box_ops
from model.network.adaptive_roi_align import average_adaptively
from model.network.backbone import level_shapes
from model.network.roi_samples import Rois, take

CANONICAL_SIZE, CANONICAL_LEVEL = 224.0, 2  # a RoI of 224 pixels is pooled from P4, the third of P2…P5 (FPN, equation 1)


def assign_levels(boxes: tf.Tensor, num_levels: int, tolerance: float = 0.0) -> tf.Tensor:
    """The level, 0 for P2, from which each box [..., 4] is pooled: floor(4 + log2(side / 224)) − 2, kept within the pyramid."""
    side = tf.sqrt(tf.nn.relu(box_ops.area(boxes)))
    level = tf.floor(CANONICAL_LEVEL + tf.math.log(side / CANONICAL_SIZE + 1e-8) / tf.math.log(2.0) + tolerance)
    return tf.cast(tf.clip_by_value(level, 0.0, num_levels - 1.0), tf.int32)


def roi_align(
    config: RoiAlignConfig,
    pyramid: Sequence[tf.Tensor],
    strides: Sequence[int],
    boxes: tf.Tensor,
    image_index: tf.Tensor,
    resolution: int,
    sampling_ratio: int,
    *,
    own_sizes: Sequence[tf.Tensor] | None = None,
) -> tf.Tensor:
    """Pools the features of boxes, each from the level that fits its size.

    Args:
      pyramid: L levels [B, H_l, W_l, C].
      strides: canvas pixels per place, of each level.
      boxes: float32 [N, 4], canvas pixels.
      image_index: int32 [N], the image of the batch that each box lies in.
      resolution: bins per side.
      sampling_ratio: samples per bin and axis, averaged; 0: as many as a bin has places, rounded up, for each box and axis.
      own_sizes: of each level, int32 [B, 2], the rows and columns of each image; None if all have the whole level.

    Returns:
      [N, resolution, resolution, C] in the pyramid's dtype. Places are centred if `config.aligned`: feature (i, j) lies at
      pixel ((j + 0.5) · stride, (i + 0.5) · stride), else at (j · stride, i · stride). Samples up to one place outside take
      the border's value, those further out 0, as torchvision/csrc/ops/roi_align has it. No gradient flows to the boxes where
      `sampling_ratio` is 0 (it must not anyway: neither family has one).
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

    level = assign_levels(boxes, len(pyramid), config.level_tolerance)  # [N]
    scale = tf.expand_dims(tf.gather(tf.constant([1.0 / stride for stride in strides]), level), 1)  # [N, 1]
    corners = boxes * scale - (0.5 if config.aligned else 0.0)  # [N, 4], places
    size = corners[:, 2:] - corners[:, :2]
    own_rows, own_columns = tf.gather(rows, level), tf.gather(columns, level)
    if own_sizes is not None:
        of_image = tf.gather(tf.stack(own_sizes, axis=1), image_index)  # [N, L, 2]
        own_rows, own_columns = tf.unstack(tf.gather(of_image, level, batch_dims=1), axis=1)  # [N] each
    rois = Rois(
        first=image_index * places + tf.gather(offsets, level),
        row_length=tf.gather(columns, level),
        rows=own_rows,
        columns=own_columns,
        corner=corners[:, :2],
        bin=(size if config.aligned else tf.maximum(size, 1.0)) / resolution,
    )
    if sampling_ratio == 0:
        return average_adaptively(flat, rois, resolution)

    # All samples of a box at once, on a grid of resolution × ratio; then the average over each bin.
    samples = resolution * sampling_ratio
    fraction = (tf.range(samples, dtype=tf.float32) + 0.5) / sampling_ratio  # [S], bins
    pooled = tf.add_n([take(flat, index, weight) for index, weight in rois.neighbours(fraction, fraction)])
    if sampling_ratio == 1:
        return pooled
    return tf.nn.avg_pool2d(pooled, sampling_ratio, sampling_ratio, "VALID")  # [N, resolution, resolution, C]
