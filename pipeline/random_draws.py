"""Random numbers that are the same compiled and interpreted, on every device."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def step_seed(seed: int, step: int) -> int:
    """The key of a training step's draws (its RoIs, its colours), 31 bits, made from the seed of the training."""
    return (seed * 1_000_003 + step) % 2**31


def uniform(shape: Sequence[int], key: tf.Tensor) -> tf.Tensor:
    """Float32 numbers evenly distributed in [0, 1), a function of `key` (integer [2]).

    Philox gives XLA and TensorFlow's kernels the same bits, but for floats `tf.random.stateless_uniform` uses the upper bits in
    one and the lower bits in the other. So integers are drawn here, and made floats by one rule.
    """
    bits = tf.random.stateless_uniform(shape, key, None, None, tf.uint32, alg="philox")
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24
