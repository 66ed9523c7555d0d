r"""Damages inputs of every kind, and looks whether each is read or refused in one line: no traceback, no hang, no giant.

  python -m scripts.mutations --count=20000 --seed=1

Each damaged input is a function of the seed and its number; --only=NUMBER tries one again in this process, with its traceback.
Ends with status 1 if anything failed.
"""

import collections
import contextlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_integer("count", 20_000, "The number of damaged inputs.", 1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 1, "Damage is a function of the seed and the input's number.", flag_values=FLAGS)
flags.DEFINE_integer("workers", None, "Processes that try inputs; by default one for each core.", 1, flag_values=FLAGS)
flags.DEFINE_list("kinds", None, "Tries only these kinds of input; by default all.", flag_values=FLAGS)
flags.DEFINE_integer("only", None, "Tries this number alone, in this process.", flag_values=FLAGS)
flags.DEFINE_string("keep", None, "A folder that gets every damaged input that failed.", flag_values=FLAGS)

SECONDS_PER_INPUT = 60.0  # the slowest builds a model, on a busy machine
BYTES_PER_INPUT = 1_500_000_000  # more than any of the sound inputs takes


def main(_rest: list[str]) -> None:
    from scripts.mutation_inputs import make_inputs
    from scripts.mutation_targets import TARGETS

    unknown = set(FLAGS.kinds or ()) - set(TARGETS)
    if unknown:
        raise command.UserError(f"--kinds={','.join(sorted(unknown))}: must be among {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        inputs = Path(scratch, "sound")
        inputs.mkdir()
        with _silent():
            command.load_tensorflow()
            make_inputs(inputs)
        if FLAGS.only is not None:
            print(_try(inputs, FLAGS.only) or "passed")
            return
        failures = _campaign(inputs, Path(scratch))
    if failures:
        raise command.UserError(f"{failures} of {FLAGS.count} damaged inputs failed; see above")


def _kind_of(number: int) -> tuple[str, random.Random]:
    """The kind of an input, and the numbers that its damage is drawn with."""
    from scripts.mutation_targets import TARGETS

    rng = random.Random(f"{FLAGS.seed} {number}")
    kinds = FLAGS.kinds or list(TARGETS)
    return rng.choices(kinds, [TARGETS[kind].share for kind in kinds])[0], rng


def _try(inputs: Path, number: int) -> str:
    """Damages one input in place, reads it, and puts it back; returns what went wrong, "" if nothing did."""
    from pipeline.command import UserError
    from scripts.mutation_targets import TARGETS, check_message

    kind, rng = _kind_of(number)
    target = TARGETS[kind]
    file = rng.choice(sorted(path for path in inputs.glob(target.files) if path.is_file()))
    sound = file.read_bytes()
    damaged = target.damage(sound, rng)
    _forget_peak()
    before = _peak()
    try:
        file.write_bytes(damaged)
        target.read(inputs, file)
    except UserError as error:
        try:
            check_message(error)
        except AssertionError:
            return _told(file, inputs)
    except OSError as error:
        if error.filename is None and error.strerror is None:  # as `command.run` has it
            return _told(file, inputs)
    except BaseException:
        return _told(file, inputs)
    finally:
        file.write_bytes(sound)
    grown = _peak() - before
    return f"{file.relative_to(inputs)}: took {grown / 1e9:.1f} GB" if grown > BYTES_PER_INPUT else ""


def _peak() -> int:
    """The most bytes of memory that this process has held; `ru_maxrss` would count what its parent held before it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def _forget_peak() -> None:
    """Sets the process's peak of memory back to what it holds now, so that an earlier input's peak hides no later one's."""
    with contextlib.suppress(OSError):  # some containers keep the file from being written: the first peak counts there
        Path("/proc/self/clear_refs").write_text("5")


def _told(file: Path, inputs: Path) -> str:
    return f"{file.relative_to(inputs)}: {traceback.format_exc(limit=-6)}"


def _campaign(inputs: Path, scratch: Path) -> int:
    """Tries all inputs in worker processes; returns how many failed."""
    tried: collections.Counter[str] = collections.Counter()
    failed: collections.Counter[str] = collections.Counter()
    numbers = iter(range(FLAGS.count))
    workers = [_Worker(inputs, scratch) for _ in range(FLAGS.workers or len(os.sched_getaffinity(0)))]
    start = time.monotonic()
    try:
        for worker in workers:
            worker.ask(next(numbers, None))
        with command.Progress(FLAGS.count, "mutations", "input") as progress:
            while busy := [worker for worker in workers if worker.number is not None]:
                wait([worker.connection for worker in busy], timeout=1.0)
                for worker in busy:
                    answer = worker.answer()
                    if answer is None:
                        continue
                    number, why = answer
                    kind, _ = _kind_of(number)
                    tried[kind] += 1
                    if why:
                        failed[kind] += 1
                        print(f"--only={number} ({kind}): {why.strip()}", flush=True)
                        _keep(inputs, number)
                    worker.ask(next(numbers, None))
                    progress.advance(1, note=f"{failed.total()} failed")
    finally:
        for worker in workers:
            worker.end()
    for kind in sorted(tried):
        print(f"{kind:<16} {tried[kind]:>6} tried, {failed[kind]} failed")
    print(f"{tried.total()} damaged inputs in {time.monotonic() - start:.0f} s, {failed.total()} failed (seed {FLAGS.seed})")
    return failed.total()


def _keep(inputs: Path, number: int) -> None:
    """Writes the damaged input again, for whoever looks into it."""
    from scripts.mutation_targets import TARGETS

    if FLAGS.keep is None:
        return
    kind, rng = _kind_of(number)
    file = rng.choice(sorted(path for path in inputs.glob(TARGETS[kind].files) if path.is_file()))
    folder = Path(FLAGS.keep)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}-{file.name}").write_bytes(TARGETS[kind].damage(file.read_bytes(), rng))


class _Worker:
    """A process that tries one input after the other, started again if it dies or hangs."""

    _names = iter(range(1_000_000))

    def __init__(self, inputs: Path, scratch: Path) -> None:
        self._inputs, self._scratch = inputs, scratch
        self._process: Any = None
        self.number: int | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        name = next(self._names)
        self._folder, self._log = self._scratch / f"inputs-{name}", self._scratch / f"log-{name}"
        shutil.copytree(self._inputs, self._folder)
        self._process = context.Process(target=_work, args=(theirs, self._folder, self._log, sys.argv), daemon=False)
        self._process.start()
        theirs.close()
        self._ready = False

    def ask(self, number: int | None) -> None:
        self.number = number
        if number is not None:
            self._deadline = time.monotonic() + SECONDS_PER_INPUT + (0 if self._ready else 300)
            with contextlib.suppress(OSError):
                self.connection.send(number)

    def answer(self) -> tuple[int, str] | None:
        """The number that was tried, and what went wrong; None while it is being tried."""
        assert self.number is not None
        try:
            if self.connection.poll():
                self._ready = True
                return self.number, self.connection.recv()
            if time.monotonic() < self._deadline:
                return None
            why = f"hangs for {SECONDS_PER_INPUT:.0f} s"
        except (EOFError, OSError):
            self._process.join(10)
            why = f"the process died ({self._process.exitcode}): {self._log.read_text(errors='replace')[-1500:]}"
        self.end()
        self._start()
        return self.number, why

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def _work(connection: Connection, inputs: Path, log: Path, arguments: list[str]) -> None:
    FLAGS(arguments)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    command.load_tensorflow()
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(_try(inputs, connection.recv()))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps off the terminal what making the inputs says."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
