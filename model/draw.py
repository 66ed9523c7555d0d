"""What of a model's answer is drawn, and truth beside prediction. The drawing itself is `pipeline.draw`'s."""

from __future__ import annotations

import numpy as np

from pipeline.draw import Drawn, Floats, Pixels, draw_people
from pipeline.skeleton import Skeleton

# A keypoint's score is its share of 56×56 places: an even spread would give 0.0003, a clear point has some hundredths and more.
UNSURE = 0.01


def drawn_people(boxes: Floats, scores: Floats, keypoints: Floats, keypoint_scores: Floats) -> Drawn:
    """A model's answer about one picture ([n, 4], [n], [n, K, 2], [n, K]): unsure points become hollow ones."""
    shown = np.where(keypoint_scores < UNSURE, 1, 2)[..., None]
    return Drawn(boxes, np.concatenate([keypoints, shown], axis=-1), scores)


def side_by_side(image: Pixels, truth: Drawn, found: Drawn, skeleton: Skeleton) -> Pixels:
    """Ground truth on the left, prediction on the right: uint8 [h, w, 3] → [h, 2w + gap, 3]."""
    gap = np.full((image.shape[0], max(2, image.shape[1] // 80), 3), 255, np.uint8)
    return np.concatenate([draw_people(image, truth, skeleton), gap, draw_people(image, found, skeleton)], axis=1)
