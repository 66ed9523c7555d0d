"""Model directories: what another program, another model or an accident left in them is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tensorflow as tf

from model.checkpoint import checkpoint_of, load_model, load_skeleton, prepare_model_dir
from model.config import Config
from model.keypoint_rcnn import KeypointRCNN
from pipeline.command import UserError
from pipeline.skeleton import Skeleton


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"{}", b"{", b"\x91\xff", pytest.param(b"[" * 100_000, id="nested"), None),
        b'{"category": "person", "keypoints": 3}',
    ],
)
def test_a_file_that_is_no_keypoint_set_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "skeleton.json").write_bytes(content)
    with pytest.raises(UserError, match=r"skeleton\.json: not a keypoint set \(.+\); restore the file") as caught:
        load_skeleton(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(small_config: Config, skeleton: Skeleton, tmp_path: Path) -> None:
    wider = dataclasses.replace(small_config, backbone=dataclasses.replace(small_config.backbone, width=12))
    prepare_model_dir(tmp_path, small_config, skeleton)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_model(tmp_path)
    manager = tf.train.CheckpointManager(checkpoint_of(KeypointRCNN(wider, skeleton)), str(tmp_path / "checkpoints"), 1)
    path = manager.save()
    with pytest.raises(
        UserError, match=r"a checkpoint of another model, or damaged \(.+\); give its own configuration"
    ) as caught:
        load_model(tmp_path)
    assert path in str(caught.value) and "\n" not in str(caught.value)
