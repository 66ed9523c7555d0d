"""Grouped convolutions: NumPy's answer, the gradient that TensorFlow derives for the same sum, and the graphs of exports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from model.config import X101_FPN, Config
from model.network.backbone import resnet
from model.network.grouped_conv import GroupedConv, grouped_conv
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.strategies import distribute, make_strategy
from model.weights.importing import imported
from pipeline.command import UserError
from pipeline.skeleton import Skeleton
from tests.model.weights.torch_format import save_zip, tensor
from tests.model.weights.torch_weights import torchvision_state, without_groups

GROUPS = 2


def by_hand(x: NDArray[Any], kernel: NDArray[Any], groups: int, stride: int) -> NDArray[Any]:
    """PyTorch's definition, channel by channel, with a kernel [k, k, C / G, O]."""
    size, _, per_group, channels = kernel.shape
    x = np.pad(x, [(0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)])
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    answer = np.zeros((len(x), height, width, channels))
    for channel in range(channels):
        first = channel // (channels // groups) * per_group
        for row in range(height):
            for column in range(width):
                seen = x[
                    :, row * stride : row * stride + size, column * stride : column * stride + size, first : first + per_group
                ]
                answer[:, row, column, channel] = np.sum(seen * kernel[..., channel], axis=(1, 2, 3))
    return answer


@pytest.mark.parametrize(("groups", "stride"), [(2, 1), (2, 2), (3, 1), (3, 2), (6, 2)])
def test_it_is_the_definition_with_its_gradient(groups: int, stride: int) -> None:
    random = np.random.default_rng(groups)
    x = tf.constant(random.normal(0, 1, (2, 8, 10, 6)), tf.float32)
    layer = GroupedConv(12, 3, groups=groups, stride=stride)
    layer.build(x.shape)
    kernel = layer.kernel.value
    expected = by_hand(x.numpy(), kernel.numpy(), groups, stride)
    upstream = tf.constant(random.normal(0, 1, expected.shape), tf.float32)
    per_group, out = 6 // groups, 12 // groups

    def in_turn(x: tf.Tensor) -> tf.Tensor:
        """One convolution for each group."""
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        parts = [
            tf.nn.conv2d(x[..., g * per_group : (g + 1) * per_group], kernel[..., g * out : (g + 1) * out], stride, "VALID")
            for g in range(groups)
        ]
        return tf.concat(parts, -1)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        answer = layer(x, training=True)
        reference = in_turn(x)
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    np.testing.assert_allclose(layer(x, training=False), expected, atol=1e-5)
    for source in (x, kernel):
        own, derived = (tape.gradient(value, source, upstream) for value in (answer, reference))
        np.testing.assert_allclose(own, derived, atol=1e-4)


def test_a_compiled_gradient_equals_an_interpreted_one_in_mixed_precision() -> None:
    layer = GroupedConv(8, 3, groups=4, stride=2, dtype="mixed_float16")
    x = tf.random.stateless_normal([1, 6, 6, 8], [1, 2])
    layer.build(x.shape)

    def gradient(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(layer(x, training=True), tf.float32) ** 2)
        return tape.gradient(loss, layer.kernel.value)

    interpreted, compiled = (tf.function(gradient, jit_compile=jit, autograph=False)(x) for jit in (False, True))
    assert interpreted.dtype == tf.float32
    np.testing.assert_allclose(compiled, interpreted, rtol=0.02, atol=0.02)


@pytest.fixture(scope="module")
def grouped_config(small_config: Config) -> Config:
    backbone = dataclasses.replace(small_config.backbone, width=16, stem_width=8, expansion=1, groups=4)
    return dataclasses.replace(small_config, backbone=backbone)


def test_a_resnext_is_the_resnet_whose_kernels_are_zero_between_groups(tmp_path: Path) -> None:
    """That ResNet answers as torchvision's and Detectron2's do (test_parity_inference.py)."""
    state = torchvision_state(groups=GROUPS)
    models = []
    for name, content in (("grouped", state), ("dense", without_groups(state))):
        save_zip(tmp_path / f"{name}.pth", {key: tensor(value) for key, value in content.items()})
        models.append(imported("torchvision", tmp_path / f"{name}.pth", report=lambda _: None)[0])
    assert [model.config.backbone.groups for model in models] == [GROUPS, 1]
    images = tf.constant(np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3)), tf.uint8)
    size = tf.constant([[64, 96], [50, 70]])
    for ours, theirs in zip(*(model.pyramid(images, size) for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(tf.reduce_max(tf.abs(theirs))))


def test_two_replicas_share_the_gradient_of_one(two_replicas: tf.distribute.Strategy) -> None:
    x = tf.random.stateless_normal([2, 6, 6, 8], [1, 2])
    found = []
    for strategy in (make_strategy("one_device"), two_replicas):
        with strategy.scope():
            layer = GroupedConv(8, 3, groups=4, stride=1)
            layer.build(x.shape)
            layer.kernel.assign(tf.random.stateless_normal(layer.kernel.shape, [3, 4]))

        @tf.function(autograph=False)
        def step(x: tf.Tensor, layer: GroupedConv = layer, strategy: tf.distribute.Strategy = strategy) -> tf.Tensor:
            def replica(x: tf.Tensor) -> tf.Tensor:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(layer(x, training=True) ** 2)
                return tape.gradient(loss, layer.kernel.value)

            return strategy.reduce("SUM", strategy.run(replica, args=(x,)), axis=None)

        found.append(step(next(iter(distribute(tf.data.Dataset.from_tensors({"image": x}), strategy)))["image"]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_the_graph_of_inference_has_the_convolution_of_every_runtime(grouped_config: Config, skeleton: Skeleton) -> None:
    model = KeypointRCNN(grouped_config, skeleton)
    graph = tf.function(lambda x: model.backbone(x), autograph=False).get_concrete_function(tf.TensorSpec([1, 64, 64, 3])).graph
    operations = {node.op for node in graph.as_graph_def().node}
    assert "Conv2D" in operations and not {"XlaMustCompile", "StatefulPartitionedCall", "Einsum"} & operations


def test_the_preset_is_resnext_101_32x8d() -> None:
    """Its layers have 86.7 M parameters as torchvision counts them, without the classifier's 2.05 M and with norms' factors."""
    with keras.StatelessScope(initialize_variables=False):  # nothing is allocated
        variables = {v.path: tuple(v.shape) for v in resnet(X101_FPN.backbone, None).variables}
    assert variables["backbone.layer1.0.conv2/kernel"] == (3, 3, 8, 256)
    assert variables["backbone.layer4.2.conv2/kernel"] == (3, 3, 64, 2048)
    assert variables["backbone.layer4.2.conv3/kernel"] == (1, 1, 2048, 2048)
    count = sum(int(np.prod(shape)) for path, shape in variables.items() if not path.endswith(("/mean", "/variance")))
    assert count == 88_791_336 - 2048 * 1000 - 1000


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"backbone\.width=256: must be a multiple of backbone\.groups=3"):
        dataclasses.replace(X101_FPN.backbone, groups=3)


def test_inference_and_training_share_the_forward_pass() -> None:
    x, kernel = tf.random.stateless_normal([1, 5, 5, 4], [1, 2]), tf.random.stateless_normal([3, 3, 2, 4], [3, 4])
    answers = [grouped_conv(x, kernel, stride=1, padding="SAME", training=training) for training in (False, True)]
    np.testing.assert_array_equal(*answers)
