"""AP in the report: what each artifact keeps of the model's, on records whose truth is what the model answers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from export.compare import Agreement, Comparison
from export.examination import Ap, Bars, Examined, measure_ap, open_split
from export.formats import Artifact
from export.publish import export_model
from export.sample_images import Fit, sample
from export.tflite import random_images
from model.inference.predictor import open_model
from model.model_dir import load_model
from pipeline.command import UserError
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig

BOTH = {"keypoints": pytest.approx(1.0, abs=0.02), "boxes": pytest.approx(1.0, abs=0.02)}


@dataclasses.dataclass(frozen=True)
class Truth:
    """Records and their annotations: images in which the model finds exactly whom the annotations name."""

    records: Path
    annotations: Path


@pytest.fixture(scope="module")
def truth(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    folder = tmp_path_factory.mktemp("truth")
    (folder / "images").mkdir()
    pixels = list(random_images(96, 128, 4))
    found = open_model(model_dir)(pixels)
    images: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    for number, (one, answer) in enumerate(zip(pixels, found, strict=True), start=1):
        (folder / "images" / f"{number}.png").write_bytes(tf.io.encode_png(one).numpy())
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 128})
        for entry in answer.to_coco(number):
            points = np.array(entry["keypoints"]).reshape(-1, 3)
            points[:, 2] = 2
            _, _, width, height = entry["bbox"]
            person = {"id": len(people) + 1, "image_id": number, "category_id": 1, "bbox": entry["bbox"], "iscrowd": 0}
            more = {"area": width * height, "keypoints": points.ravel().tolist(), "num_keypoints": len(points)}
            people.append(person | more)
    names = load_model(model_dir).skeleton.keypoints
    category = {"id": 1, "name": "person", "keypoints": list(names), "skeleton": []}
    annotations = folder / "val.json"
    annotations.write_text(json.dumps({"images": images, "annotations": people, "categories": [category]}))
    convert(annotations, folder / "images", folder / "records", "val", ConversionConfig(short_edges=(96,), max_edge=192))
    return Truth(folder / "records", annotations)


@pytest.fixture(scope="module")
def measured(model_dir: Path, truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured")
    export_model(
        model_dir,
        path,
        formats=["saved_model", "tflite", "tflite_int8"],
        eval_data_dir=truth.records,
        eval_annotations=truth.annotations,
        calibration=truth.records,
        bars=Bars(alike=0.0, ap_kept=0.0),  # int8 of random weights says nothing
        report=lambda _: None,
    )
    return path


def test_the_report_says_what_ap_an_artifact_keeps(measured: Path) -> None:
    report = json.loads((measured / "export-report.json").read_text())
    assert report["model_ap"] == BOTH
    assert (report["split"], report["split_images"]) == ("val", 4)
    assert report["images_from"] == report["int8_ranges_from"] == "4 images of the split val"
    aps = {one["format"]: one["ap"] for one in report["artifacts"]}
    assert aps["saved_model"] == aps["tflite"] == BOTH
    for one in report["artifacts"]:
        for kind, less in one["ap_less_the_models"].items():
            assert less == pytest.approx(one["ap"][kind] - report["model_ap"][kind])
    page = (measured / "export-report.html").read_text()
    assert f"{report['model_ap']['keypoints']:.4f}" in page and "the 4 images of the split val" in page
    assert "the 4 images of the split val" in (measured / "model-card.md").read_text()


def test_an_artifact_that_loses_ap_is_refused(model_dir: Path, measured: Path, truth: Truth) -> None:
    model = load_model(model_dir)
    split = open_split(truth.records, "val", truth.annotations, model.skeleton)
    path = measured / "keypoint_rcnn.tflite"
    nothing = Comparison(Agreement(0, 0), Agreement(0, 0), Agreement(0, 0), 0, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), 0)
    found = [Examined(Artifact("tflite", path, path), nothing, [])]
    lines: list[str] = []
    arguments = (split, Bars(ap_kept=0.98), model.config, model.skeleton, lines.append)
    assert measure_ap(found, Ap(1.0, 1.0), *arguments) == {}
    assert lines[-1].startswith("TFLite: keypoint AP ")
    refused = measure_ap(found, Ap(1.0, 1.2), *arguments)
    said = re.escape("of the model's 1.2000; must be 1.1760 or more (--min_ap_kept=0.98)")
    assert list(refused) == ["tflite"] and re.fullmatch(rf"TFLite: keeps boxes AP \d.\d+ {said}", str(refused["tflite"]))
    assert measure_ap(found, Ap(0.0, 0.0), *arguments) == {}
    assert any("the model's own AP on val is 0" in line for line in lines)


def test_records_on_which_no_ap_can_be_measured(model_dir: Path, truth: Truth, tmp_path: Path) -> None:
    skeleton = load_model(model_dir).skeleton
    other = dataclasses.replace(skeleton, keypoints=tuple(f"point_{i}" for i in range(skeleton.num_keypoints)))
    with pytest.raises(UserError, match=r"--eval_data_dir=.* has keypoints nose, .*, the model point_0"):
        open_split(truth.records, "val", truth.annotations, other)
    with pytest.raises(UserError, match=r"has no split 'test'; it has val"):
        open_split(truth.records, "test", truth.annotations, skeleton)
    content = json.loads(truth.annotations.read_text())
    (tmp_path / "other.json").write_text(json.dumps(content | {"images": content["images"][:1], "annotations": []}))
    with pytest.raises(UserError, match=r"other\.json"):
        open_split(truth.records, "val", tmp_path / "other.json", skeleton)


def test_images_are_taken_evenly(truth: Truth, tmp_path: Path) -> None:
    fit = Fit(64, 96, "standard")
    some = sample(truth.records, "--calibration", fit, 2)
    assert [image.shape for image in some.images] == [(64, 96, 3)] * 2 and some.origin == "2 images of the split val"
    every = sample(truth.records, "--calibration", fit, 100).images
    assert len(every) == 4
    np.testing.assert_array_equal(some.images[1], every[2])
    of_files = sample(truth.annotations.parent / "images", "--calibration", fit, 100)
    assert of_files.origin == "4 images of the folder images"
    assert {image.tobytes() for image in of_files.images} == {image.tobytes() for image in every}
    shard = next(truth.records.glob("*.tfrecord-*"))
    for file in truth.records.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file == shard else content)
    with pytest.raises(UserError, match=shard.name):
        sample(tmp_path, "--calibration", fit, 100)
