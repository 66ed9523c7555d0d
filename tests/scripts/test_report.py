"""The parts of the demo's report that count and draw."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.evaluation.evaluator import evaluate_results
from model.evaluation.ground_truth import read_ground_truth
from scripts import report_charts, report_gallery
from scripts.demo_files import DemoFiles
from scripts.real_photographs import subset_of
from scripts.report import write_report
from scripts.stages import STATE_FILE
from tests.pipeline.inspection.test_statistics_page import Checked


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Annotations, images and predictions: one found, one missed, one invented, one in a crowd; and an image of nobody."""
    category = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2]]}
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 60, "width": 80} for i in (2, 1)]

    def person(box: list[int], *, crowd: int = 0) -> dict[str, Any]:
        return {"image_id": 1, "category_id": 1, "bbox": box, "iscrowd": crowd, "keypoints": [5, 5, 2, 6, 4, 1, 0, 0, 0]}

    annotations = [person([0, 0, 20, 20]), person([50, 0, 20, 20]), person([20, 30, 40, 30], crowd=1)]
    content = {"images": images, "annotations": annotations, "categories": [category]}
    results = [
        {"image_id": 1, "file_name": "1.jpg", "bbox": box, "score": score, "keypoints": [5, 5, 0.5] * 3}
        for box, score in (([1, 0, 20, 20], 0.9), ([0, 2, 20, 18], 0.8), ([25, 35, 10, 10], 0.7))
    ]
    for image in images:
        Image.new("RGB", (80, 60)).save(tmp_path / str(image["file_name"]))
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "predictions.json").write_text(json.dumps(results))
    return tmp_path / "annotations.json", tmp_path, tmp_path / "predictions.json"


def test_examples(files: tuple[Path, Path, Path]) -> None:
    skeleton, examples = report_gallery.read_examples(*files)
    assert [example.image_id for example in examples] == [1, 2]
    assert (examples[0].hits, examples[0].persons, examples[0].extra) == (1, 2, 1)
    assert report_gallery.caption(examples[0]) == "2 persons in it, 1 missed, 1 found where nobody is, 1 crowd"
    assert report_gallery.caption(examples[1]) == "nobody in it"
    assert report_gallery.worst(examples, 3) == examples[:1]
    truth, found = report_gallery.draw(examples[0], skeleton)
    assert truth.startswith(b"\xff\xd8") and found.startswith(b"\xff\xd8") and truth != found


def test_charts() -> None:
    losses = dict.fromkeys(report_charts.LOSSES, 1.0) | {"loss": 5.0}
    lines: list[dict[str, Any]] = [{"kind": "train", "step": step, **losses} for step in range(20, 200, 20)]
    lines.append({"kind": "eval", "step": 200, "keypoint_ap": 0.5, "box_ap": 0.25})
    chart = report_charts.loss_chart(lines)
    assert chart.startswith("<svg") and chart.rstrip().endswith("</svg>")
    assert "var(--ink)" in chart and "var(--c1)" in chart and "#0a000" not in chart and "#010203" not in chart
    report_charts.loss_chart([])


HOSTILE = "<img src=x onerror=alert(1)>.jpg"


def exported(*, detections: int, equal: int) -> dict[str, Any]:
    """The report of an export, as far as the demo's report reads it."""
    found = {"detections": detections, "equal": equal, "equal_share": equal / detections if detections else 1.0}
    artifacts = [{"title": title, "milliseconds": 7.6, **found} for title in ("SavedModel", "TFLite")]
    bars = {"box": 0.5, "keypoint": 1.0}
    return {
        "images_from": "2 images of the folder val",
        "height": 1,
        "width": 1,
        "bars_in_pixels": bars,
        "artifacts": artifacts,
    }


@pytest.fixture
def demo_folder(files: tuple[Path, Path, Path], tmp_path: Path) -> DemoFiles:
    """What the stages of a demo leave, as far as the report reads it; the first image has a name that is HTML."""
    annotations, images, predictions = files
    demo = DemoFiles(tmp_path / "demo")
    for split in ("train", "val"):
        demo.images(split).mkdir(parents=True)
        demo.annotations(split).parent.mkdir(exist_ok=True)
        renamed = json.loads(annotations.read_text())
        for number, entry in enumerate(renamed["annotations"], 1):
            entry |= {"id": number, "area": 400, "num_keypoints": 2}
        for image in renamed["images"]:
            source = images / image["file_name"]
            image["file_name"] = HOSTILE if image["id"] == 1 else image["file_name"]
            shutil.copy(source, demo.images(split) / image["file_name"])
        demo.annotations(split).write_text(json.dumps(renamed))
    results = json.loads(predictions.read_text())
    demo.predictions.mkdir()
    (demo.predictions / "predictions.json").write_text(json.dumps([r | {"file_name": HOSTILE} for r in results]))
    skeleton, _ = report_gallery.read_examples(*files)
    truth = read_ground_truth(demo.annotations("val"), skeleton.category)
    demo.evaluation.mkdir()
    coco = [{key: result[key] for key in ("image_id", "bbox", "score", "keypoints")} | {"category_id": 1} for result in results]
    demo.figures_of_val.write_text(json.dumps(evaluate_results(truth, coco, skeleton)))
    demo.model.mkdir()
    losses = dict.fromkeys(report_charts.LOSSES, 1.0) | {"loss": 5.0}
    lines: list[dict[str, Any]] = [{"kind": "train", "step": step, **losses} for step in range(20, 200, 20)]
    lines.append({"kind": "eval", "step": 200, "keypoint_ap": 0.5, "box_ap": 0.25})
    demo.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (demo.model / "config.json").write_text(json.dumps({"preset": "tiny", "train": {"steps": 200, "global_batch_size": 8}}))
    demo.exported.mkdir()
    demo.export_report.write_text(json.dumps(exported(detections=10, equal=9)))
    stages = {
        name: {"title": f"Stage <{name}>", "seconds": 60.0, "commands": [f"python -m {name} --x='<b>'"]}
        for name in ("data", "train")
    }
    (demo.root / STATE_FILE).write_text(json.dumps(stages))
    return demo


def test_the_report_says_what_was_measured(demo_folder: DemoFiles) -> None:
    summary = write_report(demo_folder, 2)
    page = demo_folder.report.read_text()
    checked = Checked()
    checked.feed(page)
    assert checked.open == []
    words = " ".join(" ".join(checked.words).split())
    assert json.loads(demo_folder.summary.read_text()) == summary and set(summary["milliseconds_per_image"].values()) == {7.6}
    for text in (
        "guessing: the same average pose", "for comparison", f"ended on {summary['date']}", "train.global_batch_size 8",
        "left eye / right eye", "1 missed", "90.00%", "has never seen a photograph", "Average precision runs from 0 to 1",
    ):  # fmt: skip
        assert text in words, text
    assert ". .venv/bin/activate" in words and "setup.sh" not in page  # setup.sh would leave set -e in the reader's shell
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched


def test_a_quick_look_and_a_comparison_of_nobody_are_told(demo_folder: DemoFiles) -> None:
    demo_folder.export_report.write_text(json.dumps(exported(detections=0, equal=0)))
    assert write_report(demo_folder, 2, quick=True)["agreement"] == {}
    page = demo_folder.report.read_text()
    assert "finds nobody in the images of the comparison" in page and "This was a quick look" in page
    write_report(demo_folder, 0)
    assert "quick look" not in demo_folder.report.read_text()


def test_names_of_files_are_text(demo_folder: DemoFiles) -> None:
    write_report(demo_folder, 2)
    checked = Checked()
    checked.feed(demo_folder.report.read_text())
    assert HOSTILE in checked.words and "Stage <data>" in checked.words
    assert not {name for name in checked.attributes if name.startswith("on")}


def test_smooth_keeps_length_and_mean() -> None:
    assert report_charts.smooth([]) == []
    values = np.random.default_rng(0).normal(size=400)
    smoothed = report_charts.smooth(list(values))
    assert len(smoothed) == 400 and np.std(smoothed) < np.std(values)
    np.testing.assert_allclose(report_charts.smooth([3.0] * 90), 3.0)


def test_subset() -> None:
    content = {
        "info": {"year": 2017},
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"id": 7, "image_id": 1}, {"id": 8, "image_id": 2}],
    }
    assert subset_of(content, (2,)) == {
        "info": {"year": 2017},
        "images": [{"id": 2}],
        "annotations": [{"id": 8, "image_id": 2}],
    }
