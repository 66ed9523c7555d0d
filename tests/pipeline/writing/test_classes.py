"""Several categories of one keypoint set: from the JSON through the records into the batches."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from pipeline.command import UserError
from pipeline.data_config import DataConfig
from pipeline.inspection import contact_sheet
from pipeline.inspection.contact_sheet import number_of_people
from pipeline.inspection.statistics import collect
from pipeline.inspection.statistics_page import statistics_page
from pipeline.inspection.verification import verify
from pipeline.loading.batches import training_batches
from pipeline.record_folder import open_record_folder
from pipeline.record_reader import read_records
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig

CLASSES: dict[str, Any] = {"category": "all", "classes": True}


@pytest.fixture(scope="module")
def animals(forty_images, tmp_path_factory):
    """The forty images with cats (id 9) and dogs (id 4) by turns."""
    content = json.loads((forty_images / "a.json").read_text())
    (known,) = content["categories"]
    content["categories"] = [known | {"id": 9, "name": "cat"}, known | {"id": 4, "name": "dog"}]
    for place, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 9 if place % 3 else 4
    path = tmp_path_factory.mktemp("animals") / "a.json"
    path.write_text(json.dumps(content))
    return path


def test_categories_become_classes_of_records_and_batches(animals, forty_images, tmp_path):
    config = ConversionConfig(dataset_name="small", short_edges=(64,), num_shards=2, **CLASSES)
    result = convert(animals, forty_images / "images", tmp_path / "out", "train", config)
    assert "2 classes share the keypoints: dog, cat" in result.notes
    folder = open_record_folder(tmp_path / "out")
    assert folder.skeleton.classes == ((4, "dog"), (9, "cat")) and folder.skeleton.num_classes == 2
    assert not list(verify(folder, "train", lambda _: None))
    content = json.loads(animals.read_text())
    truth = {entry["image_id"]: {4: 1, 9: 2}[entry["category_id"]] for entry in content["annotations"]}
    data = DataConfig(short_edges=(64,), max_boxes=3, sampled_anchors=8, num_canvases=1)
    seen: dict[int, int] = {}
    for batch in training_batches(folder, "train", data, global_batch_size=8, seed=0, num_steps=4).as_numpy_iterator():
        assert batch["box_class"].shape == (8, 3)
        assert ((batch["box_class"] > 0) == (batch["box_kind"] > 0)).all()
        seen |= dict(zip(batch["image_id"].tolist(), batch["box_class"].max(axis=1).tolist(), strict=True))
    assert len(seen) > 20 and all(truth[image_id] == label for image_id, label in seen.items())


def test_sheets_and_statistics_tell_the_classes(animals, forty_images, tmp_path):
    config = ConversionConfig(dataset_name="small", short_edges=(64,), num_shards=2, **CLASSES)
    convert(animals, forty_images / "images", tmp_path / "out", "train", config)
    folder = open_record_folder(tmp_path / "out")
    statistics = collect(folder, "train", lambda _: None)
    assert statistics.classes.tolist() == [11, 21]
    assert "classes: cat 21, dog 11" in statistics_page(folder, "train", statistics)
    assert number_of_people(folder.skeleton, np.array([2, 1, 2])) == "dog 1, cat 2"
    for record in read_records(folder, "train", contact_sheet.chosen_rows(folder, "train", 2)):
        canvas = np.zeros((record.height, record.width, 3), np.uint8)
        named, plain = (
            contact_sheet.draw_record(canvas, record, skeleton, flipped=False)
            for skeleton in (folder.skeleton, dataclasses.replace(folder.skeleton, classes=()))
        )
        assert record.labels.size and (named != plain).any()  # the names stand beside the boxes


def test_one_category_is_what_it_was(forty_images, tmp_path):
    """Named by --categories or not, one category gives the same files, without a word of classes."""
    ways: dict[str, dict[str, Any]] = {"by_default": {}, "as_a_class": {"category": "person", "classes": True}}
    for name, chosen in ways.items():
        config = ConversionConfig(dataset_name="small", short_edges=(64,), num_shards=2, **chosen)
        convert(forty_images / "a.json", forty_images / "images", tmp_path / name, "train", config)
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir() if not file.name.startswith("summary")}
        for name in ways
    ]
    assert contents[0] == contents[1] and b"classes" not in contents[0]["pipeline.json"]
    folder = open_record_folder(tmp_path / "by_default")
    data = DataConfig(short_edges=(64,), max_boxes=3, sampled_anchors=8, num_canvases=1)
    assert "box_class" not in training_batches(folder, "train", data, global_batch_size=2, seed=0).element_spec


def test_a_split_of_other_classes_is_refused(animals, forty_images, tmp_path):
    config = ConversionConfig(dataset_name="small", short_edges=(64,), num_shards=2, **CLASSES)
    convert(animals, forty_images / "images", tmp_path / "out", "train", config)
    joined = ConversionConfig(dataset_name="small", short_edges=(64,), num_shards=2, category="all")
    with pytest.raises(UserError, match="skeleton"):
        convert(animals, forty_images / "images", tmp_path / "out", "val", joined)


def test_categories_of_one_name_cannot_be_told_apart(animals, forty_images, tmp_path):
    content = json.loads(animals.read_text())
    for category in content["categories"]:
        category["name"] = "pet"
    path = tmp_path / "b.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="each with an id and a name of its own"):
        convert(path, forty_images / "images", tmp_path / "out", "train", ConversionConfig(short_edges=(64,), **CLASSES))


def test_the_checksum_knows_the_classes(animals, tmp_path):
    from pipeline.coco import read_coco

    content = json.loads(animals.read_text())
    content["annotations"][0]["category_id"] = 9
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert len({read_coco(path, **CLASSES).sha256() for path in (animals, tmp_path / "b.json")}) == 2
    assert len({read_coco(path, category="all").sha256() for path in (animals, tmp_path / "b.json")}) == 1
    labels = [person.label for image in read_coco(animals, **CLASSES).images for person in image.persons]
    assert np.bincount(labels).tolist() == [0, 11, 21]
