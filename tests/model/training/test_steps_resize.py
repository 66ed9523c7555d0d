"""Trainings whose steps resize the images: what the loader's resize gives, but for rounding; resumption to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tensorflow as tf

from model import model_dir
from model.config import Config
from model.training.loop import Run, train
from model.training.step import Learner
from model.training.strategies import distribute, make_strategy
from pipeline.loading.batches import training_batches
from pipeline.record_folder import RecordFolder


def with_resize_on(config: Config, place: str, **changes: float) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, resize_on=place, **changes))  # type: ignore[arg-type]


def test_a_step_has_the_loss_of_one_with_resized_images(record_folder: RecordFolder, small_config: Config) -> None:
    """With colours."""
    config = with_resize_on(small_config, "device", brightness=0.4, hue=0.1)
    learner = Learner(config, record_folder.skeleton, make_strategy("one_device"), precision="float32", jit_compile=False)
    losses = []
    for originals in (False, True):
        batches = training_batches(
            record_folder, "train", config.data, global_batch_size=2, seed=3, num_steps=1, originals=originals
        )
        batch = next(distribute(batches, learner.strategy))
        assert ("source" in batch) == originals
        metrics = learner.take_step(batch, tf.constant(0.0), tf.constant(5), tf.constant(0.0))
        losses.append({name: float(value) for name, value in metrics.items()})
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_resuming_equals_never_having_stopped(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_resize_on(small_config, "device")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, record_folder, "train", Run(whole), make_strategy("one_device"))
    assert "train: the steps resize the images (data.resize_on)\n" in capsys.readouterr().out

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    with pytest.raises(StopError):  # as a crash just after step 2 was saved
        train(config, record_folder, "train", Run(parts, evaluate_every=2), make_strategy("one_device"), stop)
    train(config, record_folder, "train", Run(parts), make_strategy("one_device"))
    expected, found = (model_dir.load_model(path).variables_by_path() for path in (whole, parts))
    for path, variable in expected.items():
        assert found[path].numpy().tobytes() == variable.numpy().tobytes(), path
