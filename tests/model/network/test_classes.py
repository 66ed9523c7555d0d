"""Several classes that share a keypoint set, in the network."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model.config import BoxHeadConfig, InferenceConfig
from model.network import box_head
from model.network import boxes as box_ops
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline.skeleton import Skeleton

CLASSES = ((3, "cat"), (8, "dog"), (9, "horse"))


@pytest.fixture(scope="module")
def animals(skeleton: Skeleton) -> Skeleton:
    return dataclasses.replace(skeleton, category="all", classes=CLASSES)


def by_torchvisions_rule(config, logits, deltas, proposals, height, width):
    """Boxes, scores and labels of one image as torchvision's roi_heads.py postprocesses them, written out.

    Every pair of a proposal and a class but the background is a candidate; low scores and small boxes go; greedy NMS within
    each class; the best of all classes stay.
    """
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    probability = exponential / exponential.sum(-1, keepdims=True)  # [N, 1 + C]
    candidates = []
    for n, proposal in enumerate(proposals):
        size = proposal[2:] - proposal[:2]
        for label in range(1, logits.shape[1]):
            dx, dy, dw, dh = deltas[n, 4 * (label - 1) : 4 * label] / [10, 10, 5, 5]
            centre = proposal[:2] + size / 2 + [dx, dy] * size
            half = np.exp([dw, dh]) * size / 2
            box = np.clip([*(centre - half), *(centre + half)], 0, [width, height, width, height])
            if probability[n, label] > config.score_threshold and min(box[2:] - box[:2]) >= config.min_size:
                candidates.append((probability[n, label], label, box))
    kept: list[Any] = []
    for score, label, box in sorted(candidates, key=lambda candidate: -candidate[0]):
        of_class = [other for _, of_label, other in kept if of_label == label]
        if (
            not of_class
            or box_ops.iou(np.array([box], np.float32), np.array(of_class, np.float32)).numpy().max() <= config.nms_threshold
        ):
            kept.append((score, label, box))
    return kept[: config.max_detections]


@pytest.mark.parametrize("compiled", [False, True])
def test_detections_follow_torchvisions_rule(compiled):
    random = np.random.default_rng(0)
    config = InferenceConfig(max_detections=30, score_threshold=0.1)
    corner = random.uniform(0, 60, (2, 40, 2))
    proposals = np.concatenate([corner, corner + random.uniform(10, 60, (2, 40, 2))], -1).astype(np.float32)
    logits = random.normal(0, 1.5, (2, 40, 4)).astype(np.float32)
    deltas = random.normal(0, 0.5, (2, 40, 12)).astype(np.float32)
    sizes = tf.constant([[100, 90], [80, 110]])
    run = tf.function(
        lambda: box_head.detections(config, tf.constant(logits), tf.constant(deltas), proposals, tf.zeros([2, 40]), sizes),
        jit_compile=compiled,
        autograph=False,
    )
    found = {name: value.numpy() for name, value in run().items()}
    for row in range(2):
        wanted = by_torchvisions_rule(config, logits[row], deltas[row], proposals[row], *sizes[row].numpy())
        count = found["num_detections"][row]
        assert count == len(wanted) > 10 and len({label for _, label, _ in wanted}) == 3
        assert found["classes"][row][:count].tolist() == [label for _, label, _ in wanted]
        np.testing.assert_allclose(found["scores"][row][:count], [score for score, _, _ in wanted], rtol=1e-5)
        np.testing.assert_allclose(found["boxes"][row][:count], [box for _, _, box in wanted], atol=1e-3)
        assert not found["classes"][row][count:].any() and not found["boxes"][row][count:].any()


def test_one_box_may_be_of_two_classes():
    proposals = tf.constant([[[10.0, 10.0, 50.0, 50.0]]])
    found = box_head.detections(
        InferenceConfig(max_detections=3),
        tf.constant([[[0.0, 2.0, 1.0]]]),
        tf.zeros([1, 1, 8]),
        proposals,
        tf.zeros([1, 1]),
        tf.constant([[80, 80]]),
    )
    assert found["classes"].numpy().tolist() == [[1, 2, 0]] and found["num_detections"].numpy().tolist() == [2]
    np.testing.assert_allclose(found["boxes"][0, :2], [proposals[0, 0]] * 2, atol=1e-4)


def test_only_the_true_class_learns_the_box():
    rois = {
        "boxes": tf.constant([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]]]),
        "label": tf.constant([[2, 0, -1]]),
        "true_box": tf.zeros([1, 3], tf.int32),
    }
    true_boxes = tf.constant([[[1.0, 0.0, 11.0, 10.0]]])  # target: dx = 1, the rest 0
    deltas = tf.constant([[[7.0] * 4 + [0.2, 0.1, 0.0, 0.0] + [7.0] * 4, [9.0] * 12, [9.0] * 12]])
    logits = tf.constant([[[0.0, 1.0, 3.0, 0.5], [0.0] * 4, [50.0, 0.0, 0.0, 0.0]]])
    with tf.GradientTape() as tape:
        tape.watch(deltas)
        losses = box_head.box_losses(BoxHeadConfig(), logits, deltas, rois, true_boxes)
        loss = losses["box_delta"][0]
    np.testing.assert_allclose(loss, (0.8 - 0.25) + 0.5 * 0.1**2 / 0.5, rtol=1e-5)
    cross_entropy = np.log(np.exp([0.0, 1.0, 3.0, 0.5]).sum()) - 3.0 + np.log(4)
    np.testing.assert_allclose(losses["box_class"][0], cross_entropy, rtol=1e-5)
    assert np.flatnonzero(tape.gradient(loss, deltas)).tolist() == [4, 5]


def test_rois_have_the_class_of_their_box(animals, small_config, batch):
    person = tf.constant([[2, 3] + [0] * 6, [1] + [0] * 7])
    proposals = tf.concat([batch["boxes"][:, :2], tf.fill([2, 1, 4], 100.0) + tf.constant([0.0, 0.0, 20.0, 20.0])], axis=1)
    rois = box_head.sample_rois(
        small_config.box_head, proposals, tf.zeros([2, 3]), {**batch, "box_class": person}, tf.constant(1)
    )
    label, true_box = rois["label"].numpy(), rois["true_box"].numpy()
    wanted = np.take_along_axis(person.numpy(), true_box, axis=1)
    assert (label > 0).any() and (label[label > 0] == wanted[label > 0]).all()
    plain = box_head.sample_rois(small_config.box_head, proposals, tf.zeros([2, 3]), batch, tf.constant(1))
    np.testing.assert_array_equal(plain["label"], np.minimum(label, 1))
    np.testing.assert_array_equal(plain["boxes"], rois["boxes"])


def test_a_network_of_three_classes_learns_and_answers(animals, small_config, batch, small_model):
    model = KeypointRCNN(small_config, animals)
    shapes = {path: tuple(variable.shape) for path, variable in model.variables_by_path().items()}
    assert shapes["box.class/kernel"] == (32, 4) and shapes["box.deltas/kernel"] == (32, 12)
    of_one = {path: tuple(variable.shape) for path, variable in small_model.variables_by_path().items()}
    assert {path for path in shapes if shapes[path] != of_one[path]} == {
        f"box.{layer}/{variable}" for layer in ("class", "deltas") for variable in ("kernel", "bias")
    }
    given = {**batch, "box_class": tf.constant([[2, 3] + [0] * 6, [1] + [0] * 7])}
    learned = [variable for path, variable in model.variables_by_path().items() if path.startswith("box.")]
    with tf.GradientTape() as tape:
        losses, watched = model.losses(given, tf.constant(0))
        loss = tf.add_n([total / tf.maximum(count, 1.0) for total, count in losses.values()])
    assert np.isfinite(loss) and float(watched["positive_rois"]) > 0
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(loss, learned))
    model.config = dataclasses.replace(small_config, inference=dataclasses.replace(small_config.inference, score_threshold=0.0))
    found = model.detect(batch["image"], batch["image_size"])
    assert found["classes"].shape == (2, 5) and set(np.unique(found["classes"])) <= {0, 1, 2, 3}
    np.testing.assert_array_equal((found["classes"].numpy() > 0).sum(1), found["num_detections"])
    assert "classes" not in small_model.detect(batch["image"], batch["image_size"])
