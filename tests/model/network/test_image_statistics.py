"""Group norms that take their statistics from the image: neither the canvas nor its company changes an image's features."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from model.config import TINY, Config, from_json, to_json
from model.network.keypoint_rcnn import KeypointRCNN
from model.network.layers import group_norm
from pipeline.skeleton import Skeleton
from tests.model.conftest import random_batch


@pytest.fixture(scope="module")
def config(small_config: Config) -> Config:
    return dataclasses.replace(small_config, backbone=dataclasses.replace(small_config.backbone, group_statistics="image"))


def test_models_of_earlier_versions_keep_their_statistics() -> None:
    written = to_json(TINY)
    del written["backbone"]["group_statistics"]
    assert from_json(written).backbone.group_statistics == "canvas"


@pytest.mark.parametrize("statistics", ["canvas", "image"])
def test_features_of_an_image_on_a_larger_canvas(small_config: Config, skeleton: Skeleton, statistics: str) -> None:
    backbone = dataclasses.replace(small_config.backbone, group_statistics=statistics)  # type: ignore[arg-type]
    model = KeypointRCNN(dataclasses.replace(small_config, backbone=backbone), skeleton)
    for variable in model.variables_by_path().values():  # biases and norms' shifts of 0 would hide what padding does
        variable.assign_add(tf.random.stateless_normal(variable.shape, [1, 2], stddev=0.1))
    image = tf.constant(np.random.default_rng(0).integers(0, 255, (1, 71, 90, 3)), tf.uint8)
    size = tf.constant([[71, 90]])
    small, large = (
        tf.pad(image, [[0, 0], [0, rows - 71], [0, columns - 90], [0, 0]]) for rows, columns in ((96, 96), (160, 224))
    )
    for level, (ours, theirs) in enumerate(zip(model.pyramid(small, size), model.pyramid(large, size), strict=True)):
        rows, columns = (-(-side // (4 * 2**level)) for side in (71, 90))
        seen = [features[:, :rows, :columns].numpy() for features in (ours, theirs)]
        same = np.abs(seen[0] - seen[1]).max() <= 1e-4 * np.abs(seen[0]).max()
        assert same == (statistics == "image"), level
        if statistics == "image" and level < 4:
            assert not np.any(theirs[:, rows:]) and not np.any(theirs[:, :, columns:])


def test_the_gradient_is_the_one_that_tensorflow_derives() -> None:
    random = np.random.default_rng(1)
    x = tf.constant(random.normal(2, 3, (2, 9, 7, 16)), tf.float32)
    upstream = tf.constant(random.normal(0, 1, x.shape), tf.float32)
    gamma, beta = (tf.constant(random.normal(1, 0.3, 16), tf.float32) for _ in range(2))
    places = tf.cast(tf.reshape(tf.range(9) < 6, [1, 9, 1, 1]) & tf.reshape(tf.range(7) < 5, [1, 1, 7, 1]), tf.float32)
    places = tf.concat([places, tf.ones_like(places)], 0)
    answers, gradients = [], []
    for training in (True, False):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            answer = group_norm(x, gamma, beta, groups=4, epsilon=1e-5, training=training, places=places)
        answers.append(answer)
        gradients.append(tape.gradient(answer, [x, gamma, beta], upstream))
    alone = group_norm(x[:1, :6, :5], gamma, beta, groups=4, epsilon=1e-5, training=False)
    np.testing.assert_allclose(answers[0][:1, :6, :5], alone, atol=1e-5)
    for written_out, derived in zip(*gradients, strict=True):
        np.testing.assert_allclose(written_out, derived, atol=1e-4)


def test_losses_with_padding_images_are_finite_and_those_without(config: Config, skeleton: Skeleton) -> None:
    model = KeypointRCNN(config, skeleton)
    batch = random_batch(config, skeleton, 2)
    padding = {name: tf.zeros_like(value[:1]) for name, value in batch.items()}
    padding |= {"image_id": tf.constant([-1], tf.int64), "anchor_label": tf.fill(padding["anchor_label"].shape, -1)}
    longer = {name: tf.concat([batch[name], padding[name]], 0) for name in batch}
    variables = list(model.variables_by_path(trainable_only=True).values())
    results = []
    for each in (batch, longer):
        with tf.GradientTape() as tape:
            losses, _ = model.losses(each, tf.constant(3))
            loss = tf.add_n([total / tf.maximum(count, 1.0) for total, count in losses.values()])
        results.append((float(loss), tf.linalg.global_norm(tape.gradient(loss, variables, unconnected_gradients="zero"))))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3)
    assert np.isfinite(results[0]).all()
