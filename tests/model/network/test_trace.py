"""What `KeypointRCNN.trace` shows is what the model does."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from model.network import keypoint_head, rpn
from model.network.keypoint_rcnn import KeypointRCNN


def test_a_trace_holds_what_detect_answers(small_model: KeypointRCNN, batch: dict[str, tf.Tensor]) -> None:
    found = small_model.trace({name: batch[name] for name in ("image", "image_size")})
    answer = small_model.detect(batch["image"], batch["image_size"], static_shapes=True)
    assert not [name for name in found if name.startswith(("roi_", "keypoint_roi", "keypoint_target", "sampled"))]
    for name, value in answer.items():
        there = tf.cast(found["scores"] > 0, tf.float32)
        shown = found[name]
        if name.startswith("keypoint"):
            shown *= tf.reshape(there, [*there.shape, *[1] * (shown.shape.rank - 2)])
        np.testing.assert_allclose(shown, value, rtol=1e-5, atol=1e-4, err_msg=name)
    assert found["pyramid/P2"].shape == [2, 32, 40, 16] and found["pyramid/P6"].shape[1:3] == [2, 3]
    assert found["heatmaps"].shape == [2, 5, 56, 56, 17]


def test_proposals_are_those_that_nms_leaves(small_model: KeypointRCNN, batch: dict[str, tf.Tensor]) -> None:
    """Each proposal was a candidate of a level, and no two of a level overlap by more than the threshold."""
    found = small_model.trace(batch)
    for image in range(2):
        kept = found["proposals"][image][found["proposal_scores"][image] > rpn.NOTHING].numpy()
        before = np.concatenate([found[f"before_nms/P{level}"][image].numpy() for level in range(2, 7)])
        assert 0 < len(kept) < len(before)
        assert all((np.abs(before - box).max(-1) < 1e-4).any() for box in kept)


def test_the_losses_follow_from_the_targets(small_model: KeypointRCNN, batch: dict[str, tf.Tensor]) -> None:
    found = small_model.trace(batch, seed=5)
    losses, watched = small_model.losses(batch, tf.constant(5, tf.int32))
    loss = keypoint_head.keypoint_loss(
        found["keypoint_roi_heatmaps"],
        found["keypoint_roi_keypoints"],
        found["keypoint_roi_boxes"],
        found["keypoint_roi_used"],
    )
    np.testing.assert_allclose(loss[0], losses["keypoint"][0], rtol=1e-4)
    assert float(losses["keypoint"][1]) == found["keypoint_target_valid"].numpy().sum() > 0
    assert float(watched["positive_rois"]) == (found["roi_label"].numpy() == 1).sum()
    positive = found["sampled_anchor_label"].numpy() == 1
    assert positive.sum() == 8 and found["sampled_anchors"].shape == [2, 32, 4]


def test_a_target_leads_back_to_its_keypoint(small_model: KeypointRCNN, batch: dict[str, tf.Tensor]) -> None:
    """A place of 56×56 is drawn back to within a place of the keypoint that it stands for."""
    found = small_model.trace(batch)
    boxes = found["keypoint_roi_boxes"].numpy()[:, None]
    place, valid = found["keypoint_target_place"].numpy(), found["keypoint_target_valid"].numpy()
    side = (boxes[..., 2:] - boxes[..., :2]) / 56
    drawn = boxes[..., :2] + (np.stack([place % 56, place // 56], -1) + 0.5) * side
    away = np.abs(drawn - found["keypoint_roi_keypoints"].numpy()[..., :2]) / side
    assert away[valid].max() <= 0.5 + 1e-3
