"""Counterparts are found whatever the order; each counts once."""

from __future__ import annotations

import numpy as np

from export.compare import Agreement, Answer, agreement, compare


def answer(boxes: list[list[float]], scores: list[float], keypoints: list[list[float]], count: int | None = None) -> Answer:
    return {
        "num_detections": np.array([len(boxes) if count is None else count]),
        "boxes": np.array([boxes], np.float32).reshape(1, -1, 4),
        "scores": np.array([scores], np.float32),
        "keypoints": np.array([keypoints], np.float32).reshape(1, len(boxes), -1, 2),
    }


A, B = [0.0, 0, 10, 10], [20.0, 20, 50, 60]
P, Q = [1.0, 1, 2, 2], [30.0, 30, 40, 40]


def test_order_plays_no_part() -> None:
    assert agreement(answer([A, B], [0.9, 0.8], [P, Q]), answer([B, A], [0.9, 0.8], [Q, P])) == Agreement(2, 2)


def test_tolerances() -> None:
    one = answer([A], [0.9], [P])
    assert agreement(one, answer([[0.4, 0, 10, 10.4]], [0.9], [[1.9, 1, 2, 2]])).share == 1
    assert agreement(one, answer([[0.6, 0, 10, 10]], [0.9], [P])).share == 0
    assert agreement(one, answer([A], [0.9], [[1, 1, 2, 3.1]])).share == 0


def test_each_counterpart_counts_once() -> None:
    assert agreement(answer([A, A], [0.9, 0.8], [P, P]), answer([A, B], [0.9, 0.8], [P, Q])) == Agreement(1, 2)


def test_low_scores_and_padding_do_not_count() -> None:
    reference = answer([A, B, A], [0.9, 0.3, 0.0], [P, Q, P], count=2)
    assert agreement(reference, answer([A], [0.9], [P]), min_score=0.5) == Agreement(1, 1)
    assert agreement(reference, answer([A, B], [0.9, 0.3], [P, Q], count=1)) == Agreement(1, 2)
    nobody = answer([A], [0.0], [P], count=0)
    assert agreement(nobody, nobody).share == 1
    assert agreement(reference, nobody) == Agreement(0, 2)
    assert Agreement(1, 2) + Agreement(3, 4) == Agreement(4, 6)


def test_those_of_whom_the_model_is_sure_are_counted_apart() -> None:
    reference = answer([A, B], [0.9, 0.3], [P, Q])
    for found, alike, sure in (
        (answer([A, B], [0.8, 0.4], [P, Q]), 2, 1),
        (answer([A], [0.9], [P]), 1, 1),
        (answer([B], [0.9], [Q]), 1, 0),
        (answer([B, [0, 0, 20, 20]], [0.9, 0.9], [Q, P]), 1, 0),
    ):
        compared = compare([reference], [found], None)
        assert (compared.alike, compared.sure) == (Agreement(alike, 2), Agreement(sure, 1))


def test_the_worst_image_is_one_whose_people_are_shown() -> None:
    unsure, sure = answer([A, B], [0.2, 0.1], [P, Q]), answer([A], [0.9], [P])
    nobody, moved = answer([A], [0.0], [P], count=0), answer([A], [0.9], [[1.3, 1, 2, 2]])
    assert compare([unsure, sure], [nobody, moved], None).worst == 1  # two are missing in the first, and none would be drawn
    assert compare([unsure, sure, sure], [unsure, sure, nobody], None).worst == 2
    assert compare([unsure, sure], [unsure, sure], None).worst == 1


def test_people_of_two_classes_in_one_place_are_told_apart() -> None:
    """Answers that exchange the classes of two detections are not alike, nor are those that name no class."""
    both = answer([A, A], [0.9, 0.8], [P, P])

    def of(*classes: int) -> Answer:
        return {**both, "classes": np.array([classes], np.int32)}

    other_order = {**of(2, 1), "scores": both["scores"][:, ::-1]}
    for reference, found, equal in (
        (of(1, 2), of(1, 2), 2),
        (of(1, 2), other_order, 2),
        (of(1, 2), of(1, 1), 1),
        (of(1, 2), of(3, 3), 0),
        (of(1, 2), both, 0),
        (both, both, 2),
    ):
        compared = compare([reference], [found], None)
        assert compared.equal == compared.alike == agreement(reference, found) == Agreement(equal, 2)
    assert compare([of(1, 2)], [other_order], None).score[0] == 0  # each is compared with the one of its class
