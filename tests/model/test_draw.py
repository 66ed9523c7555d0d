"""Drawings change the picture where people are, in the colours of their sides."""

from __future__ import annotations

import numpy as np

from model.draw import BOX, LEFT, MIDDLE, RIGHT, Drawn, draw_people, drawn_people, side_by_side
from pipeline.skeleton import Skeleton

SKELETON = Skeleton(
    category="person",
    keypoints=("nose", "left_hand", "left_foot", "right_hand", "right_foot"),
    limbs=((1, 2), (3, 4), (1, 3), (0, 1)),
    flip=(0, 3, 4, 1, 2),
    sigmas=(0.1,) * 5,
)
PICTURE = np.full((120, 160, 3), 128, np.uint8)
BOXES = np.array([[20.0, 10.0, 100.0, 90.0], [0.0, 0.0, 0.0, 0.0]])
POINTS = np.zeros((2, 5, 3))
POINTS[0] = [[60, 20, 0], [30, 30, 2], [30, 80, 2], [90, 30, 1], [90, 80, 2]]


def test_limbs_and_box_have_their_colours_and_the_rest_stays() -> None:
    drawn = draw_people(PICTURE, Drawn(BOXES, POINTS), SKELETON)
    assert tuple(drawn[55, 30]) == LEFT
    assert tuple(drawn[55, 90]) == RIGHT
    assert tuple(drawn[30, 60]) == MIDDLE  # from side to side
    assert tuple(drawn[10, 50]) == BOX
    assert (drawn[95:] == 128).all() and (drawn[:, 110:] == 128).all()
    assert (drawn[20, 60] == 128).all()  # not labelled: neither point nor limb
    assert (PICTURE == 128).all()


def test_hidden_points_are_hollow() -> None:
    lone = np.zeros((2, 5, 3))
    lone[0, 1], lone[0, 3] = (40, 50, 2), (80, 50, 1)
    drawn = draw_people(PICTURE, Drawn(BOXES, lone), Skeleton("person", SKELETON.keypoints, (), SKELETON.flip, SKELETON.sigmas))
    assert tuple(drawn[50, 40]) == LEFT
    assert (drawn[50, 80] == 128).all()
    assert (drawn[46:55, 76:85] == RIGHT).all(-1).any()


def test_answers_show_scores_and_unsure_points() -> None:
    sure = np.array([[0.5, 0.5, 0.5, 0.001, 0.5]] * 2)
    drawn = drawn_people(BOXES, np.array([0.9, 0.8]), POINTS[..., :2], sure)
    assert drawn.keypoints[0, :, 2].tolist() == [2, 2, 2, 1, 2]
    text = draw_people(PICTURE, drawn, SKELETON)
    plain = draw_people(PICTURE, Drawn(drawn.boxes, drawn.keypoints), SKELETON)
    assert (text != plain).any()


def test_nobody_and_somebody_beyond_the_edge() -> None:
    nobody = Drawn(np.zeros((0, 4)), np.zeros((0, 5, 3)))
    assert (draw_people(PICTURE, nobody, SKELETON) == PICTURE).all()
    far = Drawn(BOXES + 1000.0, POINTS + np.array([1000.0, 1000.0, 0.0]))
    assert (draw_people(PICTURE, far, SKELETON) == PICTURE).all()
    both = side_by_side(PICTURE, Drawn(BOXES, POINTS), nobody, SKELETON)
    assert both.shape[0] == 120 and both.shape[1] > 320
    assert (both[:, -160:] == PICTURE).all()
