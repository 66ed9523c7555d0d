"""The old network's SavedModel answers as `model.predict` does with its model directory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.saved_model import write_saved_model
from model.inference.predictor import open_model
from model.inference.serving import ServingModule
from model.matterport.importing import import_model
from model.model_dir import load_any


@pytest.mark.slow
def test_a_saved_model_answers_as_the_model_directory(oracles: Path, tmp_path: Path) -> None:
    folder = oracles / "matterport"
    with np.load(folder / "land512.npz") as file:
        encoded = io.BytesIO()
        Image.fromarray(file["image"]).save(encoded, "PNG")
    assignments = ["inference.short_edge=400", "inference.max_edge=512"]
    import_model(folder / "mask_rcnn_reduced_humanpose.h5", tmp_path / "model", assignments=assignments)
    write_saved_model(ServingModule(load_any(tmp_path / "model")), tmp_path / "exported", {}, "old")
    (expected,) = open_model(tmp_path / "model").predict([encoded.getvalue()])
    (people,) = open_model(tmp_path / "exported").predict([encoded.getvalue()])
    assert len(people) == len(expected) == 4
    np.testing.assert_allclose(people.boxes, expected.boxes, rtol=0, atol=1e-3)
    np.testing.assert_allclose(people.keypoints, expected.keypoints, rtol=0, atol=1e-3)
    np.testing.assert_allclose(people.keypoint_scores, expected.keypoint_scores, rtol=0, atol=1e-5)
    assert people.masks is None
