from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import command, make_tfrecords
from pipeline.record_folder import open_record_folder

Command = Callable[..., int]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Calls the command in this process on one small image; returns its exit status."""
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "1.jpg")
    category = {"id": 1, "name": "person", "keypoints": ["nose", "l_ear", "r_ear"]}
    person = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 30], "keypoints": [2, 3, 2] * 3}
    images = [{"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": [person], "categories": [category]}))

    def call(*arguments: str) -> int:
        where = [f"--annotations={tmp_path / 'a.json'}", f"--images={tmp_path}", f"--output_dir={tmp_path / 'out'}"]
        monkeypatch.setattr(sys, "argv", ["make_tfrecords", *where, "--short_edges=64", *arguments])
        with pytest.raises(SystemExit) as exit_:
            command.run(make_tfrecords.main, make_tfrecords.FLAGS, make_tfrecords.__doc__, passes_unknown_flags=True)
        for name in make_tfrecords.FLAGS:
            make_tfrecords.FLAGS[name].unparse()
        return int(exit_.value.code or 0)

    yield call


SIGMAS = "--sigmas=0.1,0.2,0.3"


def test_flags_reach_the_records(make: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [SIGMAS, "--flip_pairs=l_ear:r_ear", "--split=val", "--dataset_name=people", "--num_shards=2", "--max_edge=100"]
    assert make(*flags, "--anchor_sizes=16,32,64,128,256", "--runner=BundleBasedDirectRunner") == 0
    printed = capsys.readouterr().out
    assert f"split 'val' written to {tmp_path / 'out'}" in printed and "labelled keypoints  3" in printed
    data = open_record_folder(tmp_path / "out")
    assert (data.name, data.short_edges, data.max_edge) == ("people", (64,), 100)
    assert data.anchors.sizes == (16, 32, 64, 128, 256)
    assert data.skeleton.flip == (0, 2, 1) and data.skeleton.sigmas == (0.1, 0.2, 0.3)
    assert len(data.shards("val")) == 2

    assert make(*flags, "--anchor_sizes=16,32,64,128,256") == 0
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([SIGMAS, "--anchor_sizes=32,64"], "--anchor_sizes, anchors.sizes=[32.0, 64.0]: must be one for each level"),
        ([SIGMAS, "--anchor_sizes=a,b,c,d,e"], "--anchor_sizes=a,b,c,d,e: must be numbers"),
        ([SIGMAS, "--short_edges=64.5"], "--short_edges=64.5: must be whole numbers"),
        ([SIGMAS, "--short_edges=9999"], "--short_edges=9999: must be"),
        ([SIGMAS, "--short_edges=nan"], "--short_edges=nan: must be whole numbers"),
        ([SIGMAS, "--short_edges=64,inf"], "--short_edges=64,inf: must be whole numbers"),
        ([SIGMAS, "--short_edges=", "--max_edge=-5"], "--max_edge=-5: must be"),
        ([SIGMAS, "--output_dir="], "--output_dir=: is empty"),
        (
            [SIGMAS, "--output_dir=/proc/nowhere"],
            "--output_dir=/proc/nowhere: cannot be a record folder (No such file or directory)",
        ),
        ([SIGMAS, "--flip_pairs=l_ear"], "--flip_pairs=l_ear: must be pairs"),
        (["--sigmas=x"], "--sigmas=x: must be numbers"),
        (["--sigmas=0.1,0.2"], "--sigmas=0.1,0.2: 3 keypoints need 3 numbers above 0, or one for all"),
        (["--sigmas=0"], "--sigmas=0: 3 keypoints need 3 numbers above 0"),
        ([SIGMAS, "--flip_pairs=l_ear:tail"], "--flip_pairs=l_ear:tail: both must be among the keypoints"),
        ([SIGMAS, "--keypoints=a,a"], "--keypoints=a,a: names of keypoints with commas between, each once"),
        ([SIGMAS, "--keypoints=a,,b"], "--keypoints=a,,b: names of keypoints with commas between, each once"),
        ([SIGMAS, "--category=dog"], "0 categories named 'dog' among ['person']; name one of these, or take another file"),
        ([SIGMAS, "--shrink_larger_than=1"], "--shrink_larger_than=1: must be 1024 pixels or more"),
        ([SIGMAS, "--shrink_larger_than=-1"], "--shrink_larger_than=-1: must be 1024 pixels or more"),
        ([SIGMAS, "--num_shards=0"], "--num_shards=0: must be from 1"),
        ([SIGMAS, "--num_shards=two"], "two"),
        ([SIGMAS, "--on_error=ignore"], "ignore"),
        ([SIGMAS, "--images=/absent"], "/absent: no such folder"),
        ([SIGMAS, "--annotations=/absent.json"], "/absent.json: no such annotation file"),
        ([SIGMAS, "--nonsense=1"], "--nonsense: no flag"),
    ],
)
def test_a_wrong_value_is_answered_in_one_line(
    make: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert make(*flags) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("error: ") and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_answers_at_once() -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pipeline.make_tfrecords", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--annotations" in done.stdout
    assert time.monotonic() - start < 3
