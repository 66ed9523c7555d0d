from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.command import Progress, say, shown

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
