"""Feature pyramid (Lin et al. 2017): C2…C5 in, P2…P6 of equal width out; nearest upsampling, P6 = every second place of P5."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from model.config import BackboneConfig
from model.layers import conv, norm


def fpn(config: BackboneConfig, stage_channels: Sequence[int], policy: keras.DTypePolicy) -> keras.Model:
    """Builds the pyramid.

    Args:
      stage_channels: channels of C2…C5.

    Returns:
      A model from [C2, …, C5] to [P2, …, P6], `config.fpn_channels` wide, of strides 4…64. A picture's sides must be multiples
      of 32. Where the backbone is trained from random weights (norm "group") the pyramid is normalised likewise.
    """
    xavier = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")
    stages = [keras.Input([None, None, channels], name=f"c{level + 2}") for level, channels in enumerate(stage_channels)]

    def convolve(x: keras.KerasTensor, kernel: int, name: str) -> keras.KerasTensor:
        y = conv(x, config.fpn_channels, kernel, name, policy, initializer=xavier)
        return norm("group", config.norm_epsilon, f"{name}.norm", policy)(y) if config.norm == "group" else y

    merged = convolve(stages[-1], 1, "fpn.inner.3")
    pyramid = [convolve(merged, 3, "fpn.layer.3")]
    for level in (2, 1, 0):
        above = keras.layers.UpSampling2D(2, name=f"fpn.up.{level}", dtype=policy)(merged)
        lateral = convolve(stages[level], 1, f"fpn.inner.{level}")
        merged = keras.layers.Add(name=f"fpn.add.{level}", dtype=policy)([lateral, above])
        pyramid.insert(0, convolve(merged, 3, f"fpn.layer.{level}"))
    every_second = keras.layers.MaxPooling2D(1, strides=2, name="fpn.p6", dtype=policy)(pyramid[-1])
    return keras.Model(stages, [*pyramid, every_second], name="fpn")


def level_shapes(pyramid: Sequence[tf.Tensor]) -> list[tuple[int | tf.Tensor, int | tf.Tensor]]:
    """Rows and columns of each level: integers where they are static, else scalar tensors."""
    return [tuple(s if s is not None else tf.shape(p)[axis] for axis, s in ((1, p.shape[1]), (2, p.shape[2]))) for p in pyramid]
