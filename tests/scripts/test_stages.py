"""Stages are reused when nothing has changed, and only then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.stages import REPOSITORY, STATE_FILE, Stage, StageError, Stages, code_of


def render(folder: Path, *more: str, count: int = 1, resumes: bool = False) -> Stage:
    return Stage(
        name="data",
        title="Render",
        commands=[
            ("-m", "pipeline.synthetic", f"--output_dir={folder}", f"--num_images={count}", "--seed=0", "--width=96",
             "--height=96", "--num_workers=1", *more)
        ],
        reads=(folder.parent / "input",),
        writes=(folder,),
        resumes=resumes,
    )  # fmt: skip


def outcome(root: Path, stage: Stage, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    Stages(root).run(stage)
    return "reused" if "reused: finished on" in capfd.readouterr().out else "run"


def test_reuse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "out"
    data, image = root / "data", root / "data" / "train" / "000000000001.jpg"
    assert outcome(root, render(data), capfd) == "run"
    assert outcome(root, render(data), capfd) == "reused"
    # Another command line starts from nothing: the command itself would refuse to replace what is there.
    assert outcome(root, render(data, count=2), capfd) == "run"
    assert len(list((data / "train").iterdir())) == 2
    # What it wrote, or what it read, is not what it was.
    image.write_bytes(b"")
    assert outcome(root, render(data, count=2), capfd) == "run"
    assert image.stat().st_size > 0
    (root / "input").write_text("new")
    assert outcome(root, render(data, count=2), capfd) == "run"
    assert outcome(root, render(data, count=2), capfd) == "reused"


def test_a_stopped_stage_is_not_taken_for_finished(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "out"
    for resumes in (False, True):
        stage = render(root / "data", resumes=resumes)
        assert outcome(root, stage, capfd) == "run"
        state = json.loads((root / STATE_FILE).read_text())
        state["data"]["written"] = None
        (root / STATE_FILE).write_text(json.dumps(state))
        kept = root / "data" / "train" / "000000000001.jpg"
        before = kept.stat().st_mtime_ns
        assert outcome(root, stage, capfd) == "run"
        assert (kept.stat().st_mtime_ns == before) == resumes  # the command found it finished, or began anew
        (root / STATE_FILE).write_text("{}")


def test_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = render(tmp_path / "out" / "data", "--split=no/name")
    with pytest.raises(StageError, match=r"pipeline\.synthetic ended with status 1"):
        Stages(tmp_path / "out").run(broken)
    assert "error: --split" in capfd.readouterr().err


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(StageError, match="name a new or empty folder"):
        Stages(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("module", "files"),
    [
        ("pipeline.synthetic", ("pipeline/synthetic/__main__.py", "pipeline/command.py")),
        ("model.train", ("model/train.py", "model/training/loop.py", "pipeline/inspection/page.html")),
        ("scripts.report", ("scripts/report.py", "scripts/report_charts.py", "scripts/report.html", "pipeline/drawing.py")),
    ],
)
def test_a_change_of_the_code_is_seen(module: str, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_of([("-m", module)])
    read = Path.read_bytes
    for name in files:
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=name: read(path) + bytes(path == REPOSITORY / name))
        assert code_of([("-m", module)]) != before, name
    monkeypatch.setattr(Path, "read_bytes", read)
    assert code_of([("-m", module)]) == before
