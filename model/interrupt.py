"""Ctrl-C and SIGTERM while a model trains."""

from __future__ import annotations

import signal
from types import FrameType

from pipeline.command import UserError


class InterruptedTrainingError(UserError):
    """Ctrl-C or SIGTERM; the checkpoint has been saved."""


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag that is looked at between two steps; a second Ctrl-C ends at once."""

    def __enter__(self) -> Interrupt:
        self.asked = False
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("train: saving a checkpoint, then stopping", flush=True)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
