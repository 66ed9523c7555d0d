"""Several ways to do the same, measured side by side in one run.

Each contestant is a process group of its own (it may be of another environment). They take turns, a slice of a few seconds
each, round after round, so that a machine that slows down or is used by others slows all of them alike; who waits for its turn
is stopped, so that nobody reads ahead on another's time. A round that is disturbed disturbs one median, not the table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.measuring import PROJECT, group_cpu, kill_group
from pipeline.command import UserError


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A name for the table and the command of a process that calls `contestant.serve`."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Slice:
    """One turn: what was done, and the seconds that it took, by the clock and of all processors."""

    amount: int
    wall: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Result:
    """All turns of a contestant, and what it said about itself."""

    slices: tuple[Slice, ...]
    note: str

    @property
    def rate(self) -> float:
        """Amount per second by the clock: the median of the rounds."""
        return statistics.median(s.amount / s.wall for s in self.slices)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest round's rate and the fastest's."""
        rates = [s.amount / s.wall for s in self.slices]
        return min(rates), max(rates)

    @property
    def cpu(self) -> float:
        """Seconds of processor time for an amount of one: the median of the rounds."""
        return statistics.median(s.cpu / s.amount for s in self.slices)

    def times(self, other: Result) -> float:
        """How many times as fast as another, by the clock: the median of the rounds' ratios."""
        pairs = zip(self.slices, other.slices, strict=True)
        return statistics.median((a.amount / a.wall) / (b.amount / b.wall) for a, b in pairs)

    def cpu_times(self, other: Result) -> float:
        """How many times as fast as another, by processor time."""
        pairs = zip(self.slices, other.slices, strict=True)
        return statistics.median((b.cpu / b.amount) / (a.cpu / a.amount) for a, b in pairs)


def contest(
    contestants: Sequence[Contestant], *, rounds: int, amount: int | Mapping[str, int], logs: Path
) -> dict[str, Result]:
    """Lets contestants take turns.

    Args:
      contestants: with different names.
      rounds: how many turns each has.
      amount: of work in a turn; of all, or by name.
      logs: a folder for what they print.

    Raises:
      UserError: one of them failed; with its last line.
    """
    with contextlib.ExitStack() as stack:
        processes = {c.name: stack.enter_context(_started(c, logs)) for c in contestants}
        slices: dict[str, list[Slice]] = {name: [] for name in processes}
        for number in range(rounds):
            for name, process in processes.items():
                slices[name].append(process.turn(amount if isinstance(amount, int) else amount[name]))
            line = ", ".join(f"{name} {s[-1].amount / s[-1].wall:.4g}/s" for name, s in slices.items())
            print(f"round {number + 1} of {rounds}: {line}", flush=True)
        return {name: Result(tuple(turns), processes[name].note) for name, turns in slices.items()}


@dataclasses.dataclass(frozen=True)
class _Process:
    name: str
    popen: subprocess.Popen[str]
    log: Path
    note: str = ""

    def turn(self, amount: int) -> Slice:
        assert self.popen.stdin is not None
        group = self.popen.pid
        cpu, start = group_cpu(group), time.monotonic()
        os.killpg(group, signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # it is gone: `answer` says why
            print(amount, file=self.popen.stdin, flush=True)
        done = int(self.answer())
        wall = time.monotonic() - start
        os.killpg(group, signal.SIGSTOP)
        return Slice(done, wall, group_cpu(group) - cpu)

    def answer(self) -> str:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            last = (self.log.read_text(errors="replace").strip().splitlines() or ["(it printed nothing)"])[-1]
            raise UserError(f"{self.name}: ended with status {self.popen.wait()}: {last} (all of it: {self.log})")
        return line


@contextlib.contextmanager
def _started(contestant: Contestant, logs: Path) -> Iterator[_Process]:
    """A contestant that is warm, and stopped."""
    log = logs / f"{''.join(c if c.isalnum() else '_' for c in contestant.name)}.log"
    print(f"warming up: {contestant.name}", flush=True)
    with log.open("wb") as errors:
        popen = subprocess.Popen(
            contestant.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            cwd=PROJECT,
            env=os.environ | contestant.environment,
        )
    try:
        process = _Process(contestant.name, popen, log)
        note = process.answer().partition(" ")[2].strip()
        os.killpg(popen.pid, signal.SIGSTOP)
        yield dataclasses.replace(process, note=note)
    finally:
        kill_group(popen.pid)
        popen.wait()
