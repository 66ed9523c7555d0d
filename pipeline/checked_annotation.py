"""One annotation of a COCO keypoint file, checked.

Nested keypoints and points without a label, whatever they hold, are read. What is not certain (a box with NaN, a list of 50
numbers) is an error of the image, since a person who is left out in silence would be trained as background.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = float(np.finfo(np.float32).max)  # of the numbers that a record can hold
# A box that is made around labelled points reaches beyond the outermost by MARGIN_SHARE of their extent's longer side, and by
# MARGIN_PIXELS at least: a lone point gets a box of 32×32, the size of the smallest anchors.
MARGIN_SHARE, MARGIN_PIXELS = 0.1, 16.0

Box = tuple[float, float, float, float]


class AnnotationError(Exception):
    """Why an image's annotations cannot be used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Annotation:
    """One annotation of the chosen category, checked but not put right.

    Attributes:
      bbox: x, y, width, height in pixels, as in the JSON.
      area: the JSON's (of the segment), None if it has none.
      keypoints: float64 [K, 3], x, y in pixels and v: 0 not labelled, 1 hidden, 2 visible; zeros where v = 0.
      num_keypoints: the JSON's, or the number of labelled points if it has none.
      label: 1…C, the class in the order of `Skeleton.classes`.
    """

    id: int
    bbox: Box
    area: float | None
    is_crowd: bool
    keypoints: NDArray[np.float64]
    num_keypoints: int
    label: int = 1

    def box(self, height: float | None, width: float | None) -> tuple[Box, bool]:
        """The box as x0, y0, x1, y1, not clipped, and whether it was made: around the labelled points, if it has no area.

        Args:
          height, width: of the image in pixels, None if they are unknown. What lies outside the image has no area.
        """
        left, right = (-np.inf, np.inf) if width is None else (0.0, width)
        top, bottom = (-np.inf, np.inf) if height is None else (0.0, height)
        x, y, w, h = self.bbox
        box = (x, y, x + w, y + h)
        if min(x + w, right) > max(x, left) and min(y + h, bottom) > max(y, top):
            return box, False
        px, py, visibility = self.keypoints.T
        inside = (visibility > 0) & (px >= left) & (px <= right) & (py >= top) & (py <= bottom)
        if not inside.any():
            return box, False
        low, high = self.keypoints[inside, :2].min(axis=0), self.keypoints[inside, :2].max(axis=0)
        margin = max(MARGIN_PIXELS, MARGIN_SHARE * float((high - low).max()))
        return (*(low - margin).tolist(), *(high + margin).tolist()), True


def checked_annotation(entry: Mapping[str, Any], num_keypoints: int) -> Annotation:
    """Checks one entry of a JSON's `annotations`, whose `id` is a whole number. Raises: AnnotationError."""
    name = f"annotation {entry['id']}"
    without_box = entry.get("bbox", []) == []  # `box` makes one around the labelled points; null is a tool's fault
    x, y, width, height = _numbers([0, 0, 0, 0] if without_box else entry["bbox"], 4, f"{name}: bbox")
    is_crowd = entry.get("iscrowd") or 0
    if is_crowd not in (0, 1):
        raise AnnotationError(f"{name}: iscrowd {is_crowd!r} is neither 0 nor 1")
    area = None
    if entry.get("area") is not None:
        (area,) = _numbers([entry["area"]], 1, f"{name}: area")
        if area < 0:
            raise AnnotationError(f"{name}: area {area} is below 0")
    keypoints = np.zeros((num_keypoints, 3))
    if entry.get("keypoints"):
        values = _numbers(_labelled_only(entry["keypoints"]), 3 * num_keypoints, f"{name}: keypoints")
        if not set(values[2::3]) <= {0, 1, 2}:
            raise AnnotationError(f"{name}: visibilities {sorted(set(values[2::3]))} must be 0, 1 or 2")
        keypoints = np.array(values, np.float64).reshape(num_keypoints, 3)
        keypoints[keypoints[:, 2] == 0] = 0
    if without_box and not keypoints.any():
        raise AnnotationError(f"{name} has neither a bbox nor a labelled keypoint")
    given = entry.get("num_keypoints")
    number = int(np.count_nonzero(keypoints[:, 2])) if given is None else whole_number(given)
    if number is None or number < 0:
        raise AnnotationError(f"{name}: num_keypoints is {given!r}; a whole number from 0 up is needed")
    return Annotation(int(entry["id"]), (x, y, width, height), area, bool(is_crowd), keypoints, number)


def _labelled_only(keypoints: object) -> object:
    """The flat list of keypoints with zeros for points that are not labelled, whatever they hold; else as it is."""
    if not isinstance(keypoints, list):
        return keypoints
    if any(isinstance(point, list) for point in keypoints):  # a point that is not labelled may be null or empty
        points = [[0, 0, 0] if point is None or point == [] else point for point in keypoints]
        if all(isinstance(point, list) and len(point) == 3 for point in points):
            keypoints = [number for point in points for number in point]
    if len(keypoints) % 3 or (set(map(type, keypoints)) <= {int, float} and all(map(_is_finite, keypoints))):
        return keypoints
    flat = list(keypoints)
    for place in range(0, len(flat), 3):
        x, y, visibility = flat[place : place + 3]
        empty = all(is_empty(value) for value in (x, y, visibility))
        if empty or (type(visibility) in (int, float) and visibility == 0):
            flat[place : place + 3] = [0, 0, 0]
    return flat


def _is_finite(number: float) -> bool:
    return abs(number) <= LARGEST


def is_empty(value: object) -> bool:
    """Whether a tool wrote null or NaN for a value that it does not know."""
    return value is None or (isinstance(value, float) and value != value)


def whole_number(value: object) -> int | None:
    """A whole number that a record can hold, also if it is written as a float or as text; None for anything else."""
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 2**63 or value != int(value):
        return None
    return int(value)


def _numbers(value: object, count: int, name: str) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        length = f"{len(value)} numbers" if isinstance(value, list) else repr(value)
        raise AnnotationError(f"{name} has {length}, {count} are needed")
    for number in value:
        if type(number) not in (int, float) or not abs(number) <= LARGEST:
            raise AnnotationError(f"{name} holds {number!r:.60}, which is no finite number of 32 bits")
    return [float(number) for number in value]
