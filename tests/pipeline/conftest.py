"""What `make_tfrecords` reads and leaves: small data sets as COCO lays them out, and a record folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.coco import CocoImage, Person
from tests.conftest import SKELETON, draw


def _annotation(person: Person, image_id: int) -> dict[str, object]:
    x0, y0, x1, y1 = person.box
    return {
        "id": person.id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": person.area,
        "iscrowd": int(person.is_crowd),
        "keypoints": person.keypoints.ravel().tolist(),
    }


@pytest.fixture(scope="session")
def small_coco(entries: dict[int, CocoImage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as a COCO data set: annotations.json and images/."""
    folder = tmp_path_factory.mktemp("small_coco")
    (folder / "images").mkdir()
    for entry in entries.values():
        (folder / "images" / entry.file_name).write_bytes(draw(entry))
    category = {
        "id": 1,
        "name": "person",
        "keypoints": list(SKELETON.keypoints),
        "skeleton": [[a + 1, b + 1] for a, b in SKELETON.limbs],
    }
    content = {
        "images": [{"id": p.id, "file_name": p.file_name, "height": p.height, "width": p.width} for p in entries.values()],
        "annotations": [_annotation(person, p.id) for p in entries.values() for person in p.persons],
        "categories": [category],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def small_records(small_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those images as split `train`, in two shards, for short edges 96 and 128. Not to be changed."""
    from pipeline.writing.conversion import convert  # Beam takes seconds to import
    from pipeline.writing.conversion_config import ConversionConfig

    folder = tmp_path_factory.mktemp("small_records")
    config = ConversionConfig("small", num_shards=2, short_edges=(96, 128), max_edge=192, sigmas=SKELETON.sigmas)
    convert(small_coco / "annotations.json", small_coco / "images", folder, "train", config)
    return folder


@pytest.fixture(scope="session")
def forty_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO data set: a.json and images/ with 40 small images, one person each except for every fifth."""
    folder = tmp_path_factory.mktemp("forty_images")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 41):
        pixels = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 48, "width": 64})
        if number % 5:
            person = {"id": 100 + number, "image_id": number, "category_id": 1, "bbox": [number, 2, 20, 40], "iscrowd": 0}
            annotations.append(person | {"area": 300, "keypoints": [number + 1, 5, 2, 0, 0, 0, number + 2, 6, 1]})
    category = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": []}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / "a.json").write_text(json.dumps(content))
    return folder
