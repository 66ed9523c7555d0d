"""What all commands share: flags, help, one-line errors, progress.

A command file defines its flags in a `flags.FlagValues` of its own, and ends with `command.run(main, FLAGS, __doc__)`.
TensorFlow is imported inside `main`, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import io
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from absl import flags
from tqdm import tqdm

from pipeline.allocator import keep_freed_memory

# Other tools' names of flags, and ours.
NAMES_ELSEWHERE = {
    "epochs": ("steps",),
    "num_epochs": ("epochs", "steps"),
    "max_epochs": ("epochs", "steps"),
    "iterations": ("steps",),
    "max_iter": ("steps",),
    "max_steps": ("steps",),
    "gpus": ("strategy",),
    "num_gpus": ("strategy",),
    "device": ("strategy",),
    "pretrained": ("init", "weights"),
    "checkpoint": ("init", "model"),
    "data": ("data_dir",),
    "dataset": ("data_dir",),
    "output": ("output_dir", "model_dir"),
    "out": ("output_dir", "model_dir"),
    "output_dir": ("model_dir", "output"),
    "model": ("model_dir", "preset"),
    "amp": ("precision",),
    "fp16": ("precision",),
    "conf": ("score_threshold",),
    "threshold": ("score_threshold",),
    "imgsz": ("set",),
}

# What Python says of a flag's value, and what the value must be.
PYTHON_ON_VALUES = {
    "invalid literal for int()": "a whole number",
    "Exceeds the limit": "a whole number of fewer digits",
    "could not convert string to float": "a number",
    "'Non-boolean argument": "true or false",
}
TOO_LARGE = "the memory is too small{}; ask for less at once, such as smaller batches or images"
LONGEST_VALUE = 80  # characters of a value that an error repeats
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A wrong input that a person can give. The message is one line: the value, the rule, the way out."""

    status = 1  # with which the process ends


def run(
    main: Callable[[list[str]], None],
    flag_values: flags.FlagValues,
    doc: str | None,
    *,
    passes_unknown_flags: bool = False,
    url_flags: Collection[str] = (),
) -> NoReturn:
    """Parses the command line, calls `main` and ends the process.

    Args:
      main: takes the arguments that are not flags of this command (empty unless `passes_unknown_flags`).
      flag_values: the command's flags.
      doc: the module's docstring, shown by `--help`.
      passes_unknown_flags: whether `main` knows what to do with other flags (those of Beam).
      url_flags: the flags that take a URL; every other one is refused a URL, of which `Path` would make a folder `gs:`.

    Ends with status 0; with one line on stderr and the status of a `UserError`, which is 1 for most; with 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks ends no command
    try:
        if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(sys.argv[1:]):
            flags_help = flag_values.get_help(prefix="  ", include_special_flags=False).strip()
            print(f"{(doc or '').strip()}\n\nFlags:\n{flags_help}", flush=True)
            sys.exit(0)
        rest = _parsed(flag_values, known_only=True) if passes_unknown_flags else _parse_all(flag_values)
        _check_values(flag_values, url_flags)
        main(rest)
    except UserError as error:
        _fail(str(error), error.status)
    except flags.Error as error:
        message = " ".join(str(error).removeprefix("FATAL Flags parsing error: ").split())
        missing = _missing_flags(flag_values, message)
        if missing:
            _fail(f"{', '.join(f'--{name}' for name in missing)}: must be given; --help explains every flag")
        _fail(_illegal_value(message) if isinstance(error, flags.IllegalFlagValueError) else message)
    except MemoryError as error:
        reason = f" ({reason_of(error)})" if str(error) else ""
        _fail(TOO_LARGE.format(reason))
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C; the same command goes on from what is finished", status=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}; put it right, or name another place")
    except Exception as error:
        if type(error).__name__ != "ResourceExhaustedError":  # TensorFlow's, which is not imported here
            raise
        tensor = re.search(r"OOM when allocating tensor with shape\[[\d,]*\]", str(error))
        _fail(TOO_LARGE.format(f" ({tensor.group()})" if tensor else ""))
    sys.exit(0)


def shown(text: str) -> str:
    r"""A text that may hold names from data, as one line that a terminal shows and obeys nothing of.

    Control characters (newlines and terminal escapes among them), line separators, marks that turn the direction of writing and
    lone surrogates (Python's form of names that are not UTF-8) are shown as Python writes them: `\n`, `\x1b`, `\udcff`.
    """
    return _NOT_SHOWN.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def say(text: str) -> None:
    """Prints one line at once, with `shown` for the names in it."""
    print(shown(text), flush=True)


def load_tensorflow() -> None:
    """Imports TensorFlow without the dozen lines that it prints about this machine's libraries before its log levels hold.

    To see them, and TensorFlow's own warnings later, set TF_CPP_MIN_LOG_LEVEL=0.

    TensorFlow takes a GPU's memory as it needs it, so that an evaluation or an export runs beside a training; set
    TF_FORCE_GPU_ALLOW_GROWTH=false to have it take all at once, which leaves fewer gaps between allocations. On a CPU, what it
    frees stays with the process (`allocator.keep_freed_memory`).
    """
    keep_freed_memory()
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with _absent("matplotlib", "pandas"), _no_collections():
            import tensorflow as tf

        tf.config.list_physical_devices()  # looks for GPUs, and complains if there are none
        tf.get_logger().setLevel("ERROR")  # that of Python, which has a level of its own
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextlib.contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Lets imports within it do without these packages; what is imported already stays, and later imports find them.

    Keras takes matplotlib and pandas if they are there, for galleries and data frames that no command uses: 0.6 of the 3.6
    seconds of processor time that importing TensorFlow takes.
    """
    hidden = [] if "tensorflow" in sys.modules else [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # (None: Python's word for a package not to be found)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Python looks for no garbage within it, and never again among what is there at its end.

    The millions of objects of an import all stay, and each search through them finds nothing: a quarter of the processor time
    in which TensorFlow is imported, and as much of a command's that answers for one image.
    """
    if "tensorflow" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun: "1 image", "2,500 images"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def reason_of(error: object) -> str:
    """An error's message in one short line, without the path or the place in TensorFlow's graph.

    Beam's errors of file systems hold others, the first of which speaks.
    """
    details = getattr(error, "exception_details", None)  # of Beam: location → error
    if details:
        return reason_of(next(iter(details.values())))
    message = getattr(error, "message", None)  # of tf.errors.OpError; TensorFlow itself is imported only after flags are parsed
    if isinstance(message, str):
        lines = [line for line in message.splitlines() if line.strip() and "[[{{node" not in line]
        text = re.sub(r"\{\{.*?\}\} | \[Op:.*", "", lines[-1]) if lines else ""
    else:
        first = next(iter(getattr(error, "args", ())), "")  # of a store's client the sentence, before codes and the like
        is_sentence = isinstance(first, str) and not isinstance(error, KeyError | UnicodeError)
        text = getattr(error, "strerror", None) or (first if is_sentence else str(error))
    return " ".join(text.split())[:300] or type(error).__name__


def _parsed(flag_values: flags.FlagValues, *, known_only: bool = False) -> list[str]:
    """The arguments that are no flags of the command; with `known_only`, other flags are among them."""
    try:
        return list(flag_values(sys.argv, known_only=known_only)[1:])
    except ValueError as error:  # absl's for --nodraw=1
        argument = str(error).removesuffix(" does not take an argument")
        raise UserError(f"{argument}: takes no value; write {argument.partition('=')[0]}, or leave it out") from None


def _parse_all(flag_values: flags.FlagValues) -> list[str]:
    try:
        rest = _parsed(flag_values)
    except flags.UnrecognizedFlagError as error:
        meant = _likely_meant(error.flagname, list(flag_values))
        hint = f"did you mean --{meant}? " if meant else ""
        raise UserError(f"--{error.flagname}: no such flag; {hint}--help lists them") from None
    if rest:
        raise UserError(f"{rest[0]!r}: every argument is a flag --name=value; --help lists them")
    return list(rest)


def _likely_meant(name: str, known: Sequence[str]) -> str | None:
    """The known flag that an unknown one most likely means: it is a slip, initials, or the name in other tools."""
    normal = name.lower().replace("-", "_")
    others = [flag for flag in (normal, *NAMES_ELSEWHERE.get(normal, ())) if flag in known]
    initials = [flag for flag in known if "".join(word[0] for word in flag.split("_")) == normal]
    near = difflib.get_close_matches(normal, known, n=1, cutoff=0.6)
    longer = [flag for flag in known if normal in flag.split("_")]
    return next(iter([*others, *initials, *near, *longer]), None)


def _missing_flags(flag_values: flags.FlagValues, message: str) -> list[str]:
    """The required flags that are not given, if absl's message is about one; it names the first alone."""
    if "must have a value other than None" not in message:
        return []
    required = [
        validator.flag_name
        for name in flag_values
        for validator in flag_values[name].validators
        if "must have a value other than None" in validator.message
    ]
    return [name for name in dict.fromkeys(required) if flag_values[name].value is None]


def _illegal_value(message: str) -> str:
    """Absl's message on a value that is none of its flag's type, in which Python speaks, as a sentence for people."""
    given, _, reason = message.removeprefix("flag ").partition(": ")
    for of_python, rule in PYTHON_ON_VALUES.items():
        if of_python in message:
            given, reason = message[: message.index(of_python)].removeprefix("flag ").rstrip("(: "), f"must be {rule}"
            break
    return f"{given if len(given) <= LONGEST_VALUE else given[:LONGEST_VALUE] + '…'}: {reason}; --help explains every flag"


def _check_values(flag_values: flags.FlagValues, url_flags: Collection[str]) -> None:
    """Refuses values of the right type that no flag can mean; absl lets NaN pass every bound.

    Raises:
      UserError: --output_dir=$OUT if the shell knows no OUT (a path without characters is the current folder), a number that is
        not finite, or a URL for a path.
    """
    for name in flag_values:
        flag = flag_values[name]
        for value in flag.value if isinstance(flag.value, list) else [flag.value]:
            if flag.present and value == "" and flag.default is None and not isinstance(flag.value, list):
                raise UserError(
                    f"--{name}=: is empty; give a value, or leave the flag out (is a variable of the shell not set?)"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name}={value}: must be a finite number")
            if isinstance(value, str) and name not in url_flags and URL.match(value):
                raise UserError(f"--{name}={value}: must be a path, not a URL; copy or mount what it names")


def _fail(message: str, status: int = 1) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {shown(message.strip())}", file=sys.stderr, flush=True)
    sys.exit(status)


class Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere.

    with Progress(total=1000, title="train images", unit="image") as progress:
        progress.advance(8, note="loss 1.23")
        progress.advance(8, note=["loss 1.23", "5.1 images/s"])  # the most important first: a narrow terminal shows fewer

    `total` is None where nobody knows it: of a camera.
    """

    SECONDS_BETWEEN_LINES = 10.0
    NARROWEST_BAR = 8  # columns

    def __init__(self, total: int | None, title: str, unit: str, *, done: int = 0) -> None:
        self._total, self._title, self._unit = total, shown(title), unit
        self._done = self._first = done
        self._start = self._last_line = time.monotonic()
        self._notes: list[str] = []
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=title, unit=unit, dynamic_ncols=True, leave=True)

    def advance(self, count: int, note: str | Sequence[str] = "") -> None:
        """Counts what is done.

        Args:
          note: what else to show, from now on; parts of it in the order of their importance.
        """
        self._done += count
        if note:
            self._notes = [shown(part) for part in ([note] if isinstance(note, str) else note)]
        if self._bar is not None:
            self._bar.set_postfix_str(self._fitting_notes(), refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= self.SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._print_line(now)

    def _fitting_notes(self) -> str:
        """The first notes, for which the terminal's width leaves room beside a short bar and the figures."""
        bar = self._bar.format_dict | {"postfix": "", "ncols": None, "bar_format": "{l_bar}{r_bar}"}
        room = shutil.get_terminal_size().columns - len(tqdm.format_meter(**bar)) - self.NARROWEST_BAR
        fitting = ""
        for part in self._notes:
            longer = f"{fitting}, {part}" if fitting else part
            if len(longer) + len(", ") > room:
                break
            fitting = longer
        return fitting

    def _print_line(self, now: float) -> None:
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        left = f"{duration(max(self._total - self._done, 0) / rate)} left" if rate > 0 and self._total is not None else ""
        count = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        parts = [f"{self._title}: {count}", _speed(rate, self._unit), left, *self._notes]
        print(", ".join(part for part in parts if part), flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """A time for people: "42 s", "7 min 5 s", "3 h 20 min", "2 d 4 h"."""
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def _speed(rate: float, unit: str) -> str:
    """How many a second; how long one takes if it is less than one."""
    if rate >= 1:
        return f"{rate:.1f} {unit}s/s"
    return f"{1 / rate:.1f} s/{unit}" if rate > 0 else ""
