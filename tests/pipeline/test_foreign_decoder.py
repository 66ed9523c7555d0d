"""Another project's decoder of the Object Detection convention reads the records: that of the package tf-models-official.

It knows no keypoints. KEYPOINT_TF_MODELS_PYTHON names the interpreter of an environment that has the package, such as
`bash benchmarks/environments.sh tf_models` makes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.record_folder import RecordFolder

PYTHON = os.environ.get("KEYPOINT_TF_MODELS_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="KEYPOINT_TF_MODELS_PYTHON names no interpreter with tf-models-official"),
]


@pytest.fixture(scope="module")
def decoded(coco_sample_records: RecordFolder, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, NDArray[Any]]:
    """What the decoder makes of the split `train`: arrays by "<image id>/<name>"."""
    output = tmp_path_factory.mktemp("decoded") / "decoded.npz"
    shards = [str(path) for path in coco_sample_records.shards("train")]
    subprocess.run([str(PYTHON), str(Path(__file__).with_name("read_with_tf_models.py")), str(output), *shards], check=True)
    with np.load(output) as arrays:
        return dict(arrays)


def test_images_boxes_and_classes_are_those_of_the_json(decoded: Mapping[str, NDArray[Any]], coco_sample: Path) -> None:
    coco = json.loads((coco_sample / "annotations" / "person_keypoints_train2017.json").read_text())
    annotations = defaultdict(list)
    for annotation in coco["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    assert {name.partition("/")[0] for name in decoded} == {str(image["id"]) for image in coco["images"]}
    crowds = 0
    for image in coco["images"]:
        height, width = image["height"], image["width"]
        assert (decoded[f"{image['id']}/height"], decoded[f"{image['id']}/width"]) == (height, width)
        pixels = tf.io.decode_image((coco_sample / "train2017" / image["file_name"]).read_bytes(), channels=3).numpy()
        assert decoded[f"{image['id']}/pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        assert pixels.shape == (height, width, 3)

        persons = sorted(annotations[image["id"]], key=lambda annotation: annotation["id"])
        x, y, w, h = np.array([person["bbox"] for person in persons], np.float64).reshape(-1, 4).T
        boxes = np.stack([y / height, x / width, (y + h) / height, (x + w) / width], axis=1)
        truth = {
            "boxes": np.clip(boxes, 0, 1),
            "classes": np.ones(len(persons)),
            "is_crowd": [bool(person["iscrowd"]) for person in persons],
            "area": [person["area"] for person in persons],
        }
        for name, values in truth.items():
            np.testing.assert_allclose(decoded[f"{image['id']}/groundtruth_{name}"], values, rtol=1e-6, atol=1e-6, err_msg=name)
        crowds += sum(truth["is_crowd"])
    assert crowds > 0
