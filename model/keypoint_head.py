"""The keypoint head (He et al. 2017): heatmaps of 56×56 places over each person's box; encoding, loss.

Place (i, j) of a box's heatmap covers [j, j + 1) × [i, i + 1) fifty-sixths of the box. `encode` says in which place a point
lies; `keypoint_decoding` is the way back.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from model.config import KeypointHeadConfig
from model.layers import conv, norm


def keypoint_head(
    config: KeypointHeadConfig, channels: int, num_keypoints: int, normalise: bool, policy: keras.DTypePolicy
) -> keras.Model:
    """Pooled features [N, S, S, C] → heatmap logits float32 [N, 4 S, 4 S, K]: convolutions, a deconvolution, bilinear × 2."""
    pooled = x = keras.Input([config.resolution, config.resolution, channels], name="pooled")
    for layer in range(config.convolutions):
        x = conv(x, config.channels, 3, f"keypoint.conv{layer}", policy)
        if normalise:
            x = norm("group", 1e-5, f"keypoint.conv{layer}.norm", policy)(x)
        x = keras.layers.ReLU(name=f"keypoint.relu{layer}", dtype=policy)(x)
    # In PyTorch's terms kernel 4, stride 2, padding 1: "same" leaves out one row on either side, too.
    x = keras.layers.Conv2DTranspose(
        num_keypoints,
        4,
        strides=2,
        padding="same",
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out"),
        name="keypoint.deconv",
        dtype=policy,
    )(x)
    x = keras.layers.UpSampling2D(2, interpolation="bilinear", name="keypoint.up", dtype="float32")(x)
    return keras.Model(pooled, x, name="keypoint_head")


def encode(keypoints: tf.Tensor, boxes: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The place of each point in its box's heatmap.

    Args:
      keypoints: float32 [N, K, 3]: x, y in canvas pixels, visibility.
      boxes: float32 [N, 4], canvas pixels.
      size: places per side.

    Returns:
      place int32 [N, K], row × size + column; valid bool [N, K]: labelled, and inside the box (its far edges included, which
      belong to the last place). As Detectron2's keypoints.py.
    """
    low, high = boxes[:, tf.newaxis, :2], boxes[:, tf.newaxis, 2:]  # [N, 1, 2]
    points = keypoints[..., :2]
    relative = tf.math.divide_no_nan(points - low, high - low) * size  # [N, K, 2]
    cell = tf.where(points == high, size - 1, tf.cast(tf.floor(relative), tf.int32))
    valid = tf.reduce_all((cell >= 0) & (cell < size), -1) & (keypoints[..., 2] > 0)
    return tf.where(valid, cell[..., 1] * size + cell[..., 0], 0), valid


def keypoint_loss(heatmaps: tf.Tensor, keypoints: tf.Tensor, boxes: tf.Tensor, used: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross entropy over the places of each heatmap as (sum, count), over the labelled points inside their RoI.

    Args:
      heatmaps: float32 [N, S, S, K]; keypoints: float32 [N, K, 3], canvas pixels; boxes: float32 [N, 4]; used: bool [N].
    """
    size, num_keypoints = heatmaps.shape[1], heatmaps.shape[3]
    place, valid = encode(keypoints, boxes, size)
    valid &= used[:, tf.newaxis]
    logits = tf.reshape(tf.transpose(heatmaps, [0, 3, 1, 2]), [-1, num_keypoints, size * size])  # [N, K, S²]
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(place, logits)  # [N, K]
    return tf.reduce_sum(tf.where(valid, cross_entropy, 0.0)), tf.reduce_sum(tf.cast(valid, tf.float32))
