"""What of a model's answer is drawn."""

from __future__ import annotations

import numpy as np

from pipeline.drawing import Drawn, draw_people, drawn_people, side_by_side
from pipeline.skeleton import Skeleton

SKELETON = Skeleton("person", ("nose", "left_hand", "right_hand"), ((0, 1),), (0, 2, 1), (0.1,) * 3)
IMAGE = np.full((120, 160, 3), 128, np.uint8)
BOXES = np.array([[20.0, 10.0, 100.0, 90.0]])
POINTS = np.array([[[60.0, 20.0], [30.0, 30.0], [90.0, 30.0]]])


def test_answers_show_scores_and_unsure_points() -> None:
    drawn = drawn_people(BOXES, np.array([0.9]), POINTS, np.array([[0.5, 0.5, 0.001]]))
    assert drawn.keypoints[0, :, 2].tolist() == [2, 2, 1]
    text = draw_people(IMAGE, drawn, SKELETON)
    plain = draw_people(IMAGE, Drawn(drawn.boxes, drawn.keypoints), SKELETON)
    assert (text != plain).any()


def test_truth_stands_left_of_the_prediction() -> None:
    truth = drawn_people(BOXES, np.array([0.9]), POINTS, np.ones((1, 3)))
    nobody = Drawn(np.zeros((0, 4)), np.zeros((0, 3, 3)))
    both = side_by_side(IMAGE, truth, nobody, SKELETON)
    assert both.shape[0] == 120 and both.shape[1] > 320
    assert (both[:, -160:] == IMAGE).all()
    assert (both[:, :160] == draw_people(IMAGE, truth, SKELETON)).all()
