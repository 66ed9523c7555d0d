"""The answers of a run over a folder that is under way: one JSON line an image, appended when the image is done.

The first line says which model with which settings the run belongs to. A line that was cut short, by a kill or a full disk, and
what follows it are taken off when the file is opened again; its image is done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from model.inference.coco_format import Result


@dataclasses.dataclass(frozen=True)
class Done:
    """An image that is done.

    Attributes:
      state: of its file, when it was read.
      best_score: before the threshold; None if nobody was found.
      people: entries in COCO's results format without `image_id`.
    """

    state: tuple[int, int]
    best_score: float | None
    people: list[Result]


class Unfinished:
    """A file of answers, open for more; use it in a `with` statement.

    Args:
      path: of the file. What is in it is taken over if it is of the same run.
      identity: of the model and its settings; if it is empty, nothing is taken over.

    Attributes:
      done: what is done, by the image's file name.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity
        self._file: IO[bytes] | None = None
        self.done: dict[str, Done] = {}

    def __enter__(self) -> Unfinished:
        whole = 0  # bytes that are whole lines of this run
        if self._path.is_file():
            for line in _whole_lines(self._path):
                entry = _parsed(line)
                if whole == 0 and (not self._identity or entry.get("run") != self._identity):
                    break
                if whole:
                    try:
                        self.done[entry["file"]] = Done(
                            (entry["size"], entry["time"]), entry["best_score"], list(entry["people"])
                        )
                    except (KeyError, TypeError):
                        break
                whole += len(line)
        self._file = self._path.open("r+b" if whole else "wb")
        self._file.seek(whole)
        self._file.truncate()
        if not whole:
            self._write({"run": self._identity})
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk: the first one was raised
                self._file.close()
        if not self.done:
            self._path.unlink(missing_ok=True)

    def add(self, file_name: str, done: Done) -> None:
        """Adds an image; after that a kill does not lose it."""
        size, time = done.state
        self._write({"file": file_name, "size": size, "time": time, "best_score": done.best_score, "people": done.people})
        self.done[file_name] = done

    def remove(self) -> None:
        """Removes the file: its answers are written elsewhere."""
        self._path.unlink(missing_ok=True)

    def _write(self, value: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(value).encode() + b"\n")
        try:
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _parsed(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    return {}
