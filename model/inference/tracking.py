"""Who is who from frame to frame: people get numbers that they keep while they are seen.

People of a frame are matched with those seen before, each at the place where its last motion leads. The likeness is the
mean of OKS (COCO's, with wider tolerances: people move between two frames) and the IoU of the boxes, which still tells people
apart whose poses have nothing in common. The assignment is the one of the largest sum (Hungarian method, SciPy). A number stays
in its class: somebody whose class the model takes for another one for a frame gets another number, and the old one afterwards.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from model.inference.people import People
from pipeline.command import UserError
from pipeline.skeleton import Skeleton

Floats = npt.NDArray[np.floating]

PATIENCE = 1.0  # seconds for which somebody who is not seen keeps the number
_LEAST_LIKENESS = 0.2  # of a match
_TOLERANCE = 2.5  # times COCO's sigmas
_MEMORY = 0.3  # seconds over which velocities are averaged


@dataclasses.dataclass
class _Track:
    """Somebody who was seen, at `time`; the velocity is in pixels a second, x and y."""

    number: int
    time: float
    box: Floats  # [4]
    keypoints: Floats  # [K, 2]
    velocity: Floats  # [2]
    label: int  # of the class; 0 if the model knows one

    def expected(self, time: float) -> tuple[Floats, Floats]:
        """Box and keypoints at a later time, if the motion goes on."""
        moved = self.velocity * (time - self.time)
        return self.box + np.tile(moved, 2), self.keypoints + moved

    def move(self, time: float, box: Floats, keypoints: Floats) -> None:
        passed = max(time - self.time, 1e-6)
        newest = ((box[:2] + box[2:]) - (self.box[:2] + self.box[2:])) / 2 / passed
        self.velocity = self.velocity + (1 - math.exp(-passed / _MEMORY)) * (newest - self.velocity)
        self.time, self.box, self.keypoints = time, box, keypoints


class Tracker:
    """Numbers the people of the frames of one clip or camera, from 1.

    Args:
      skeleton: the keypoint set, whose sigmas say how exactly each keypoint can be placed.
      patience: seconds for which somebody who is not seen keeps the number.

    Raises:
      UserError: SciPy is not installed.
    """

    def __init__(self, skeleton: Skeleton, patience: float = PATIENCE) -> None:
        try:
            import scipy.optimize
        except ImportError:
            raise UserError("--track needs SciPy, which is not installed; pip install '.[video]'") from None
        self._assign = scipy.optimize.linear_sum_assignment
        self._variances = (2 * _TOLERANCE * np.asarray(skeleton.sigmas)) ** 2  # [K]; COCO's k is twice its sigma
        self._patience = patience
        self._tracks: list[_Track] = []
        self.count = 0

    def update(self, time: float, people: People) -> list[int]:
        """The numbers of a frame's people, in their order.

        Args:
          time: of the frame in seconds; it grows from call to call.
          people: who was found, in pixels of the frame.
        """
        self._tracks = [track for track in self._tracks if time - track.time <= self._patience]
        boxes, keypoints = people.boxes.astype(np.float64), people.keypoints.astype(np.float64)
        labels = np.zeros(len(people), np.int32) if people.labels is None else people.labels
        numbers = [0] * len(people)
        if self._tracks and len(people):
            expected = [track.expected(time) for track in self._tracks]
            likeness = np.array([self._likeness(*one, boxes, keypoints) for one in expected])  # [tracks, people]
            likeness[np.array([track.label for track in self._tracks])[:, None] != labels] = 0.0
            for row, column in zip(*self._assign(likeness, maximize=True), strict=True):
                if likeness[row, column] >= _LEAST_LIKENESS:
                    self._tracks[row].move(time, boxes[column], keypoints[column])
                    numbers[column] = self._tracks[row].number
        for place, number in enumerate(numbers):
            if number == 0:
                self.count += 1
                numbers[place] = self.count
                self._tracks.append(_Track(self.count, time, boxes[place], keypoints[place], np.zeros(2), int(labels[place])))
        return numbers

    def _likeness(self, box: Floats, points: Floats, boxes: Floats, keypoints: Floats) -> Floats:
        """Of somebody (box [4], points [K, 2]) with people (boxes [n, 4], keypoints [n, K, 2]): mean of OKS and IoU, [n]."""
        area = np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1), 1.0)  # [n]
        squared = ((keypoints - points) ** 2).sum(-1)  # [n, K]
        oks = np.exp(-squared / (2 * area[:, None] * self._variances)).mean(-1)  # [n]
        shared = np.maximum(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0).prod(-1)  # [n]
        iou = shared / (area + max(float(np.prod(box[2:] - box[:2])), 1.0) - shared)
        return np.asarray((oks + iou) / 2)
