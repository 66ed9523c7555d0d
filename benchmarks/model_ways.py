"""The project's own model, for `model_speed.py`: imported weights, the same images as torchvision's.

Usage: python -m benchmarks.model_ways inference|training|training_xla FOLDER

FOLDER is that of model_torchvision.py; the imported model lies in FOLDER/model.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from benchmarks.contestant import serve
from model.config import Config
from model.model_dir import load_model
from model.training.step import Learner
from pipeline import anchors
from pipeline.allocator import keep_freed_memory
from pipeline.data_config import PERSON

Work = Callable[[int], int]


def config_of_case(config: Config, folder: Path) -> Config:
    """The imported configuration, with the case's score threshold and as `model_torchvision.py` trains.

    RoIs are positive at an IoU of 0.999: those which are true boxes, so that their number is known; the buffer of the keypoint
    head has room for just these.
    """
    threshold = json.loads((folder / "case.json").read_text())["score_threshold"]
    persons = np.load(folder / "images.npz")["boxes"].shape[1]
    return dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, frozen_stages=2),  # the stem and C2
        box_head=dataclasses.replace(config.box_head, positive_iou=0.999),
        keypoint_head=dataclasses.replace(config.keypoint_head, rois=persons),
        inference=dataclasses.replace(config.inference, score_threshold=threshold),
    )


def detecting(folder: Path) -> tuple[Work, str]:
    """Pixels of the first image → people."""
    model = load_model(folder / "model")
    model.config = config_of_case(model.config, folder)
    images = tf.constant(np.load(folder / "images.npz")["images"][:1])
    size = tf.constant([images.shape[1:3]])
    detect = tf.function(model.detect, autograph=False)

    def work(count: int) -> int:
        for _ in range(count):
            found = detect(images, size)["num_detections"].numpy()
        assert found.shape == (1,)
        return count

    found = int(detect(images, size)["num_detections"][0])
    return work, f"{found} persons"


def training(folder: Path, *, xla: bool) -> tuple[Work, str]:
    """A step on both images: losses, gradients, and an update by a learning rate of 0."""
    model = load_model(folder / "model")
    config = config_of_case(model.config, folder)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    learner = Learner(config, model.skeleton, strategy, precision="float32", jit_compile=xla)
    imported = model.variables_by_path()
    for name, variable in learner.model.variables_by_path().items():
        variable.assign(imported[name])
    content = np.load(folder / "images.npz")
    batch = training_batch(config, content["images"], content["boxes"], content["keypoints"])
    arguments = (tf.constant(0.0), tf.constant(0), tf.constant(0.0))

    def work(count: int) -> int:
        for _ in range(count):
            metrics = learner.take_step(batch, *arguments)
            float(metrics["loss"])
        return count

    metrics = learner.take_step(batch, *arguments)
    return work, f"{int(metrics['keypoint_rois'])} RoIs in the keypoint head"


def random_persons(
    rng: np.random.Generator, batch: int, persons: int, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes float32 [B, G, 4] and keypoints float32 [B, G, 17, 3], all visible, in images of that size."""
    low = rng.uniform(0, 0.6, (batch, persons, 2))
    high = low + rng.uniform(0.1, 0.4, low.shape)
    points = rng.uniform(low[:, :, None], high[:, :, None], (batch, persons, 17, 2))
    scale = np.array([width, height])
    boxes = np.concatenate([low * scale, high * scale], axis=2).astype(np.float32)
    return boxes, np.concatenate([points * scale, np.full((*points.shape[:3], 1), 2)], axis=3).astype(np.float32)


def training_batch(
    config: Config, images: NDArray[np.uint8], boxes: NDArray[np.float32], keypoints: NDArray[np.float32]
) -> dict[str, tf.Tensor]:
    """Images uint8 [B, H, W, 3] and their people, as `pipeline.loading.batches` gives them: 256 sampled anchors an image."""
    batch, height, width, _ = images.shape
    rng = np.random.default_rng(0)
    half = config.data.sampled_anchors // 2
    index, label, box = [], [], []
    for number in range(batch):
        matching = anchors.match(config.anchors, boxes[number], height, width)
        positive = rng.permutation(len(matching.positive))[:half]
        total = len(anchors.grid(config.anchors, height, width))
        others = np.setdiff1d(np.arange(total), np.concatenate([matching.positive, matching.ignored]))
        negative = rng.choice(others, config.data.sampled_anchors - len(positive), replace=False)
        index.append(np.concatenate([matching.positive[positive], negative]))
        label.append(np.arange(config.data.sampled_anchors) < len(positive))
        box.append(np.concatenate([matching.positive_box[positive], np.zeros_like(negative)]))
    return {
        "image": tf.constant(images),
        "image_size": tf.constant([[height, width]] * batch, tf.int32),
        "image_id": tf.range(1, batch + 1, dtype=tf.int64),
        "boxes": tf.constant(boxes),
        "keypoints": tf.constant(keypoints),
        "box_kind": tf.fill(boxes.shape[:2], PERSON),
        "anchor_index": tf.constant(np.array(index, np.int32)),
        "anchor_label": tf.constant(np.array(label, np.int32)),
        "anchor_box": tf.constant(np.array(box, np.int32)),
    }


def main(what: str, folder: Path) -> None:
    keep_freed_memory()  # as the commands do
    work, note = detecting(folder) if what == "inference" else training(folder, xla=what == "training_xla")
    work(2)
    serve(work, note)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
