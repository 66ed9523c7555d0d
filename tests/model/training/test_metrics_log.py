"""The log of a training: JSON always, each step once, also after a resumption and on a full disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util.event_pb2 import Event

from model.training.metrics_log import LOSSES, Interval, MetricsLog, notes
from tests.full_disk import full_disk


def step_values(loss: float, *, skipped: bool = False, images: float = 2.0) -> dict[str, float]:
    norm = math.nan if skipped else 3.0
    return dict.fromkeys(LOSSES, loss / 5) | {
        "loss": loss, "gradient_norm": norm, "skipped": float(skipped), "images": images
    }  # fmt: skip


def strictly(line: str) -> dict[str, float | str | None]:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    return dict(json.loads(line, parse_constant=refuse))


def test_a_skipped_step_does_not_spoil_its_interval(tmp_path: Path) -> None:
    interval, log = Interval(), MetricsLog(tmp_path, 0)
    interval.add(step_values(4.0))
    interval.add(step_values(2.0, skipped=True))
    means = interval.means()
    assert means["gradient_norm"] == 3.0 and means["loss"] == 3.0 and means["skipped"] == 0.5
    assert notes(means, interval)[:2] == ["loss 3.000", "1 of 2 steps skipped (gradient not finite)"]
    log.train(2, means)
    interval.restart()
    interval.add(step_values(2.0, skipped=True))
    log.train(3, interval.means())
    log.close()
    lines = [strictly(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["gradient_norm"] for line in lines] == [3.0, None]


def test_padding_images_are_not_counted() -> None:
    interval = Interval()
    for images in (2.0, 0.5):
        interval.add(step_values(1.0, images=images))
    interval._start -= 100.0
    assert interval.means()["images_per_second"] == pytest.approx(2.5 / 100, rel=0.01)


def test_the_notes_begin_with_the_most_important() -> None:
    interval = Interval()
    interval.add(step_values(1.0))
    first = notes(interval.means(), interval)
    assert [part.split()[0] for part in first[:2]] == ["loss", "keypoint"]
    assert first[2].endswith("images/s") and first[3].endswith("waiting for data")


def scalar_steps(folder: Path) -> list[int]:
    return [
        event.step
        for path in sorted(folder.glob("events.*"))
        for event in (Event.FromString(record) for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
        if event.summary.value
    ]


def test_tensorboard_explains_curves_and_images(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.train(1, {"loss": 1.0, "keypoint_overflow": 0.0})
    log.evaluation(1, {"keypoint_ap": 0.5})
    log.images(1, [np.zeros((8, 8, 3), np.uint8)])
    log.close()
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    records = tf.data.TFRecordDataset(str(events)).as_numpy_iterator()
    values = [value for record in records for value in Event.FromString(record).summary.value]
    said = {value.tag: value.metadata.summary_description for value in values}
    assert set(said) == {"train/loss", "train/keypoint_overflow", "eval/keypoint_ap", "images/0"}
    assert "OKS thresholds" in said["eval/keypoint_ap"] and "annotations on the left" in said["images/0"] and all(said.values())


def test_steps_that_are_repeated_are_logged_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3, 4):
        log.train(step, {"loss": 1.0})
    log.images(4, [np.zeros((8, 8, 3), np.uint8)])
    log.evaluation(2, {"keypoint_ap": 0.5})
    log.close()
    again = MetricsLog(tmp_path, 2)
    assert again.has_evaluation(2) and not again.has_evaluation(1)
    for step in (3, 4):
        again.train(step, {"loss": 2.0})
    again.close()
    lines = [strictly(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert sorted(scalar_steps(tmp_path / "tensorboard")) == [1, 2, 2, 3, 4]


def test_events_cut_short_by_a_crash_are_kept_up_to_the_cut(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2):
        log.train(step, {"loss": 1.0})
    log.close()
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    events.write_bytes(events.read_bytes()[:-5])
    MetricsLog(tmp_path, 5).close()
    assert scalar_steps(tmp_path / "tensorboard") == [1]


def test_a_log_on_a_full_disk_is_told_once_and_holds_no_half_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = MetricsLog(tmp_path, 0)
    log.train(1, {"loss": 1.0})
    with full_disk((tmp_path / "metrics.jsonl").stat().st_size + 20):
        log.train(2, {"loss": 1.0})
        log.train(3, {"loss": 1.0})
    log.train(4, {"loss": 1.0})
    log.close()
    lines = [strictly(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4]
    output = capsys.readouterr().out
    assert output.count(f"train: {tmp_path}: the log cannot be written (") == 1 and "2 lines or images" in output
