"""Random numbers that are the same compiled and interpreted, on every device."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def step_seed(seed: int, step: int) -> int:
    """What the draws of a training step are keyed with (its RoIs, its colours): from the seed of the training, 31 bits."""
    return (seed * 1_000_003 + step) % 2**31


def uniform(shape: Sequence[int], key: tf.Tensor) -> tf.Tensor:
    """Float32 numbers evenly distributed in [0, 1), a function of `key` (integer [2]).

    Philox gives XLA and TensorFlow's kernels the same bits, but `tf.random.stateless_uniform` makes floats of the upper ones
    here and of the lower ones there. So the bits are drawn, and made floats by one rule.
    """
    bits = tf.random.stateless_uniform(shape, key, None, None, tf.uint32, alg="philox")
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24
