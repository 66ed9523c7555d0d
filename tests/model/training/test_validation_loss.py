"""The losses of a held-out split: those of its images at once, the same again, and without a trace in the model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model.config import Config
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.metrics_log import LOSSES
from model.training.validation_loss import SEED, ValidationLoss
from pipeline.command import UserError
from pipeline.loading.batches import training_batches
from pipeline.record_folder import RecordFolder
from tests.model.training.test_loop import taking_every_roi


def with_batches_of(config: Config, size: int, **backbone: Any) -> Config:
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, num_canvases=1, flip=True),
        train=dataclasses.replace(config.train, global_batch_size=size, keypoint_loss_weight=0.5),
        backbone=dataclasses.replace(config.backbone, **backbone),
    )


def quiet() -> None: ...


def test_it_is_the_loss_of_all_images_at_once_whatever_the_batch(record_folder: RecordFolder, small_config: Config) -> None:
    config = with_batches_of(taking_every_roi(small_config), 12)
    model = KeypointRCNN(config, record_folder.skeleton)
    seen = dataclasses.replace(config.data, flip=False, short_edges=(96,))
    batches = training_batches(record_folder, "train", seen, global_batch_size=12, seed=SEED, num_steps=1)
    losses, watched = model.losses(next(iter(batches)), tf.constant(SEED))
    expected = {name: float(total / count) for name, (total, count) in losses.items()}
    assert float(watched["positive_rois"]) > 0
    for size in (12, 5):  # the second with padding images
        found = ValidationLoss(record_folder, "train", with_batches_of(config, size))(model, quiet)
        for name in LOSSES:
            assert found[f"validation_{name}"] == pytest.approx(expected[name], rel=1e-3), (size, name)
        whole = sum(value * (0.5 if name == "keypoint" else 1.0) for name, value in expected.items())
        assert found["validation_loss"] == pytest.approx(whole, rel=1e-3)


def test_it_is_the_same_again_and_changes_nothing(record_folder: RecordFolder, small_config: Config) -> None:
    config = with_batches_of(small_config, 4, norm="sync_batch")
    model = KeypointRCNN(config, record_folder.skeleton)
    before = {path: variable.numpy() for path, variable in model.variables_by_path().items()}
    loss = ValidationLoss(record_folder, "train", config)
    assert loss(model, quiet) == loss(model, quiet)
    for path, variable in model.variables_by_path().items():
        np.testing.assert_array_equal(variable, before[path], path)

    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    with pytest.raises(StopError):
        loss(model, stop)


def test_a_split_without_keypoints_is_told_before_training(record_folder: RecordFolder, small_config: Config) -> None:
    nobody = dataclasses.replace(small_config, data=dataclasses.replace(small_config.data, short_edges=(64,)))
    with pytest.raises(UserError, match="short edges"):
        ValidationLoss(record_folder, "train", nobody)
