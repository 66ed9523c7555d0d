"""Runs the public commands one after the other as a person would type them, and remembers which are finished.

`Stages` is what the demo and the run on real photographs share. A stage is one or more command lines. It is run again when a
command line, the code, what it read, or what it wrote is no longer as it was; otherwise it is reused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
STATE_FILE = "stages.json"
IMPORTS = {
    "pipeline": ("pipeline",),
    "model": ("pipeline", "model"),
    "export": ("pipeline", "model", "export"),
    "scripts": ("pipeline", "model", "export"),
}


class StageError(Exception):
    """A stage that failed, in one line."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Command lines that belong together.

    Attributes:
      name: key in `stages.json`.
      title: the heading printed above the output.
      commands: what follows `python`, each of the form ("-m", "model.train", …).
      reads: files and folders that it depends on, besides the code.
      writes: files and folders that are its own; they are removed before it starts anew.
      resumes: whether the commands go on from what a stopped run left there.
    """

    name: str
    title: str
    commands: Sequence[Sequence[str]]
    reads: Sequence[Path]
    writes: Sequence[Path]
    resumes: bool = False


class Stages:
    """The stages of one output folder.

    Args:
      output_dir: made if it is missing. A folder with other things in it is refused, because stages remove what they write.

    Raises:
      StageError: the folder holds other things.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._state_path = output_dir / STATE_FILE
        if output_dir.exists() and (not output_dir.is_dir() or (any(output_dir.iterdir()) and not self._state_path.exists())):
            raise StageError(f"--output_dir={output_dir}: there are other things; name a new or empty folder")
        output_dir.mkdir(parents=True, exist_ok=True)
        self._state: dict[str, dict[str, Any]] = _read_state(self._state_path)
        self._write_state()
        self._started = time.monotonic()
        self._count = 0

    def run(self, stage: Stage) -> None:
        """Runs or reuses a stage, with everything that it prints.

        Raises:
          StageError: a command that did not end with status 0.
        """
        self._count += 1
        print(f"\n== {self._count}. {stage.title}", flush=True)
        key = hashlib.sha256(
            json.dumps([stage.commands, code_of(stage.commands), fingerprint(stage.reads)]).encode()
        ).hexdigest()
        past = self._state.get(stage.name, {})
        if past.get("key") == key and past.get("written") == fingerprint(stage.writes):
            print(f"   reused: finished on {past['finished']} in {past['seconds']:.0f} s", flush=True)
            return
        resumed = stage.resumes and past.get("key") == key and past.get("written") is None
        if not resumed:
            for path in stage.writes:
                _remove(path)
        # Said before the work begins: what a stopped run leaves is known to be unfinished, and of which command.
        seconds, processor = (past.get(key, 0.0) if resumed else 0.0 for key in ("seconds", "processor_seconds"))
        lines = [f"python {shlex.join(command)}" for command in stage.commands]
        state = {"title": stage.title, "key": key, "written": None, "seconds": seconds, "commands": lines}
        self._save(stage.name, state)
        started, processor_before = time.monotonic(), _processor_seconds()
        try:
            for line, command in zip(lines, stage.commands, strict=True):
                print(f"$ {line}", flush=True)
                status = run_command([sys.executable, *command])
                if status:
                    stopped = "was stopped; run again, it goes on from here"
                    how = stopped if status in (130, 143) else f"ended with status {status}, for the reason above"
                    raise StageError(f"{line.split(' --')[0]} {how}")
        finally:
            state["seconds"] = seconds + time.monotonic() - started
            state["processor_seconds"] = processor + _processor_seconds() - processor_before
            self._save(stage.name, state)
        state |= {"written": fingerprint(stage.writes), "finished": time.strftime("%Y-%m-%d %H:%M")}
        self._save(stage.name, state)
        print(f"   {state['seconds']:.1f} s ({state['processor_seconds']:.0f} s of processor time)", flush=True)

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage took when it ran, stopped runs included."""
        return {name: float(state["seconds"]) for name, state in self._state.items()}

    @property
    def elapsed(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._started

    def _save(self, name: str, state: dict[str, Any]) -> None:
        self._state[name] = dict(state)
        self._write_state()

    def _write_state(self) -> None:
        temporary = self._state_path.with_suffix(".unfinished")
        temporary.write_text(json.dumps(self._state, indent=1) + "\n")
        temporary.replace(self._state_path)


def run_command(command: Sequence[str]) -> int:
    """Runs a command in the repository with its output on ours. Ctrl-C reaches it too; it is waited for, and so is SIGTERM.

    Returns:
      The exit status, 128 + n for signal n.
    """
    process = subprocess.Popen(command, cwd=REPOSITORY)

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        while True:
            try:
                status = process.wait()
                return 128 - status if status < 0 else status
            except KeyboardInterrupt:  # the terminal has sent it to the command as well, which ends in its own way
                continue
    finally:
        signal.signal(signal.SIGTERM, previous)


def _processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes when a file below `paths` is added, removed or written: of names, sizes and times, not of contents."""
    digest = hashlib.sha256()
    for path in paths:
        for file in _files(path):
            status = file.stat()
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        digest.update(f"{path} {path.exists()}\n".encode())
    return digest.hexdigest()


def code_of(commands: Iterable[Sequence[str]]) -> str:
    """Changes with the code that commands (`-m model.train …`) run: with contents, not with times."""
    paths = {REPOSITORY / "requirements.lock"}
    for _, module, *_ in commands:
        folder, name = (REPOSITORY / module.replace(".", "/")).parent, module.rpartition(".")[2]
        for kind in (".py", ".html"):
            paths.update(folder.glob(f"{name}*{kind}"))  # a script, and its parts, whose names begin with its own
            for package in IMPORTS[module.split(".")[0]]:
                paths.update((REPOSITORY / package).rglob(f"*{kind}"))
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.exists() else []
    found = []
    for folder, _, names in os.walk(path):
        found += [Path(folder, name) for name in names]
    return sorted(found)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_state(path: Path) -> dict[str, dict[str, Any]]:
    try:
        state: dict[str, dict[str, Any]] = json.loads(path.read_text())
        return state
    except (OSError, ValueError):
        return {}
