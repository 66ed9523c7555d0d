"""Everything that happens inside the network on a batch, stage by stage, by name: for notebooks, tests and curious people.

It calls the functions of `KeypointRCNN.detect` and `KeypointRCNN.losses` in their order, and keeps what lies between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from model.network import box_head, keypoint_head, rpn
from model.network.backbone import level_shapes
from model.network.keypoint_head import Decoder

if TYPE_CHECKING:
    from model.network.keypoint_rcnn import KeypointRCNN

TRUTH = ("boxes", "keypoints", "box_kind", "image_id")  # what a batch has for training


def trace(model: KeypointRCNN, batch: dict[str, tf.Tensor], decode: Decoder, seed: int) -> dict[str, tf.Tensor]:
    """See `KeypointRCNN.trace`."""
    images, image_size = batch["image"], batch["image_size"]
    found: dict[str, tf.Tensor] = {"pixels": model.normalised(images, image_size)}

    pyramid = model.pyramid(images, image_size)
    levels = [f"P{number}" for number in range(2, 2 + len(pyramid))]
    found |= {f"pyramid/{level}": features for level, features in zip(levels, pyramid, strict=True)}

    anchors = rpn.anchor_grid(model.config.anchors, level_shapes(pyramid))
    logits, deltas = rpn.rpn_outputs(model.rpn_head, pyramid)
    top_k = model.config.rpn.top_k_test
    for level, *of_level in zip(levels, anchors, logits, deltas, strict=True):
        own_anchors, own_logits, own_deltas = of_level
        found |= {f"anchors/{level}": own_anchors, f"objectness/{level}": own_logits, f"deltas/{level}": own_deltas}
    candidates = rpn.candidates(model.config.rpn, top_k, logits, deltas, anchors, image_size)
    for level, own_boxes, own_scores in zip(levels, *candidates, strict=True):
        found |= {f"before_nms/{level}": own_boxes, f"before_nms_scores/{level}": own_scores}
    proposals, proposal_scores = rpn.proposals(model.config.rpn, logits, deltas, anchors, image_size, training=False)
    found |= {"proposals": proposals, "proposal_scores": proposal_scores}

    class_logits, box_deltas = model.classify(pyramid, proposals)
    found |= {"class_logits": class_logits, "box_deltas": box_deltas}
    found |= box_head.detections(model.config.inference, class_logits, box_deltas, proposals, proposal_scores, image_size)

    boxes = found["boxes"]
    batch_size, places = boxes.shape[0], boxes.shape[1]
    flat = tf.reshape(boxes, [-1, 4])  # [B · D, 4]
    heatmaps = model.heatmaps(pyramid, flat, tf.repeat(tf.range(batch_size), places))  # [B · D, S, S, K]
    keypoints, keypoint_scores = decode(heatmaps, flat)
    for name, value in (("heatmaps", heatmaps), ("keypoints", keypoints), ("keypoint_scores", keypoint_scores)):
        found[name] = tf.reshape(value, [batch_size, places, *value.shape[1:]])
    if all(name in batch for name in TRUTH):
        found |= _training_targets(model, batch, pyramid, (logits, deltas, anchors), seed)
    return found


def _training_targets(
    model: KeypointRCNN,
    batch: dict[str, tf.Tensor],
    pyramid: list[tf.Tensor],
    rpn_values: tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]],
    seed: int,
) -> dict[str, tf.Tensor]:
    """What the heads are taught on this batch."""
    config = model.config
    found: dict[str, tf.Tensor] = {}
    if "anchor_index" in batch:
        every = tf.concat(rpn_values[2], 0)
        found["sampled_anchors"] = tf.gather(every, tf.maximum(batch["anchor_index"], 0))  # [B, A, 4]
        found["sampled_anchor_label"] = batch["anchor_label"]
    proposals, scores = rpn.proposals(config.rpn, *rpn_values, batch["image_size"], training=True)
    rois = box_head.sample_rois(config.box_head, proposals, scores, batch, tf.constant(seed, tf.int32))
    found |= {f"roi_{name}": value for name, value in rois.items()}

    packed = model.pack(rois, batch)
    heatmaps = model.heatmaps(pyramid, packed["boxes"], packed["image_index"], training=True)
    place, valid = keypoint_head.encode(packed["keypoints"], packed["boxes"], heatmaps.shape[1])
    found |= {f"keypoint_roi_{name}": value for name, value in packed.items()}
    return found | {
        "keypoint_roi_heatmaps": heatmaps,
        "keypoint_target_place": place,
        "keypoint_target_valid": valid & packed["used"][:, tf.newaxis],
    }
