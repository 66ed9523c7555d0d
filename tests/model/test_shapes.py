"""Shapes and dtypes at the four boundaries: the record, the batch, the losses, the answer (docs/RECORD.md, loading/batches.py).

Strict typing sees every tensor as `Any`. Here each boundary is a signature that jaxtyping and beartype check at run time: the
name of a dimension means the same number in all arguments, and a key that is missing or unknown is an error. tf.string tensors
are checked by hand.
"""
# ruff: noqa: F722, F821, UP037 (dimensions are strings that look like annotations)

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from beartype import beartype
from jaxtyping import Float32, Int32, Int64, TypeCheckError, UInt8, jaxtyped

from model.config import Config
from model.inference.serving import ServingModule
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline import records
from pipeline.loading.batches import training_batches
from pipeline.record_folder import RecordFolder

Tensors = dict[str, Any]
checked = jaxtyped(typechecker=beartype)


@checked
def record_boundary(
    *,
    height: Int64[tf.Tensor, ""],
    width: Int64[tf.Tensor, ""],
    bbox_xmin: Float32[tf.Tensor, "P"],
    bbox_ymin: Float32[tf.Tensor, "P"],
    bbox_xmax: Float32[tf.Tensor, "P"],
    bbox_ymax: Float32[tf.Tensor, "P"],
    class_label: Int64[tf.Tensor, "P"],
    is_crowd: Int64[tf.Tensor, "P"],
    area: Float32[tf.Tensor, "P"],
    id: Int64[tf.Tensor, "P"],
    keypoint_x: Float32[tf.Tensor, "PK"],
    keypoint_y: Float32[tf.Tensor, "PK"],
    keypoint_visibility: Int64[tf.Tensor, "PK"],
    keypoint_num: Int64[tf.Tensor, "P"],
) -> None: ...


@checked
def batch_boundary(
    *,
    image: UInt8[tf.Tensor, "B H W 3"],
    image_size: Int32[tf.Tensor, "B 2"],
    scale: Float32[tf.Tensor, "B 2"],
    original_size: Int32[tf.Tensor, "B 2"],
    image_id: Int64[tf.Tensor, "B"],
    boxes: Float32[tf.Tensor, "B G 4"],
    keypoints: Float32[tf.Tensor, "B G K 3"],
    box_kind: Int32[tf.Tensor, "B G"],
    anchor_index: Int32[tf.Tensor, "B A"],
    anchor_label: Int32[tf.Tensor, "B A"],
    anchor_box: Int32[tf.Tensor, "B A"],
) -> None: ...


Loss = tuple[Float32[tf.Tensor, ""], Float32[tf.Tensor, ""]]  # sum and count


@checked
def losses_boundary(*, rpn_objectness: Loss, rpn_box: Loss, box_class: Loss, box_delta: Loss, keypoint: Loss) -> None: ...


@checked
def watched_boundary(
    *,
    positive_rois: Float32[tf.Tensor, ""],
    keypoint_rois: Float32[tf.Tensor, ""],
    keypoint_overflow: Float32[tf.Tensor, ""],
) -> None: ...


@checked
def answer_boundary(
    *,
    num_detections: Int32[tf.Tensor, "N"],
    boxes: Float32[tf.Tensor, "N D 4"],
    scores: Float32[tf.Tensor, "N D"],
    keypoints: Float32[tf.Tensor, "N D K 2"],
    keypoint_scores: Float32[tf.Tensor, "N D K"],
) -> None: ...


@pytest.fixture(scope="module")
def model(small_config: Config, small_record_folder: RecordFolder) -> KeypointRCNN:
    """Of the records' five keypoints."""
    data = dataclasses.replace(small_config.data, require_keypoints=False)
    return KeypointRCNN(dataclasses.replace(small_config, data=data), small_record_folder.skeleton)


@pytest.fixture(scope="module")
def loaded(model: KeypointRCNN, small_record_folder: RecordFolder) -> list[Tensors]:
    """Batches of an epoch, among them padding images, images with nobody, and both canvases."""
    return list(training_batches(small_record_folder, "train", model.config.data, global_batch_size=4, seed=1, num_steps=8))


def named(record: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """A record's dense numbers by the last parts of their keys; its strings, and its ragged lists, by key."""
    strings = {key: value for key, value in record.items() if value.dtype == tf.string}
    ragged = {key: value for key, value in record.items() if isinstance(value, tf.RaggedTensor)}
    numbers = {
        key.removeprefix("image/").removeprefix("object/").replace("/", "_"): value
        for key, value in record.items()
        if key not in strings and key not in ragged
    }
    return numbers, strings, ragged


def test_record(small_record_folder: RecordFolder) -> None:
    num_keypoints = small_record_folder.skeleton.num_keypoints
    people = set()
    for path in small_record_folder.shards("train"):
        for serialized in tf.data.TFRecordDataset(str(path)):
            numbers, strings, ragged = named(records.parse(serialized))
            record_boundary(**numbers)
            count = len(numbers["area"])
            assert len(numbers["keypoint_x"]) == count * num_keypoints
            assert {key: value.shape.rank for key, value in strings.items()} == {
                "image/encoded": 0,
                "image/format": 0,
                "image/filename": 0,
                "image/source_id": 0,
                "image/key/sha256": 0,
                "image/object/class/text": 1,
            }
            assert set(ragged) == {"anchors/positive", "anchors/positive_box", "anchors/ignored"}
            for lists in ragged.values():
                assert lists.dtype == tf.int64 and lists.nrows() == 2 * len(small_record_folder.short_edges)
            people.add(count)
    assert 0 in people and len(people) > 2


def test_batch(loaded: list[Tensors], model: KeypointRCNN) -> None:
    for batch in loaded:
        batch_boundary(**batch)
        assert batch["boxes"].shape[1] == model.config.data.max_boxes
        assert batch["keypoints"].shape[2] == model.skeleton.num_keypoints
        assert batch["anchor_index"].shape[1] == model.config.data.sampled_anchors
        assert all(side % 32 == 0 for side in batch["image"].shape[1:3])
    assert len({tuple(batch["image"].shape[1:3]) for batch in loaded}) == 2
    assert any((batch["image_id"] < 0).numpy().any() for batch in loaded)


def test_losses(loaded: list[Tensors], model: KeypointRCNN) -> None:
    losses, watched = model.losses(loaded[0], tf.constant(0))
    losses_boundary(**losses)
    watched_boundary(**watched)
    assert all(total >= 0 and count >= 0 for total, count in losses.values())  # NaN would not be
    with pytest.raises(TypeCheckError):  # the check can fail
        losses_boundary(**losses | {"keypoint": (losses["keypoint"][0], tf.constant(1, tf.int32))})


def test_answer(loaded: list[Tensors], model: KeypointRCNN) -> None:
    answer = model.detect(loaded[0]["image"], loaded[0]["image_size"])
    answer_boundary(**answer)
    most, keypoints = model.config.inference.max_detections, model.skeleton.num_keypoints
    assert answer["keypoint_scores"].shape == (4, most, keypoints)

    png = tf.io.encode_png(loaded[0]["image"][0])
    module = ServingModule(model)
    for count in (1, 2):
        answer = module.serving_default(tf.stack([png] * count))
        answer_boundary(**answer)
        assert answer["keypoint_scores"].shape == (count, most, keypoints)


def test_another_shape_or_dtype_or_key_is_refused(loaded: list[Tensors]) -> None:
    """The checks can fail: a dimension that differs between two keys, a dtype, a missing and an unknown key."""
    batch = loaded[0]
    for wrong in (
        {"scale": batch["scale"][:1]},
        {"anchor_box": batch["anchor_box"][:, 1:]},
        {"image": tf.cast(batch["image"], tf.float32)},
        {"image_id": batch["image_id"].numpy().astype(np.int64)},
    ):
        with pytest.raises(TypeCheckError):
            batch_boundary(**batch | wrong)
    with pytest.raises(TypeError):
        batch_boundary(**{key: value for key, value in batch.items() if key != "scale"})
    with pytest.raises(TypeError):
        batch_boundary(**batch | {"unreadable": batch["image_id"]})
