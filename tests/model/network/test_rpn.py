import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from model.config import RpnConfig
from model.network import boxes as box_ops
from model.network import rpn
from pipeline import anchors
from pipeline.anchors import AnchorConfig

CONFIG = RpnConfig(top_k_test=60, top_k_train=60, proposals_test=25, proposals_train=25)
SIZE = tf.constant([[96, 128], [80, 70]])


def levels(seed, batch=2, height=96, width=128):
    random = np.random.default_rng(seed)
    shapes = anchors.level_shapes(AnchorConfig(), height, width)
    counts = [rows * columns * 3 for rows, columns in shapes]
    logits = [tf.constant(random.normal(size=(batch, n)), tf.float32) for n in counts]
    deltas = [tf.constant(random.normal(0, 0.3, size=(batch, n, 4)), tf.float32) for n in counts]
    return logits, deltas, rpn.anchor_grid(AnchorConfig(), shapes)


def test_anchor_grid_is_that_of_the_records():
    config = AnchorConfig()
    for height, width in ((96, 128), (64, 352)):
        shapes = anchors.level_shapes(config, height, width)
        ours = tf.concat(rpn.anchor_grid(config, shapes), 0)
        np.testing.assert_array_equal(ours, anchors.grid(config, height, width))
        late = tf.concat(rpn.anchor_grid(config, [(tf.constant(r), tf.constant(c)) for r, c in shapes]), 0)
        np.testing.assert_array_equal(late, ours)


def greedy_nms(boxes, scores, threshold):
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(box_ops.iou(boxes[i : i + 1], boxes[j : j + 1]).numpy()[0, 0] <= threshold for j in kept):
            kept.append(i)
    return kept


def test_proposals_equal_a_plain_implementation():
    logits, deltas, grid = levels(0)
    boxes, scores = rpn.proposals(CONFIG, logits, deltas, grid, SIZE, training=False)
    for b in range(2):
        found = []
        for level_logits, level_deltas, level_anchors in zip(logits, deltas, grid, strict=True):
            best = np.argsort(-level_logits[b].numpy(), kind="stable")[: CONFIG.top_k_test]
            decoded = box_ops.decode(level_deltas[b].numpy()[best], level_anchors.numpy()[best], rpn.DELTA_WEIGHTS)
            decoded = box_ops.clip(decoded[tf.newaxis], SIZE[b : b + 1])[0].numpy()
            score = level_logits[b].numpy()[best]
            sound = (decoded[:, 2] > decoded[:, 0]) & (decoded[:, 3] > decoded[:, 1])
            decoded, score = decoded[sound], score[sound]
            found += [(score[i], decoded[i]) for i in greedy_nms(decoded, score, CONFIG.nms_threshold)[: CONFIG.proposals_test]]
        found.sort(key=lambda pair: -pair[0])
        expected = np.array([box for _, box in found[: CONFIG.proposals_test]])
        np.testing.assert_allclose(boxes[b, : len(expected)], expected, atol=1e-4)
        assert np.all(boxes[b].numpy() <= [SIZE[b, 1], SIZE[b, 0]] * 2)
        assert np.all(np.diff(scores[b]) <= 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_proposals_are_the_same_for_a_batch_known_late_and_compiled(compiled):
    logits, deltas, grid = levels(1)
    expected = rpn.proposals(CONFIG, logits, deltas, grid, SIZE, training=True)

    def run(logits, deltas, size):
        return rpn.proposals(CONFIG, logits, deltas, grid, size, training=True)

    if compiled:
        found = tf.function(run, jit_compile=True, autograph=False)(logits, deltas, SIZE)
    else:
        open_batch = (
            [tf.TensorSpec([None, n.shape[1]]) for n in logits],
            [tf.TensorSpec([None, *d.shape[1:]]) for d in deltas],
        )
        found = tf.function(run, input_signature=[*open_batch, tf.TensorSpec([None, 2], tf.int32)], autograph=False)(
            logits, deltas, SIZE
        )
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


@pytest.mark.parametrize(("rank_by", "expected"), [("logit", [120.0, 100.0]), ("sigmoid", [100.0, 90.0])])
@pytest.mark.parametrize("compiled", [False, True])
def test_of_proposals_whose_sigmoids_are_equal_those_of_finer_levels_come_first(rank_by, expected, compiled):
    """Two levels of far apart anchors 10 pixels wide; x0 tells the logit."""
    config = dataclasses.replace(CONFIG, rank_by=rank_by, proposals_test=2)
    logits = [tf.constant([[90.0, 100.0, -100.0]]), tf.constant([[120.0, -90.0]])]
    grid = [tf.stack([x, 0 * x, x + 10.0, 0 * x + 10.0], -1) for x in (level[0] + 200.0 for level in logits)]
    deltas = [tf.zeros([1, len(anchors), 4]) for anchors in grid]

    @tf.function(jit_compile=compiled, autograph=False)
    def propose():
        return rpn.proposals(config, logits, deltas, grid, tf.constant([[20, 400]]), training=False)

    boxes, _ = propose()
    np.testing.assert_array_equal(boxes[0, :, 0] - 200.0, expected)


def test_fewer_proposals_than_places_are_padded():
    logits, deltas, grid = levels(2, batch=1, height=32, width=32)
    same = [tf.zeros_like(d) - 9.0 for d in deltas]  # tiny boxes far outside: clipped to nothing
    boxes, scores = rpn.proposals(CONFIG, logits, same, grid, tf.constant([[32, 32]]), training=False)
    assert boxes.shape == (1, CONFIG.proposals_test, 4)
    nothing = scores.numpy() <= rpn.NOTHING
    assert nothing.any() and np.all(boxes.numpy()[nothing] == 0)


def test_losses_are_sums_over_sampled_anchors():
    grid = tf.constant([[0.0, 0.0, 10.0, 10.0], [10.0, 0.0, 20.0, 10.0], [0.0, 0.0, 20.0, 20.0]])
    batch = {
        "anchor_index": tf.constant([[2, 1, 0, 0]]),
        "anchor_label": tf.constant([[1, 0, -1, -1]]),
        "anchor_box": tf.constant([[1, 0, 0, 0]]),
        "boxes": tf.constant([[[0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 25.0, 20.0]]]),
        "image_id": tf.constant([7], tf.int64),
    }
    logits, deltas = tf.constant([[9.0, -1.0, 2.0]]), tf.constant([[[9.0] * 4, [9.0] * 4, [0.0, 0.0, 0.5, 0.0]]])
    losses = rpn.rpn_losses(CONFIG, 4, logits, deltas, grid, batch)
    np.testing.assert_allclose(losses["rpn_objectness"][0], np.log1p(np.exp(-2)) + np.log1p(np.exp(-1)), rtol=1e-5)
    np.testing.assert_allclose(losses["rpn_box"][0], 0.25 + 0.5, rtol=1e-5)
    assert float(losses["rpn_box"][1]) == 4


def test_a_padding_image_adds_nothing():
    logits, deltas, grid = levels(3)
    flat = (tf.concat(logits, 1), tf.concat(deltas, 1), tf.concat(grid, 0))
    batch = {
        "anchor_index": tf.zeros([2, 8], tf.int32),
        "anchor_label": tf.fill([2, 8], -1),
        "anchor_box": tf.zeros([2, 8], tf.int32),
        "boxes": tf.zeros([2, 4, 4]),
        "image_id": tf.constant([-1, -1], tf.int64),
    }
    for total, count in rpn.rpn_losses(CONFIG, 8, *flat, batch).values():
        assert float(total) == 0 and float(count) == 0
