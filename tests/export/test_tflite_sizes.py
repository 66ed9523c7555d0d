"""The TFLite file of three sizes answers as the model does in each, holds its weights once, and sees an image in the size that
suits it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from export.publish import export_model
from export.tflite import random_images, sizes
from model.inference.predictor import open_model
from model.inference.tflite_file import size_of
from model.inference.two_stages import runner
from model.model_dir import load_model
from pipeline.command import UserError


@pytest.fixture(scope="module")
def of_sizes(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sizes")
    export_model(model_dir, path, formats=["tflite_sizes"], report=lambda _: None)
    return path / "keypoint_rcnn.sizes.tflite"


def test_it_equals_the_model_in_each_size(of_sizes: Path) -> None:
    report = json.loads((of_sizes.parent / "export-report.json").read_text())
    (artifact,) = report["artifacts"]
    assert artifact["equal"] == artifact["detections"] > 0 and artifact["more_than_the_model"] == 0
    assert artifact["signature"].count("uint8") == 3 and report["images"] == 3  # of landscape; one more of each other size
    about = json.loads(of_sizes.with_suffix(".json").read_text())
    assert about["sizes"]["serve_portrait"] == {"height": 128, "width": 96} and about["signatures"] == list(about["sizes"])


def test_the_weights_are_shared(of_sizes: Path, model_dir: Path) -> None:
    kernel = load_model(model_dir).variables_by_path()["box.fc1/kernel"].numpy()
    assert of_sizes.read_bytes().count(np.ascontiguousarray(kernel.T).tobytes()) == 1


def test_an_image_is_seen_in_the_size_in_which_it_is_largest(of_sizes: Path, model_dir: Path) -> None:
    predictor = open_model(of_sizes)
    assert [predictor.canvas(*size) for size in [(480, 640), (640, 480), (500, 500), (1000, 1100)]] == [
        (96, 128), (128, 96), (96, 96), (96, 128),
    ]  # fmt: skip
    (landscape,) = random_images(96, 128, 1)
    portrait = np.ascontiguousarray(np.rot90(landscape))
    for one, other in zip(predictor([landscape, portrait]), open_model(model_dir)([landscape, portrait]), strict=True):
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)


def test_sizes() -> None:
    assert sizes(96, 128) == sizes(128, 96)
    assert list(sizes(96, 128).values()) == [(96, 128), (128, 96), (96, 96)]


def test_what_it_cannot_do_is_told(of_sizes: Path, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--tflite=.*sizes\.tflite: takes images of several sizes"):
        size_of(of_sizes, "--tflite")
    with pytest.raises(ValueError, match=r"\[1, 32, 32, 3\]: must have one of the sizes \[\(96, 128\), "):
        runner(Interpreter(model_path=str(of_sizes)))(images=np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match=r"nothing can be made here: TFLite of three sizes 96×96 is a square"):
        export_model(model_dir, tmp_path, formats=["tflite_sizes"], tflite_width=96, report=lambda _: None)
