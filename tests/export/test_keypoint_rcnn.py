"""The installed program: each of its names runs the command that it says."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from export.keypoint_rcnn import COMMANDS

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "export.keypoint_rcnn", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_name_answers_help_as_its_command_does(name: str) -> None:
    module, _ = COMMANDS[name]
    alone = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    answer = run(name, "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == alone.stdout


def test_without_a_name_it_lists_all() -> None:
    answer = run()
    assert answer.returncode == 0
    assert all(f"{name} " in answer.stdout and module in answer.stdout for name, (module, _) in COMMANDS.items())


def test_a_name_that_is_none_is_answered_with_the_nearest() -> None:
    answer = run("trian")
    assert answer.returncode == 1
    assert answer.stderr == "error: 'trian': no such command; did you mean train? keypoint-rcnn --help lists them\n"


def test_a_wrong_flag_is_one_line() -> None:
    answer = run("predict", "--modle=x")
    assert answer.returncode == 1 and answer.stderr.count("\n") == 1 and "--model" in answer.stderr


def test_the_package_installs_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"keypoint-rcnn": "export.keypoint_rcnn:main"}
