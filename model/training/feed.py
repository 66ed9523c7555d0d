"""The training loop's batches, taken in a thread of their own: so that a long wait can be told of, and Ctrl-C ends it.

A thread that waits inside TensorFlow hears no signal. And TensorFlow's data service has no time limit: where its dispatcher or
all its workers are gone, it waits for ever for others to take their place.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Generic, TypeVar

from pipeline.command import UserError

T = TypeVar("T")


class Feed(Generic[T]):
    """Takes values from an iterator when they are asked for, never ahead.

    with Feed(iterator) as feed:
        value = feed.take(patience)
    """

    SECONDS_BETWEEN_LOOKS = 1.0

    def __init__(self, values: Iterator[T]) -> None:
        self._values = values
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()
        # A daemon: where it waits without end, the process must be able to.
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)

    def take(self, patience: Callable[[float], bool]) -> T | None:
        """The next value; None where patience ended. Raises: what the iterator raises.

        Args:
          patience: called about every second while there is nothing yet, with the number of seconds since the call; returns
            whether to wait on.
        """
        self._asked.put(True)
        looks = 0
        while True:
            try:
                value, error = self._taken.get(timeout=self.SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                looks += 1
                if patience(looks * self.SECONDS_BETWEEN_LOOKS):
                    continue
                return None
            if error is not None:
                raise error
            return value

    def _work(self) -> None:
        while self._asked.get():
            try:
                self._taken.put((next(self._values), None))
            except Exception as error:
                self._taken.put((None, error))

    def __enter__(self) -> Feed[T]:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._asked.put(False)


# Ctrl-C and SIGTERM while a model trains.


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
