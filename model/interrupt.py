"""Ctrl-C, SIGTERM and SIGHUP while a model works: heard between two steps or frames, so that what is done is saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from pipeline.command import UserError, say

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptedWorkError(UserError):
    """Work that a signal has stopped. What was done until then has been saved.

    Args:
      message: where it stopped, and how to go on.
      signal_number: of the signal; the process ends with 128 + this number, as a shell reports it (Ctrl-C: 130).
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.status = 128 + signal_number


class Interrupt:
    """Turns the three signals into a flag that the loop looks at between two steps; a second signal ends at once.

    A signal that the parent process has chosen to ignore stays ignored: nohup does so with SIGHUP.

    Args:
      line: printed when the signal comes.
    """

    def __init__(self, line: str = "train: saving a checkpoint, then stopping") -> None:
        self._line = line

    def __enter__(self) -> Interrupt:
        self.asked = False
        self._number: int = signal.SIGTERM  # that is what the other workers of a cluster assume
        on_main_thread = threading.current_thread() is threading.main_thread()  # the only one that Python lets hear signals
        heard = [n for n in SIGNALS if on_main_thread and signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self._number = True, number
        say(self._line)

    def error(self, message: str) -> InterruptedWorkError:
        """The error to raise once the work is saved."""
        return InterruptedWorkError(message, self._number)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
