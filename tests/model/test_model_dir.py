"""Model directories: what another program, another model or an accident left in them is named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model.checkpoint_files import newest_checkpoint
from model.config import Config
from model.config import to_json as config_to_json
from model.model_dir import (
    checkpoint_of,
    has_optimizer,
    load_model,
    load_skeleton,
    prepare_model_dir,
    write_new,
)
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline.command import UserError
from pipeline.files import only_writer
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


@pytest.mark.parametrize("content", [b"", b"cut short", bytes(200)])
def test_a_damaged_index_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step-3.index").write_bytes(content)
    with pytest.raises(UserError, match=r"step-3: a damaged checkpoint \(.+\); restore it, or remove .*step-3\.\*") as caught:
        has_optimizer(str(tmp_path / "step-3"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"step", b"\x91\xff", b'model_checkpoint_path: "step-9"'])
def test_a_model_whose_newest_checkpoint_is_not_known_is_left_alone(
    small_config: Config, skeleton: Skeleton, tmp_path: Path, content: bytes
) -> None:
    other = dataclasses.replace(small_config, backbone=dataclasses.replace(small_config.backbone, width=12))
    prepare_model_dir(tmp_path, small_config, skeleton)
    folder = tmp_path / "checkpoints"
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(), str(folder), 2, checkpoint_name="step")
    for step in (8, 20):
        newest = manager.save(checkpoint_number=step)
    assert newest_checkpoint(tmp_path) == newest
    (folder / "checkpoint").unlink()  # as if the process had been killed just before it was written
    assert newest_checkpoint(tmp_path) == newest
    (folder / "checkpoint").write_bytes(content)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match=r"checkpoints/checkpoint: does not name a checkpoint beside it") as caught:
        prepare_model_dir(tmp_path, other, skeleton)
    assert (tmp_path / "config.json").read_text() == before and "\n" not in str(caught.value)
    (way_out,) = re.findall(r"let (.*) be all", str(caught.value))
    (folder / "checkpoint").write_text(way_out)
    assert newest_checkpoint(tmp_path) == newest


def test_a_checkpoint_that_was_removed_is_told(tmp_path: Path) -> None:
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(), str(tmp_path / "checkpoints"), 1)
    manager.save()
    assert newest_checkpoint(tmp_path) == manager.latest_checkpoint
    for file in (tmp_path / "checkpoints").glob("ckpt-*"):
        file.unlink()
    with pytest.raises(UserError, match="the checkpoint that it should name is gone"):
        newest_checkpoint(tmp_path)


def test_two_imports_into_one_directory(small_model: KeypointRCNN, tmp_path: Path) -> None:
    """The second is refused while the first works, and afterwards because there is a model; nothing of it is left behind."""
    new: Any = (tmp_path / "model", small_model, {}, small_model.skeleton, {"source": "a test"})
    with only_writer(tmp_path / ".model.import", "import"), pytest.raises(UserError, match="another import"):
        write_new(*new)
    write_new(*new)
    with pytest.raises(UserError, match="exists already"):
        write_new(*new)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert newest_checkpoint(tmp_path / "model") is not None


@pytest.mark.parametrize("line", ['model_checkpoint_path: "../../precious"', 'all_model_checkpoint_paths: "/precious"'])
def test_a_list_of_checkpoints_that_leads_out_is_refused(tmp_path: Path, line: str) -> None:
    """Saving removes the oldest of the list."""
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(a=tf.Variable(1.0)), str(tmp_path / "checkpoints"), 2)
    manager.save()
    assert newest_checkpoint(tmp_path) == manager.latest_checkpoint
    with (tmp_path / "checkpoints" / "checkpoint").open("a") as state:
        state.write(f"{line}\n")
    with pytest.raises(UserError, match="names checkpoints of another folder"):
        newest_checkpoint(tmp_path)


def test_a_loaded_model_has_the_weights_that_were_saved_and_draws_none(
    small_config: Config, skeleton: Skeleton, small_model: KeypointRCNN, tmp_path: Path
) -> None:
    write_new(tmp_path / "model", small_model, config_to_json(small_config), skeleton, {})
    loaded = load_model(tmp_path / "model").variables_by_path()
    for path, variable in small_model.variables_by_path().items():
        np.testing.assert_array_equal(loaded[path], variable, err_msg=path)
    kernels = {p: v for p, v in KeypointRCNN(small_config, skeleton, blank=True).variables_by_path().items() if "kernel" in p}
    assert kernels and not any(np.any(kernel) for kernel in kernels.values())
