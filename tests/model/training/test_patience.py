"""Training stops when the keypoint AP has not risen for long, says why, and does not forget the count."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from model.checkpoint_files import newest_checkpoint
from model.config import Config
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.loop import Run, train
from model.training.metrics_log import MetricsLog
from model.training.patience import reason_to_stop
from model.training.strategies import make_strategy
from pipeline.record_folder import RecordFolder


def evaluations(*figures: float | None) -> list[tuple[int, dict[str, float | None]]]:
    return [(10 * number, {"keypoint_ap": ap}) for number, ap in enumerate(figures, 1)]


@pytest.mark.parametrize(
    ("figures", "patience", "stops"),
    [
        ([], 1, False),
        ([0.1], 1, False),
        ([0.1, 0.2, 0.3], 1, False),
        ([0.1, 0.1], 1, True),
        ([0.3, 0.2, 0.29], 3, False),
        ([0.3, 0.2, 0.29, 0.3], 3, True),
        ([0.3, 0.2, 0.29, 0.31], 3, False),
        ([0.0, 0.0, 0.0], 2, True),
        ([-1.0, -1.0, -1.0], 2, False),  # nobody is annotated: nothing can be judged
        ([0.3, None, 0.2, None, 0.1], 2, True),
        ([0.3, 0.2, 0.1, None], 2, False),  # the newest evaluation says nothing
    ],
)
def test_when_training_stops(figures: list[float | None], patience: int, stops: bool) -> None:
    reason = reason_to_stop(evaluations(*figures), patience, 10 * len(figures))
    assert (reason is not None) == stops
    assert reason_to_stop(evaluations(*figures), patience, 10 * len(figures) + 1) is None


def test_a_training_stops_early_and_a_resumed_one_keeps_the_count(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {1: 0.2, 2: 0.1, 3: 0.2, 4: 0.1}
    evaluated: list[int] = []

    def validate(model: KeypointRCNN, log: MetricsLog | None, step: int, hear: Callable[[], None]) -> None:
        assert log is not None
        evaluated.append(step)
        log.evaluation(step, {"keypoint_ap": figures[step]})

    def run(steps: int, patience: int) -> str:
        config = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, steps=steps))
        settings = Run(tmp_path / "run", evaluate_every=1, patience=patience)
        train(config, record_folder, "train", settings, make_strategy("one_device"), validate)
        return capsys.readouterr().out

    run(2, 3)  # its second evaluation is the first without a gain
    printed = run(6, 3)
    assert evaluated == [1, 2, 3, 4] and newest_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoints/step-4")
    assert (
        "train: stops early after step 4: the keypoint AP has not exceeded the 0.200 of step 1 in the 3 evaluations" in printed
    )
    assert "train: 4 steps done" in printed
    assert "train: stops early after step 4" in run(6, 3) and evaluated == [1, 2, 3, 4]
