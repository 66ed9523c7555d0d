from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model.config import Config
from model.evaluation.evaluator import predict_split
from model.evaluation.ground_truth import ground_truth_of
from model.inference.predictor import Predictor, model_predictor
from model.training.step import Learner
from model.training.validation import SHOWN_IMAGES, Validation, _devices_of
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


@pytest.mark.slow
def test_replicas_share_the_images_of_an_evaluation(
    record_folder: RecordFolder, small_config: Config, two_replicas: tf.distribute.Strategy
) -> None:
    """Each looks at its own with its own copy of the weights; the answers are those of one device, in its order."""
    learner = Learner(small_config, record_folder.skeleton, two_replicas, precision="float32", jit_compile=False)
    devices = _devices_of(learner.model)
    assert len(set(devices)) == 2
    asked: list[list[int]] = [[], []]

    def counting(turn: int) -> Predictor:
        predictor = model_predictor(learner.model).on_device(devices[turn])

        def answer(images: Sequence[bytes]) -> Any:
            asked[turn].append(len(images))
            return predictor.answer(images)

        return dataclasses.replace(predictor, answer=answer)

    truth = ground_truth_of(record_folder.path.parent / "annotations" / "person_keypoints_train.json", record_folder.skeleton)
    shared = list(predict_split([counting(0), counting(1)], record_folder, "train", truth, progress=False))
    assert [sum(one) for one in asked] == [6, 6]
    alone = list(predict_split(model_predictor(learner.model), record_folder, "train", truth, progress=False))
    assert [(image_id, len(people)) for image_id, people in shared] == [(image_id, len(people)) for image_id, people in alone]
    for (_, people), (_, expected) in zip(shared, alone, strict=True):  # other batches are rounded otherwise
        for one, other in zip(people, expected, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["bbox"] == pytest.approx(other["bbox"], abs=0.05)
    assert len(shared) == 12 and any(results for _, results in shared)
