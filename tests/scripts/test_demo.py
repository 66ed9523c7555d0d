"""What the demo says at its end, and when its status is not 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from absl import flags

from scripts import demo
from scripts.demo_files import DemoFiles

SUMMARY = {"keypoint_ap": 0.05, "box_ap": 0.1, "baseline_keypoint_ap": 0.0, "agreement": {"TFLite": 1.0}}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoFiles:
    monkeypatch.setattr(demo, "FLAGS", demo.FLAGS.__deepcopy__({}))
    files = DemoFiles(tmp_path)
    files.summary.write_text(json.dumps(SUMMARY))
    return files


def test_a_short_run_ends_with_its_ap_and_nothing_missed(files: DemoFiles, capsys: pytest.CaptureFixture[str]) -> None:
    demo.FLAGS(["demo", "--num_train=200", "--num_val=40", "--steps=200"])
    assert demo._conclude(files, 2000.0, 10.0) == []
    said = capsys.readouterr().out
    assert "keypoint AP   0.050" in said and "report" in said
    assert "warning" not in said and "short of" not in said


def test_a_quick_look_has_the_same_stages_on_less(files: DemoFiles, capsys: pytest.CaptureFixture[str]) -> None:
    demo.FLAGS(["demo"])
    full = demo.stages(files)
    demo.FLAGS(["demo", "--quick", "--num_val=30"])
    quick = demo.stages(files)
    assert [stage.name for stage in quick] == [stage.name for stage in full]
    lines = {stage.name: " ".join(word for command in stage.commands for word in command) for stage in quick}
    assert "--num_images=30" in lines["look"] and f"--num_images={demo.QUICK.num_train}" in lines["data"]
    assert f"--steps={demo.QUICK.steps}" in lines["train"] and "--eval_split" not in lines["train"]
    assert "--formats=saved_model " in lines["export"] + " " and [stage.title for stage in quick][5] == "Export as SavedModel"
    assert f"--short_edges={demo.QUICK.short_edge}" in lines["records"] and "--quick" in lines["report"]
    assert demo._conclude(files, 20.0, 10.0) == []
    assert "This was a quick look" in capsys.readouterr().out


def test_the_first_look_comes_before_all_else(files: DemoFiles) -> None:
    demo.FLAGS(["demo"])
    first, *rest = demo.stages(files)
    assert files.first_look in first.writes and not first.reads
    # No stage removes what an earlier one wrote: each owns its files.
    written = [path for stage in (first, *rest) for path in stage.writes]
    assert not [path for path in written for other in written if path != other and path.is_relative_to(other)]


def test_the_bar_is_the_one_that_is_asked_for(files: DemoFiles, capsys: pytest.CaptureFixture[str]) -> None:
    demo.FLAGS(["demo", "--min_ap=0.58"])
    assert demo._conclude(files, 2000.0, 10.0) == ["keypoint AP 0.050 is below --min_ap=0.58"]
    assert "the stages took 33 min 20 s" in capsys.readouterr().out
    files.summary.write_text(json.dumps(SUMMARY | {"keypoint_ap": 0.6, "baseline_keypoint_ap": 0.3}))
    (miss,) = demo._conclude(files, 10.0, 10.0)
    assert "the mean pose scores 0.300" in miss
    with pytest.raises(flags.IllegalFlagValueError, match="min_ap"):
        demo.FLAGS(["demo", "--min_ap=1.5"])
