"""The TFLite file of two signatures answers as the model does, and all its shapes are fixed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from export.publish import export_model
from export.tflite import random_images
from model.inference.predictor import open_model


@pytest.fixture(scope="module")
def in_parts(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts")
    export_model(model_dir, path, formats=["tflite_parts"], report=lambda _: None)
    return path


def test_it_equals_the_model(in_parts: Path, model_dir: Path) -> None:
    (artifact,) = json.loads((in_parts / "export-report.json").read_text())["artifacts"]
    assert artifact["equal"] == artifact["detections"] > 0 and artifact["more_than_the_model"] == 0
    images = list(random_images(96, 128, 2))
    found = open_model(in_parts / "keypoint_rcnn.parts.tflite")(images)
    for one, other in zip(found, open_model(model_dir)(images), strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)
        assert (np.abs(one.keypoints - other.keypoints) < 0.1).mean() > 0.97


def test_no_shape_depends_on_the_image(in_parts: Path) -> None:
    path = in_parts / "keypoint_rcnn.parts.tflite"
    interpreter = Interpreter(model_path=str(path))
    assert set(interpreter.get_signature_list()) == {"find_people", "find_keypoints"}
    for name in interpreter.get_signature_list():
        for tensor in interpreter.get_signature_runner(name).get_output_details().values():
            assert -1 not in tensor["shape_signature"]
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["signatures"] == ["find_people", "find_keypoints"] and (about["height"], about["width"]) == (96, 128)
    card = (in_parts / "model-card.md").read_text()
    assert "| `find_keypoints` | TFLite in two parts | `boxes` float32 [8, 4]" in card and "| `raw` | SavedModel |" in card
