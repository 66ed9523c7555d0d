"""What the model card says of the training data, whatever strangers have written into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.examination import Conditions
from export.model_card import card
from model.model_dir import load_model
from model.network.keypoint_rcnn import KeypointRCNN
from model.training_data import TRAINING_DATA_FILE, note_training_data, training_data
from pipeline.anchors import AnchorConfig
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder

COCO = {
    "info": {"description": "COCO 2017 Dataset"},
    "licences": [{"name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/", "images": 7}],
    "unlicensed_images": 2,
}


@pytest.fixture(scope="module")
def model(model_dir: Path) -> KeypointRCNN:
    return load_model(model_dir)


def record_folder(path: Path, name: str, model: KeypointRCNN, stated: Any) -> RecordFolder:
    splits = {"train": {"images": 9, "input_sha256": "0" * 64, "stated": stated}}
    return RecordFolder(path, name, AnchorConfig(), (96,), 192, model.skeleton, 1, splits)


def written(model: KeypointRCNN, **weights: Any) -> str:
    about = {"model_dir": "run", "checkpoint": "step-7", **weights}
    return card([], Conditions("3 images of coloured patches"), model, about, "keypoint_rcnn")


def test_records_and_their_licences_travel_into_the_card(model: KeypointRCNN, tmp_path: Path) -> None:
    note_training_data(tmp_path, record_folder(tmp_path, "coco", model, COCO), "train")
    note_training_data(tmp_path, record_folder(tmp_path, "coco", model, COCO), "train")  # a training that goes on
    note_training_data(tmp_path, record_folder(tmp_path, "own", model, {}), "train")
    assert [entry["dataset"] for entry in training_data(tmp_path)] == ["coco", "own"]
    text = written(model, trained_on=training_data(tmp_path), data_licence="CC BY 4.0")
    assert "- coco, split train: 9 images. Its annotations state: description COCO 2017 Dataset.\n" in text
    assert (
        "  - 7 images: Attribution License, http://creativecommons.org/licenses/by/2.0/\n  - 2 images: none is stated\n" in text
    )
    assert "- own, split train: 9 images. They state no licence.\n" in text
    assert "as whoever exported the model states it: CC BY 4.0." in text


def test_what_is_not_known_is_said(model: KeypointRCNN, tmp_path: Path) -> None:
    text = written(model)
    assert training_data(tmp_path) == []
    assert "Unknown to this export" in text and "(`--data_licence`)" in text
    assert "They were trained from random numbers." in text
    assert '"source": "torchvision"' in written(model, started_from={"source": "torchvision"})


def test_text_of_strangers_stays_text(model: KeypointRCNN, tmp_path: Path) -> None:
    hostile = {"info": {"description": "x\n# Heading <script> | [link](javascript:1)"}}
    note_training_data(tmp_path, record_folder(tmp_path, "coco", model, hostile), "train")
    text = written(model, trained_on=training_data(tmp_path), data_licence="a\n\n# b")
    lines = text.splitlines()
    assert not any(line.startswith(("# Heading", "# b")) for line in lines)
    assert r"\# Heading \<script\> \| \[link\](javascript:1)" in text


def test_a_damaged_note_is_told(tmp_path: Path) -> None:
    for content in ("[]", '{"trained_on": 3}', '{"trained_on": [1]}', '{"trained_on": [{"dataset": "x"}]}'):
        (tmp_path / TRAINING_DATA_FILE).write_text(content)
        with pytest.raises(UserError, match=r"training_data\.json: not a note on training data"):
            training_data(tmp_path)
    entry = {"dataset": "x", "split": "train", "images": 1}
    (tmp_path / TRAINING_DATA_FILE).write_text(json.dumps({"trained_on": [entry]}))
    assert training_data(tmp_path)[0]["stated"]["licences"] == []
