"""The bound on what a grid can express, on people whose best places are known, and on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.keypoint_grids import annotated_people, nearest_nodes, oks, there_and_back
from pipeline.coco import Person
from pipeline.skeleton import COCO_PERSON


def person(points: np.ndarray) -> Person:
    keypoints = np.concatenate([points, np.full((len(points), 1), 2.0)], axis=-1)
    return Person(1, (10.0, 20.0, 66.0, 132.0), 56.0 * 112, False, keypoints)


def test_points_on_nodes_are_exact_and_others_are_not() -> None:
    nodes = np.array([[10.0, 20.0], [14.0, 28.0], [62.0, 124.0]] * 6)[:17]  # multiples of 4 and 8 from the corner
    on_nodes = person(nodes)
    np.testing.assert_array_equal(nearest_nodes(on_nodes, 14), nodes)
    assert oks(on_nodes, nodes, COCO_PERSON.sigmas) == 1.0
    corner = person(np.full((17, 2), [66.0, 132.0]))  # 14×14 ends at 52 of 56
    np.testing.assert_array_equal(nearest_nodes(corner, 14)[0], [62.0, 124.0])
    assert oks(corner, nearest_nodes(corner, 14), COCO_PERSON.sigmas) < 0.95


def test_there_and_back_stays_within_a_place() -> None:
    points = np.random.default_rng(0).uniform([10, 20], [66, 132], (17, 2))
    (decoded,) = there_and_back([person(points)])
    assert np.abs(decoded - points).max(axis=0).tolist() <= [1.0, 2.0]


def test_bounds_on_real_people(coco_sample: Path) -> None:
    people, sigmas = annotated_people(coco_sample)
    means = [np.mean([oks(one, nearest_nodes(one, grid), sigmas) for one in people]) for grid in (14, 28, 56)]
    assert means[0] == pytest.approx(0.865, abs=0.02)
    assert means[1] == pytest.approx(0.94, abs=0.02)
    assert means[2] == pytest.approx(0.97, abs=0.02)
