"""The command: what it writes, and what it says where something is wrong."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline import command, inspect_records, make_tfrecords
from pipeline.inspection.contact_sheet import overview_path
from tests.conftest import SKELETON

Command = Callable[..., int]


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls the command in this process; returns its exit status."""

    def call(folder: Path, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["inspect_records", f"--data_dir={folder}", *arguments])
        with pytest.raises(SystemExit) as exit_:
            command.run(inspect_records.main, inspect_records.FLAGS, inspect_records.__doc__)
        for name in inspect_records.FLAGS:
            inspect_records.FLAGS[name].unparse()
        return int(exit_.value.code or 0)

    return call


def test_it_writes_what_was_asked_for(
    inspect: Command, small_records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, flags in (
        ("plain.png", ["--count=3"]),
        ("some.jpg", ["--image_id=3", "--image_id=8", "--anchors", "--flipped", "--split=train"]),
        ("batches.png", ["--batches=1", "--batch_size=2", "--num_canvases=2"]),
        (
            "jittered.png",
            ["--batches=1", "--batch_size=2", "--hue=0.1", "--set=data.anchors=online", "--set=data.jitter_canvas=128"],
        ),
        ("new/page.html", ["--stats"]),
    ):
        assert inspect(small_records, f"--output={tmp_path / name}", *flags) == 0, capsys.readouterr().err
        assert f"written: {tmp_path / name}" in capsys.readouterr().out
        if not name.endswith("html"):
            assert min(Image.open(tmp_path / name).size) > 200
    assert "<svg" in (tmp_path / "new" / "page.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batches.png", "jittered.png", "new", "plain.png", "some.jpg"]


def test_verification_ends_with_a_status(
    inspect: Command, small_records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(small_records, "--verify") == 0
    assert "split 'train': 24 records in 2 shards" in capsys.readouterr().out
    folder = Path(shutil.copytree(small_records, tmp_path / "records"))
    shard = folder / "small-train.tfrecord-00000-of-00002"
    shard.write_bytes(bytes(shard.stat().st_size))
    assert inspect(folder, "--verify", "--split=train") == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and " in 1 file;" in printed.err
    assert f"{shard}, record at byte 0: image " in printed.out and "corrupted record" in printed.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output: the file to write"),
        (["--output=a.gif"], "a.gif: a sheet is an image"),
        (["--stats"], "--output: the file to write is missing; name it, such as --output=statistics.html"),
        (["--output=a.png", "--stats"], "a.png: statistics are a page"),
        (["--output=a.html", "--stats", "--verify"], "one of them at a time"),
        (["--output=a.png", "--split=val"], "--split=val"),
        (["--split=val", "--verify"], "--split=val"),
        (["--output=a.png", "--image_id=9999"], "--image_id=9999: not among"),
        (["--output=a.png", "--short_edge=100"], "--short_edge=100: "),
        (["--output=a.png", "--count=0"], "count"),
        (["--output=a.png", "--batches=1", "--batch_size=99999999999"], "--batch_size=99999999999: 99999999999 is not"),
        (["--output=a.png", "--batches=1", "--seed=99999999999999999999"], "--seed=99999999999999999999: "),
        (["--output=a.png", "--hue=0.1"], "--hue: change batches; add --batches=1"),
        (["--output=a.png", "--set=data.anchors=online"], "change batches; add --batches=1"),
        (["--output=a.png", "--batches=1", "--set=data.jitter_canvas=100"], "data.jitter_canvas=100"),
        (["--output=a.html", "--verify"], "--output: means nothing with --verify"),
        (["--output=a.html", "--stats", "--image_id=3"], "--image_id: means nothing with --stats"),
        (["--output=a.png", "--batches=1", "--noflipped"], "--flipped: means nothing with --batches"),
        (["--output=a.png", "--batch_size=2"], "--batch_size: means nothing without --batches"),
        (["--output=a.png", "--batches=1", "--seed=-1"], "seed"),
    ],
)
def test_a_wrong_value_is_answered_in_one_line(
    inspect: Command,
    small_records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert inspect(small_records, *flags) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("error: ") and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_conversion_ends_with_a_sheet(
    small_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sigmas = ",".join(map(str, SKELETON.sigmas))
    source = [f"--annotations={small_coco / 'annotations.json'}", f"--images={small_coco / 'images'}", f"--sigmas={sigmas}"]

    def convert(*flags: str) -> str:
        arguments = [*source, f"--output_dir={tmp_path}", "--short_edges=96", "--max_edge=128", *flags]
        monkeypatch.setattr(sys, "argv", ["make_tfrecords", *arguments])
        with pytest.raises(SystemExit) as exit_:
            command.run(make_tfrecords.main, make_tfrecords.FLAGS, make_tfrecords.__doc__, passes_unknown_flags=True)
        for name in make_tfrecords.FLAGS:
            make_tfrecords.FLAGS[name].unparse()
        assert not exit_.value.code
        return capsys.readouterr().out

    sheet = overview_path(tmp_path, "train")
    assert str(sheet) in convert()
    first = sheet.read_bytes()
    assert Image.open(sheet).width == 1280
    written = sheet.stat().st_mtime_ns
    convert()  # finished already
    assert sheet.stat().st_mtime_ns == written
    sheet.unlink()  # as if stopped right before it
    convert()
    assert sheet.read_bytes() == first
    convert("--limit=5", "--overwrite")
    assert sheet.read_bytes() != first
