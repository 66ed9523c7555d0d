"""What a training shows while it runs: `metrics.jsonl` (one object a line), and TensorBoard's scalars and images."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.util.event_pb2 import Event

from model.training.metric_descriptions import DESCRIPTIONS, OF_IMAGES
from pipeline.command import reason_of, say
from pipeline.files import publish, write_file

LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box_delta", "keypoint")


class Interval:
    """Means of the steps between two lines of the log, images per second, the share of time spent waiting for data, and MFU.

    Args:
      peak_tflops: of all devices together; None if it is not known.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self._peak = peak_tflops
        self.restart()

    def restart(self) -> None:
        self.steps = self.skipped = 0
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._waited = 0.0
        self._products: float | None = 0.0
        self._start = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.monotonic()
        yield
        self._waited += time.monotonic() - asked

    def add(self, values: Mapping[str, float], products: float | None = None) -> None:
        """Counts one step. `skipped`: whether its gradient was not finite, and so has no norm, and perhaps no losses.

        Args:
          products: the step's floating-point operations; None if they are not known.
        """
        self._products = None if products is None or self._products is None else self._products + products
        self.steps += 1
        self.skipped += values.get("skipped", 0.0) > 0
        for name, value in values.items():
            if math.isfinite(value):
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1
            else:
                self._counts.setdefault(name, 0)

    def means(self) -> dict[str, float]:
        """The means of the interval by name, over the steps in which a value is finite; NaN if it is in none."""
        seconds = time.monotonic() - self._start
        means = {name: self._sums[name] / count if count else math.nan for name, count in self._counts.items()}
        means |= {"images_per_second": self._sums.get("images", 0.0) / seconds, "waiting": self._waited / seconds}
        if self._products:
            means["tflops"] = self._products / seconds / 1e12
            if self._peak:
                means["mfu"] = means["tflops"] / self._peak
        return means


def notes(values: Mapping[str, float], interval: Interval) -> list[str]:
    """The progress line's parts, the most important first: a narrow terminal shows the first few."""
    parts = [f"loss {values['loss']:.3f}"]
    if interval.skipped:
        parts.append(f"{interval.skipped} of {interval.steps} steps skipped (gradient not finite)")
    parts += [
        f"keypoint {values['keypoint']:.3f}",
        f"{values['images_per_second']:.3g} images/s",
        f"{values['waiting']:.0%} waiting for data",
    ]
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    elif "tflops" in values:
        parts.append(f"{values['tflops']:.3g} TFLOP/s")
    if "device_memory_gb" in values:
        parts.append(f"{values['device_memory_gb']:.1f} GB of device memory")
    return parts + [f"{name} {values[name]:.3f}" for name in LOSSES if name != "keypoint"]


class MetricsLog:
    """Appends to the logs of a model directory.

    Lines and events of a step after `first_step`, left by a run that went on past its last checkpoint, are removed.
    A log that cannot be written (the disk is full, the folder has vanished) does not end the training: the first line that is
    lost is reported, and the next is another attempt.
    """

    def __init__(self, model_dir: Path, first_step: int) -> None:
        self._path, self._folder = model_dir / "metrics.jsonl", model_dir / "tensorboard"
        self._lost = 0
        self._evaluations: dict[int, Mapping[str, float | None]] = {}
        if self._path.exists():
            kept = [line for line in self._path.read_text(errors="replace").splitlines() if _step(line) <= first_step]
            write_file(self._path, "".join(line + "\n" for line in kept))
            for line in map(json.loads, kept):
                if line.pop("kind", None) == "eval":
                    self._evaluations[line.pop("step")] = line
        for events in sorted(self._folder.glob("events.out.tfevents.*")):
            _drop_later_events(events, first_step)
        self._writer = tf.summary.create_file_writer(str(self._folder))

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """The means of the steps since the line before."""
        self._write("train", step, values)

    def evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        self._evaluations[step] = _rounded(figures)
        self._write("eval", step, figures)

    def evaluation_of(self, step: int) -> Mapping[str, float | None] | None:
        """The figures of the evaluation of a step, as the log holds them; None if there is none."""
        return self._evaluations.get(step)

    def evaluations(self) -> list[tuple[int, Mapping[str, float | None]]]:
        """Step and figures of each evaluation in the log, in order. A figure that is undefined is None."""
        return sorted(self._evaluations.items(), key=lambda evaluation: evaluation[0])

    def has_evaluation(self, step: int) -> bool:
        """Whether the model of this step has been evaluated."""
        return step in self._evaluations

    def images(self, step: int, images: Sequence[np.ndarray]) -> None:
        """uint8 [H, W, 3] each: prediction beside truth."""
        with self._reporting_loss(), self._writer.as_default():
            for index, image in enumerate(images):
                tf.summary.image(f"images/{index}", image[np.newaxis], step=step, description=OF_IMAGES)
            self._writer.flush()

    def close(self) -> None:
        """Ends the writing of events, and says how much could not be written."""
        with self._reporting_loss():
            self._writer.close()
        if self._lost:
            say(f"train: {self._lost} lines or images of the log could not be written to {self._path.parent}")

    def _write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        with self._reporting_loss():
            _append_line(self._path, json.dumps({"kind": kind, "step": step} | _rounded(values), allow_nan=False))
            with self._writer.as_default():
                for name, value in values.items():
                    if math.isfinite(value):
                        tf.summary.scalar(f"{kind}/{name}", value, step=step, description=DESCRIPTIONS.get(name))
                self._writer.flush()

    @contextlib.contextmanager
    def _reporting_loss(self) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self._lost += 1
            if self._lost == 1:
                say(f"train: {self._path.parent}: the log cannot be written ({reason_of(error)}); training goes on without")


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    """To six digits; JSON has no NaN: a mean that does not exist is null."""
    return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}


def _append_line(path: Path, line: str) -> None:
    """Appends a line as a whole, or nothing of it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before, content = os.fstat(descriptor).st_size, (line + "\n").encode()
        try:
            if os.write(descriptor, content) < len(content):  # the disk took a part
                raise OSError(28, "No space left on device", str(path))
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # a line cut short by a crash
        return 2**62


def _drop_later_events(path: Path, last_step: int) -> None:
    """Rewrites a file of TensorBoard's without the events of later steps, which are about to happen again."""
    kept: list[bytes] = []
    changed = False
    try:
        for serialized in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            later = Event.FromString(serialized).step > last_step
            changed |= later
            if not later:
                kept.append(serialized)
    except tf.errors.DataLossError:  # cut short by a crash: what comes before is sound
        changed = True
    if not changed:
        return
    temporary = path.with_name(f".{path.name}")
    with tf.io.TFRecordWriter(str(temporary)) as writer:
        for serialized in kept:
            writer.write(serialized)
    publish(temporary, path)
