"""The parts of the demo's report that count and draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts import report_charts, report_gallery
from scripts.real_photographs import subset_of


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
    for chart in (report_charts.loss_chart(lines), report_charts.ap_chart(lines, 0.1)):
        assert chart.startswith("<svg") and chart.rstrip().endswith("</svg>")
        assert "var(--ink)" in chart and "var(--c1)" in chart and "#0a000" not in chart and "#010203" not in chart
    assert "0.500 at last" in report_charts.ap_chart(lines, 0.1)
    report_charts.ap_chart([], 0.0)  # stopped before the first evaluation
    report_charts.loss_chart([])


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
