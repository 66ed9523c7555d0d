from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.training.validation import SHOWN_IMAGES, Validation
from pipeline.coco import CocoImage
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder


@pytest.fixture(name="annotations")
def annotation_file(small_record_folder: RecordFolder, tmp_path: Path) -> Path:
    category = {"id": 1, "name": "person", "keypoints": list(small_record_folder.skeleton.keypoints)}
    path = tmp_path / "annotations.json"
    rows = small_record_folder.index("train")
    images = [{"id": int(row["image_id"]), "height": int(row["height"]), "width": int(row["width"])} for row in rows]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [category]}))
    return path


def test_other_annotations_are_told_before_training(small_record_folder: RecordFolder, annotations: Path) -> None:
    content = json.loads(annotations.read_text())
    for change, message in (
        ({"images": content["images"][1:]}, "has no image with id"),
        ({"images": [{**i, "height": i["width"], "width": i["height"] + 50} for i in content["images"]]}, "other images"),
        ({"categories": [{**content["categories"][0], "keypoints": list("abcde")}]}, "other keypoints"),
    ):
        annotations.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            Validation(small_record_folder, "train", annotations)


def test_the_truth_that_is_shown(small_record_folder: RecordFolder, annotations: Path, entries: dict[int, CocoImage]) -> None:
    validation = Validation(small_record_folder, "train", annotations)
    shown = [int(image_id) for image_id in small_record_folder.index("train")["image_id"][:SHOWN_IMAGES]]
    assert len(validation._examples) == len(shown) == SHOWN_IMAGES
    for image_id, example in zip(shown, validation._examples, strict=True):
        persons = [person for person in entries[image_id].persons if not person.is_crowd]
        truth = validation._true_people(example)
        assert len(truth.boxes) == len(persons)
        for box, keypoints, person in zip(truth.boxes, truth.keypoints, persons, strict=True):
            np.testing.assert_allclose(box, person.box, atol=1e-3)
            np.testing.assert_allclose(keypoints, person.keypoints, atol=1e-3)


def test_damaged_records_are_named_before_training(
    small_record_folder: RecordFolder, annotations: Path, tmp_path: Path
) -> None:
    damaged = dataclasses.replace(
        small_record_folder, path=Path(shutil.copytree(small_record_folder.path, tmp_path / "damaged"))
    )
    shard = damaged.shards("train")[0]
    with shard.open("r+b") as file:
        file.seek(100)
        file.write(bytes(8))
    with pytest.raises(UserError, match=f"^{shard}, record at byte 0: damaged"):
        Validation(damaged, "train", annotations)
