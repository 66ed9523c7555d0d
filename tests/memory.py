"""What a process holds at most, for the code of processes that tests start."""

from pathlib import Path


def peak_kib() -> int:
    """The most KiB of memory that this process has held so far; `ru_maxrss` would count what its parent held before it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])
