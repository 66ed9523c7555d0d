"""What the benchmarks share: the machine's name, time and memory of a command with all its children, and tables.

Reads /proc, so it needs Linux.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.command import UserError

PROJECT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = Path(os.environ.get("KEYPOINT_ENVIRONMENTS") or PROJECT / ".venv-benchmarks").absolute()
SECONDS_BETWEEN_LOOKS = 1.0  # at memory; each takes 10 ms
_TICKS = os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """The processor and the number of its cores."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{models[0] if models else 'unknown processor'}, {os.cpu_count()} cores"


def environment_python(name: str) -> Path | None:
    """The interpreter of an environment that `environments.sh` makes; None, and a line that says so, where it is missing."""
    python = ENVIRONMENTS / name / "bin" / "python"
    if python.exists():
        return python
    print(f"(no environment {python.parent.parent}: left out; bash benchmarks/environments.sh {name} makes it)", flush=True)
    return None


def fresh_folder(path: str | Path) -> Path:
    """An empty folder in the place of whatever is there."""
    path = Path(path).resolve()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def use_cores(count: int) -> None:
    """Confines this process and those that it will start to the last `count` cores."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise UserError(f"--cores={count}: between 1 and {len(cores)} here")
    os.sched_setaffinity(0, cores[-count:])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, columns padded so that it also reads as it is."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        + " |"
        for line in (lines[0], rule, *lines[1:])
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
      wall: seconds from start to end.
      cpu: seconds of user and system time, of all its processes together.
      memory: largest sum, over all its processes, of the memory that is theirs (PSS: shared pages divided), in bytes.
    """

    wall: float
    cpu: float
    memory: int


def measure(command: Sequence[str], *, log: Path, environment: dict[str, str] | None = None) -> Measured:
    """Runs a command to its end; what it prints goes to `log`.

    Raises:
      UserError: it failed; with its last line.
    """
    with log.open("wb") as output:
        start = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=PROJECT,
            env=os.environ | (environment or {}),
        )  # fmt: skip
        try:
            with _largest_memory(process.pid) as memory:
                _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - start
        finally:
            kill_group(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["(it printed nothing)"])[-1]
        raise UserError(f"{' '.join(command)}: ended with status {process.returncode}: {last} (all of it: {log})")
    return Measured(wall, usage.ru_utime + usage.ru_stime, memory[0])


def kill_group(group: int) -> None:
    """Ends whatever is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def group_cpu(group: int) -> float:
    """Seconds of user and system time so far of a process group, children that have ended included."""
    return sum(sum(int(ticks) for ticks in stat[11:15]) for _, stat in _members(group)) / _TICKS


def _members(group: int) -> Iterator[tuple[str, list[str]]]:
    """Process ids of the session that the group leads, and of each the fields of its `stat` from the state on."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(stat[3]) == group:
                yield folder.name, stat


@contextlib.contextmanager
def _largest_memory(group: int) -> Iterator[list[int]]:
    """Watches a process group's memory; the list's one element is the largest sum seen, in bytes."""
    largest = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            total = 0
            for process, _ in _members(group):
                with contextlib.suppress(OSError):
                    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                        if line.startswith("Pss:"):
                            total += 1024 * int(line.split()[1])
            largest[0] = max(largest[0], total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield largest
    finally:
        ended.set()
        thread.join()
