from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from pipeline.command import Progress, counted, duration, reason_of, run, say, shown

HOSTILE = "a\n\x1b[31mb\r\x00\u202egpj.exe\u2028\udcff.jpg"
ESCAPED = r"a\n\x1b[31mb\r\x00\u202egpj.exe\u2028\udcff.jpg"


def test_what_a_terminal_would_obey_is_shown_escaped() -> None:
    assert shown(HOSTILE) == ESCAPED
    assert shown(ESCAPED) == ESCAPED  # once is enough
    plain = "Straße 1/Füße – 足 👩‍👦 – a\\b.jpg"
    assert shown(plain) == plain


def test_say_and_progress_escape(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    say(f"written: {HOSTILE}")
    monkeypatch.setattr(Progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress(2, f"convert {HOSTILE}", "image") as progress:
        progress.advance(1, note=HOSTILE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"written: {ESCAPED}"
    assert lines[1].startswith(f"convert {ESCAPED}: 1/2") and lines[1].endswith(ESCAPED) and len(lines) == 2


def test_an_error_is_one_line_with_its_names_escaped_also_on_a_terminal_without_unicode(tmp_path: Path) -> None:
    code = (
        "from absl import flags; from pipeline import command\n"
        f"name = {HOSTILE!r}\n"
        "def main(rest):\n"
        "    print('…', name.replace(chr(10), ' '))\n"
        "    raise command.UserError(f'{name}: no such file')\n"
        "command.run(main, flags.FlagValues(), '')"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout.startswith(b"\\u2026 a ")
    assert done.stderr.decode("ascii") == f"error: {ESCAPED}: no such file\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600 * 3.34, "3 h 20 min"), (86400 * 2 + 3600 * 4 + 5, "2 d 4 h")],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_slow_work_is_told_in_seconds_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress(4000, "train", "step", done=1000) as progress:
        progress._start -= 20.0
        progress.advance(2, note=["loss 1.234", "keypoint 0.9"])
    assert capsys.readouterr().out == "train: 1002/4000, 10.0 s/step, 8 h 19 min left, loss 1.234, keypoint 0.9\n"


@pytest.mark.parametrize(("columns", "shown_notes"), [(200, 3), (100, 2), (80, 1), (30, 0)])
def test_a_narrow_terminal_shows_the_most_important(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, shown_notes: int
) -> None:
    notes = ["loss 12.345", "keypoint 9.876", "a part that is much longer than the others"]
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)
    with Progress(270_000, "train", "step", done=1234) as progress:
        progress.advance(1, note=notes)
        progress._bar.ncols, progress._bar.dynamic_ncols = columns, None
        progress._bar.refresh()
        line = capsys.readouterr().err.split("\r")[-1].rstrip()
    assert [part in line for part in notes] == [True] * shown_notes + [False] * (3 - shown_notes)
    assert len(line) <= columns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data_dir, --learning_rate: must be given"),
        (["--data_dir=x"], "--learning_rate: must be given"),
        (["--lr=3"], "--lr: no such flag; did you mean --learning_rate?"),
        (["--epochs=3"], "--epochs: no such flag; did you mean --steps?"),
        (["--data-dir=3"], "--data-dir: no such flag; did you mean --data_dir?"),
        (["--learning_rat=3"], "--learning_rat: no such flag; did you mean --learning_rate?"),
        (["--zzz=3"], "--zzz: no such flag; --help lists them"),
    ],
)
def test_flags_that_are_missing_or_nearly_right_are_named(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("data_dir", None, "", flag_values=values)
    flags.DEFINE_float("learning_rate", None, "", flag_values=values)
    flags.DEFINE_integer("steps", 3, "", flag_values=values)
    flags.mark_flags_as_required(["data_dir", "learning_rate"], flag_values=values)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(lambda _: None, values, "")
    error = capsys.readouterr().err
    assert ended.value.code == 1 and error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=ten"], "--steps=ten: must be a whole number; --help explains every flag"),
        (["--steps=1.5"], "--steps=1.5: must be a whole number; --help explains every flag"),
        (["--steps=a: b\n"], "--steps=a: b: must be a whole number; --help explains every flag"),
        (
            ["--steps=" + "9" * 5000],
            "--steps=" + "9" * 72 + "…: must be a whole number of fewer digits; --help explains every flag",
        ),
        (["--steps=0"], "--steps=0: 0 is not a positive integer; --help explains every flag"),
        (["--rate=fast"], "--rate=fast: must be a number; --help explains every flag"),
        (["--rate=nan"], "--rate=nan: must be a finite number"),
        (["--rate=inf"], "--rate=inf: inf is not a number in the range [0.0, 0.75]; --help explains every flag"),
        (["--rates=1", "--rates=-inf"], "--rates=-inf: must be a finite number"),
        (["--draw=maybe"], "--draw=maybe: must be true or false; --help explains every flag"),
        (["--nodraw=1"], "--nodraw=1: takes no value; write --nodraw, or leave it out"),
        (
            ["--output_dir="],
            "--output_dir=: is empty; give a value, or leave the flag out (is a variable of the shell not set?)",
        ),
        (
            ["--output_dir=gs://bucket/run"],
            "--output_dir=gs://bucket/run: must be a path, not a URL; copy or mount what it names",
        ),
        (["--steps"], "Missing value for flag --steps"),
        (["--service=grpc://host:1", "--output_dir=a", "--rate=1e-9", "--nodraw", "--steps=7"], ""),
    ],
)
@pytest.mark.parametrize("passes_unknown_flags", [False, True])
def test_values_that_no_flag_can_mean_are_refused_in_one_line(
    arguments: list[str],
    message: str,
    passes_unknown_flags: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("output_dir", None, "", flag_values=values)
    flags.DEFINE_string("service", "", "", flag_values=values)
    flags.DEFINE_float("rate", None, "", 0.0, 0.75, flag_values=values)  # absl shares parsers of equal bounds
    flags.DEFINE_multi_float("rates", [], "", flag_values=values)
    flags.DEFINE_integer("steps", 3, "", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("draw", True, "", flag_values=values)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    called: list[list[str]] = []
    with pytest.raises(SystemExit) as ended:
        run(called.append, values, "", passes_unknown_flags=passes_unknown_flags, url_flags=("service",))
    error = capsys.readouterr().err
    assert error == (f"error: {message}\n" if message else "")
    assert ended.value.code == bool(message) and called == ([] if message else [[]])


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's."""


OUT_OF_MEMORY = (
    "Graph execution error:\n\nOOM when allocating tensor with shape[7,7] and type float on device:CPU:0 by allocator cpu\n"
    "\t [[{{node Pad}}]]\nHint: If you want to see a list of allocated tensors when OOM happens, add … [Op:__inference_7]"
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), ""),
        (MemoryError("Unable to allocate 745. GiB"), " (Unable to allocate 745. GiB)"),
        (ResourceExhaustedError(OUT_OF_MEMORY), " (OOM when allocating tensor with shape[7,7])"),
    ],
)
def test_memory_that_is_too_small_is_one_line(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as ended:
        run(main, flags.FlagValues(), "")
    assert ended.value.code == 1
    told = f"error: the memory is too small{reason}; ask for less at once, such as smaller batches or images\n"
    assert capsys.readouterr().err == told


# Where text of several lines is printed, whose names `shown` has escaped line by line; and help.
PRINTING = {
    "pipeline/command.py",
    "pipeline/make_tfrecords.py",
    "model/evaluate.py",
    "model/predict.py",
    "export/keypoint_rcnn.py",
    "export/convert_tensorrt.py",  # runs where this project is not installed
}


def test_names_are_printed_in_one_way() -> None:
    root = Path(__file__).parents[2]
    for package in ("pipeline", "model", "export"):
        for path in (root / package).rglob("*.py"):
            name = str(path.relative_to(root))
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                    assert name in PRINTING, f"{name}:{node.lineno}: command.say escapes names"


class OfBeamError(OSError):
    """As `apache_beam.io.filesystem.BeamIOError` is made."""

    def __init__(self, message: str, exception_details: dict[str, Exception]) -> None:
        super().__init__(message)
        self.exception_details = exception_details


class OfTensorFlowError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(None, None, message)
        self.message = message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device", "/a/b"), "No space left on device"),
        (OSError("no number"), "no number"),
        (ValueError("one\n  two"), "one two"),
        (RuntimeError("no parts", 400), "no parts"),
        (KeyError("key"), "'key'"),
        (ValueError(), "ValueError"),
        (OfBeamError("match failed", {"gs://a": OSError(2, "No such file", "gs://a")}), "No such file"),
        (OfTensorFlowError("{{function_node x}} Input is empty. [Op:DecodePng] name: "), "Input is empty."),
        (
            OfTensorFlowError("2 root errors\n(0) INVALID: corrupted record\n\t [[{{node Read}}]]"),
            "(0) INVALID: corrupted record",
        ),
        (ValueError("x" * 1000), "x" * 300),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 else type(value).__name__,
)
def test_the_reason_of_an_error_is_one_line(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


@pytest.mark.parametrize(
    ("count", "nouns", "text"),
    [(1, ("image",), "1 image"), (0, ("image",), "0 images"), (2500, ("batch", "batches"), "2,500 batches")],
)
def test_a_number_stands_with_its_noun(count: int, nouns: tuple[str, ...], text: str) -> None:
    assert counted(count, *nouns) == text


@pytest.mark.parametrize(("asked", "found"), [(None, "true"), ("false", "false")])
def test_a_gpus_memory_is_taken_as_it_is_needed_unless_asked_otherwise(asked: str | None, found: str, tmp_path: Path) -> None:
    """So that an evaluation runs beside a training. TensorFlow reads it when it is imported."""
    report = "import os, pathlib, sys\npathlib.Path('seen').write_text(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])\nsys.exit()\n"
    (tmp_path / "tensorflow.py").write_text(report)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    environment |= {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    environment |= {} if asked is None else {"TF_FORCE_GPU_ALLOW_GROWTH": asked}
    code = "from pipeline import command; command.load_tensorflow()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "seen").read_text() == found


def test_a_command_leaves_out_what_tensorflow_would_only_take_if_it_is_there(tmp_path: Path) -> None:
    """And a command that wants it later finds it."""
    asks = "try:\n    import pandas\n    found = 'pandas'\nexcept ImportError:\n    found = 'nothing'\n"
    (tmp_path / "tensorflow.py").write_text(f"{asks}import pathlib, sys\npathlib.Path('seen').write_text(found)\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    environment |= {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    (tmp_path / "pandas.py").write_text("")
    code = """
from pipeline import command
try:
    command.load_tensorflow()
except AttributeError:  # the stand-in has no devices
    pass
import pandas
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "seen").read_text() == "nothing"


def test_no_garbage_is_looked_for_while_tensorflow_is_imported(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("import gc\nprint(gc.isenabled())\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    code = """
import gc
from pipeline import command
try:
    command.load_tensorflow()
except AttributeError:  # the stand-in has no devices
    pass
print(gc.isenabled(), gc.get_freeze_count() > 0)
"""
    ended = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert ended.stdout.split() == ["False", "True", "True"]
