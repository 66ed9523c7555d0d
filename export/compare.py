"""Whether two models give the same answer, where rounding may turn the order of nearly equal scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.command import UserError

Answer = Mapping[str, npt.NDArray[Any]]  # of `ServingModule`: N images, D detections each, zero-padded
Floats = npt.NDArray[np.floating[Any]]

BOX_PIXELS = 0.5
KEYPOINT_PIXELS = 1.0
SURE = 0.5  # a score; the detections from it on are counted apart
ALIKE = 0.9  # IoU and OKS from which a detection of a quantised file counts as the model's
DEFAULT_SIGMA = 0.05  # of a keypoint set without sigmas: about the mean of COCO's


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


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far an artifact's answers are from the model's, over all images and every score.

    Attributes:
      equal: detections with a counterpart of the same class within `BOX_PIXELS` and `KEYPOINT_PIXELS`.
      alike: detections with a counterpart of the same class and of IoU and OKS `ALIKE` or more.
      sure: the same, of the model's detections with a score of `SURE` or more.
      more: detections of the artifact beyond the number of the model's.
      box_pixels, keypoint_pixels, score: largest and mean difference to the nearest box of the artifact, where it is alike.
      worst: index of the image with the most detections of `SURE` or more without a counterpart; of equals, with the largest
        difference of such a one's keypoint; then with the most without a counterpart at every score, and the most of `SURE`.
    """

    equal: Agreement
    alike: Agreement
    sure: Agreement
    more: int
    box_pixels: tuple[float, float]
    keypoint_pixels: tuple[float, float]
    score: tuple[float, float]
    worst: int

    def as_json(self) -> dict[str, Any]:
        def both(values: tuple[float, float]) -> dict[str, float]:
            return {"largest": values[0], "mean": values[1]}

        return {
            "detections": self.equal.total,
            "equal": self.equal.matched,
            "equal_share": self.equal.share,
            "alike": self.alike.matched,
            "alike_share": self.alike.share,
            "sure_detections": self.sure.total,
            "sure_alike": self.sure.matched,
            "sure_alike_share": self.sure.share,
            "more_than_the_model": self.more,
            "box_difference_pixels": both(self.box_pixels),
            "keypoint_difference_pixels": both(self.keypoint_pixels),
            "score_difference": both(self.score),
        }


def agreement(reference: Answer, other: Answer, min_score: float = 0.0) -> Agreement:
    """Looks for a counterpart of each detection of the reference with at least `min_score`.

    A counterpart has every side of the box within `BOX_PIXELS`, every keypoint within `KEYPOINT_PIXELS` along each axis and the
    same class, and stands for one detection only.
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
            possible = free & _of_its_class(reference, other, row, int(i))
            fits = np.flatnonzero(possible & (box_error <= BOX_PIXELS) & (point_error <= KEYPOINT_PIXELS))
            if len(fits):
                free[fits[np.argmin(box_error[fits])]] = False
                matched += 1
    return Agreement(matched, total)


def compare(expected: Sequence[Answer], answers: Sequence[Answer], sigmas: Sequence[float] | None) -> Comparison:
    """Compares answers to the same images, each a batch of one.

    Args:
      expected: the model's.
      answers: the artifact's.
      sigmas: of OKS, one for each keypoint; None: `DEFAULT_SIGMA` for all.
    """
    equal = alike = sure = Agreement(0, 0)
    differences: list[tuple[float, float, float]] = []
    more, badness = 0, []
    for reference, other in zip(expected, answers, strict=True):
        equal_here = agreement(reference, other)
        pairs = _alike(reference, other, sigmas)
        count = int(reference["num_detections"][0])
        number_sure = int((reference["scores"][0][:count] >= SURE).sum())  # they come first
        here = [_differences(reference, other, i, j) for i, j in pairs]
        differences += here
        equal, alike = equal + equal_here, alike + Agreement(len(pairs), count)
        sure += Agreement(sum(i < number_sure for i, _ in pairs), number_sure)
        more += max(0, int(other["num_detections"][0]) - count)
        missing_sure = number_sure - agreement(reference, other, SURE).matched
        largest = max((points for (i, _), (_, points, _) in zip(pairs, here, strict=True) if i < number_sure), default=0.0)
        badness.append((missing_sure, largest, count - equal_here.matched, number_sure))
    box, points, score = (
        ((max(values), float(np.mean(values))) if values else (0.0, 0.0))
        for values in ([difference[k] for difference in differences] for k in range(3))
    )
    worst = max(range(len(badness)), key=badness.__getitem__) if badness else 0
    return Comparison(equal, alike, sure, more, box, points, score, worst)


def _differences(reference: Answer, other: Answer, i: int, j: int) -> tuple[float, float, float]:
    """The largest differences of two detections of one image: of the box, of the keypoints, of the score."""
    box, points, score = (
        float(np.abs(reference[name][0][i] - other[name][0][j]).max()) for name in ("boxes", "keypoints", "scores")
    )
    return box, points, score


def _alike(reference: Answer, other: Answer, sigmas: Sequence[float] | None) -> list[tuple[int, int]]:
    """Pairs of detections of one image and class whose IoU and OKS are `ALIKE` or more, each detection in one pair at most."""
    count, other_count = int(reference["num_detections"][0]), int(other["num_detections"][0])
    boxes, points = other["boxes"][0][:other_count], other["keypoints"][0][:other_count]
    free = np.ones(other_count, bool)
    pairs = []
    for i in range(count):  # best score first
        overlap = _iou(reference["boxes"][0][i], boxes)
        similarity = _oks(reference["keypoints"][0][i], points, reference["boxes"][0][i], sigmas)
        fits = np.flatnonzero(free & _of_its_class(reference, other, 0, i) & (overlap >= ALIKE) & (similarity >= ALIKE))
        if len(fits):
            best = int(fits[np.argmax(overlap[fits])])
            free[best] = False
            pairs.append((i, best))
    return pairs


def _of_its_class(reference: Answer, other: Answer, row: int, i: int) -> npt.NDArray[np.bool_]:
    """Which of the other's detections of an image have the class of the reference's detection `i`: [n].

    All of them, if the reference knows one class; none of them, if the reference knows several and the other names none.
    """
    count = int(other["num_detections"][row])
    if "classes" not in reference:
        return np.ones(count, bool)
    if "classes" not in other:
        return np.zeros(count, bool)
    same: npt.NDArray[np.bool_] = other["classes"][row][:count] == reference["classes"][row][i]
    return same


def _iou(box: Floats, boxes: Floats) -> Floats:
    """The IoU of a box [4] with each of boxes [n, 4]: [n]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - shared
    overlap: Floats = shared / np.maximum(union, 1e-9)
    return overlap


def _oks(points: Floats, others: Floats, box: Floats, sigmas: Sequence[float] | None) -> Floats:
    """COCO's OKS of keypoints [K, 2] and [n, K, 2], by half the area of the box, about a person's: [n]."""
    variance = np.square(2 * np.asarray(sigmas if sigmas else [DEFAULT_SIGMA] * len(points)))  # [K]
    area = max(0.5 * float(np.prod(box[2:] - box[:2])), 1e-9)
    distance = np.square(others - points).sum(axis=-1)  # [n, K]
    similarity: Floats = np.exp(-distance / (2 * variance * area)).mean(axis=-1)
    return similarity
