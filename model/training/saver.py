"""Saves checkpoints beside the training, which waits for a copy of the variables and not for the disk.

A checkpoint is written under `checkpoints/.unfinished/`, brought to the disk with the sha256 of its files, and then gets its
name, the index last: whatever ends the process, a checkpoint is whole or absent.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import tensorflow as tf

from model.checkpoint_files import by_step, files_of, note_checksums, step_of
from model.checkpoint_names import FOLDER
from model.training.step import Learner
from pipeline.command import UserError, reason_of, say
from pipeline.files import publish, write_file

KEPT_CHECKPOINTS = 3
SECONDS_TO_END = 5.0  # for a save in progress when a second Ctrl-C ends the process
UNFINISHED = ".unfinished"


class Saver:
    """Saves what a learner's checkpoint holds. Only worker 0 writes; no worker waits for another one.

    with Saver(learner, model_dir, worker) as saver:
        saver.save(step, required=False)

    When the block is left, the save in progress has ended, unless a second Ctrl-C or its like ends it.

    Args:
      worker: the index of this worker.
      keep: number of checkpoints that are kept, the newest.
      keep_every: steps between two checkpoints that are kept for good; 0: none are.

    Attributes:
      written: the step of the newest checkpoint that this saver has written whole; −1 before the first.
    """

    def __init__(
        self, learner: Learner, model_dir: Path, worker: int, keep: int = KEPT_CHECKPOINTS, keep_every: int = 0
    ) -> None:
        self._source, self._folder, self._writes = learner.checkpoint, model_dir / FOLDER, worker == 0
        self._keep, self._keep_every = keep, keep_every
        self._copy: _Copy | None = None  # made at the first save: it takes as much memory as the variables
        self._thread: threading.Thread | None = None
        self._failure: tuple[int, BaseException] | None = None  # of the newest save
        self.written = -1
        if self._writes:
            self._sweep()

    def save(self, done: int, *, required: bool) -> None:
        """Copies the variables; a thread writes them as the checkpoint of `done` steps.

        A failure is printed, and the next save is another attempt. If the save before is still in progress, this one is left
        out, which is printed, too.

        Args:
          required: whether it must be written, and nothing be left out: the save before and this one are waited for.

        Raises:
          UserError: a checkpoint that is required could not be written.
        """
        if not self._writes:
            return
        if required:
            self.wait()
        elif self._thread is not None and self._thread.is_alive():
            say(f"train: the checkpoint of step {done} is left out, because the one before is still being written")
            return
        self.wait()
        self._copy = self._copy or _Copy(self._source)
        self._copy.take(done)
        # A daemon: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(
            target=self._work, args=(done, self._copy.checkpoint, required), name="saver", daemon=True
        )
        self._thread.start()
        if required:
            self.wait()
            if self._failure is not None:
                raise UserError(
                    f"{self._message(*self._failure)}; make room or put the folder right, then the same command goes on"
                )

    def wait(self) -> None:
        """Waits for the end of the save in progress."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._failure is not None and not isinstance(self._failure[1], OSError | tf.errors.OpError):
                raise self._failure[1]

    def _message(self, done: int, error: BaseException) -> str:
        return f"{self._folder}: the checkpoint of step {done} could not be written ({reason_of(error)})"

    def _work(self, done: int, checkpoint: tf.train.Checkpoint, required: bool) -> None:
        """What the thread does."""
        self._failure = None
        try:
            self._write(done, checkpoint)
            self.written = done
        except BaseException as error:
            self._failure = done, error
            self._sweep()
            if not required:
                say(f"train: {self._message(done, error)}; training goes on, and the next save is another attempt")
            return
        try:
            self._remove_old(done)
        except OSError as error:
            say(f"train: {self._folder}: checkpoints that are kept no longer could not be removed ({reason_of(error)})")

    def _write(self, done: int, checkpoint: tf.train.Checkpoint) -> None:
        if not self._folder.parent.is_dir():  # it would be made anew, without configuration
            raise FileNotFoundError(2, "the model directory has vanished")
        unfinished, name = self._folder / UNFINISHED, f"step-{done}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        path = checkpoint.write(str(unfinished / name))
        note_checksums(path)
        state, index = self._folder / "checkpoint", self._folder / f"{name}.index"
        if index.exists():  # of a damaged checkpoint, or of one that lost its place as the newest
            state.unlink(missing_ok=True)
            index.unlink()
        parts = sorted((*files_of(path), Path(f"{path}.sha256")), key=lambda part: part.suffix == ".index")
        for part in parts:  # the index last
            publish(part, self._folder / part.name)
        unfinished.rmdir()
        write_file(state, f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n')

    def _remove_old(self, done: int) -> None:
        """Removes checkpoints that are kept no longer; none of a later step, which another training has written."""
        indices = [index for index in by_step(self._folder) if step_of(index) <= done]
        for index in indices[: -self._keep]:
            if not (self._keep_every and step_of(index) and step_of(index) % self._keep_every == 0):
                index.unlink()  # first: what is left of a checkpoint without its index is swept up
                for part in (*files_of(str(index.with_suffix(""))), index.with_suffix(".sha256")):
                    part.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Removes what a save that was killed or failed has left behind: the unfinished, and parts without an index."""
        shutil.rmtree(self._folder / UNFINISHED, ignore_errors=True)
        for leftover in self._folder.glob("step-*"):
            stem = leftover.name.partition(".")[0]
            if leftover.name.endswith("_temp"):  # of an earlier version, as those with ".tempstate"
                shutil.rmtree(leftover, ignore_errors=True)
            elif ".tempstate" in leftover.name or not (self._folder / f"{stem}.index").exists():
                with contextlib.suppress(OSError):  # a disk that is read-only now; the next save says so
                    leftover.unlink(missing_ok=True)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or issubclass(kind, Exception):
            self.wait()
        elif self._thread is not None:
            self._thread.join(SECONDS_TO_END)
            if self._thread.is_alive():  # a thread that returns from TensorFlow during the shutdown would end it with 134
                atexit.register(_end_process, getattr(error, "status", 130))


def _end_process(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Copy:
    """A copy of a checkpoint's variables in the host's memory, under the same names."""

    def __init__(self, source: tf.train.Checkpoint) -> None:
        self._pairs: list[tuple[tf.Variable, tf.Variable]] = []
        view = tf.train.TrackableView(source)

        def copied(node: Any) -> Any:
            if isinstance(node, tf.Variable):
                copy = tf.Variable(node.read_value(), trainable=False)
                self._pairs.append((node, copy))
                return copy
            return {name: copied(child) for name, child in view.children(node).items() if name != "save_counter"}

        with tf.device("CPU:0"):
            parts = copied(source)
            self._step: tf.Variable = parts["step"]
            self.checkpoint = tf.train.Checkpoint(**parts)
            _ = self.checkpoint.save_counter  # made now; restoring asks for it

    def take(self, done: int) -> None:
        """Copies the values as they are, and `done` as the number of steps."""
        for variable, copy in self._pairs:
            copy.assign(variable.read_value())
        self._step.assign(done)
