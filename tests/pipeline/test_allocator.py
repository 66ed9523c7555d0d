"""Freed memory stays with the process: counted by page faults, in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A thread takes three blocks like canvases, writes to them and frees them, thirty times.
PROGRAM = """
import ctypes, resource, sys, threading
from pipeline.allocator import keep_freed_memory

print(keep_freed_memory(any_size="any_size" in sys.argv) if sys.argv[1] == "kept" else None)
size = (40 if "large" in sys.argv else 12) << 20
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def work():
    for _ in range(30):
        blocks = [libc.malloc(size) for _ in range(3)]
        for block in blocks:
            libc.memset(block, 1, size)
        for block in blocks:
            libc.free(block)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
PAGES = 3 * (12 << 20) // os.sysconf("SC_PAGE_SIZE")  # of the three blocks

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def run(*ways: str, **environment: str) -> tuple[str, int]:
    """What `keep_freed_memory` answers, and the page faults of the process."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *ways], env=plain | environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    answer, faults = done.stdout.split()
    return answer, int(faults)


def test_freed_memory_is_used_again() -> None:
    _, usual = run("usual")
    answer, kept = run("kept")
    assert answer == "True"
    assert usual > 20 * PAGES  # each time anew: what the function is for
    assert kept < usual - 20 * PAGES  # once


def test_larger_blocks_are_kept_if_asked() -> None:
    _, usual = run("kept", "large")
    answer, kept = run("kept", "large", "any_size")
    assert answer == "True" and kept < usual - 20 * PAGES


def test_what_the_user_has_set_stays() -> None:
    answer, faults = run("kept", MALLOC_TOP_PAD_="0")
    assert answer == "False" and faults > 20 * PAGES
