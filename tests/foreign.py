"""Environments of other runtimes: of their own, since they want other versions of what this project needs, or are large."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def folder(name: str) -> Path:
    """The folder of an environment that benchmarks/environments.sh makes; the test is skipped where it is missing."""
    environment = Path(os.environ.get("KEYPOINT_ENVIRONMENTS") or ROOT / ".venv-benchmarks").absolute() / name
    if not environment.is_dir():
        pytest.skip(f"{environment} is missing; `bash benchmarks/environments.sh {name}` makes it")
    return environment


def interpreter(name: str) -> Path:
    """Python of an environment, as `folder`."""
    return folder(name) / "bin" / "python"


def run(python: Path, script: str, *arguments: object, **variables: str) -> str:
    """What a script beside the export's tests prints there; fails with what it said if its status is not 0."""
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
    }
    command = [str(python), str(ROOT / "tests" / "export" / script), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env=quiet | variables, timeout=280)
    assert ended.returncode == 0, ended.stderr[-4000:] + ended.stdout[-1000:]
    return ended.stdout
