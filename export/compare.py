"""Whether two models give the same answer, where rounding may turn the order of nearly equal scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.command import UserError

Answer = Mapping[str, npt.NDArray[Any]]  # of `ServingModule`: N images, D detections each, zero-padded

BOX_PIXELS = 0.5
KEYPOINT_PIXELS = 1.0
LEAST_SHARE = 0.95  # of an export's detections; rounding may move a point between places that are equally good


class ConversionError(UserError):
    """An export that does not do what the model does: nobody's wrong input, but one line says it best."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How many of the reference's detections have a counterpart."""

    matched: int
    total: int

    @property
    def share(self) -> float:
        return self.matched / self.total if self.total else 1.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.matched + other.matched, self.total + other.total)


def agreement(reference: Answer, other: Answer, min_score: float = 0.0) -> Agreement:
    """Looks for a counterpart of each detection of the reference with at least `min_score`.

    A counterpart has every side of the box within `BOX_PIXELS` and every keypoint within `KEYPOINT_PIXELS` along each axis, and
    stands for one detection only.
    """
    matched = total = 0
    for row in range(len(reference["num_detections"])):
        count, other_count = int(reference["num_detections"][row]), int(other["num_detections"][row])
        wanted = np.flatnonzero(reference["scores"][row][:count] >= min_score)
        total += len(wanted)
        boxes, points = other["boxes"][row][:other_count], other["keypoints"][row][:other_count]
        free = np.ones(other_count, bool)
        for i in wanted:  # best score first
            box_error = np.abs(boxes - reference["boxes"][row][i]).max(axis=-1)
            point_error = np.abs(points - reference["keypoints"][row][i]).max(axis=(-2, -1))
            fits = np.flatnonzero(free & (box_error <= BOX_PIXELS) & (point_error <= KEYPOINT_PIXELS))
            if len(fits):
                free[fits[np.argmin(box_error[fits])]] = False
                matched += 1
    return Agreement(matched, total)
