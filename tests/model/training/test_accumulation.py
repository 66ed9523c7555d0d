"""A batch in parts gives the metrics and the weights of one that is computed at once, and frozen layers change no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from model.config import Config
from model.network.rpn import rpn_outputs
from model.training import arithmetic
from model.training.loop import Run, train
from model.training.step import Learner
from model.training.strategies import distribute, make_strategy
from model.training.throughput import Throughput
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder
from tests.model.training.test_loop import COLOURS, global_batch, taking_every_roi

FROZEN = ("backbone.layer1.*", "fpn.inner.3")
Taken = tuple[dict[str, float], dict[str, NDArray[Any]], Learner]


def in_parts(config: Config, parts: int, **values: object) -> Config:
    train_config = dataclasses.replace(config.train, accumulate=parts, **values)  # type: ignore[arg-type]
    return dataclasses.replace(config, train=train_config)


@pytest.fixture(scope="module")
def config(small_config: Config) -> Config:
    """Four images a batch, of unlike numbers of people, with draws of colours that must not depend on the parts."""
    every_roi = taking_every_roi(small_config)
    data = dataclasses.replace(small_config.data, **COLOURS)
    plain = {"global_batch_size": 4, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0}
    return in_parts(dataclasses.replace(every_roi, data=data), 1, **plain)


def step_of(
    config: Config, record_folder: RecordFolder, strategy: tf.distribute.Strategy, precision: str = "float32", **options: Any
) -> Taken:
    """Metrics of one step at a learning rate of 1, and by how much it moved each variable: its gradient."""
    options = {"jit_compile": False} | options
    learner = Learner(config, record_folder.skeleton, strategy, precision=precision, **options)
    if precision == "mixed_float16":
        learner.optimizer.variables_by_path()["loss_scale"].assign(64.0)  # at which nothing overflows
    before = {path: variable.numpy() for path, variable in learner.model.variables_by_path().items()}
    batch = next(iter(distribute(tf.data.Dataset.from_tensors(global_batch(record_folder, config)), strategy)))
    metrics = learner.take_step(batch, tf.constant(1.0), tf.constant(7), tf.constant(0.0))
    moved = {path: before[path] - variable.numpy() for path, variable in learner.model.variables_by_path().items()}
    return {name: float(value) for name, value in metrics.items()}, moved, learner


@pytest.fixture(scope="module")
def whole(record_folder: RecordFolder, config: Config) -> Taken:
    return step_of(config, record_folder, make_strategy("one_device"))


def assert_same_gradients(found: Taken, expected: Taken) -> None:
    for name, value in expected[0].items():
        if name != "gradient_norm" or not found[2].frozen:
            assert found[0][name] == pytest.approx(value, rel=1e-3), name
    assert found[0]["keypoint_overflow"] == 0 and found[0]["images"] == 4
    for path, gradient in expected[1].items():
        if path not in found[2].frozen:
            # (The keypoint deconvolution's bias has a gradient of exactly zero; what is there is rounding.)
            scale = max(1.0, float(np.abs(gradient).max()))
            np.testing.assert_allclose(found[1][path], gradient, rtol=2e-3, atol=2e-5 * scale, err_msg=path)


def test_four_parts_give_the_gradients_of_the_whole(record_folder: RecordFolder, config: Config, whole: Taken) -> None:
    found = step_of(in_parts(config, 4), record_folder, make_strategy("one_device"))
    assert_same_gradients(found, whole)
    # In MFU, every part counts, and the first stage's way forward once more.
    batch = global_batch(record_folder, config)
    arguments = (batch, tf.constant(1.0), tf.constant(7), tf.constant(0.0))
    products = [Throughput(one[2], "float32", None, settled_after=1).products(arguments) for one in (found, whole)]
    model = whole[2].model
    first_stage = tf.function(
        lambda images, sizes: rpn_outputs(model.rpn_head, model.pyramid(images, sizes, training=True)), autograph=False
    )
    assert products[0] is not None and products[1] is not None
    assert products[0] - products[1] == arithmetic.products(first_stage, (batch["image"], batch["image_size"]))


def test_parts_on_two_replicas_and_frozen_layers_change_no_other_gradient(
    record_folder: RecordFolder, config: Config, whole: Taken, two_replicas: tf.distribute.Strategy
) -> None:
    found = step_of(in_parts(config, 2, freeze=FROZEN), record_folder, two_replicas)
    assert_same_gradients(found, whole)
    frozen, optimizer = found[2].frozen, found[2].optimizer
    assert frozen and all(path.startswith(("backbone.layer1.", "fpn.inner.3/")) for path in frozen)
    for path, moved in found[1].items():
        assert np.any(moved) != (path in frozen) or path.endswith("deconv/bias"), path
        assert (f"velocity/{path}" in optimizer.variables_by_path()) != (path in frozen), path


def test_parts_with_a_scaled_loss(record_folder: RecordFolder, config: Config, whole: Taken) -> None:
    metrics, _, _ = step_of(in_parts(config, 2), record_folder, make_strategy("one_device"), "mixed_float16")
    assert metrics["loss_scale"] == 64 and metrics["skipped"] == 0
    assert metrics["loss"] == pytest.approx(whole[0]["loss"], rel=0.02)
    assert metrics["gradient_norm"] == pytest.approx(whole[0]["gradient_norm"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_a_compiled_step_equals_an_interpreted_one(
    record_folder: RecordFolder, config: Config, whole: Taken, parts: int
) -> None:
    metrics, _, _ = step_of(in_parts(config, parts), record_folder, make_strategy("one_device"), jit_compile=True)
    for name, value in whole[0].items():
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_a_batch_that_has_no_such_parts_is_refused(
    record_folder: RecordFolder, config: Config, tmp_path: Path, two_replicas: tf.distribute.Strategy
) -> None:
    with pytest.raises(
        UserError, match=r"--batch_size=4: .* the 1 replicas that share it and the 3 parts of train\.accumulate"
    ):
        train(in_parts(config, 3), record_folder, "train", Run(tmp_path), make_strategy("one_device"))
    with pytest.raises(
        UserError, match=r"--batch_size=4: .* the 2 replicas that share it and the 4 parts of train\.accumulate"
    ):
        train(in_parts(config, 4), record_folder, "train", Run(tmp_path), two_replicas)
