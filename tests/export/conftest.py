"""A small model with random weights as a model directory, and its exports: made once, for they take seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tensorflow as tf

from export.publish import export_model
from model.config import TINY, BackboneConfig, BoxHeadConfig, InferenceConfig, KeypointHeadConfig, RpnConfig
from model.model_dir import NOTE_FILE, checkpoint_of, prepare_model_dir
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline.skeleton import COCO_SIGMAS, Skeleton


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = dataclasses.replace(
        TINY,
        backbone=BackboneConfig(blocks=(1, 1, 1, 1), width=8, norm="group", fpn_channels=16),
        rpn=RpnConfig(top_k_test=50, proposals_test=30),
        box_head=BoxHeadConfig(sampling_ratio=1, channels=32),
        keypoint_head=KeypointHeadConfig(sampling_ratio=1, convolutions=1, channels=16),
        inference=InferenceConfig(short_edge=96, max_edge=192, max_detections=5),
    )
    skeleton = Skeleton.from_category({"name": "person", "keypoints": list(COCO_SIGMAS), "skeleton": [[16, 14], [14, 12]]})
    path = tmp_path_factory.mktemp("model")
    prepare_model_dir(path, config, skeleton)
    (path / NOTE_FILE).write_text('{"source": "torchvision", "licence": null}')
    saved = checkpoint_of(KeypointRCNN(config, skeleton))
    tf.train.CheckpointManager(saved, str(path / "checkpoints"), 1, checkpoint_name="step").save(checkpoint_number=7)
    return path


@pytest.fixture(scope="session")
def exported(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported")
    export_model(model_dir, path, report=lambda _: None)
    return path
