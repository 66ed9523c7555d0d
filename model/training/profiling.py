"""Writes a profile of some steps for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import tensorflow as tf

from pipeline.command import say


class Profiler:
    """Profiles the steps from `steps[0]` to before `steps[1]`; none if `steps` is None.

    with Profiler(folder, (100, 110)) as profiler:
        profiler.before(step)
        ...
        profiler.after(step + 1, settle)
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        self._folder, self._steps, self._is_on = folder, steps, False

    def before(self, step: int) -> None:
        if self._steps is not None and step == self._steps[0]:
            tf.profiler.experimental.start(str(self._folder))
            self._is_on = True

    def after(self, done: int, settle: Callable[[], None]) -> None:
        """Ends the profile after its last step.

        Args:
          done: the number of steps that have been started.
          settle: waits until the device has done them.
        """
        if self._is_on and self._steps is not None and done >= self._steps[1]:
            settle()
            self._end(done)

    def _end(self, end: int) -> None:
        self._is_on = False
        tf.profiler.experimental.stop()
        assert self._steps is not None
        say(f"train: the profile of the steps {self._steps[0]} to {end - 1} is in {self._folder}; TensorBoard shows it")

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_on:
            self._is_on = False
            tf.profiler.experimental.stop(save=False)
