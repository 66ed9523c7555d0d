"""Losses that are not finite: the run stops or leaves the step out, which then changes nothing at all."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model.config import Config
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.loop import Run, train
from model.training.step import Learner
from model.training.strategies import make_strategy
from pipeline.command import UserError
from pipeline.loading.batches import training_batches
from pipeline.record_folder import RecordFolder


def poison(monkeypatch: pytest.MonkeyPatch, image_ids: list[int] | None) -> None:
    """Makes the keypoint loss of batches that hold one of the images NaN; of all batches if `image_ids` is None."""
    honest = KeypointRCNN.losses

    def losses(self: KeypointRCNN, batch: dict[str, tf.Tensor], seed: tf.Tensor) -> Any:
        found, watched = honest(self, batch, seed)
        bad = tf.constant(True)
        if image_ids is not None:
            bad = tf.reduce_any(batch["image_id"][:, None] == tf.constant(image_ids, tf.int64))
        total, count = found["keypoint"]
        return {**found, "keypoint": (total + tf.where(bad, math.nan, 0.0), count)}, watched

    monkeypatch.setattr(KeypointRCNN, "losses", losses)


def images_of_step(record_folder: RecordFolder, config: Config, step: int) -> list[int]:
    batches = training_batches(
        record_folder,
        "train",
        config.data,
        global_batch_size=config.train.global_batch_size,
        seed=config.train.seed,
        start_step=step,
        num_steps=1,
    )
    return [int(i) for i in next(iter(batches))["image_id"].numpy() if i >= 0]


def test_a_step_whose_loss_is_not_finite_changes_nothing(
    record_folder: RecordFolder, small_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(iter(training_batches(record_folder, "train", small_config.data, global_batch_size=2, seed=0, num_steps=1)))
    poison(monkeypatch, [99_999])
    learner = Learner(small_config, record_folder.skeleton, make_strategy("one_device"), precision="float32", jit_compile=False)
    scalars = tf.constant(0.1), tf.constant(5), tf.constant(0.0)
    learner.take_step(batch, *scalars)  # gives the momentum a value

    def state() -> dict[str, np.ndarray]:
        variables = learner.model.variables_by_path() | learner.optimizer.variables_by_path()
        return {path: variable.numpy() for path, variable in variables.items()}

    before = state()
    poisoned = {**batch, "image_id": tf.fill(tf.shape(batch["image_id"]), tf.constant(99_999, tf.int64))}
    metrics = learner.take_step(poisoned, *scalars)
    assert math.isnan(metrics["loss"]) and float(metrics["skipped"]) == 1
    after = state()
    for path, value in before.items():
        assert after[path].tobytes() == value.tobytes(), path
    assert float(learner.take_step(batch, *scalars)["skipped"]) == 0
    assert any(value.tobytes() != before[path].tobytes() for path, value in state().items())


def test_a_loss_that_is_not_finite_is_left_out_where_asked(
    record_folder: RecordFolder,
    small_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = images_of_step(record_folder, small_config, 1)
    poison(monkeypatch, bad)
    run = Run(tmp_path / "run", log_every=1, on_nonfinite="skip")
    train(small_config, record_folder, "train", run, make_strategy("one_device"))
    output = capsys.readouterr().out
    assert f"train: step 1: the loss keypoint is nan on images {bad}; the step changes nothing" in output
    assert "1 of them skipped (gradient not finite)" in output
    lines = [json.loads(line) for line in (run.model_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [1, 0] and lines[0]["keypoint"] is None and lines[0]["rpn_box"] is not None
    with pytest.raises(UserError, match=r"step 1: the loss keypoint is nan on images \[.*lower --learning_rate"):
        train(small_config, record_folder, "train", Run(tmp_path / "stops"), make_strategy("one_device"))


def test_losses_that_are_never_finite_end_the_run(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under a dynamic loss scale, which halves at each such step and could go on so for a while."""
    poison(monkeypatch, None)
    longer = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, steps=30))
    run = Run(tmp_path / "run", precision="mixed_float16", on_nonfinite="skip")
    with pytest.raises(UserError, match=r"step 10: no gradient of the last 11 steps was finite"):
        train(longer, record_folder, "train", run, make_strategy("one_device"))
