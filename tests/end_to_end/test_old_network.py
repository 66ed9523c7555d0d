"""The old network's weights on the whole way: evaluated, exported, and as the start of a new network."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.saved_model import write_saved_model
from model import api
from model.inference.people import People
from model.inference.predictor import open_model
from model.inference.serving import ServingModule
from model.matterport.importing import import_model
from model.model_dir import load_any
from pipeline.skeleton import COCO_PERSON
from pipeline.synthetic.poses import PERSON_CATEGORY
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig


@dataclasses.dataclass(frozen=True)
class Old:
    """The old network's model directory, an image, and who it finds there."""

    model_dir: Path
    png: bytes
    people: People


@pytest.fixture(scope="module")
def old(oracles: Path, tmp_path_factory: pytest.TempPathFactory) -> Old:
    model_dir = tmp_path_factory.mktemp("old") / "model"
    with np.load(oracles / "matterport" / "land512.npz") as file:
        encoded = io.BytesIO()
        Image.fromarray(file["image"]).save(encoded, "PNG")
    assignments = ["inference.short_edge=400", "inference.max_edge=512"]
    import_model(oracles / "matterport" / "mask_rcnn_reduced_humanpose.h5", model_dir, assignments=assignments)
    (people,) = open_model(model_dir).predict([encoded.getvalue()])
    return Old(model_dir, encoded.getvalue(), people)


@pytest.fixture(scope="module")
def truth(old: Old, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO JSON beside its image and its records, split `val`: its truth is what the old network answers."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "1.png").write_bytes(old.png)
    width, height = Image.open(io.BytesIO(old.png)).size
    entries = []
    for number, entry in enumerate(old.people.to_coco(1), start=1):
        keypoints = np.array(entry["keypoints"]).reshape(-1, 3)
        keypoints[:, 2] = 2
        more = {"id": number, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3], "num_keypoints": len(keypoints)}
        entries.append(entry | more | {"keypoints": keypoints.ravel().tolist()})
    image = {"id": 1, "file_name": "1.png", "width": width, "height": height}
    content = {"images": [image], "annotations": entries, "categories": [dict(PERSON_CATEGORY)]}
    (folder / "a.json").write_text(json.dumps(content))
    config = ConversionConfig(short_edges=(96,), max_edge=128, num_shards=1)
    convert(folder / "a.json", folder, folder / "records", "val", config)
    return folder / "a.json"


@pytest.mark.slow
def test_a_saved_model_answers_as_the_model_directory(old: Old, tmp_path: Path) -> None:
    write_saved_model(ServingModule(load_any(old.model_dir)), tmp_path / "exported", {}, "old")
    (people,) = open_model(tmp_path / "exported").predict([old.png])
    assert len(people) == len(old.people) == 4
    np.testing.assert_allclose(people.boxes, old.people.boxes, rtol=0, atol=1e-3)
    np.testing.assert_allclose(people.keypoints, old.people.keypoints, rtol=0, atol=1e-3)
    np.testing.assert_allclose(people.keypoint_scores, old.people.keypoint_scores, rtol=0, atol=1e-5)
    assert people.masks is None


def test_it_is_evaluated_like_every_model(old: Old, truth: Path) -> None:
    result = api.evaluate(annotations=truth, model=old.model_dir, data_dir=truth.parent / "records")
    assert result.counts["persons"] == 4
    assert result.keypoint_ap > 0.99 and result.box_ap > 0.99


@pytest.mark.slow
def test_a_new_network_starts_from_it_and_learns_keypoints_as_masks(
    old: Old, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step, and an evaluation of what came out."""
    settings = [
        "data.short_edges=[96]", "data.max_edge=128", "data.num_canvases=1", "data.sampled_anchors=32", "box_head.rois=16",
        "keypoint_head.loss=mask", "keypoint_head.rois=6", "inference.short_edge=96", "inference.max_edge=128",
        "inference.score_threshold=0.0",
    ]  # fmt: skip
    api.train(
        data_dir=truth.parent / "records",
        split="val",
        model_dir=tmp_path / "new",
        preset="tiny",
        init=old.model_dir,
        overrides=settings,
        steps=1,
        batch_size=1,
        learning_rate=0.001,
        eval_split="val",
        eval_annotations=truth,
    )
    assert "520 variables of the backbone and 16 of the pyramid start from" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train", "eval"] and np.isfinite(lines[0]["loss"])
    assert json.loads((tmp_path / "new" / "config.json").read_text())["keypoint_head"]["loss"] == "mask"
    assert load_any(tmp_path / "new").skeleton == COCO_PERSON
