"""Pillow's bilinear resize of bytes in TensorFlow, to the bit: models of Detectron2's family were trained on such images.

Pillow resizes along x, rounds to bytes, then along y. If it shrinks, its triangle widens with the scale (antialiasing), and its
weights are whole multiples of 2^-22, so that every sum is exact. TensorFlow's own antialiased resize rounds only once.
"""

from __future__ import annotations

import tensorflow as tf

BITS = 22  # of a weight's fraction: a sum of weights times 255 still fits 32 bits with a sign


def pillow_resize(pixels: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """`PIL.Image.resize((width, height), BILINEAR)`; uint8 [h, w, 3] → uint8 [height, width, 3]."""
    wide = _along(tf.cast(pixels, tf.int32), width, axis=1)
    resized: tf.Tensor = tf.cast(_along(wide, height, axis=0), tf.uint8)
    return resized


def _along(pixels: tf.Tensor, size: tf.Tensor, axis: int) -> tf.Tensor:
    """Resizes one axis; int32 [h, w, 3] of values 0…255, as the result."""
    first, weights = _taps(tf.shape(pixels)[axis], size)
    last = tf.shape(pixels)[axis] - 1
    column = [1, -1, 1] if axis == 1 else [-1, 1, 1]

    def add(tap: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = tf.gather(pixels, tf.minimum(first + tap, last), axis=axis)
        return tap + 1, total + values * tf.reshape(weights[:, tap], column)

    # One tap at a time: all at once would hold as many copies of the image as there are taps.
    shape = tf.tensor_scatter_nd_update(tf.shape(pixels), [[axis]], [tf.cast(size, tf.int32)])
    half = tf.fill(shape, 1 << (BITS - 1))
    _, total = tf.while_loop(
        lambda tap, _: tap < tf.shape(weights)[1],
        add,
        (tf.constant(0), half),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None, None])),
        parallel_iterations=1,
    )
    return tf.ensure_shape(tf.bitwise.right_shift(total, BITS), [None, None, 3])


def _taps(before: tf.Tensor, after: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Which source pixels make up each of `after` pixels: the first one int32 [N], and weights × 2^BITS int32 [N, taps]."""
    scale = tf.cast(before, tf.float64) / tf.cast(after, tf.float64)
    support = tf.maximum(scale, 1.0)  # half the width of the triangle, in source pixels
    centre = (tf.cast(tf.range(after), tf.float64) + 0.5) * scale  # [N]
    first = tf.maximum(tf.cast(centre - support + 0.5, tf.int32), 0)
    end = tf.minimum(tf.cast(centre + support + 0.5, tf.int32), before)
    source = first[:, None] + tf.range(2 * tf.cast(tf.math.ceil(support), tf.int32) + 1)  # [N, taps]
    distance = tf.abs(tf.cast(source, tf.float64) + 0.5 - centre[:, None]) / support
    triangle = tf.where(source < end[:, None], tf.maximum(1.0 - distance, 0.0), 0.0)
    weights = triangle / tf.reduce_sum(triangle, axis=1, keepdims=True)
    return first, tf.cast(weights * (1 << BITS) + 0.5, tf.int32)
