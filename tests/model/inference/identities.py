"""IDF1 (Ristani et al. 2016): how well the numbers that people got agree with who they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

Boxes = Mapping[int, Sequence[float]]  # x, y, width, height by number


def idf1(truth: Sequence[Boxes], found: Sequence[Boxes], least_iou: float = 0.5) -> float:
    """2 · right / (boxes of the truth + boxes found), under the best assignment of found numbers to true ones."""
    together: Counter[tuple[int, int]] = Counter()
    for true_boxes, boxes in zip(truth, found, strict=True):
        if true_boxes and boxes:
            ious = coco_mask.iou(
                np.array(list(true_boxes.values()), float), np.array(list(boxes.values()), float), [0] * len(boxes)
            )
            for row, column in zip(*np.nonzero(ious >= least_iou), strict=True):
                together[list(true_boxes)[row], list(boxes)[column]] += 1
    true_numbers, numbers = (sorted({pair[side] for pair in together}) for side in (0, 1))
    counts = np.array([[together[a, b] for b in numbers] for a in true_numbers])
    right = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return float(2 * right / (sum(map(len, truth)) + sum(map(len, found))))
