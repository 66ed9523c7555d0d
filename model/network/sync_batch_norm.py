"""Batch normalisation whose statistics are those of the global batch: the same on one replica as on many."""

from __future__ import annotations

import keras
import tensorflow as tf

MOMENTUM = 0.9  # share of the moving statistics that stays in a step; PyTorch calls it a momentum of 0.1


class SyncBatchNorm(keras.layers.Layer):
    """Batch normalisation (Ioffe & Szegedy 2015) over the images of all replicas, as PyTorch's SyncBatchNorm.

    Training takes the mean and the variance of all places of the global batch, padding included, and moves the statistics that
    inference takes towards them. A batch that is not finite moves nothing. Where the layer is frozen, training takes the moving
    statistics, too. The variables are those of `FrozenBatchNorm`, so that published weights fit.

    Keras' own (`BatchNormalization(synchronized=True)`) does the same, but a batch that is not finite ruins its statistics.
    """

    def __init__(self, epsilon: float, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, shape: tuple[int | None, ...]) -> None:
        channels = (shape[-1],)
        statistic = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}  # all replicas have the same
        self.gamma = self.add_weight(name="gamma", shape=channels, initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=channels, initializer="zeros", autocast=False)
        self.mean = self.add_weight(name="mean", shape=channels, initializer="zeros", **statistic)
        self.variance = self.add_weight(name="variance", shape=channels, initializer="ones", **statistic)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape  # (said, so that Keras does not trace the layer to find out)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        gamma, beta = self.gamma.value, self.beta.value
        mean, variance = self._of_batch(x) if training and self.trainable else (self.mean.value, self.variance.value)
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)  # in float32, whatever the compute type is
        return x * tf.cast(scale, x.dtype) + tf.cast(beta - mean * scale, x.dtype)

    def _of_batch(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance of each channel of x [B, H, W, C] over all replicas, float32 [C]. Moves the moving statistics."""
        context = tf.distribute.get_replica_context()
        values = tf.cast(x, tf.float32)
        own = tf.stack([tf.reduce_sum(values, [0, 1, 2]), tf.reduce_sum(tf.square(values), [0, 1, 2])])  # [2, C]
        places = tf.cast(tf.size(x) // x.shape[-1] * context.num_replicas_in_sync, tf.float32)
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, own)  # its gradient is reduced likewise
        mean, square = tf.unstack(sums / places)
        variance = tf.nn.relu(square - tf.square(mean))
        finite = tf.reduce_all(tf.math.is_finite(sums))
        unbiased = variance * places / tf.maximum(places - 1.0, 1.0)
        for moving, now in ((self.mean.value, mean), (self.variance.value, unbiased)):
            moved = moving + (1.0 - MOMENTUM) * (tf.stop_gradient(now) - moving)
            moving.assign(tf.where(finite, moved, moving))
        return mean, variance
