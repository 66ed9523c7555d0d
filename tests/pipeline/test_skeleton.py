"""A keypoint set read off a JSON's category: limbs, mirror twins and sigmas, and what is no such set."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.command import UserError
from pipeline.drawing import sides
from pipeline.skeleton import COCO_SIGMAS, Skeleton, default_sigma, read_category

HAND = {"name": "hand", "keypoints": ["wrist", "thumb_l", "thumb_r"], "skeleton": [[1, 2], [1, 3.0]]}
BODY = [*COCO_SIGMAS]


def test_limbs_count_from_0_and_twins_are_left_and_right() -> None:
    body = Skeleton.from_category({"name": "person", "keypoints": BODY, "skeleton": [[16, 14]]})
    assert body.limbs == ((15, 13),) and body.sigmas == tuple(COCO_SIGMAS.values())
    twins = [body.keypoints[k].replace("left_", "").replace("right_", "") for k in body.flip]
    assert twins == [name.replace("left_", "").replace("right_", "") for name in BODY]
    assert sum(twin == k for k, twin in enumerate(body.flip)) == 1  # the nose


@pytest.mark.parametrize("number", [13, 21])
def test_sets_of_other_sizes_have_a_default_sigma_that_is_said(number: int) -> None:
    names = ["centre", *(f"{side}_{i}" for i in range(number // 2) for side in ("left", "right"))]
    category = {"name": "person", "keypoints": names}
    assumed, notes = read_category(category)
    assert assumed.sigmas == (1 / number,) * number
    assert any(f"OKS sigma {1 / number:.3f} is assumed" in note and "--sigmas" in note for note in notes)
    other = Skeleton.from_category(category, sigmas=[0.05])
    assert other.sigmas == (0.05,) * number
    assert other.num_keypoints == number and other.limbs == () and other.flip[:3] == (0, 2, 1)
    assert Skeleton.from_json(other.to_json()) == other


def test_a_default_sigma_stays_within_cocos_range() -> None:
    assert [default_sigma(count) for count in (1, 2, 9, 10, 40, 133)] == [0.107, 0.107, 0.107, 0.1, 0.025, 0.025]
    mixed = Skeleton.from_category({"name": "dog", "keypoints": ["Nose", "tail", *"abcdefghijklmnopqr"]})
    assert mixed.sigmas[0] == COCO_SIGMAS["nose"] and mixed.sigmas[1] == 0.05


WRITTEN = {
    "spaces": lambda side, joint: f"{side} {joint}".title(),
    "letter before": lambda side, joint: f"{side[0]}_{joint}".title(),
    "after": lambda side, joint: f"{joint}_{side}".title(),
    "hyphen": lambda side, joint: f"{side.title()}-{joint}",
    "camel": lambda side, joint: f"{joint}{side[0].upper()}",
    "camel before": lambda side, joint: f"{side[0].upper()}{joint.title()}",
    "glued": lambda side, joint: f"{side[0]}{joint}",
    "glued word": lambda side, joint: f"{joint}{side}",
    "capitals": lambda side, joint: f"{side}_{joint}".upper(),
    "COCO": lambda side, joint: f"{side}_{joint}",
}


@pytest.mark.parametrize("written", WRITTEN)
def test_cocos_set_is_recognised_however_it_is_written(written: str) -> None:
    names = [WRITTEN[written](*name.split("_")) if "_" in name else name.title() for name in BODY]
    skeleton, notes = read_category({"name": "person", "keypoints": names})
    coco = Skeleton.from_category({"name": "person", "keypoints": BODY})
    assert skeleton.flip == coco.flip and skeleton.sigmas == coco.sigmas
    assert sides(skeleton) == sides(coco)
    (note,) = notes
    assert note.startswith("mirror twins: ") and note.count(" - ") == 8


@pytest.mark.parametrize(
    ("names", "flip", "told"),
    [
        (["nose", "medial left eye", "medial right eye"], (0, 2, 1), ["middle", "left", "right"]),
        (
            ["nose", "ｌｅｆｔ_eye", "ｒｉｇｈｔ_eye"],
            (0, 2, 1),
            ["middle", "left", "right"],
        ),  # as Japanese keyboards write them
        (["forelegR1", "forelegL1", "forelegR2", "forelegL2"], (1, 0, 3, 2), ["right", "left", "right", "left"]),
        (["rank", "lank", "tail", "upright"], (1, 0, 2, 3), ["right", "left", "middle", "middle"]),
        (["左眼", "右眼"], (1, 0), ["left", "right"]),
        (["left_eye_left", "right_eye_right", "left_eye_right"], (1, 0, 2), ["left", "right", "left"]),
        (["Left Eye", "left_eye", "right_eye"], (0, 1, 2), ["left", "left", "right"]),  # which of the two is unknown
        (["leg", "low", "heel", "ear"], (0, 1, 2, 3), ["middle"] * 4),
        (["", "-", "1"], (0, 1, 2), ["middle"] * 3),
    ],
)
def test_twins_and_colours_follow_one_rule(names: list[str], flip: tuple[int, ...], told: list[str]) -> None:
    skeleton = Skeleton.from_category({"name": "x", "keypoints": names})
    assert skeleton.flip == flip and list(sides(skeleton)) == told


def test_a_side_without_a_twin_is_told() -> None:
    _, notes = read_category({"name": "x", "keypoints": ["left_eye", "right_ear", "tail"]})
    assert "mirror twins: none" in notes
    assert any(note.startswith("left_eye, right_ear: a side in the name, and no mirror twin; --flip_pairs=") for note in notes)


def test_twins_can_be_given() -> None:
    hand = Skeleton.from_category(HAND, [("thumb_l", "thumb_r")], [0.1, 0.2, 0.3])
    assert hand.flip == (0, 2, 1) and hand.limbs == ((0, 1), (0, 2))
    assert Skeleton.from_category(HAND, sigmas=[0.1, 0.2, 0.3]).flip == (0, 2, 1)
    assert Skeleton.from_category(HAND, []).flip == (0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "pairs", "sigmas", "message"),
    [
        ({}, [("thumb_l", "thumb_r"), ("thumb_r", "wrist")], [0.1] * 3, "the twin of a keypoint's twin"),
        ({}, [("thumb_l", "ear")], [0.1] * 3, "--flip_pairs=thumb_l:ear: both must be among the keypoints wrist, thumb_l"),
        ({}, None, [0.1] * 2, "3 keypoints need 3 numbers above 0"),
        ({}, None, [0.1, 0, 0.1], "3 keypoints need 3 numbers above 0"),
        ({}, None, [0.1, float("nan"), 0.1], "3 keypoints need 3 numbers above 0"),
        ({}, None, [0.1, float("inf"), 0.1], "3 keypoints need 3 numbers above 0"),
        ({"keypoints": ["a", "a", "b"]}, None, [0.1] * 3, "each name once"),
        ({"keypoints": []}, None, None, "'hand' has no keypoint names"),
        ({"keypoints": 17}, None, None, "'hand': keypoints 17: a list of names"),
        ({"keypoints": "nose"}, None, None, "'hand': keypoints 'nose': a list of names"),
        ({"keypoints": [1, 2]}, None, None, "keypoints [1, 2]: a list of names"),
    ],
)
def test_what_is_no_keypoint_set_is_answered_in_one_line(
    changes: dict[str, Any], pairs: list[tuple[str, str]] | None, sigmas: list[float] | None, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        Skeleton.from_category(HAND | changes, pairs, sigmas)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "limbs", "note"),
    [
        (3, (), "skeleton 3 is no list of pairs"),
        (["ab"], (), "1 of 1 limbs are left out of drawings, such as 'ab'"),
        (
            [["wrist", "thumb_l"], ["wrist", "ear"]],
            ((0, 1),),
            "1 of 2 limbs are left out of drawings, such as ['wrist', 'ear']",
        ),
        ([[1, 2, 3], [1, 2]], ((0, 1),), "1 of 2 limbs are left out of drawings, such as [1, 2, 3]"),
        ([[1, None]], (), "such as [1, None]"),
        ([[1, float("nan")]], (), "such as [1, nan]"),
        ([[1, 10**400]], (), "such as [1, 1000"),
        ([[0, 1], [0, 2]], ((0, 1), (0, 2)), "count the keypoints from 0"),
        ([[0, 1], [0, 3]], (), "such as [0, 1]: they do not join two of the 3 keypoints, counted from 1"),
        ([[1, 4], [1, 2]], ((0, 1),), "such as [1, 4]: they do not join two of the 3 keypoints, counted from 1"),
        ([[16, 14], [14, 12]], (), "2 of 2 limbs"),
        (None, (), ""),
    ],
)
def test_limbs_that_do_not_fit_are_left_out_with_a_line(given: Any, limbs: tuple[tuple[int, int], ...], note: str) -> None:
    skeleton, notes = read_category(HAND | {"skeleton": given}, sigmas=[0.1])
    assert skeleton.limbs == limbs
    rest = [line for line in notes if not line.startswith("mirror twins")]
    assert len(rest) == bool(note) and all(note in line and "\n" not in line for line in rest)


@pytest.mark.parametrize("value", [[], "person", 17, None])
def test_a_keypoint_set_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="is an object"):
        Skeleton.from_json(value)
