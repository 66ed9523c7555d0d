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


def test_the_bar_is_the_one_that_is_asked_for(files: DemoFiles, capsys: pytest.CaptureFixture[str]) -> None:
    demo.FLAGS(["demo", "--min_ap=0.58"])
    assert demo._conclude(files, 2000.0, 10.0) == ["keypoint AP 0.050 is below --min_ap=0.58"]
    assert "the stages took 33 min 20 s" in capsys.readouterr().out
    files.summary.write_text(json.dumps(SUMMARY | {"keypoint_ap": 0.6, "baseline_keypoint_ap": 0.3}))
    (miss,) = demo._conclude(files, 10.0, 10.0)
    assert "the mean pose scores 0.300" in miss
    with pytest.raises(flags.IllegalFlagValueError, match="min_ap"):
        demo.FLAGS(["demo", "--min_ap=1.5"])
