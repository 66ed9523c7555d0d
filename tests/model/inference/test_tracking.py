"""Numbers that people keep: each stays in its class, wherever somebody of another class stands."""

from __future__ import annotations

import numpy as np

from model.inference.people import People
from model.inference.tracking import Tracker
from tests.conftest import SKELETON


def people(*found: tuple[float, int]) -> People:
    """People of one shape, of whom the left side of the box and the class are given; class 0: the model knows one."""
    left = np.array([[x, 0.0] for x, _ in found], np.float32).reshape(-1, 2)
    corner, number = np.tile(left, 2) + np.array([0, 0, 40, 90], np.float32), len(found)
    points = left[:, None] + np.array([[20, 10], [35, 40], [5, 40], [30, 85], [10, 85]], np.float32)
    labels = np.array([label for _, label in found], np.int32)
    scores = np.ones(number, np.float32)
    return People(corner, scores, points, np.ones((number, 5), np.float32), SKELETON, labels=labels if labels.any() else None)


def test_people_of_different_classes_who_overlap_are_not_exchanged() -> None:
    """A player and a referee walk through each other; each stands where the other's motion leads, and comes first in turn."""
    tracker = Tracker(SKELETON)
    seen = []
    for frame in range(9):
        player, referee = (4.0 * frame, 1), (32.0 - 4.0 * frame, 2)
        order = (0, 1) if frame % 2 else (1, 0)
        found = [(player, referee)[i] for i in order]
        if frame == 5:  # the places are exchanged suddenly: only the classes tell who is who
            found = [(x, 3 - label) for x, label in found]
        numbers = tracker.update(frame / 10, people(*found))
        seen.append({label: number for (_, label), number in zip(found, numbers, strict=True)})
    assert seen == [seen[0]] * 9 and tracker.count == 2


def test_somebody_of_another_class_in_the_same_place_is_somebody_else() -> None:
    tracker = Tracker(SKELETON)
    assert [tracker.update(time, people((10, label))) for time, label in ((0, 1), (0.1, 2), (0.2, 1))] == [[1], [2], [1]]
    tracker = Tracker(SKELETON)
    assert [tracker.update(time, people((10 + time, 0))) for time in (0, 0.1)] == [[1], [1]]
