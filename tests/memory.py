"""What a process holds in memory, now and at most, for the code of processes that tests start."""

import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def peak_kib() -> int:
    """The most KiB of memory that this process has held so far; `ru_maxrss` would count what its parent held before it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def resident_bytes() -> int:
    """Of memory that this process holds now, after a collection of Python's garbage."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_own_process(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a module's function answers in a fresh process: in the tests' own, memory depends on what earlier tests freed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()
