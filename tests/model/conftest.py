"""A model small enough to be built and traced within seconds, and batches for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model.config import (
    TINY,
    BackboneConfig,
    BoxHeadConfig,
    Config,
    InferenceConfig,
    KeypointHeadConfig,
    RpnConfig,
    TrainConfig,
)
from model.model_dir import load_model
from model.network.keypoint_rcnn import KeypointRCNN
from model.weights.importing import import_model
from pipeline import anchors
from pipeline.data_config import PERSON, DataConfig
from pipeline.skeleton import COCO_SIGMAS, Skeleton
from tests.model.oracles import FAMILIES, WEIGHTS, Oracle


@pytest.fixture(scope="session")
def skeleton() -> Skeleton:
    return Skeleton.from_category(
        {"name": "person", "keypoints": list(COCO_SIGMAS), "skeleton": [[16, 14], [14, 12], [17, 15]]}
    )


@pytest.fixture(scope="session", params=FAMILIES)
def oracle(request: pytest.FixtureRequest, oracles: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """A family's answers and its model; the test is skipped where they are missing."""
    folder = oracles / request.param
    model_dir = tmp_path_factory.mktemp(request.param) / "model"
    import_model(request.param, folder / WEIGHTS[request.param], model_dir)
    model = load_model(model_dir)
    inference = dataclasses.replace(model.config.inference, short_edge=256, max_edge=448)
    model.config = dataclasses.replace(model.config, inference=inference)
    return Oracle(request.param, folder, model)


@pytest.fixture(scope="session")
def small_config() -> Config:
    """All parts of the tiny preset, with fewer and narrower layers."""
    return dataclasses.replace(
        TINY,
        data=DataConfig(short_edges=(96, 128), max_edge=192, max_boxes=8, sampled_anchors=32, num_canvases=2),
        backbone=BackboneConfig(blocks=(1, 1, 1, 1), width=8, norm="group", fpn_channels=16),
        rpn=RpnConfig(top_k_train=50, top_k_test=50, proposals_train=40, proposals_test=30),
        box_head=BoxHeadConfig(rois=16, sampling_ratio=1, channels=32),
        keypoint_head=KeypointHeadConfig(rois=6, sampling_ratio=1, convolutions=1, channels=16),
        train=TrainConfig(steps=4, global_batch_size=2, learning_rate=0.01, schedule="cosine", warmup_steps=2, clip_norm=5.0),
        inference=InferenceConfig(short_edge=96, max_edge=192, max_detections=5),
    )


@pytest.fixture(scope="session")
def small_model(small_config: Config, skeleton: Skeleton) -> KeypointRCNN:
    return KeypointRCNN(small_config, skeleton)


@pytest.fixture(scope="session")
def two_replicas() -> tf.distribute.Strategy:
    """One for all tests: a second MirroredStrategy in a process numbers its collectives as the first did, and they collide."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def random_batch(config: Config, skeleton: Skeleton, size: int, *, seed: int = 0) -> dict[str, tf.Tensor]:
    """A batch as `pipeline.loading.batches` yields it: noise, two people an image (one in the last), 128 × 160."""
    random = np.random.default_rng(seed)
    height, width, sampled = 128, 160, config.data.sampled_anchors
    boxes = np.zeros((size, config.data.max_boxes, 4), np.float32)
    corner = random.uniform(0, 60, (size, 2, 2))
    boxes[:, :2] = np.concatenate([corner, corner + random.uniform(20, 60, (size, 2, 2))], axis=-1)
    kind = np.zeros((size, config.data.max_boxes), np.int32)
    kind[:, :2] = PERSON
    kind[-1, 1] = 0
    boxes[kind == 0] = 0
    keypoints = np.zeros((size, config.data.max_boxes, skeleton.num_keypoints, 3), np.float32)
    inside = random.uniform(0, 1, (*keypoints.shape[:3], 2))
    keypoints[..., :2] = boxes[:, :, None, :2] + inside * (boxes[:, :, None, 2:] - boxes[:, :, None, :2])
    keypoints[..., 2] = random.integers(0, 3, keypoints.shape[:3]) * (kind[..., None] > 0)
    keypoints[keypoints[..., 2] == 0] = 0
    count = len(anchors.grid(config.anchors, height, width))
    label = np.where(np.arange(sampled) < 4, 1, 0) * np.ones((size, 1), int)
    label[:, -3:] = -1
    return {
        "image": tf.constant(random.integers(0, 255, (size, height, width, 3)).astype(np.uint8)),
        "image_size": tf.constant([[120, 150]] * size, tf.int32),
        "image_id": tf.range(1, size + 1, dtype=tf.int64),
        "boxes": tf.constant(boxes),
        "keypoints": tf.constant(keypoints),
        "box_kind": tf.constant(kind),
        "anchor_index": tf.constant(random.choice(count, (size, sampled)).astype(np.int32)),
        "anchor_label": tf.constant(label.astype(np.int32)),
        "anchor_box": tf.zeros([size, sampled], tf.int32),
    }


@pytest.fixture(scope="session")
def batch(small_config: Config, skeleton: Skeleton) -> dict[str, tf.Tensor]:
    return random_batch(small_config, skeleton, 2)
