"""How the original was trained: its targets and losses, by the oracle's rules 14 to 18. Nothing here trains; it is a reference.

Boxes are y0, x0, y1, x1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Array = NDArray[Any]
DEVIATIONS = np.array([0.1, 0.1, 0.2, 0.2], np.float32)
ROIS, POSITIVES, POSITIVE_SHARE, MASK, MAP = 100, 33, 0.33, 28, 56


def iou(a: Floats, b: Floats) -> Floats:
    """[N, 4] and [M, 4] → [N, M]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    area_a, area_b = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (a, b))
    overlaps: Floats = shared / (area_a[:, None] + area_b[None] - shared)
    return overlaps


def deltas(boxes: Floats, targets: Floats) -> Floats:
    """From `boxes` to `targets`, both [N, 4], before they are divided by `DEVIATIONS`."""
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centre, target = boxes[:, :2] + 0.5 * size, targets[:, :2] + 0.5 * target_size
    found: Floats = np.concatenate([(target - centre) / size, np.log(target_size / size)], axis=-1)
    return found


def roi_targets(rois: Floats, classes: Array, boxes: Array, keypoints: Array, masks: Array, side: int) -> dict[str, Array]:
    """What each of the 100 slots of one image shall learn.

    Args:
      rois: proposals [P, 4], normalised, zero padded; classes [G], zero padded; boxes [G, 4], pixels of the canvas.
      keypoints: [G, K, 3], pixels of the canvas; masks: mini masks [56, 56, G].
    """
    people = classes > 0
    boxes, keypoints, masks = boxes[people].astype(np.float32) / np.float32(side), keypoints[people], masks[..., people]
    rois = rois[np.abs(rois).sum(axis=-1) > 0]
    overlaps = iou(rois, boxes)
    best = overlaps.max(axis=1)
    positive = np.flatnonzero(best >= 0.5)[:POSITIVES]
    negative = np.flatnonzero(best < 0.5)[: int(len(positive) / POSITIVE_SHARE) - len(positive)]
    owner = overlaps[positive].argmax(axis=1)
    chosen = rois[positive]
    place, weight = keypoint_labels(chosen * np.float32(side), keypoints[owner])
    relative = (chosen - np.tile(boxes[owner, :2], 2)) / np.tile(boxes[owner, 2:] - boxes[owner, :2], 2)
    crops = tf.image.crop_and_resize(
        np.moveaxis(masks, -1, 0)[owner][..., None].astype(np.float32), relative, np.arange(len(owner)), [MASK, MASK]
    )

    def padded(value: Array) -> Array:
        return np.concatenate([value, np.zeros((ROIS - len(value), *value.shape[1:]), value.dtype)])

    return {
        "t_rois": padded(np.concatenate([chosen, rois[negative]])),
        "t_class_ids": padded(classes[people][owner]),
        "t_bbox": padded(deltas(chosen, boxes[owner]) / DEVIATIONS),
        "t_keypoint": padded(place),
        "t_keypoint_weight": padded(weight),
        "t_mask": padded(np.round(crops[..., 0].numpy()).astype(bool)),
    }


def keypoint_labels(rois: Floats, keypoints: Array) -> tuple[Array, Array]:
    """The place of each keypoint [N, K, 3] in its RoI [N, 4], pixels of the canvas, and whether it counts: int32 [N, K]."""
    low, size = rois[:, None, [1, 0]], (rois[:, 2:] - rois[:, :2])[:, None, ::-1]  # x, y
    cell = ((keypoints[..., :2] - low) / size * MAP + np.float32(0.5)).astype(np.int32)  # towards 0
    counts = (keypoints[..., 2] > 0) & ((cell > 0) & (cell < MAP)).all(axis=-1)
    return np.where(counts, cell[..., 1] * MAP + cell[..., 0], 0).astype(np.int32), counts.astype(np.int32)


def boxes_of_masks(masks: Array) -> Array:
    """The boxes [N, 4] of masks [H, W, N]; an end that reaches the edge is one pixel short."""
    height, width, number = masks.shape
    boxes = np.zeros((number, 4), np.int32)
    for i in range(number):
        rows, columns = np.flatnonzero(masks[..., i].any(axis=1)), np.flatnonzero(masks[..., i].any(axis=0))
        if len(rows):
            ends = (min(rows[-1] + 1, height - 1), min(columns[-1] + 1, width - 1))
            boxes[i] = rows[0], columns[0], *ends
    return boxes


def mini_mask(mask: Array, box: Array) -> Array:
    """The mask [H, W] within its box at 56×56, by the original's relative threshold."""
    y0, x0, y1, x1 = box
    part = mask[y0:y1, x0:x1].astype(np.float32)
    low, high = part.min(), part.max()
    stretched = (part - low) * 255 / (high - low) if high > low else np.zeros_like(part)
    as_bytes = (np.clip(stretched, 0, 255) + 0.5).astype(np.uint8)
    resized = np.asarray(Image.fromarray(as_bytes).resize((MAP, MAP), Image.Resampling.BILINEAR))
    return resized >= 128


def smooth_l1(error: tf.Tensor) -> tf.Tensor:
    error = tf.abs(error)
    return tf.where(error < 1, 0.5 * tf.square(error), error - 0.5)


def cross_entropy(labels: Any, logits: tf.Tensor) -> tf.Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)
