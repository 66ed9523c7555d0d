"""Exports that meet another export, are killed, or fill their disk: what was there stays whole, nothing half gets a name."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import pytest

from export import export_model as command_file
from export import publish as publishing
from export.formats import sha256_of
from export.publish import export_model
from model.inference.predictor import open_model
from pipeline import command
from pipeline.command import UserError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["export.publish"])  # importing TensorFlow takes longer than all the rest
UNFINISHED = ".keypoint_rcnn.unfinished"
KILLS = 3


def quiet(_line: str) -> None:
    pass


def export_quietly(model_dir: Path, output_dir: Path, height: int) -> None:
    export_model(model_dir, output_dir, formats=["tflite"], tflite_height=height, report=quiet)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(condition: Callable[[], bool], process: BaseProcess) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)


def height_of_a_pair(folder: Path) -> int | None:
    """The images' height of a TFLite file; None if there is no sidecar, for which it is refused. Fails on another's sidecar."""
    path, beside = folder / "keypoint_rcnn.tflite", folder / "keypoint_rcnn.json"
    if not beside.exists():
        with pytest.raises(UserError, match=r"keypoint_rcnn\.json is not beside it|no such"):
            open_model(path)
        return None
    about = json.loads(beside.read_text())
    assert about["sha256"] == sha256_of(path)
    return int(about["height"])


@pytest.fixture
def old_export(exported: Path, tmp_path: Path) -> Path:
    """An export of images 96 high, to be replaced."""
    shutil.copytree(exported, tmp_path / "out")
    return tmp_path / "out"


def test_a_second_export_is_refused_while_the_first_lives(model_dir: Path, old_export: Path) -> None:
    before = content_of(old_export)
    first = CONTEXT.Process(target=export_quietly, args=(model_dir, old_export, 64))
    first.start()
    assert first.pid is not None
    try:
        wait_for(lambda: (old_export / UNFINISHED).exists(), first)
        os.kill(first.pid, signal.SIGSTOP)
        rule = rf"out: another export \(process {first.pid} on \S+\) is writing to it; wait for its end, or name another folder"
        for height in (64, 96):
            with pytest.raises(UserError, match=rule):
                export_quietly(model_dir, old_export, height)
        assert (old_export / UNFINISHED).exists()
        assert {name: content for name, content in content_of(old_export).items() if not name.startswith(".")} == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.join(120)
    assert first.exitcode == 0 and height_of_a_pair(old_export) == 64
    assert not list(old_export.glob(".*"))


@pytest.mark.campaign
def test_kills_at_random_moments_leave_the_old_export_and_the_next_one_sweeps_up(model_dir: Path, old_export: Path) -> None:
    """Of the whole work, nearly all of which is before the names are given; `test_a_kill_at_every_moment…` has the rest."""
    chance, before = random.Random(0), content_of(old_export)
    start = time.monotonic()
    export_quietly(model_dir, old_export.with_name("whole"), 64)
    whole = time.monotonic() - start
    for _ in range(KILLS):
        process = CONTEXT.Process(target=export_quietly, args=(model_dir, old_export, 64))
        process.start()
        wait_for(lambda: (old_export / ".lock").exists(), process)
        time.sleep(chance.uniform(0, 0.7 * whole))
        process.kill()
        process.join()
        left = {name: content for name, content in content_of(old_export).items() if not name.startswith(".")}
        assert left == before or height_of_a_pair(old_export) in (64, None)
        (old_export / ".lock").unlink(missing_ok=True)
    export_quietly(model_dir, old_export, 64)
    assert height_of_a_pair(old_export) == 64
    assert not list(old_export.glob(".*"))


def kill_at_event(number: int) -> None:
    """Kills this process just before it opens, renames, removes or makes a file for the `number`th time."""
    count = 0

    def hook(event: str, _arguments: Any) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.mkdir"):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.campaign
def test_a_kill_at_every_moment_while_names_are_given_leaves_pairs(
    model_dir: Path, old_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work is done once; then the names are given again and again, by a process that dies one step later each time."""
    give_names, found = publishing._give_names, list[str]()
    model_card = (old_export / "model-card.md").read_bytes()

    def killed_at_every_step(artifacts: Any, output_dir: Path, pages: Any, card: str) -> dict[str, Path]:
        before = output_dir.with_name("before")
        shutil.copytree(output_dir, before)

        def as_before() -> None:
            shutil.rmtree(output_dir)
            shutil.copytree(before, output_dir)

        while not found or found[-1] != "whole":
            as_before()
            child = os.fork()
            if not child:
                status = 1
                with contextlib.suppress(BaseException):
                    kill_at_event(len(found) + 1)
                    give_names(artifacts, output_dir, pages, card)
                    status = 0
                os._exit(status)
            _, ended = os.waitpid(child, 0)
            assert ended == 0 or os.WTERMSIG(ended) == signal.SIGKILL
            version = output_dir / "keypoint_rcnn" / "2"
            assert not version.exists() or (version / "assets.extra" / "tf_serving_warmup_requests").is_file()
            json.loads((output_dir / "export-report.json").read_text())
            assert (output_dir / "model-card.md").read_bytes() in (model_card, card.encode())
            height = height_of_a_pair(output_dir)
            found.append("whole" if ended == 0 else {96: "old", None: "without a sidecar", 64: "new"}[height])
        as_before()
        return give_names(artifacts, output_dir, pages, card)

    monkeypatch.setattr(publishing, "_give_names", killed_at_every_step)
    export_model(model_dir, old_export, tflite_height=64, report=quiet)
    assert list(dict.fromkeys(found)) == ["old", "without a sidecar", "new", "whole"]
    assert found.count("old") > 2 and found.count("new") > 2
    assert height_of_a_pair(old_export) == 64
    assert not list(old_export.glob(".*"))


def run_the_command(arguments: list[str], log: Path, largest_file: int | None) -> NoReturn:
    """`export.export_model` as a person starts it, its stderr in `log`; files end at `largest_file` bytes."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    sys.argv = ["export_model", *arguments]
    command.run(command_file.main, command_file.FLAGS, command_file.__doc__)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Has a disk of its own begin at `folder`; the test is skipped if this machine's user may not mount."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def assert_refused_in_one_line(model_dir: Path, out: Path, log: Path, largest_file: int | None, reason: str) -> None:
    before = content_of(out)
    arguments = [f"--model={model_dir}", f"--output_dir={out}", "--formats=saved_model,tflite", "--tflite_height=64"]
    process = CONTEXT.Process(target=run_the_command, args=(arguments, log, largest_file))
    process.start()
    process.join(120)
    told = log.read_text()
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]  # TensorFlow logs lines of its own when forked
    assert process.exitcode == 1 and "Traceback" not in told
    assert str(out) in line and reason in line
    assert content_of(out) == before
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("largest_file", [100_000, 350_000])
def test_a_file_that_the_disk_refuses_is_one_line(model_dir: Path, old_export: Path, tmp_path: Path, largest_file: int) -> None:
    """The SavedModel's variables do not fit, or the TFLite file alone."""
    assert_refused_in_one_line(model_dir, old_export, tmp_path / "log", largest_file, "arge")


def test_a_full_disk_is_one_line(model_dir: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "disk"
    out.mkdir()
    held = sum(len(content) for content in content_of(exported).values())
    with small_disk(out, 2 * held):
        shutil.copytree(exported, out, dirs_exist_ok=True)
        (out / "other").write_bytes(bytes(held - 200_000))  # little is left
        assert_refused_in_one_line(model_dir, out, tmp_path / "log", None, "space")


def test_a_saved_model_with_a_flipped_bit_is_refused(exported: Path, tmp_path: Path) -> None:
    """TensorFlow reads most of them, and answers otherwise or ends the process."""
    shutil.copytree(exported / "keypoint_rcnn" / "1", tmp_path / "1")
    files = sorted(path for path in (tmp_path / "1").rglob("*") if path.is_file() and "assets.extra" not in path.parts)
    assert {"saved_model.pb", "variables.index", "config.json", "skeleton.json"} < {path.name for path in files}
    for path in files:
        sound = path.read_bytes()
        if sound:
            path.write_bytes(flipped(sound))
            with pytest.raises(
                UserError, match=r"cannot be loaded as a SavedModel|not a configuration|not a keypoint set"
            ) as told:
                open_model(tmp_path)
            assert path.name in str(told.value) or path.name == "sha256.json"
            assert "\n" not in str(told.value)
            path.write_bytes(sound)
    (tmp_path / "1" / "variables" / "variables.index").unlink()
    with pytest.raises(UserError, match=r"variables/variables\.index is missing"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--opt_shape=10", "argument --opt_shape: '10': must be height×width, both multiples of 32"),
        ("--opt_shape=0x0", "argument --opt_shape: '0x0': must be height×width, both multiples of 32"),
        ("--precision=FP64", "argument --precision: invalid choice: 'FP64'"),
        ("--workspace_bytes=much", "argument --workspace_bytes: invalid int value: 'much'"),
        ("--wrokspace=1", "unrecognized arguments: --wrokspace=1"),
        ("positional", "unrecognized arguments: positional"),
    ],
)
def test_a_wrong_flag_of_the_tensorrt_converter_is_one_line(argument: str, message: str) -> None:
    program = Path(__file__).parents[2] / "export" / "convert_tensorrt.py"
    ended = subprocess.run([sys.executable, "-I", str(program), argument], capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and ended.stderr.startswith(f"error: {message}")
    assert ended.stderr.endswith("; --help explains every flag\n")


def flipped(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def test_a_tflite_file_with_another_models_sidecar_is_refused(exported: Path, tmp_path: Path) -> None:
    other = json.loads((exported / "keypoint_rcnn.json").read_text())
    content = (exported / "keypoint_rcnn.tflite").read_bytes()
    rule = r"x\.tflite: is not the file that x\.json belongs to \(its SHA-256 is \w{12}…, the sidecar has \w{12}…\)"
    for wrong_file, wrong_sidecar in ((flipped(content), other), (content, other | {"sha256": "0" * 64})):
        (tmp_path / "x.tflite").write_bytes(wrong_file)
        (tmp_path / "x.json").write_text(json.dumps(wrong_sidecar))
        with pytest.raises(UserError, match=rule):
            open_model(tmp_path / "x.tflite")
