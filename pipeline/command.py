"""What all commands share: flags, help, one-line errors, progress.

A command file defines its flags in a `flags.FlagValues` of its own, and ends with `command.run(main, FLAGS, __doc__)`.
TensorFlow is imported inside `main`, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from absl import flags
from tqdm import tqdm

_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A wrong input that a person can give. The message is one line: the value, the rule, the way out."""


def run(
    main: Callable[[list[str]], None], flag_values: flags.FlagValues, doc: str | None, *, passes_unknown_flags: bool = False
) -> NoReturn:
    """Parses the command line, calls `main` and ends the process.

    Args:
      main: takes the arguments that are not flags of this command (empty unless `passes_unknown_flags`).
      flag_values: the command's flags.
      doc: the module's docstring, shown by `--help`.
      passes_unknown_flags: whether `main` knows what to do with other flags (those of Beam).

    Ends with status 0; with 1 and one line on stderr for a `UserError`; with 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks ends no command
    try:
        if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(sys.argv[1:]):
            flags_help = flag_values.get_help(prefix="  ", include_special_flags=False).strip()
            print(f"{(doc or '').strip()}\n\nFlags:\n{flags_help}", flush=True)
            sys.exit(0)
        rest = flag_values(sys.argv, known_only=True)[1:] if passes_unknown_flags else _parse_all(flag_values)
        _check_empty(flag_values)
        main(rest)
    except UserError as error:
        _fail(str(error))
    except flags.Error as error:
        _fail(" ".join(str(error).removeprefix("FATAL Flags parsing error: ").split()))
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C; the same command goes on from what is finished", status=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}; put it right, or name another place")
    sys.exit(0)


def shown(text: str) -> str:
    r"""A text that may hold names from data, as one line that a terminal shows and obeys nothing of.

    Control characters (newlines and terminal escapes among them), line separators, marks that turn the direction of writing and
    lone surrogates (Python's form of names that are not UTF-8) are shown as Python writes them: `\\n`, `\\x1b`, `\\udcff`.
    """
    return _NOT_SHOWN.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def say(text: str) -> None:
    """Prints one line at once, with `shown` for the names in it."""
    print(shown(text), flush=True)


def load_tensorflow() -> None:
    """Imports TensorFlow without the dozen lines that it prints about this machine's libraries before its log levels hold.

    To see them, and TensorFlow's own warnings later, set TF_CPP_MIN_LOG_LEVEL=0.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for GPUs, and says so where there are none
        tf.get_logger().setLevel("ERROR")  # that of Python, which has a level of its own
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def reason_of(error: Exception) -> str:
    """An error's message in one line, TensorFlow's without the place in the graph where it arose."""
    message = getattr(error, "message", None)  # of tf.errors.OpError; TensorFlow itself is imported only after flags are parsed
    if not isinstance(message, str):
        return str(error)
    lines = [line for line in message.splitlines() if line.strip() and "[[{{node" not in line]
    return re.sub(r"\{\{.*?\}\} | \[Op:.*", "", lines[-1]) if lines else type(error).__name__


def _parse_all(flag_values: flags.FlagValues) -> list[str]:
    try:
        rest = flag_values(sys.argv)[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flag_values), n=1, cutoff=0.6)
        hint = f"did you mean --{near[0]}? " if near else ""
        raise UserError(f"--{error.flagname}: no such flag; {hint}--help lists them") from None
    if rest:
        raise UserError(f"{rest[0]!r}: every argument is a flag --name=value; --help lists them")
    return list(rest)


def _check_empty(flag_values: flags.FlagValues) -> None:
    """Refuses --output_dir=$OUT where the shell knows no OUT: a path without characters is the current folder."""
    for name in flag_values:
        flag = flag_values[name]
        if flag.present and flag.value == "" and flag.default is None:
            raise UserError(f"--{name}=: is empty; give a value, or leave the flag out (is a variable of the shell not set?)")


def _fail(message: str, status: int = 1) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {shown(message.strip())}", file=sys.stderr, flush=True)
    sys.exit(status)


class Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere.

    with Progress(total=1000, title="train images", unit="image") as progress:
        progress.advance(8, note="loss 1.23")
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, total: int, title: str, unit: str, *, done: int = 0) -> None:
        self._total, self._title, self._unit = total, shown(title), unit
        self._done = self._first = done
        self._start = self._last_line = time.monotonic()
        self._note = ""
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=title, unit=unit, dynamic_ncols=True, leave=True)

    def advance(self, count: int, note: str = "") -> None:
        self._done += count
        self._note = shown(note) or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= self.SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._print_line(now)

    def _print_line(self, now: float) -> None:
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        left = f"{(self._total - self._done) / rate:.0f} s left" if rate > 0 else ""
        parts = [f"{self._title}: {self._done}/{self._total}", f"{rate:.1f} {self._unit}s/s", left, self._note]
        print(", ".join(part for part in parts if part), flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
