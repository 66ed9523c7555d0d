"""Reads the tensors of .h5 files, after a child process has shown that it can be done.

HDF5's library follows what a file says: a damaged heap sends it round for ever, and other damage ends its process or takes all
memory. So a child process with limits of time and memory reads the file first, and only what it came to an end with is read
here. The child starts in a third of a second.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from model.weights.pickle_reader import RefusedError

LEAST_SECONDS, BYTES_A_SECOND = 10, 20_000_000  # of one core: a disk's cache gives a hundred times that
TIMES_LONGER = 30  # may pass where the child waits, for a busy machine or a network's disk
SPARE_MEMORY = 2**28  # bytes that the child may take beside twice the file's size
_TRIAL = "import sys; from model.weights.h5_files import trial; trial(*sys.argv[1:])"
_REFUSED = 3  # the child's exit status if it ends with a reason


def read_h5(path: Path) -> dict[str, NDArray[Any]]:
    """Every data set, by its path within the file; other files that it may point to are not followed.

    In Keras 3's .weights.h5, groups are numbered and carry their layer's name: "layers/conv2d_3/vars/0" with the name
    "conv2_block1_1_conv" becomes "conv2_block1_1_conv/vars/0".

    Raises:
      RefusedError: truncated, damaged, or announcing more than the file has.
    """
    try_in_a_child(path, _tensors)
    return _tensors(path)


def try_in_a_child(path: Path, read: Callable[[Path], object]) -> None:
    """Has a child process read the file.

    Args:
      read: a function of a module that needs no TensorFlow; it reads all that its caller will read afterwards.

    Raises:
      RefusedError: `read` raises an error, does not come to an end, crashes, or takes many times the file's size.
    """
    seconds = _seconds(path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        child = subprocess.run(
            [sys.executable, "-c", _TRIAL, str(path), read.__module__, read.__qualname__],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMES_LONGER * seconds,  # the child's own limit counts what it computes; this one ends a child that waits
        )
    except subprocess.TimeoutExpired:
        raise RefusedError(f"damaged .h5 file: reading it did not end within {TIMES_LONGER * seconds} s") from None
    if child.returncode == _REFUSED:
        raise RefusedError(child.stdout.decode("utf-8", "replace"))
    if child.returncode == -signal.SIGXCPU:
        raise RefusedError(f"damaged .h5 file: reading it did not end within {seconds} s of computing")
    if child.returncode < 0:
        raise RefusedError(f"damaged .h5 file: HDF5's library ends with signal {-child.returncode} on it")
    if child.returncode:
        raise OSError(f"the process that tries .h5 files ended with status {child.returncode}: {child.stderr[-200:]!r}")


def trial(path: str, module: str, function: str) -> None:
    """What the child does: reads all of the file within limits, and ends with `_REFUSED` and a line if that fails."""
    file, read = Path(path), getattr(importlib.import_module(module), function)
    limit = math.ceil(time.process_time()) + _seconds(file)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(2 * file.stat().st_size + SPARE_MEMORY)
    try:
        read(file)
    except RefusedError as error:
        reason = str(error)
    except MemoryError:
        reason = "damaged .h5 file: reading it takes many times the memory that its tensors need"
    except Exception as error:  # whatever h5py makes of damage: OSError, RuntimeError, ValueError, KeyError, TypeError, …
        reason = f"truncated or damaged .h5 file ({str(error)[:100]})"
    else:
        return
    sys.stdout.buffer.write(" ".join(reason.split()).encode("utf-8", "backslashreplace"))
    sys.stdout.flush()
    os._exit(_REFUSED)  # without closing what is damaged


def _seconds(path: Path) -> int:
    return LEAST_SECONDS + path.stat().st_size // BYTES_A_SECOND


def _limit_memory(more: int) -> None:
    """Lets this process take `more` bytes of address space beside what it has; where Linux does not tell that, any number."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    size = path.stat().st_size
    arrays: dict[str, NDArray[Any]] = {}
    total = 0

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:  # by hard links only, and each thing once
        nonlocal total
        if not isinstance(name, str):
            raise RefusedError(f"damaged: the name {name[:40]!a} is no text in UTF-8")
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub":
            return
        if item.is_virtual or item.external:
            raise RefusedError("refused: it takes its data from other files")
        total += item.nbytes
        if total > size or item.id.get_storage_size() < item.nbytes:
            raise RefusedError("refused: its data sets announce more bytes than the file has")
        layer = item.parent.attrs.get("name")
        arrays[f"{layer}/vars/{name.rpartition('/')[2]}" if isinstance(layer, str) else name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    if not arrays:
        raise RefusedError("holds no tensors")
    return arrays
