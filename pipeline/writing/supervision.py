"""Watching over Beam's workers from the process that started them: how far they are, and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping

from pipeline import storage
from pipeline.command import Progress
from pipeline.writing.shard_writer import ShardSettings, StoppedError, stop_run

CTRL_C = "Ctrl-C"
SECONDS_BETWEEN_COUNTS = 0.5  # of the images done; 20 times as long in an object store, where each count is a request


@contextlib.contextmanager
def stop_on_ctrl_c(settings: ShardSettings) -> Iterator[None]:
    """Lets Ctrl-C stop the workers before their next image; an exception amid Beam would end in a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, previous)  # a second one ends at once
        with contextlib.suppress(StoppedError):
            stop_run(settings, CTRL_C)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def progress_of_workers(settings: ShardSettings, sizes: Mapping[int, int], progress: Progress) -> Iterator[None]:
    """Shows how far all workers are, whichever processes and machines they are.

    On a disk they write one byte for each image done; in an object store the finished shards are counted.

    Args:
      sizes: number of images in each shard that they write.
    """
    ended = threading.Event()
    in_store = storage.is_url(settings.work)
    shown = 0

    def show() -> None:
        nonlocal shown
        with contextlib.suppress(OSError):  # (a file that is being replaced, a store that is busy)
            if in_store:
                done = sum(sizes.get(int(name[6:11]), 0) for name in storage.listing(settings.work, "facts-"))
            else:
                done = sum(storage.listing(settings.work, "progress-").values())
            progress.advance(done - shown)
            shown = done

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_COUNTS * (20 if in_store else 1)):
            show()

    thread = threading.Thread(target=watch, daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            show()
