"""From an image to the old network's canvas, and from its heatmaps and boxes back: encode and decode are neighbours.

The canvas is a square with the image in its middle. Two ways lead back: `decode_unrounded` keeps what the network says;
`decode_places` and `legacy_pixels` round as the original does: boxes are cut to whole pixels of the image, and keypoints are
whole pixels of those boxes.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from model.matterport.boxes import compacted


def window_of(size: tf.Tensor, side: int) -> tf.Tensor:
    """Where images of `size` int32 [B, 2] lie on the canvas: int32 [B, 4], y0, x0, y1, x1."""
    low = (side - size) // 2
    return tf.concat([low, low + size], axis=-1)


def in_the_middle(images: tf.Tensor, size: tf.Tensor, window: tf.Tensor, side: int) -> tf.Tensor:
    """Moves images [B, H, W, 3] of `size` int32 [B, 2] from the top left to their windows [B, 4]: [B, side, side, 3].

    Raises:
      tf.errors.InvalidArgumentError: an image does not fit. (A size that is known fits: see `network.canvas_side`.)
    """
    if None in images.shape[1:3]:
        fits = tf.debugging.Assert(
            tf.reduce_all(size <= side),
            [f"an image may have {side} pixels a side, those of the network's canvas; height and width:", size],
        )
        with tf.control_dependencies([fits]):
            images = tf.identity(images)
    for axis in (0, 1):  # rows, columns
        place = tf.range(side)[tf.newaxis] - window[:, axis, tf.newaxis]  # [B, side]: where it comes from
        length = images.shape[axis + 1] or tf.shape(images)[axis + 1]
        taken = tf.gather(images, tf.clip_by_value(place, 0, length - 1), axis=axis + 1, batch_dims=1)
        inside = (place >= 0) & (place < size[:, axis, tf.newaxis])
        inside = inside[:, :, tf.newaxis, tf.newaxis] if axis == 0 else inside[:, tf.newaxis, :, tf.newaxis]
        images = tf.where(inside, taken, tf.zeros([], images.dtype))
    return tf.ensure_shape(images, [images.shape[0], side, side, 3])


def xy(boxes: tf.Tensor) -> tf.Tensor:
    """Boxes [..., 4] of this room, y0, x0, y1, x1, as x0, y0, x1, y1."""
    return tf.stack([boxes[..., 1], boxes[..., 0], boxes[..., 3], boxes[..., 2]], axis=-1)


def decode_unrounded(heatmaps: tf.Tensor, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The best place of each heatmap in its box: a `keypoint_head.Decoder`. A keypoint's score is its place's softmax.

    A place is where training put a keypoint that it stands for: column c of 56 lies at c/56 of the box's width.
    """
    places, scores = decode_places(heatmaps, boxes)
    low, extent = boxes[:, tf.newaxis, :2], (boxes[:, 2:] - boxes[:, :2])[:, tf.newaxis]  # [N, 1, 2]
    return low + places * (extent / heatmaps.shape[1]), scores


def decode_places(heatmaps: tf.Tensor, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The best place itself, column and row of 56, for `legacy_pixels`; else as `decode_unrounded`."""
    size, number = heatmaps.shape[1], heatmaps.shape[3]
    flat = tf.reshape(tf.transpose(heatmaps, [0, 3, 1, 2]), [-1, number, size * size])  # [N, K, 56 · 56], row by row
    best = tf.argmax(flat, axis=-1, output_type=tf.int32)  # [N, K]
    places = tf.cast(tf.stack([best % size, best // size], axis=-1), tf.float32)
    return places, tf.reduce_max(tf.nn.softmax(flat), axis=-1)


MAP_SIZE = 56  # places a side of a heatmap


def legacy_pixels(
    detections: Mapping[str, tf.Tensor], scale: tf.Tensor, size: tf.Tensor, _keypoint_offset: float
) -> dict[str, tf.Tensor]:
    """The original's whole pixels, as float32: takes the place of `serving.own_pixels`, with its arguments.

    Args:
      detections: what `MaskRCNN.detect` gives with `decode_places`.
      scale: float32 [N, 2], resized over own size along y and x.
      size: int32 [N, 2], height and width of the images.
    """
    # float64, and NumPy's order of operations: whole pixels depend on the last bits.
    own = tf.cast(size, tf.float64)
    resized = tf.round(tf.cast(scale, tf.float64) * own)  # exact: it was divided before
    factor = tf.reduce_min(own / resized, axis=-1)[:, tf.newaxis, tf.newaxis]  # [N, 1, 1]
    whole = tf.cast(tf.cast(detections["boxes"], tf.float64) * factor, tf.int32)  # [N, D, 4], towards 0
    low, high = whole[..., :2], whole[..., 2:]
    extent = (high - low)[:, :, tf.newaxis]  # [N, D, 1, 2]
    places = tf.cast(detections["keypoints"], tf.int32)
    inside = (2 * places * extent + MAP_SIZE) // (2 * MAP_SIZE)  # place · extent / 56, rounded half up
    found = dict(detections)
    found["boxes"] = tf.cast(whole, tf.float32)
    found["keypoints"] = tf.cast(low[:, :, tf.newaxis] + inside, tf.float32)
    keep = tf.reduce_all(high > low, axis=-1) & (detections["scores"] > 0.0)
    names = [name for name in found if name != "num_detections"]
    number, *values = compacted(keep, *(found[name] for name in names))
    return {"num_detections": number} | dict(zip(names, values, strict=True))
