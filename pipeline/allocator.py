"""What the C library does with memory that TensorFlow frees on a CPU.

TensorFlow takes each tensor on a CPU from `malloc`. glibc returns large blocks to the system as soon as they are free, and
takes them anew for the next image or step, where the kernel clears each page again. These page faults can cost more than the
work itself (docs/LOADER.md has figures). Values do not change, and the peak of memory hardly does: what was in use once stays
for the next image instead of being returned.
"""

from __future__ import annotations

import ctypes
import os

# Parameters of `mallopt` in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_NEVER = -1
_ARENA = 128 * 2**20  # bytes, more than the 64 MiB of a heap, so that none of a thread's heaps is given back
_LARGEST_IN_HEAP = 32 * 2**20  # bytes, the most that glibc allows
_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory(*, any_size: bool = False) -> bool:
    """Has glibc keep what is freed, in all threads of this process.

    Args:
      any_size: whether blocks of more than 32 MiB are kept, too. A training step takes and frees some; elsewhere such blocks
        are files and arrays that are needed once.

    Returns:
      False, and nothing changes, if the environment sets glibc's own variables (MALLOC_TRIM_THRESHOLD_ and its like,
      GLIBC_TUNABLES), or if the C library is another.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (musl has a mallopt that does nothing, and macOS none)
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows opens no library without a name
        return False
    settings = [(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _ARENA)]
    if any_size:
        settings.append((_M_MMAP_MAX, 0))
    accepted = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(accepted)
