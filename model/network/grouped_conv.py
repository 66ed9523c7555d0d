"""The grouped convolution of ResNeXt (Xie et al. 2017), which also trains on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from model.network.layers import initial


class GroupedConv(keras.layers.Layer):
    """A convolution without bias whose channels fall into groups: each group of the answer sees its own group of the input.

    As PyTorch's Conv2d(groups=…), padded by kernel // 2 on every side. (keras.layers.Conv2D compiles a convolution with groups
    with XLA wherever it runs, which neither two devices of one CPU nor TFLite's converter take.)

    Args:
      channels: of the answer.
      kernel: its side, in places.
      groups: divides the channels before and after.
    """

    def __init__(self, channels: int, kernel: int, *, groups: int, stride: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.channels, self.size, self.groups, self.stride = channels, kernel, groups, stride

    def build(self, shape: tuple[int | None, ...]) -> None:
        assert shape[-1] is not None and shape[-1] % self.groups == 0 and self.channels % self.groups == 0
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.size, self.size, shape[-1] // self.groups, self.channels),
            initializer=initial("he_normal"),
        )

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        pad = self.size // 2
        padded = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) if self.stride > 1 else x
        kernel = tf.cast(self.kernel.value, x.dtype)
        return grouped_conv(
            padded, kernel, stride=self.stride, padding="VALID" if self.stride > 1 else "SAME", training=training
        )


def grouped_conv(x: tf.Tensor, kernel: tf.Tensor, *, stride: int, padding: str, training: bool) -> tf.Tensor:
    """X [B, H, W, C] by kernel [k, k, C / G, O], whose output channels lie group by group, → [B, H', W', O].

    TensorFlow has the gradient of this convolution on GPUs alone. In training without one, the gradient is that of the same sum
    written out: one product for each place of the kernel.
    """
    if not training or tf.config.list_logical_devices("GPU"):
        return tf.nn.conv2d(x, kernel, stride, padding)

    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                answer = _written_out(x, kernel, stride, padding)
            gradients: list[tf.Tensor] = tape.gradient(answer, [x, kernel], upstream)
            return gradients

        return tf.nn.conv2d(x, kernel, stride, padding), gradient

    answer: tf.Tensor = tf.custom_gradient(convolve)(x, tf.convert_to_tensor(kernel))
    return answer


def _written_out(x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    """`grouped_conv` as a sum over the places of the kernel."""
    size, _, per_group, channels = kernel.shape
    groups = x.shape[-1] // per_group
    before = size // 2 if padding == "SAME" else 0
    x = tf.pad(x, [[0, 0], [before, before], [before, before], [0, 0]])
    height, width = ((tf.shape(x)[axis] - size) // stride + 1 for axis in (1, 2))
    total = tf.zeros([], x.dtype)
    for row in range(size):
        for column in range(size):
            rows = slice(row, row + stride * (height - 1) + 1, stride)
            columns = slice(column, column + stride * (width - 1) + 1, stride)
            places = tf.reshape(x[:, rows, columns], [-1, height, width, groups, per_group])  # [B, H', W', G, C / G]
            weights = tf.reshape(kernel[row, column], [per_group, groups, channels // groups])  # [C / G, G, O / G]
            total += tf.einsum("bhwgi,igo->bhwgo", places, weights)
    return tf.reshape(total, [-1, height, width, channels])
