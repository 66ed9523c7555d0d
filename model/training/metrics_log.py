"""What is seen while a model trains: `metrics.jsonl` (one object a line) and TensorBoard's scalars and images."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipeline.files import write_file

LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box_delta", "keypoint")


class Interval:
    """Means of the steps between two lines of the log, images per second, share of time spent waiting for data."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self.steps = 0
        self._sums: dict[str, float] = {}
        self._waited = 0.0
        self._start = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.monotonic()
        yield
        self._waited += time.monotonic() - asked

    def add(self, values: Mapping[str, float]) -> None:
        """Counts one step."""
        self.steps += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        seconds = time.monotonic() - self._start
        return {name: total / self.steps for name, total in self._sums.items()} | {
            "images_per_second": self.steps * self._batch_size / seconds,
            "waiting": self._waited / seconds,
        }


class MetricsLog:
    """Appends to the logs of a model directory.

    Lines of a step after `first_step`, left by a run that went on past its last checkpoint, are removed.
    """

    def __init__(self, model_dir: Path, first_step: int) -> None:
        self._path = model_dir / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _step(line) <= first_step]
            write_file(self._path, "".join(line + "\n" for line in kept))
        self._writer = tf.summary.create_file_writer(str(model_dir / "tensorboard"))

    def train(self, step: int, values: Mapping[str, float]) -> None:
        self._write("train", step, values)

    def evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        self._write("eval", step, figures)

    def images(self, step: int, images: Sequence[np.ndarray]) -> None:
        """uint8 [H, W, 3] each: prediction beside truth."""
        with self._writer.as_default():
            for index, image in enumerate(images):
                tf.summary.image(f"images/{index}", image[np.newaxis], step=step)
        self._writer.flush()

    def _write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        record = {"kind": kind, "step": step} | {name: float(f"{value:.6g}") for name, value in values.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(f"{kind}/{name}", value, step=step)
        self._writer.flush()

    @staticmethod
    def line(values: Mapping[str, float]) -> str:
        """The progress line: losses, speed, share of time spent waiting for data."""
        parts = " ".join(f"{name} {values[name]:.3f}" for name in LOSSES)
        return (
            f"loss {values['loss']:.3f} ({parts}), {values['images_per_second']:.1f} images/s, "
            f"{values['waiting']:.0%} waiting for data"
        )


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by a crash
        return 2**62
