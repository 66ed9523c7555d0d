"""The few layers that Keras lacks or that must be exact here: normalisations and a padded convolution.

Layers take `dtype`, a Keras precision policy: float32 master weights, arithmetic in the policy's compute type.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

from model.config import Norm
from model.network.own_canvas import own_places
from model.network.sync_batch_norm import SyncBatchNorm

_BLANK: ContextVar[bool] = ContextVar("weights begin as zeros", default=False)


@contextlib.contextmanager
def blank_weights(blank: bool) -> Iterator[None]:
    """Layers that are built within it begin with zeros if `blank`: their weights are read from a file next."""
    token = _BLANK.set(blank)
    try:
        yield
    finally:
        _BLANK.reset(token)


def initial(own: str | keras.Initializer) -> str | keras.Initializer:
    """A layer's own initializer; zeros within `blank_weights`."""
    return "zeros" if _BLANK.get() else own


class FrozenBatchNorm(keras.layers.Layer):
    """Batch normalisation with fixed statistics and fixed scale: an affine function of each channel, nothing is trained.

    As torchvision's FrozenBatchNorm2d and Detectron2's: scale = weight / sqrt(variance + epsilon).
    """

    def __init__(self, epsilon: float, **kwargs: object) -> None:
        super().__init__(trainable=False, **kwargs)
        self.epsilon = epsilon

    def build(self, shape: tuple[int | None, ...]) -> None:
        channels = (shape[-1],)
        self.gamma = self.add_weight(name="gamma", shape=channels, initializer="ones", trainable=False, autocast=False)
        self.beta = self.add_weight(name="beta", shape=channels, initializer="zeros", trainable=False, autocast=False)
        self.mean = self.add_weight(name="mean", shape=channels, initializer="zeros", trainable=False, autocast=False)
        self.variance = self.add_weight(name="variance", shape=channels, initializer="ones", trainable=False, autocast=False)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape  # (said, so that Keras does not trace the layer to find out)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        # The factors are made in float32 whatever the compute type is: variances of published files span six decades.
        gamma, beta, mean, variance = (v.value for v in (self.gamma, self.beta, self.mean, self.variance))
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)
        return x * tf.cast(scale, x.dtype) + tf.cast(beta - mean * scale, x.dtype)


class GroupNorm(keras.layers.Layer):
    """Group normalisation (Wu & He 2018): statistics of each image, so neither the batch nor its split over replicas matters.

    On a CPU it takes less than half the time of keras.layers.GroupNormalization (10 against 24 ms for 4×120×160×16, forward and
    backward).

    Args:
      stride: pixels per place of the features; within `own_canvases` the places beyond an image's own canvas do not count.
    """

    def __init__(self, epsilon: float, stride: int | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.stride = stride

    def build(self, shape: tuple[int | None, ...]) -> None:
        channels = shape[-1]
        assert channels is not None and channels % 4 == 0
        self.groups = min(32, channels // 4)
        self.gamma = self.add_weight(name="gamma", shape=(channels,), initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=(channels,), initializer="zeros", autocast=False)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape  # (said, so that Keras does not trace the layer to find out)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        gamma, beta = self.gamma.value, self.beta.value
        places = own_places(self.stride, tf.float32)
        return group_norm(x, gamma, beta, groups=self.groups, epsilon=self.epsilon, training=training, places=places)


def _over_places(values: tf.Tensor) -> tf.Tensor:
    """Values [B, C] as [B, 1, 1, C]."""
    return tf.expand_dims(tf.expand_dims(values, 1), 1)  # (TF-TRT refuses slices that add axes)


def group_norm(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    *,
    groups: int,
    epsilon: float,
    training: bool,
    places: tf.Tensor | None = None,
) -> tf.Tensor:
    """Group normalisation of x [B, H, W, C] with gamma and beta float32 [C]; statistics and gradients in float32.

    It is two reductions and one affine function of each channel. In training its gradient is written out in the same form,
    because the one that TensorFlow derives passes over x twice as often. (Without training no gradient is attached: a
    SavedModel would hold it in vain.)

    Args:
      places: float32 [B, H, W, 1], 1 at those places that count for the statistics, 0 elsewhere; None: all count.
    """

    def over_groups(moment: tf.Tensor) -> tf.Tensor:
        """Averages [B, C] within each group and repeats the average for each channel of it."""
        per_group = moment.shape[-1] // groups
        grouped = tf.reduce_mean(tf.reshape(moment, [-1, groups, per_group]), axis=2, keepdims=True)
        return tf.reshape(tf.tile(grouped, [1, 1, per_group]), [-1, groups * per_group])

    def affine(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """X · scale + shift, with scale and shift [B, C]."""
        return x * _over_places(tf.cast(scale, x.dtype)) + _over_places(tf.cast(shift, x.dtype))

    def normalise(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        values = tf.cast(x, tf.float32)
        counted = values if places is None else values * places
        # (What a mean over all places lacks where some do not count, [B, 1].)
        share = 1.0 if places is None else tf.maximum(tf.reduce_mean(places, [1, 2]), 1e-6)  # (none in a padding image)
        mean = over_groups(tf.reduce_mean(counted, [1, 2]) / share)  # [B, C], as all that follow
        variance = over_groups(tf.reduce_mean(tf.square(counted), [1, 2]) / share) - tf.square(mean)
        inverse = tf.math.rsqrt(tf.nn.relu(variance) + epsilon)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            number = tf.cast(tf.shape(x)[1] * tf.shape(x)[2], tf.float32) * share  # of the places that count
            up = tf.cast(upstream, tf.float32)
            sum_up = tf.reduce_sum(up, [1, 2])
            sum_along = (tf.reduce_sum(up * values, [1, 2]) - mean * sum_up) * inverse  # Σ upstream · normalised x
            # The part of the upstream that changes a group's mean or its variance has no effect on the output.
            mean_up = over_groups(gamma * sum_up) / number
            mean_along = over_groups(gamma * sum_along) / number
            slope = -inverse * inverse * mean_along
            if places is None:
                d_x = affine(up, gamma * inverse, -inverse * mean_up - slope * mean) + values * _over_places(slope)
            else:  # the statistics depend on the places that count alone
                of_statistics = affine(values, slope, -inverse * mean_up - slope * mean) * places
                d_x = up * _over_places(gamma * inverse) + of_statistics
            return tf.cast(d_x, x.dtype), tf.reduce_sum(sum_along, 0), tf.reduce_sum(sum_up, 0)

        scale = gamma * inverse
        return affine(x, scale, beta - mean * scale), gradient

    gamma, beta = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    return tf.custom_gradient(normalise)(x, gamma, beta) if training else normalise(x, gamma, beta)[0]


def norm(kind: Norm, epsilon: float, name: str, policy: keras.DTypePolicy, *, stride: int | None = None) -> keras.layers.Layer:
    """The normalisation of features with `stride` pixels per place; None for those of RoIs."""
    if kind == "frozen_batch":
        return FrozenBatchNorm(epsilon, name=name, dtype=policy)
    if kind == "sync_batch":
        return SyncBatchNorm(epsilon, name=name, dtype=policy)
    return GroupNorm(epsilon, stride, name=name, dtype=policy)


def conv(
    x: keras.KerasTensor,
    channels: int,
    kernel: int,
    name: str,
    policy: keras.DTypePolicy,
    *,
    stride: int = 1,
    use_bias: bool = True,
    initializer: str | keras.Initializer = "he_normal",
) -> keras.KerasTensor:
    """A convolution padded by kernel // 2 on every side, as PyTorch pads; "same" would pad a strided one unevenly."""
    pad = kernel // 2
    if stride > 1 and pad:
        x = keras.layers.ZeroPadding2D(pad, name=f"{name}.pad", dtype=policy)(x)
    layer = keras.layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        use_bias=use_bias,
        kernel_initializer=initial(initializer),
        name=name,
        dtype=policy,
    )
    return layer(x)
