"""The whole model: the same answers however it is compiled and batched, and the ordinary cases in which nobody is there."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from model.network.keypoint_rcnn import KeypointRCNN, pack_positives
from tests.model.conftest import random_batch


def test_variables_have_unique_names_that_do_not_depend_on_what_was_built_before(small_config, skeleton, small_model):
    again = KeypointRCNN(small_config, skeleton)
    assert list(again.variables_by_path()) == list(small_model.variables_by_path())
    for path, variable in small_model.variables_by_path().items():
        np.testing.assert_array_equal(again.variables_by_path()[path], variable)
    other_seed = KeypointRCNN(small_config, skeleton, seed=1).variables_by_path()["backbone.conv1/kernel"]
    assert not np.array_equal(other_seed, small_model.variables_by_path()["backbone.conv1/kernel"])


def test_detections_have_the_shapes_and_frame_of_the_answer(small_model, batch):
    answer = small_model.detect(batch["image"], batch["image_size"])
    count, keypoints = small_model.config.inference.max_detections, small_model.skeleton.num_keypoints
    assert answer["boxes"].shape == (2, count, 4) and answer["keypoints"].shape == (2, count, keypoints, 2)
    for row, number in enumerate(answer["num_detections"]):
        scores, boxes = answer["scores"][row].numpy(), answer["boxes"][row].numpy()
        assert np.all(np.diff(scores) <= 0) and np.all(scores[:number] > 0) and np.all(scores[number:] == 0)
        assert np.all(boxes >= 0) and np.all(boxes[:, 2] <= 150) and np.all(boxes[:, 3] <= 120)
        points = answer["keypoints"][row, :number].numpy()
        low, high = boxes[:number, None, :2], boxes[:number, None, 2:]
        assert np.all(points >= low - 1e-3) and np.all(points <= high + 1e-3)
        assert not np.any(answer["keypoints"][row, number:]) and not np.any(boxes[number:])


@pytest.mark.parametrize("how", ["graph", "compiled", "known late"])
def test_detections_are_the_same_in_every_graph(small_model, batch, how):
    """One graph compiles under XLA, and takes batches and canvases whose size is known late, as serving needs."""
    expected = small_model.detect(batch["image"], batch["image_size"])
    late = [tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None, 2], tf.int32)]
    detect = tf.function(
        functools.partial(small_model.detect, static_shapes=how == "compiled"),
        jit_compile=how == "compiled",
        input_signature=late if how == "known late" else None,
        autograph=False,
    )
    found = detect(batch["image"], batch["image_size"])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-3, err_msg=name)


@pytest.mark.parametrize(("threshold", "people", "looked_at"), [(0.0, 10, 10), (0.5125, 7, 8), (0.9, 0, 8)])
def test_keypoints_are_sought_of_those_alone_who_are_found(small_model, batch, monkeypatch, threshold, people, looked_at):
    """Looking only where somebody was found answers as looking everywhere: with all places taken, some, and none."""
    inference = dataclasses.replace(small_model.config.inference, score_threshold=threshold)
    monkeypatch.setattr(small_model, "config", dataclasses.replace(small_model.config, inference=inference))
    expected = small_model.detect(batch["image"], batch["image_size"], static_shapes=True)
    assert int(tf.reduce_sum(expected["num_detections"])) == people
    heatmaps, numbers = small_model.heatmaps, []

    def counted(pyramid, boxes, image_index, own_sizes):
        numbers.append(len(boxes))
        return heatmaps(pyramid, boxes, image_index, own_sizes)

    monkeypatch.setattr(small_model, "heatmaps", counted)
    found = small_model.detect(batch["image"], batch["image_size"])
    assert numbers == [looked_at]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


def test_a_image_does_not_depend_on_its_company(small_model, batch):
    together = small_model.detect(batch["image"], batch["image_size"])
    alone = small_model.detect(batch["image"][1:], batch["image_size"][1:])
    for name, value in alone.items():
        np.testing.assert_allclose(together[name][1:], value, atol=2e-3, err_msg=name)


def test_what_lies_outside_the_image_is_not_seen(small_model, batch):
    """The canvas beyond `image_size` counts as zero after normalisation, whatever bytes it holds."""
    noise = tf.cast(tf.random.stateless_uniform(batch["image"].shape, [1, 2], 0, 255, tf.int32), tf.uint8)
    rows, columns = tf.range(128)[None, :, None, None], tf.range(160)[None, None, :, None]
    dirty = tf.where((rows < 120) & (columns < 150), batch["image"], noise)
    expected = small_model.detect(batch["image"], batch["image_size"])
    for name, value in small_model.detect(dirty, batch["image_size"]).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4, err_msg=name)


def test_losses_of_images_with_nobody_are_finite(small_config, skeleton, small_model):
    batch = random_batch(small_config, skeleton, 2)
    batch["box_kind"] = tf.zeros_like(batch["box_kind"])
    batch["anchor_label"] = tf.minimum(batch["anchor_label"], 0)
    losses, watched = small_model.losses(batch, tf.constant(0))
    assert all(np.isfinite(total) for total, _ in losses.values())
    assert float(losses["keypoint"][0]) == float(losses["keypoint"][1]) == float(losses["box_delta"][0]) == 0
    assert float(watched["positive_rois"]) == 0


def test_a_padding_image_changes_no_loss(small_config, skeleton, small_model):
    batch = random_batch(small_config, skeleton, 2)
    expected, _ = small_model.losses(batch, tf.constant(3))
    padding = {name: tf.zeros_like(value[:1]) for name, value in batch.items()}
    padding |= {"image_id": tf.constant([-1], tf.int64), "anchor_label": tf.fill(padding["anchor_label"].shape, -1)}
    found, _ = small_model.losses({name: tf.concat([batch[name], padding[name]], 0) for name in batch}, tf.constant(3))
    for name, (total, count) in expected.items():
        np.testing.assert_allclose(found[name][0], total, rtol=1e-4, err_msg=name)
        assert float(found[name][1]) == float(count), name


def test_packing_takes_from_all_images_alike_and_counts_what_is_left_out():
    rois = {
        "boxes": tf.reshape(tf.range(2 * 4 * 4, dtype=tf.float32), [2, 4, 4]),
        "label": tf.constant([[1, 1, 1, 0], [1, 1, 0, -1]]),
        "true_box": tf.constant([[0, 1, 0, 0], [1, 0, 0, 0]]),
    }
    keypoints = tf.constant([[[[1.0, 1.0, 2.0]], [[5.0, 5.0, 0.0]]], [[[2.0, 2.0, 1.0]], [[3.0, 3.0, 2.0]]]])  # [2, 2, 1, 3]
    packed = pack_positives(rois, keypoints, 8)  # more room than RoIs: the second of image 0 has no labelled point
    used = packed["used"].numpy()
    assert used.sum() == 4 and float(packed["overflow"]) == 0
    assert sorted(packed["boxes"].numpy()[used, 0].tolist()) == [0, 8, 16, 20]
    np.testing.assert_array_equal(packed["image_index"].numpy()[used], packed["boxes"].numpy()[used, 0] // 16)
    full = pack_positives(rois, keypoints, 3)
    assert full["used"].numpy().all() and float(full["overflow"]) == 1
    assert full["boxes"].numpy()[:, 0].tolist() == [0, 16, 8]  # first of each, then the second of the first


@pytest.mark.parametrize("loss", ["softmax", "mask"])
def test_either_keypoint_loss_falls_on_one_batch(small_config, skeleton, batch, loss):
    config = dataclasses.replace(small_config, keypoint_head=dataclasses.replace(small_config.keypoint_head, loss=loss))
    model = KeypointRCNN(config, skeleton)
    variables = [variable.value for variable in model.keypoint_head.trainable_variables]

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            total, count = model.losses(batch, tf.constant(3))[0]["keypoint"]
            value = total / count
        for variable, gradient in zip(variables, tape.gradient(value, variables), strict=True):
            variable.assign_sub(0.05 * gradient)
        return value

    values = [float(step()) for _ in range(12)]
    assert np.isfinite(values).all()
    assert values[-1] < values[0] - 0.01
    found = model.detect(batch["image"], batch["image_size"])
    assert all(np.isfinite(value).all() for value in found.values())
