"""Batch normalisation over replicas: two replicas equal one with twice the batch, in answers, gradients and statistics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from model import model_dir
from model.config import Config
from model.network.keypoint_rcnn import KeypointRCNN
from model.network.sync_batch_norm import SyncBatchNorm
from model.training.loop import Run, train
from model.training.strategies import make_strategy
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder
from tests.model.training.test_accumulation import step_of
from tests.model.training.test_loop import taking_every_roi


def sync_batch(config: Config, **changes: Any) -> Config:
    norm = dataclasses.replace(config.backbone, norm="sync_batch")
    return dataclasses.replace(config, backbone=norm, train=dataclasses.replace(config.train, **changes))


def layer_with(random: np.random.Generator, channels: int, **options: Any) -> SyncBatchNorm:
    layer = SyncBatchNorm(1e-3, **options)
    layer.build((None, None, None, channels))
    for name in ("gamma", "beta", "mean", "variance"):
        getattr(layer, name).assign(random.uniform(0.5, 2, channels))
    return layer


def test_on_one_device_it_is_keras_own() -> None:
    random = np.random.default_rng(0)
    ours = layer_with(random, 5)
    theirs = keras.layers.BatchNormalization(epsilon=1e-3, momentum=0.9)
    theirs.build((None, None, None, 5))
    for name, its in (("gamma", "gamma"), ("beta", "beta"), ("mean", "moving_mean"), ("variance", "moving_variance")):
        getattr(theirs, its).assign(getattr(ours, name))
    x = tf.constant(random.normal(2, 3, (3, 7, 6, 5)), tf.float32)
    upstream = tf.constant(random.normal(0, 1, x.shape), tf.float32)
    before = ours.variance.numpy()
    for training in (False, True):  # (training moves the statistics, of which the variances differ, below)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            answers = [layer(x, training=training) for layer in (ours, theirs)]
            losses = [tf.reduce_sum(answer * upstream) for answer in answers]
        np.testing.assert_allclose(answers[0], answers[1], atol=2e-5)
        for source in ("gamma", "beta"):
            own, other = (
                tape.gradient(loss, getattr(each, source).value) for loss, each in zip(losses, (ours, theirs), strict=True)
            )
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(tape.gradient(losses[0], x), tape.gradient(losses[1], x), atol=1e-4)
    np.testing.assert_allclose(ours.mean, theirs.moving_mean, rtol=1e-5)
    places = 3 * 7 * 6  # Keras takes the biased variance, PyTorch the unbiased one
    biased = (theirs.moving_variance.numpy() - 0.9 * before) * places / (places - 1) + 0.9 * before
    np.testing.assert_allclose(ours.variance, biased, rtol=1e-4)


def test_a_batch_that_is_not_finite_leaves_the_statistics_as_they_are() -> None:
    layer = layer_with(np.random.default_rng(0), 2)
    before = layer.mean.numpy(), layer.variance.numpy()
    layer(tf.constant([[[[np.inf, 1.0]]]]), training=True)
    np.testing.assert_array_equal(layer.mean, before[0])
    np.testing.assert_array_equal(layer.variance, before[1])


def test_a_frozen_layer_takes_its_moving_statistics_in_training() -> None:
    layer = layer_with(np.random.default_rng(0), 3)
    layer.trainable = False
    x = tf.random.stateless_normal([2, 4, 4, 3], [1, 2])
    before = layer.mean.numpy()
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    np.testing.assert_array_equal(layer.mean, before)


def test_float16_has_float32_statistics() -> None:
    layer = SyncBatchNorm(1e-3, dtype="mixed_float16")
    x = tf.constant(np.random.default_rng(0).normal(300, 50, (2, 40, 40, 4)), tf.float16)  # their squares overflow
    answer = layer(x, training=True)
    assert answer.dtype == tf.float16 and np.isfinite(answer).all() and abs(float(tf.reduce_mean(answer))) < 0.1
    assert layer.mean.dtype == "float32" and np.all(layer.variance.numpy() > 100)


def test_two_replicas_equal_one_of_twice_the_batch(
    record_folder: RecordFolder,
    small_config: Config,
    two_replicas: tf.distribute.Strategy,
) -> None:
    plain = {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0}
    config = sync_batch(taking_every_roi(small_config), global_batch_size=4, **plain)
    expected_metrics, expected, one = step_of(config, record_folder, make_strategy("one_device"))
    metrics, found, two = step_of(config, record_folder, two_replicas)
    for name, value in expected_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name
    paths = list(one.model.variables_by_path(trainable_only=True))
    assert "backbone.bn1/gamma" in paths and "backbone.bn1/mean" not in paths
    for path in paths:
        atol = 5e-5 * max(1.0, float(np.abs(expected[path]).max()))
        np.testing.assert_allclose(found[path], expected[path], rtol=5e-3, atol=atol, err_msg=path)
    fresh = KeypointRCNN(config, record_folder.skeleton, seed=config.train.seed).variables_by_path()
    statistics = [path for path in fresh if path.endswith(("/mean", "/variance"))]
    assert len(statistics) >= 2 * 16
    for path in statistics:
        on_both = [value.numpy() for value in two_replicas.experimental_local_results(two.model.variables_by_path()[path])]
        np.testing.assert_array_equal(on_both[0], on_both[1], path)
        own = one.model.variables_by_path()[path].numpy()
        np.testing.assert_allclose(on_both[0], own, rtol=1e-3, atol=1e-4 * np.abs(own).max(), err_msg=path)
        assert not np.allclose(own, fresh[path]), path


def test_statistics_are_saved_and_frozen_layers_keep_theirs(
    record_folder: RecordFolder,
    small_config: Config,
    tmp_path: Path,
) -> None:
    config = sync_batch(small_config, steps=1, freeze=("backbone.layer1.*",))
    train(config, record_folder, "train", Run(tmp_path), make_strategy("one_device"))
    model = model_dir.load_model(tmp_path)
    for path, variable in model.variables_by_path().items():
        if path.endswith("/variance"):
            assert np.all(variable.numpy() == 1) == path.startswith("backbone.layer1."), path
    images = tf.zeros([1, 64, 64, 3], tf.uint8)
    assert all(np.isfinite(value).all() for value in model.detect(images, tf.constant([[64, 64]])).values())


def test_accumulation_in_parts_is_refused(small_config: Config) -> None:
    with pytest.raises(UserError, match=r"train\.accumulate=2: with backbone\.norm=sync_batch"):
        sync_batch(small_config, accumulate=2)
