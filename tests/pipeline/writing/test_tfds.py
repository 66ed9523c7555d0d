"""Somebody else's reader: TensorFlow Datasets reads and shows the records without this project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pipeline.record_folder import RecordFolder


def test_images_boxes_and_keypoints_of_real_photographs(coco_sample: Path, coco_sample_records: RecordFolder) -> None:
    content = json.loads((coco_sample / "annotations" / "person_keypoints_train2017.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    annotations = {annotation["id"]: annotation for annotation in content["annotations"]}
    builder = tfds.builder_from_directory(coco_sample_records.path)
    examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
    assert {int(example["image/source_id"]) for example in examples} == set(images)
    for example in examples:
        image = images[int(example["image/source_id"])]
        pixels = example["image/encoded"]
        height, width, _ = pixels.shape
        assert (height, width) == (image["height"], image["width"])
        with Image.open(coco_sample / "train2017" / image["file_name"]) as opened:
            difference = np.abs(pixels.astype(int) - np.asarray(opened.convert("RGB"), int))
        assert difference.mean() < 2  # (TFDS decodes by the less accurate of libjpeg's two methods)
        people = [annotations[int(number)] for number in example["image/object/id"]]
        boxes = np.stack([example[f"image/object/bbox/{side}"] for side in ("xmin", "ymin", "xmax", "ymax")], axis=-1)
        expected = np.array([p["bbox"] for p in people]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        expected = np.clip(expected, 0, [width, height, width, height])
        np.testing.assert_allclose(boxes * [width, height, width, height], expected, atol=1e-3)
        points = np.stack([example[f"image/object/keypoint/{axis}"] for axis in ("x", "y", "visibility")], axis=-1)
        expected = np.array([p["keypoints"] for p in people], float).reshape(-1, 3)
        expected[expected[:, 2] == 0] = 0
        np.testing.assert_allclose(points * [width, height, 1], expected, atol=1e-3)


def test_a_table_of_them(coco_sample_records: RecordFolder) -> None:
    for package in ("pandas", "jinja2"):
        pytest.importorskip(package, reason=f"{package} is not installed (the extra 'dev' and requirements.lock have it)")
    builder = tfds.builder_from_directory(coco_sample_records.path)
    frame = tfds.as_dataframe(builder.as_dataset(split="val").take(3), builder.info)
    assert len(frame) == 3 and {"image/encoded", "image/object/bbox/xmin", "anchors/positive"} <= set(frame.columns)
    shown = frame._repr_html_()
    assert shown.count("<img src=") == 3
