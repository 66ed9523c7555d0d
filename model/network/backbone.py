"""The backbone: ResNet or ResNeXt with bottlenecks (He et al. 2015, Xie et al. 2017), pixels in, C2…C5 out; and the feature
pyramid over it, P2…P6 out.

The pyramid (FPN, Lin et al. 2017) gives all levels the same width. It enlarges a level by repeating the nearest place; P6 is
every second place of P5.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from model.config import BackboneConfig
from model.network.grouped_conv import GroupedConv
from model.network.layers import conv, norm
from model.network.own_canvas import OwnCanvas


def resnet(config: BackboneConfig, policy: keras.DTypePolicy) -> keras.Model:
    """Builds the ResNet.

    Returns:
      A model from normalised images [B, H, W, 3] to the stages' features C2…C5, of strides 4, 8, 16, 32 and
      width × expansion × 1, 2, 4, 8 channels. Layers are named as torchvision names them; those of the frozen stages are not
      trainable.
    """
    pixels = keras.Input([None, None, 3], name="pixels")
    x = conv(pixels, config.stem_width or config.width, 7, "backbone.conv1", policy, stride=2, use_bias=False)
    x = norm(config.norm, config.norm_epsilon, "backbone.bn1", policy, stride=2)(x)
    x = keras.layers.ReLU(name="backbone.relu", dtype=policy)(x)
    x = OwnCanvas(2, name="backbone.pool.own", dtype=policy)(x)
    x = keras.layers.ZeroPadding2D(1, name="backbone.pool.pad", dtype=policy)(x)  # zeros do no harm behind a ReLU
    x = keras.layers.MaxPooling2D(3, strides=2, name="backbone.pool", dtype=policy)(x)
    stages = []
    for stage, blocks in enumerate(config.blocks):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            name = f"backbone.layer{stage + 1}.{block}"
            x = _bottleneck(x, config, config.width * 2**stage, stride, 4 * 2**stage, name, policy)
        stages.append(x)
    model = keras.Model(pixels, stages, name="backbone")
    parts = [("backbone.conv1", "backbone.bn1"), *((f"backbone.layer{stage + 1}.",) for stage in range(len(config.blocks)))]
    frozen = tuple(prefix for part in parts[: config.frozen_stages] for prefix in part)
    for layer in model.layers:
        if layer.name.startswith(frozen):
            layer.trainable = False
    return model


def _bottleneck(
    x: keras.KerasTensor,
    config: BackboneConfig,
    width: int,
    stride: int,
    pixels_per_place: int,
    name: str,
    policy: keras.DTypePolicy,
) -> keras.KerasTensor:
    """A block that takes `stride` of the places of x, and gives features with `pixels_per_place`."""

    def normalised(y: keras.KerasTensor, suffix: str, at: int = pixels_per_place) -> keras.KerasTensor:
        return norm(config.norm, config.norm_epsilon, f"{name}.{suffix}", policy, stride=at)(y)

    def relu(y: keras.KerasTensor, suffix: str) -> keras.KerasTensor:
        return keras.layers.ReLU(name=f"{name}.{suffix}", dtype=policy)(y)

    shortcut, channels = x, width * config.expansion
    if stride > 1 or x.shape[-1] != channels:
        shortcut = conv(x, channels, 1, f"{name}.downsample.0", policy, stride=stride, use_bias=False)
        shortcut = normalised(shortcut, "downsample.1")
    first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
    between = pixels_per_place // second  # pixels per place of what the 3×3 convolution sees
    y = relu(normalised(conv(x, width, 1, f"{name}.conv1", policy, stride=first, use_bias=False), "bn1", between), "relu1")
    y = OwnCanvas(between, name=f"{name}.conv2.own", dtype=policy)(y)
    if config.groups > 1:
        y = GroupedConv(width, 3, groups=config.groups, stride=second, name=f"{name}.conv2", dtype=policy)(y)
    else:
        y = conv(y, width, 3, f"{name}.conv2", policy, stride=second, use_bias=False)
    y = relu(normalised(y, "bn2"), "relu2")
    y = normalised(conv(y, channels, 1, f"{name}.conv3", policy, use_bias=False), "bn3")
    return relu(keras.layers.Add(name=f"{name}.add", dtype=policy)([y, shortcut]), "relu3")


def fpn(config: BackboneConfig, stage_channels: Sequence[int], policy: keras.DTypePolicy) -> keras.Model:
    """Builds the pyramid.

    Args:
      stage_channels: channels of C2…C5.

    Returns:
      A model from [C2, …, C5] to [P2, …, P6], `config.fpn_channels` wide, of strides 4…64. An image's sides must be multiples
      of 32. Where the backbone is trained from random weights (norm "group") the pyramid is normalised, too.
    """
    xavier = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")
    stages = [keras.Input([None, None, channels], name=f"c{level + 2}") for level, channels in enumerate(stage_channels)]

    def convolve(x: keras.KerasTensor, kernel: int, name: str, level: int) -> keras.KerasTensor:
        y = conv(x, config.fpn_channels, kernel, f"{name}.{level}", policy, initializer=xavier)
        if config.norm == "group":
            y = norm("group", config.norm_epsilon, f"{name}.{level}.norm", policy, stride=4 * 2**level)(y)
        return y

    def smoothed(x: keras.KerasTensor, level: int) -> keras.KerasTensor:
        """A level of the pyramid; on its own canvas before and after, since the RPN's 3×3 convolution follows."""
        x = OwnCanvas(4 * 2**level, name=f"fpn.layer.{level}.own", dtype=policy)(x)
        y = convolve(x, 3, "fpn.layer", level)
        return OwnCanvas(4 * 2**level, name=f"fpn.out.{level}.own", dtype=policy)(y)

    merged = convolve(stages[-1], 1, "fpn.inner", 3)
    pyramid = [smoothed(merged, 3)]
    for level in (2, 1, 0):
        above = keras.layers.UpSampling2D(2, name=f"fpn.up.{level}", dtype=policy)(merged)
        lateral = convolve(stages[level], 1, "fpn.inner", level)
        merged = keras.layers.Add(name=f"fpn.add.{level}", dtype=policy)([lateral, above])
        pyramid.insert(0, smoothed(merged, level))
    every_second = keras.layers.MaxPooling2D(1, strides=2, name="fpn.p6", dtype=policy)(pyramid[-1])
    return keras.Model(stages, [*pyramid, every_second], name="fpn")


def level_shapes(pyramid: Sequence[tf.Tensor]) -> list[tuple[int | tf.Tensor, int | tf.Tensor]]:
    """Rows and columns of each level: integers if they are static, else scalar tensors."""
    return [tuple(s if s is not None else tf.shape(p)[axis] for axis, s in ((1, p.shape[1]), (2, p.shape[2]))) for p in pyramid]
