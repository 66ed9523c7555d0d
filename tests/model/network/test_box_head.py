import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from model.config import BoxHeadConfig, InferenceConfig
from model.network import box_head, rpn
from model.network import boxes as box_ops
from pipeline.data_config import CROWD, CROWD_SHARE, PERSON

CONFIG = BoxHeadConfig(rois=16, positive_fraction=0.25)


def scene(seed=0, batch=3):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 200, (batch, 60, 2))
    proposals = np.concatenate([corner, corner + random.uniform(10, 80, (batch, 60, 2))], -1).astype(np.float32)
    boxes = np.zeros((batch, 4, 4), np.float32)
    boxes[:, 0], boxes[:, 1], boxes[:, 2] = [20, 20, 80, 120], [150, 30, 200, 140], [0, 150, 280, 280]
    proposals[:, :10] = boxes[:, :1] + random.normal(0, 3, (batch, 10, 4))
    kind = np.zeros((batch, 4), np.int32)
    kind[:, :2], kind[:, 2] = PERSON, CROWD
    return (
        tf.constant(proposals),
        tf.constant(random.normal(size=(batch, 60)), tf.float32),
        {"boxes": tf.constant(boxes), "box_kind": tf.constant(kind), "image_id": tf.range(1, batch + 1, dtype=tf.int64)},
    )


def test_sampled_rois_obey_the_rules():
    proposals, scores, batch = scene()
    rois = box_head.sample_rois(CONFIG, proposals, scores, batch, tf.constant(3))
    label, true_box = rois["label"].numpy(), rois["true_box"].numpy()
    overlap = box_ops.iou(rois["boxes"], batch["boxes"][:, :2]).numpy()
    in_crowd = box_ops.share_inside(rois["boxes"], batch["boxes"][:, 2:3]).numpy()[..., 0]
    assert rois["boxes"].shape == (3, 16, 4)
    assert np.all((label == 1).sum(1) == 4)  # a quarter, as there are more candidates than that
    assert np.all(overlap.max(-1)[label == 1] >= 0.5) and np.all(overlap.max(-1)[label == 0] < 0.5)
    assert np.all(true_box[label == 1] == overlap.argmax(-1)[label == 1])
    assert np.all(in_crowd[label == 0] < CROWD_SHARE)
    assert np.all(np.diff((label == 1).astype(int), axis=1) <= 0)  # positives first


def test_fewer_candidates_than_rois_leave_some_unused():
    proposals, scores, batch = scene()
    greedy = dataclasses.replace(CONFIG, rois=1000, positive_fraction=1.0)
    rois = box_head.sample_rois(greedy, proposals, scores, batch, tf.constant(3))
    assert rois["boxes"].shape == (3, 1000, 4) and np.all(rois["label"][:, 64:] == -1)
    persons = 2 + (box_ops.iou(proposals, batch["boxes"][:, :2]).numpy().max(-1) >= 0.5).sum(axis=1)
    np.testing.assert_array_equal((rois["label"] == 1).numpy().sum(1), persons)


def test_draws_depend_on_seed_and_image_alone():
    proposals, scores, batch = scene()
    whole = box_head.sample_rois(CONFIG, proposals, scores, batch, tf.constant(3))
    alone = box_head.sample_rois(CONFIG, proposals[1:2], scores[1:2], {k: v[1:2] for k, v in batch.items()}, tf.constant(3))
    np.testing.assert_array_equal(whole["boxes"][1], alone["boxes"][0])
    other = box_head.sample_rois(CONFIG, proposals, scores, batch, tf.constant(4))
    assert not np.array_equal(whole["boxes"], other["boxes"])


def test_true_boxes_are_candidates_and_padding_images_have_none():
    proposals, scores, batch = scene()
    rois = box_head.sample_rois(CONFIG, proposals, tf.fill(scores.shape, rpn.NOTHING), batch, tf.constant(0))
    np.testing.assert_array_equal((rois["label"] >= 0).numpy().sum(1), [2, 2, 2])
    batch["image_id"] = tf.constant([-1, 5, -1], tf.int64)
    rois = box_head.sample_rois(CONFIG, proposals, scores, batch, tf.constant(0))
    np.testing.assert_array_equal((rois["label"] >= 0).numpy().any(1), [False, True, False])


def test_losses_are_sums_and_finite_where_nothing_is_positive():
    rois = {
        "boxes": tf.constant([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 9.0, 9.0]]]),
        "label": tf.constant([[1, -1, 0]]),
        "true_box": tf.zeros([1, 3], tf.int32),
    }
    true_boxes = tf.constant([[[1.0, 0.0, 11.0, 10.0]]])  # target: dx = 10 · 0.1 = 1, the rest 0
    logits = tf.constant([[[0.0, 2.0], [50.0, -50.0], [0.0, 0.0]]])
    deltas = tf.constant([[[0.2, 0.1, 0.0, 0.0], [9.0] * 4, [9.0] * 4]])
    losses = box_head.box_losses(CONFIG, logits, deltas, rois, true_boxes)
    np.testing.assert_allclose(losses["box_class"][0], np.log1p(np.exp(-2)) + np.log(2), rtol=1e-5)
    np.testing.assert_allclose(losses["box_delta"][0], (0.8 - 0.25) + 0.5 * 0.1**2 / 0.5, rtol=1e-5)
    assert float(losses["box_class"][1]) == float(losses["box_delta"][1]) == 2
    rois["label"] = tf.constant([[0, -1, 0]])
    with tf.GradientTape() as tape:
        tape.watch(deltas)
        loss = box_head.box_losses(CONFIG, logits, deltas, rois, true_boxes)["box_delta"][0]
    assert float(loss) == 0 and np.all(tape.gradient(loss, deltas) == 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_detections_are_thresholded_suppressed_sorted_and_padded(compiled):
    config = InferenceConfig(max_detections=4)
    proposals = tf.constant(
        [[[0.0, 0.0, 40.0, 40.0], [1.0, 1.0, 41.0, 41.0], [60.0, 0.0, 90.0, 40.0], [5.0, 50.0, 30.0, 90.0]]]
    )
    logits = tf.constant([[[0.0, 1.0], [0.0, 3.0], [0.0, 0.5], [9.0, 0.0]]])
    run = tf.function(
        lambda s: box_head.detections(config, logits, tf.zeros([1, 4, 4]), proposals, s, tf.constant([[80, 80]])),
        autograph=False,
    )
    if compiled:
        run = tf.function(run.python_function, jit_compile=True, autograph=False)
    found = run(tf.zeros([1, 4]))
    boxes, scores = found["boxes"], found["scores"]
    assert found["num_detections"].numpy().tolist() == [2]
    np.testing.assert_allclose(boxes[0], [[1, 1, 41, 41], [60, 0, 80, 40], [0] * 4, [0] * 4], atol=1e-4)
    np.testing.assert_allclose(scores[0], [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-0.5)), 0, 0], rtol=1e-5)


def test_nobody_found():
    config = dataclasses.replace(InferenceConfig(), max_detections=3)
    found = box_head.detections(
        config, tf.zeros([2, 4, 2]), tf.zeros([2, 4, 4]), tf.zeros([2, 4, 4]), tf.fill([2, 4], rpn.NOTHING), tf.fill([2, 2], 50)
    )
    assert set(found) == {"num_detections", "boxes", "scores"} and not any(np.any(value) for value in found.values())
