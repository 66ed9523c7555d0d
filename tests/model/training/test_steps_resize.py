"""Trainings whose steps resize the images: what the loader's resize gives, except for rounding."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model.config import Config
from model.training.loop import Run, train
from model.training.step import Learner
from model.training.strategies import distribute, make_strategy
from pipeline.loading.batches import training_batches
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig


def with_resize_on(config: Config, place: str, **changes: float) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, resize_on=place, **changes))  # type: ignore[arg-type]


@pytest.fixture
def two_classes(record_folder: RecordFolder, tmp_path: Path) -> RecordFolder:
    """The records again, with every other person in a class of its own."""
    rendered = record_folder.path.parent
    content = json.loads((rendered / "annotations" / "person_keypoints_train.json").read_text())
    content["categories"].append({**content["categories"][0], "id": 2, "name": "referee"})
    for person in content["annotations"][::2]:
        person["category_id"] = 2
    (tmp_path / "two.json").write_text(json.dumps(content))
    config = ConversionConfig(short_edges=(96, 128), max_edge=192, category="all", classes=True)
    convert(tmp_path / "two.json", rendered / "train", tmp_path / "records", "train", config)
    return open_record_folder(tmp_path / "records")


def test_a_step_has_the_loss_of_one_with_resized_images(two_classes: RecordFolder, small_config: Config) -> None:
    """With colours, and people of two classes."""
    config = with_resize_on(small_config, "device", brightness=0.4, hue=0.1)
    learner = Learner(config, two_classes.skeleton, make_strategy("one_device"), precision="float32", jit_compile=False)
    losses, classes = [], []
    for originals in (False, True):
        batches = training_batches(
            two_classes, "train", config.data, global_batch_size=2, seed=3, num_steps=1, originals=originals
        )
        batch = next(distribute(batches, learner.strategy))
        assert ("source" in batch) == originals
        classes.append(batch["box_class"].numpy())
        metrics = learner.take_step(batch, tf.constant(0.0), tf.constant(5), tf.constant(0.0))
        losses.append({name: float(value) for name, value in metrics.items()})
    np.testing.assert_array_equal(*classes)
    assert {1, 2} <= set(classes[0].ravel().tolist())
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_a_training_says_that_its_steps_resize(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_resize_on(small_config, "device")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=1))
    train(config, record_folder, "train", Run(tmp_path), make_strategy("one_device"))
    lines = capsys.readouterr().out.splitlines()
    assert "train: the steps resize the images (data.resize_on)" in lines
    assert lines[-1].startswith("train: 1 step done")
