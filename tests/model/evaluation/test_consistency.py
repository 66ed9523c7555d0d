"""Annotations, records and results that do not belong together are refused, or told in one line with its cause."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import api
from model.config import TINY
from model.evaluation.consistency import check_images, checksum_notes
from model.evaluation.evaluator import evaluate, evaluate_results
from model.evaluation.ground_truth import read_ground_truth
from model.inference.image_folder import image_files, predict_files
from model.inference.image_names import annotated, read_image_names
from model.inference.predictor import Answer, Predictor
from pipeline.coco import read_coco
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder
from tests.model.evaluation.test_evaluator import CATEGORY, SHAPES, annotation_file, ground_truth, knowing, record_folder

__all__ = ["annotation_file", "record_folder"]  # fixtures


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def perfect() -> list[dict[str, Any]]:
    return [{**a, "score": 1.0} for a in ground_truth()["annotations"]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nose", "right_eye", "left_eye"], "the same keypoints in another order: number 2 is 'right_eye', .*'left_eye'"),
        (["nose", "left_ear", "right_ear"], "other keypoints: number 2 is 'left_ear', .*'left_eye'"),
        (["nose", "left_eye"], "2 keypoints, .*the records 3 .nose, left_eye, right_eye"),
    ],
)
def test_other_keypoints_are_refused(
    record_folder: RecordFolder, annotations: Path, tmp_path: Path, names: list[str], message: str
) -> None:
    """Records and model agree, the annotations do not: the boxes would be right and every keypoint wrong."""
    content = ground_truth()
    content["categories"] = [CATEGORY | {"keypoints": names, "skeleton": []}]
    for entry in content["annotations"]:
        entry["keypoints"] = entry["keypoints"][: 3 * len(names)]
    other = write(tmp_path / "other.json", content)
    with pytest.raises(UserError, match=f"other.json: .*{message}"):
        evaluate(knowing(record_folder), record_folder, "val", other)
    with pytest.raises(UserError, match=message):
        evaluate_results(other, perfect(), record_folder.skeleton)


@pytest.mark.parametrize("names", [["Nose", "Left Eye", "right-eye"], ["nose", "L_Eye", "eyeR"]])
def test_keypoint_names_are_compared_however_they_are_written(
    record_folder: RecordFolder, tmp_path: Path, names: list[str]
) -> None:
    """Those of the annotations with the records', and those of the records with the model's."""
    content = ground_truth()
    content["categories"] = [CATEGORY | {"keypoints": names}]
    other = write(tmp_path / "other.json", content)
    predictor = knowing(record_folder)
    assert evaluate(predictor, record_folder, "val", other)["keypoints"]["AP"] == pytest.approx(1)
    predictor = dataclasses.replace(predictor, skeleton=dataclasses.replace(predictor.skeleton, keypoints=tuple(names)))
    assert evaluate(predictor, record_folder, "val", other)["keypoints"]["AP"] == pytest.approx(1)


def test_annotations_of_another_split_are_refused(record_folder: RecordFolder, tmp_path: Path) -> None:
    """The ids are the same; names and sizes are not."""
    content = ground_truth()
    content["images"][1]["file_name"] = "another.png"
    other = write(tmp_path / "other.json", content)
    with pytest.raises(UserError, match=r"image 2 is the file 'another.png', in the records '2.png': .*another split"):
        evaluate(knowing(record_folder), record_folder, "val", other)
    content = ground_truth()
    content["images"][1] |= {"height": 162, "width": 120}
    with pytest.raises(UserError, match=r"image 2 has 120×162 pixels \(width × height\), in the records 162×120"):
        evaluate(knowing(record_folder), record_folder, "val", write(tmp_path / "other.json", content))
    content = ground_truth()
    content["images"][1]["file_name"] = ".\\2.png"  # the same file
    assert evaluate(knowing(record_folder), record_folder, "val", write(tmp_path / "other.json", content))["counts"]


def test_images_that_the_conversion_shrank(record_folder: RecordFolder, tmp_path: Path) -> None:
    """Annotations of images three times as large: answers about the small ones are enlarged, and a line says so."""
    content = ground_truth()
    for image in content["images"]:
        image |= {"height": 3 * image["height"], "width": 3 * image["width"]}
    for entry in content["annotations"]:
        entry["bbox"], entry["area"] = [3 * side for side in entry["bbox"]], 9 * entry["area"]
        entry["keypoints"] = (np.reshape(entry["keypoints"], (3, 3)) * [3, 3, 1]).ravel().tolist()
    figures = evaluate(knowing(record_folder), record_folder, "val", write(tmp_path / "large.json", content))
    assert figures["keypoints"]["AP"] == figures["bbox"]["AP"] == pytest.approx(1)
    assert figures["notes"] == ["3 of 3 images are smaller in the records: answers are enlarged to the annotations' pixels"]


def test_the_conversions_checksum(
    record_folder: RecordFolder, annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = {"val": {**record_folder.splits["val"], "input_sha256": read_coco(annotations).sha256()}}
    folder = dataclasses.replace(record_folder, splits=noted)
    monkeypatch.setattr("model.api.open_record_folder", lambda _: folder)
    results = tmp_path / "results.json"
    results.write_text(json.dumps(perfect()))
    assert "note:" not in str(api.evaluate(annotations=str(annotations), results=str(results), data_dir="records"))
    content = ground_truth()
    content["annotations"][0]["keypoints"][0] += 1
    other = write(tmp_path / "other.json", content)
    text = str(api.evaluate(annotations=str(other), results=str(results), data_dir="records"))
    assert f"note: {other} is not what the split 'val' was converted from, or was changed since" in text


def test_results_of_other_categories_are_counted(annotations: Path) -> None:
    results = perfect()
    mixed = results[:2] + [{**result, "category_id": 8} for result in results[2:]]
    figures = evaluate_results(annotations, mixed)
    assert figures["counts"]["results"] == 2
    assert figures["notes"] == ["2 of 4 results do not count: they are of category 8, the annotations' 'person' is 7"]


def test_results_in_other_pixels_are_told(annotations: Path) -> None:
    corners = [{**result, "bbox": [*result["bbox"][:2], 250, 110]} for result in perfect()]
    (note,) = evaluate_results(annotations, corners)["notes"]
    assert note.startswith("4 of 4 results reach far outside their image") and "x0 y0 x1 y1?" in note


def test_keypoints_in_another_order_are_told(annotations: Path) -> None:
    turned = [{**r, "keypoints": r["keypoints"][3:] + r["keypoints"][:3]} for r in perfect()]
    figures = evaluate_results(annotations, turned)
    assert figures["bbox"]["AP"] == pytest.approx(1) and figures["keypoints"]["AP"] < 0.05
    assert figures["notes"][0].startswith("boxes fit (AP50 1.000) and keypoints do not (0.000): are the keypoints in the order")


def test_results_are_matched_by_file_name(annotations: Path, tmp_path: Path) -> None:
    """Another tool's numbers do not matter where names are there; without names the numbers count."""
    named = [{**r, "image_id": 10 - r["image_id"], "file_name": f"images/{r['image_id']}.png"} for r in perfect()]
    content = ground_truth()
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    truth = write(tmp_path / "nested.json", content)
    figures = evaluate_results(truth, named)
    assert figures["keypoints"]["AP"] == pytest.approx(1)
    assert figures["notes"] == [
        "4 of 4 results have another image_id than their file_name has in the annotations: the file name decides"
    ]
    by_last_part = [{**r, "file_name": Path(r["file_name"]).name} for r in named]
    assert evaluate_results(truth, by_last_part)["keypoints"]["AP"] == pytest.approx(1)
    with pytest.raises(UserError, match=r"entry 1 is of the file 'x.png', which the annotations do not have"):
        evaluate_results(truth, [named[0], {**named[1], "file_name": "x.png"}])
    for image in content["images"]:
        del image["file_name"]
    assert evaluate_results(write(tmp_path / "nameless.json", content), perfect())["keypoints"]["AP"] == pytest.approx(1)


def test_a_file_name_that_several_images_have(tmp_path: Path) -> None:
    content = ground_truth()
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"camera{number}/1.png"
    truth = write(tmp_path / "gt.json", content)
    results = [{**r, "file_name": "1.png"} for r in perfect()]
    assert evaluate_results(truth, results)["keypoints"]["AP"] == pytest.approx(1)  # the numbers decide
    with pytest.raises(UserError, match=r"several images are called '1.png' .*none of them has the id 77"):
        evaluate_results(truth, [{**results[0], "image_id": 77}])


def test_areas_that_are_tiny_or_missing(tmp_path: Path) -> None:
    content = ground_truth()
    content["annotations"][0]["area"] = 1.0
    del content["annotations"][1]["area"]
    missing, tiny = evaluate_results(write(tmp_path / "gt.json", content), perfect())["notes"]
    assert missing.startswith("1 of 4 annotations have no area: that of the box stands for it")
    assert tiny.startswith("1 of 4 annotations have a tiny area, below 2% of the box (image 1: 1 in a box of 60×80)")


def test_the_field_cases(shared_data: Path) -> None:
    for case, words in (("area_one", ["1 of 1 annotations have a tiny area"]), ("file_names_without_digits", [])):
        path = shared_data / "field_cases" / case / "annotations.json"
        truth = read_ground_truth(path)
        names = {image_id: entry.file_name for image_id, entry in truth.images.items()}
        results = [{**p, "score": 1.0, "image_id": 5, "file_name": names[p["image_id"]]} for p in truth.persons]
        figures = evaluate_results(truth, results)
        assert figures["keypoints"]["AP"] == pytest.approx(1)
        assert [note for note in figures["notes"] if any(word in note for word in words)] or not words


def test_the_checksum_of_a_real_conversion(coco_sample: Path, coco_sample_records: RecordFolder) -> None:
    """The annotations that were converted pass without a word; those of the other split are refused."""
    annotations = {split: coco_sample / "annotations" / f"person_keypoints_{split}2017.json" for split in ("train", "val")}
    truth = read_ground_truth(annotations["val"])
    assert checksum_notes(truth, coco_sample_records, "val") == check_images(truth, coco_sample_records, "val") == []
    (note,) = checksum_notes(read_ground_truth(annotations["train"]), coco_sample_records, "val")
    assert "is not what the split 'val' was converted from" in note
    with pytest.raises(UserError, match="has no image with id"):
        check_images(truth, coco_sample_records, "train")


@pytest.mark.parametrize("given", [(), ("annotations",)])
def test_predictions_of_files_without_digits_are_evaluated(shared_data: Path, tmp_path: Path, given: tuple[str, ...]) -> None:
    """With ids of the annotations or of the folder: the file names lead to the right images."""
    case = shared_data / "field_cases" / "file_names_without_digits"
    truth = read_ground_truth(case / "annotations.json")
    box, points = np.array(truth.persons[0]["bbox"]), np.reshape(truth.persons[0]["keypoints"], (3, 3))

    def answer(images: Sequence[bytes]) -> Answer:
        found = {name: np.zeros((len(images), 1, *shape), np.float32) for name, shape in SHAPES.items()}
        found["boxes"][:, 0], found["scores"][:] = [*box[:2], *(box[:2] + box[2:])], 0.9
        found["keypoints"][:, 0] = points[:, :2]
        return {**found, "num_detections": np.ones(len(images), np.int32)}

    predictor = Predictor(TINY, truth.skeleton(), answer, lambda height, width: (128, 224))
    files: Any = image_files(case / "images")
    if given:
        files, notes = annotated(case / "images", files, read_image_names(truth.path), truth.path)
        assert not notes
    summary = predict_files(predictor, files, tmp_path)
    ids = [entry["image_id"] for entry in json.loads(summary.predictions.read_text())]
    assert ids == ([1, 2] if given else [0, 1])
    text = str(api.evaluate(annotations=truth.path, results=str(summary.predictions)))
    assert text.count("AP 1.000") == 3 and ("the file name decides" in text) == (not given)
