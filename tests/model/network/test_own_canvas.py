"""An image's answer does not depend on the canvas that its company in the batch makes, whatever the model's family is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from model.config import Config, RoiAlignConfig
from model.network.keypoint_rcnn import KeypointRCNN
from model.network.layers import GroupNorm
from model.network.own_canvas import OwnCanvas, level_sizes, own_canvases
from pipeline.skeleton import Skeleton

SIZES = [(96, 118), (150, 96), (33, 64), (20, 190), (161, 161)]  # of the images; P6 is rounded up for some
KINDS = ("group", "frozen_batch", "torchvision", "detectron2")


def own_canvas_of(size: tf.Tensor) -> tf.Tensor:
    return (size + 31) // 32 * 32


def config_of(kind: str, config: Config) -> Config:
    """What changes the way through the network: the norm, strided 1×1 convolutions, anchors and scores, RoIAlign."""
    if kind == "group":
        return config
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, norm="frozen_batch"))
    if kind == "torchvision":
        return dataclasses.replace(
            config,
            anchors=dataclasses.replace(config.anchors, canvas_strides=True),
            rpn=dataclasses.replace(config.rpn, rank_by="sigmoid"),
            roi_align=RoiAlignConfig(aligned=False),
        )
    if kind == "detectron2":
        return dataclasses.replace(
            config,
            backbone=dataclasses.replace(config.backbone, stride_in_1x1=True),
            box_head=dataclasses.replace(config.box_head, sampling_ratio=0),
            keypoint_head=dataclasses.replace(config.keypoint_head, sampling_ratio=0),
        )
    return config


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, small_config: Config, skeleton: Skeleton) -> KeypointRCNN:
    """A model whose shifts, biases and statistics are not those that it begins with, which would hide what leaks inwards."""
    model = KeypointRCNN(config_of(request.param, small_config), skeleton)
    random = np.random.default_rng(0)
    for name, variable in model.variables_by_path().items():
        if name.endswith(("beta", "bias", "mean")):
            variable.assign(random.normal(0.2, 0.3, variable.shape))
    return model


@pytest.fixture(scope="module")
def batch() -> tuple[npt.NDArray[np.uint8], tf.Tensor]:
    """Images on the canvas that all of them need together, and their sizes."""
    pixels = np.zeros((len(SIZES), 192, 192, 3), np.uint8)
    for i, (height, width) in enumerate(SIZES):
        rough = np.random.default_rng(i).integers(0, 255, (1, 6, 8, 3))
        pixels[i, :height, :width] = tf.cast(tf.image.resize(rough, (height, width)), tf.uint8)[0]
    return pixels, tf.constant(SIZES)


def test_each_level_is_the_one_of_the_image_alone(model: KeypointRCNN, batch: Any) -> None:
    pixels, sizes = batch
    own = own_canvas_of(sizes)
    together = model.pyramid(tf.constant(pixels), sizes, own_canvas=own)
    whole = model.pyramid(tf.constant(pixels), sizes)
    differs = False
    for i, (height, width) in enumerate(own.numpy()):
        alone = model.pyramid(tf.constant(pixels[i : i + 1, :height, :width]), sizes[i : i + 1])
        for level, features in enumerate(alone):
            rows, columns = features.shape[1:3]
            assert (rows, columns) == tuple(level_sizes(own, len(alone))[level][i].numpy())
            np.testing.assert_allclose(together[level][i, :rows, :columns], features[0], atol=2e-4, rtol=2e-4)
            assert not together[level][i, rows:].numpy().any() and not together[level][i, :, columns:].numpy().any()
            differs |= np.abs(whole[level][i, :rows, :columns] - features[0]).max() > 1e-2
    assert differs, "the batch's canvas changes nothing: the comparison proves nothing"


def test_the_answer_is_the_one_of_the_image_alone(model: KeypointRCNN, batch: Any) -> None:
    pixels, sizes = batch
    own = own_canvas_of(sizes)
    spec = [
        tf.TensorSpec([None, None, None, 3], tf.uint8),
        tf.TensorSpec([None, 2], tf.int32),
        tf.TensorSpec([None, 2], tf.int32),
    ]
    ask = tf.function(lambda p, s, o: model.detect(p, s, own_canvas=o), input_signature=spec, autograph=False)
    together = ask(tf.constant(pixels), sizes, own)
    assert int(tf.reduce_min(together["num_detections"])) > 0
    for i, (height, width) in enumerate(own.numpy()):
        alone = model.detect(tf.constant(pixels[i : i + 1, :height, :width]), sizes[i : i + 1])
        for name, value in alone.items():
            # Heatmaps of random weights are flat: rounding decides which of two neighbouring pixels is the best.
            pixels_off = 1.0 if name == "keypoints" else 0.02
            np.testing.assert_allclose(together[name][i], value[0], rtol=1e-3, atol=pixels_off, err_msg=f"{name} of image {i}")


def test_without_own_canvases_the_layers_change_nothing() -> None:
    x = tf.constant(np.random.default_rng(0).normal(1, 2, (2, 8, 8, 16)), tf.float32)
    assert OwnCanvas(4)(x) is not None and np.array_equal(OwnCanvas(4)(x), x)
    with own_canvases(tf.constant([[32, 32], [32, 16]]), 32, 32):
        assert np.array_equal(OwnCanvas(4)(x)[0], x[0]) and not OwnCanvas(4)(x)[1, :, 4:].numpy().any()
        np.testing.assert_allclose(GroupNorm(1e-5, 4)(x)[1, :, :4], GroupNorm(1e-5)(x[1:, :, :4])[0], atol=1e-5)
    assert np.array_equal(GroupNorm(1e-5, 4)(x), GroupNorm(1e-5)(x))
