"""Folders of images in, predictions.json and drawings out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.config import TINY
from model.inference.image_folder import image_files, image_id_of, predict_files, summary_text
from model.inference.predictor import Answer, Predictor, image_size
from pipeline.command import UserError
from pipeline.skeleton import Skeleton

SKELETON = Skeleton("person", ("nose", "left_eye"), ((0, 1),), (0, 1), (0.1, 0.1))


def answer(images: object) -> Answer:
    """One person in images in landscape, nobody in others."""
    assert isinstance(images, list)
    wide = np.array([size[1] > size[0] for size in (image_size(p, "") for p in images)])
    number = len(images)
    return {
        "num_detections": wide.astype(np.int32),
        "boxes": np.tile(np.array([[[4, 5, 30, 25]]], np.float32), (number, 1, 1)),
        "scores": np.full((number, 1), 0.875, np.float32),
        "keypoints": np.full((number, 1, 2, 2), 10, np.float32),
        "keypoint_scores": np.full((number, 1, 2), 0.5, np.float32),
    }


CONFIG = dataclasses.replace(TINY, inference=dataclasses.replace(TINY.inference, category_id=7))
PREDICTOR = Predictor(CONFIG, SKELETON, answer, lambda height, width: (64, 64))


def test_a_folder(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, size in (("b_000012.jpg", (60, 40)), ("a.png", (60, 40)), ("c.JPEG", (40, 60))):
        Image.new("RGB", size, (90, 90, 90)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "d.jpg").write_bytes(b"\xff\xd8 broken")
    summary = predict_files(PREDICTOR, image_files(folder), out)
    entries = json.loads((out / "predictions.json").read_text())
    assert [(e["file_name"], e["image_id"]) for e in entries] == [("a.png", 0), ("b_000012.jpg", 12)]
    assert {e["category_id"] for e in entries} == {7}
    assert entries[0]["bbox"] == [4.0, 5.0, 26.0, 20.0] and entries[0]["keypoints"] == [10.0, 10.0, 0.5] * 2
    assert (summary.images, summary.people, summary.empty) == (3, 2, 1)
    assert len(summary.unreadable) == 1 and "d.jpg" in summary.unreadable[0]
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["a.png", "b_000012.jpg", "c.JPEG"]
    drawn = np.asarray(Image.open(out / "pictures" / "a.png"))
    assert drawn.shape == (40, 60, 3) and (drawn[5, 10:25] != 90).any() and (drawn[30:] == 90).all()
    assert "2 people found in 3 images, nobody in 1 of them" in summary_text(summary)


def test_one_file_without_drawing(tmp_path: Path) -> None:
    Image.new("RGB", (40, 60)).save(tmp_path / "x.png")
    summary = predict_files(PREDICTOR, image_files(tmp_path / "x.png"), tmp_path / "out", draw=False)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert summary.drawings is None
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_drawings_never_replace_the_images(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "pictures"
    folder.mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(folder / "x.png")
    (tmp_path / "linked").symlink_to(folder)
    before = (folder / "x.png").read_bytes()
    for given in (folder, folder / "x.png", tmp_path / "linked"):
        with pytest.raises(UserError, match=r"would replace the images of --input; give another folder, or --nodraw"):
            predict_files(PREDICTOR, image_files(given), tmp_path / "mine")
    assert (folder / "x.png").read_bytes() == before and [p.name for p in (tmp_path / "mine").iterdir()] == ["pictures"]
    assert predict_files(PREDICTOR, image_files(folder), tmp_path / "mine", draw=False).people == 1


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images in it"):
        image_files(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        image_files(tmp_path / "nothing")


def test_image_ids() -> None:
    assert image_id_of(Path("000000000139.jpg"), 3) == 139
    assert image_id_of(Path("frame7_42.png"), 3) == 42
    assert image_id_of(Path("7_days.png"), 3) == 3
