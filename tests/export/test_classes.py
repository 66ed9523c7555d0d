"""A model of two classes answers alike as a directory, a SavedModel, a TFLite and an ONNX file, and names its classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from export.publish import export_model
from export.tflite import random_images
from model.inference.predictor import open_model
from model.model_dir import checkpoint_of, load_model, prepare_model_dir
from model.network.keypoint_rcnn import KeypointRCNN


@pytest.fixture(scope="module")
def two_classes(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model of random weights with a cat (id 4) and a dog (id 9) in place of its person."""
    one = load_model(model_dir)
    skeleton = dataclasses.replace(one.skeleton, category="all", classes=((4, "cat"), (9, "dog")))
    path = tmp_path_factory.mktemp("two_classes")
    prepare_model_dir(path, one.config, skeleton)
    model = KeypointRCNN(one.config, skeleton)
    head = model.box_head.get_layer("box.class")  # each RoI looks hardly less like a dog than like a cat: both are found
    like = tf.random.stateless_normal([head.kernel.shape[0]], seed=(0, 1), stddev=0.1)
    head.kernel.assign(tf.stack([tf.zeros_like(like), like, like], axis=1))
    head.bias.assign([0.0, 0.01, 0.0])
    saved = checkpoint_of(model)
    tf.train.CheckpointManager(saved, str(path / "checkpoints"), 1, checkpoint_name="step").save(checkpoint_number=7)
    return path


@pytest.mark.slow
def test_exports_answer_with_the_models_classes(two_classes: Path, tmp_path: Path) -> None:
    export_model(two_classes, tmp_path / "out", formats=["saved_model", "tflite", "onnx"], report=lambda _: None)
    report = json.loads((tmp_path / "out" / "export-report.json").read_text())
    assert all(artifact["equal"] == artifact["detections"] > 0 for artifact in report["artifacts"])
    images = list(random_images(96, 128, 2))
    wanted = open_model(two_classes)(images)
    assert {person.category for people in wanted for person in people} == {"cat", "dog"}
    for path in ("saved_model/keypoint_rcnn", "keypoint_rcnn.tflite"):
        found = next((tmp_path / "out").rglob(path.split("/")[-1]))
        for one, other in zip(open_model(found)(images), wanted, strict=True):
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)
    (entries, *_) = [people.to_coco(1) for people in wanted]
    names = {4: "cat", 9: "dog"}
    assert [names[entry["category_id"]] for entry in entries] == [person.category for person in wanted[0]]
    loaded = tf.saved_model.load(str(next((tmp_path / "out").rglob("saved_model.pb")).parent))
    assert set(loaded.signatures) == {"serving_default", "serving_tolerant", "serve_images", "serve_one_image"}
    assert "classes" in loaded.signatures["serve_images"].structured_outputs


def test_boxes_are_drawn_with_their_class(two_classes: Path) -> None:
    pixels = next(iter(random_images(96, 128, 1)))
    people = open_model(two_classes)(pixels)
    named = people.draw(pixels)
    assert np.any(named != dataclasses.replace(people, labels=None).draw(pixels))
    kept = people.at_least(float(people.scores[1]))
    assert kept.labels is not None and people.labels is not None
    np.testing.assert_array_equal(kept.labels, people.labels[: len(kept)])
