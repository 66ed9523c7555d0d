"""The training loop's batches, taken in a thread of their own, so that a long wait is reported and Ctrl-C ends it.

A thread that waits inside TensorFlow hears no signal. And TensorFlow's data service has no time limit: if its dispatcher or all
its workers are gone, it waits forever for others to take their place.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """Takes values from an iterator when they are asked for, never ahead.

    with Feed(iterator) as feed:
        value = feed.take(patience)

    The thread has ended, and the iterator has been dropped, when the `with` block is left: a thread that returns from
    TensorFlow while the interpreter shuts down ends the process with "FATAL: exception not rethrown" and status 134.
    """

    SECONDS_BETWEEN_LOOKS = 1.0
    SECONDS_TO_END = 5.0  # for a thread that is waiting for data when the feed ends

    def __init__(self, values: Iterator[T]) -> None:
        self._values: Iterator[T] | None = values
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()
        # A daemon: if it waits forever, the process must be able to end.
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._is_waiting = False  # whether the thread is inside TensorFlow, perhaps forever

    def take(self, patience: Callable[[float], bool]) -> T | None:
        """The next value; None if patience ended. Raises: what the iterator raises.

        Args:
          patience: called about every second until the value comes, with the number of seconds since the call; it returns
            whether to wait on.
        """
        self._asked.put(True)
        self._is_waiting = True
        looks = 0
        while True:
            try:
                value, error = self._taken.get(timeout=self.SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                looks += 1
                if patience(looks * self.SECONDS_BETWEEN_LOOKS):
                    continue
                return None
            self._is_waiting = False
            if error is not None:
                raise error
            return value

    def _work(self) -> None:
        values = self._values
        assert values is not None
        while self._asked.get():
            try:
                self._taken.put((next(values), None))
            except Exception as error:
                self._taken.put((None, error))

    def __enter__(self) -> Feed[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._asked.put(False)
        self._values = None
        self._thread.join(self.SECONDS_TO_END if self._is_waiting else None)
        if self._thread.is_alive():
            atexit.register(self._end_process, getattr(error, "status", 1))

    def _end_process(self, status: int) -> None:
        """Ends the process without the interpreter's shutdown, during which the thread might return."""
        if self._thread.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
