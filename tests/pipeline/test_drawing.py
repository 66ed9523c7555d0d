"""Drawings change the image where people are, in the colours of their sides."""

from __future__ import annotations

import numpy as np

from pipeline.drawing import BOX, CROWD, LEFT, MIDDLE, RIGHT, Drawn, draw_crowds, draw_people, sides
from pipeline.skeleton import Skeleton

SKELETON = Skeleton(
    category="person",
    keypoints=("nose", "left_hand", "left_foot", "right_hand", "right_foot"),
    limbs=((1, 2), (3, 4), (1, 3), (0, 1)),
    flip=(0, 3, 4, 1, 2),
    sigmas=(0.1,) * 5,
)
IMAGE = np.full((120, 160, 3), 128, np.uint8)
BOXES = np.array([[20.0, 10.0, 100.0, 90.0], [0.0, 0.0, 0.0, 0.0]])
POINTS = np.zeros((2, 5, 3))
POINTS[0] = [[60, 20, 0], [30, 30, 2], [30, 80, 2], [90, 30, 1], [90, 80, 2]]


def test_limbs_and_box_have_their_colours_and_the_rest_stays() -> None:
    drawn = draw_people(IMAGE, Drawn(BOXES, POINTS), SKELETON)
    assert tuple(drawn[55, 30]) == LEFT
    assert tuple(drawn[55, 90]) == RIGHT
    assert tuple(drawn[30, 60]) == MIDDLE  # from side to side
    assert tuple(drawn[10, 50]) == BOX
    assert (drawn[95:] == 128).all() and (drawn[:, 110:] == 128).all()
    assert (drawn[20, 60] == 128).all()  # not labelled: neither point nor limb
    assert (IMAGE == 128).all()


def test_hidden_points_are_hollow() -> None:
    lone = np.zeros((2, 5, 3))
    lone[0, 1], lone[0, 3] = (40, 50, 2), (80, 50, 1)
    drawn = draw_people(IMAGE, Drawn(BOXES, lone), Skeleton("person", SKELETON.keypoints, (), SKELETON.flip, SKELETON.sigmas))
    assert tuple(drawn[50, 40]) == LEFT
    assert (drawn[50, 80] == 0).all()
    assert (drawn[46:55, 76:85] == RIGHT).all(-1).any()


def test_nobody_and_somebody_beyond_the_edge() -> None:
    nobody = Drawn(np.zeros((0, 4)), np.zeros((0, 5, 3)))
    assert (draw_people(IMAGE, nobody, SKELETON) == IMAGE).all()
    far = Drawn(BOXES + 1000.0, POINTS + np.array([1000.0, 1000.0, 0.0]))
    assert (draw_people(IMAGE, far, SKELETON) == IMAGE).all()


def test_crowds_are_hatched_inside_their_box_only() -> None:
    drawn = draw_crowds(IMAGE, np.array([[20.0, 10.0, 100.0, 90.0], [0.0, 0.0, 0.0, 0.0]]))
    assert tuple(drawn[10, 50]) == CROWD and tuple(drawn[89, 50]) == CROWD
    changed = (drawn != 128).any(axis=-1)
    assert not changed[:10].any() and not changed[90:].any() and not changed[:, :20].any() and not changed[:, 100:].any()
    assert 0.05 < changed[15:85, 25:95].mean() < 0.5  # the image stays visible


def test_sides_are_those_that_names_or_flip_pairs_tell() -> None:
    assert sides(SKELETON) == ("middle", "left", "left", "right", "right")
    names = ("tip_r", "tip_l", "a", "b", "L Eye", "root", "left_only", "x", "right x")
    flip = (1, 0, 3, 2, 4, 5, 6, 8, 7)
    assert sides(Skeleton("hand", names, (), flip, (0.1,) * 9)) == (
        "right", "left", "left", "right", "left", "middle", "left", "left", "right",
    )  # fmt: skip
