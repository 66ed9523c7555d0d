"""The campaign of damaged inputs sees what fails, and damages as its seed says."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.command import UserError
from scripts import mutation_targets, mutations
from scripts.mutation_damage import Damage, bytes_anywhere, exif_bytes, header_bytes, json_lines, json_values, png_chunks
from scripts.mutation_targets import Target


def encoded(image_format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(content, image_format, exif=exif)
    return content.getvalue()


@pytest.mark.parametrize(
    ("damage", "sound"),
    [
        (bytes_anywhere, b"0123456789" * 9),
        (header_bytes, encoded("JPEG")),
        (exif_bytes, encoded("JPEG")),
        (png_chunks, encoded("PNG")),
        (json_values, b'{"images": [{"id": 1, "width": 3}], "a": {"b": [1.5, "c"]}}'),
        (json_lines, b'{"step": 1}\n{"step": 2}\n'),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_a_function_of_the_seed(damage: Damage, sound: bytes) -> None:
    damaged = [damage(sound, random.Random(seed)) for seed in range(300)]
    assert damaged == [damage(sound, random.Random(seed)) for seed in range(300)]
    assert sum(content != sound for content in damaged) > 240 and len(set(damaged)) > 100


def refuses() -> None:
    raise UserError("a.json: not what it should be; copy it again")


def says_too_much() -> None:
    raise UserError("x" * 30_000)


def breaks() -> None:
    json.loads("{")


def misses_a_file() -> None:
    Path("/absent/a").read_bytes()


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda: None, ""),
        (refuses, ""),
        (misses_a_file, ""),
        (says_too_much, "a message of 30000 characters"),
        (breaks, "JSONDecodeError"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_line_is_told(
    read: Callable[[], object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    monkeypatch.setattr(mutation_targets, "TARGETS", {"a kind": Target(1, "a.json", json_values, lambda *_: read())})
    mutations.FLAGS(["mutations", "--seed=3"])
    answer = mutations._try(tmp_path, 0)
    assert told in answer and bool(answer) == bool(told)
    assert (tmp_path / "a.json").read_text() == '{"a": 1}'


@pytest.mark.parametrize("earlier_bytes", [0, 2_500_000_000])
def test_memory_is_told_whatever_an_earlier_input_took(earlier_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    code = f"""
import pathlib, sys
import numpy as np
from scripts import mutation_damage, mutation_targets, mutations
mutation_targets.TARGETS = {{
    "a kind": mutation_targets.Target(1, "a.json", mutation_damage.json_values, lambda *_: np.ones(1_700_000_000, np.uint8))
}}
mutations.FLAGS(["mutations", "--seed=3"])
np.ones({earlier_bytes}, np.uint8)
print(mutations._try(pathlib.Path(sys.argv[1]), 0))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    told = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert told.stdout.startswith("a.json: took 1."), told.stdout + told.stderr


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_a_short_campaign_finds_nothing() -> None:
    command = [sys.executable, "-m", "scripts.mutations", "--count=200", "--seed=11", "--workers=2"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "200 damaged inputs" in done.stdout and "0 failed" in done.stdout
