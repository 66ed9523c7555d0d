"""A small model with random weights as a model directory, and its exports: made once, for they take seconds."""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from export.publish import export_model
from model.config import TINY, BackboneConfig, BoxHeadConfig, InferenceConfig, KeypointHeadConfig, RpnConfig
from model.model_dir import NOTE_FILE, checkpoint_of, prepare_model_dir
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline.skeleton import COCO_SIGMAS, Skeleton

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Function that has a folder made by the first worker of pytest-xdist that asks for it; the others take it."""
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def once(name: str, make: Callable[[Path], object]) -> Path:
        with (common / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder, unfinished = common / name, common / "unfinished" / name
            if not folder.exists():
                unfinished.mkdir(parents=True)
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return once


@pytest.fixture(scope="session")
def model_dir(make_once: MakeOnce) -> Path:
    """A model directory. Not to be changed."""
    config = dataclasses.replace(
        TINY,
        backbone=BackboneConfig(blocks=(1, 1, 1, 1), width=8, norm="group", fpn_channels=16),
        rpn=RpnConfig(top_k_test=50, proposals_test=30),
        box_head=BoxHeadConfig(sampling_ratio=1, channels=32),
        keypoint_head=KeypointHeadConfig(sampling_ratio=1, convolutions=1, channels=16),
        inference=InferenceConfig(short_edge=96, max_edge=192, max_detections=5),
    )
    skeleton = Skeleton.from_category({"name": "person", "keypoints": list(COCO_SIGMAS), "skeleton": [[16, 14], [14, 12]]})

    def make(path: Path) -> None:
        prepare_model_dir(path, config, skeleton)
        (path / NOTE_FILE).write_text('{"source": "torchvision", "licence": null}')
        saved = checkpoint_of(KeypointRCNN(config, skeleton))
        tf.train.CheckpointManager(saved, str(path / "checkpoints"), 1, checkpoint_name="step").save(checkpoint_number=7)

    return make_once("small_model", make)


@pytest.fixture(scope="session")
def exported(make_once: MakeOnce, model_dir: Path) -> Path:
    """An export of the model. Not to be changed."""
    return make_once("small_export", lambda path: export_model(model_dir, path, report=lambda _: None))
