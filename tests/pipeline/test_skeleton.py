"""A keypoint set read off a JSON's category: limbs, mirror twins and sigmas, and what is no such set."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.command import UserError
from pipeline.skeleton import COCO_SIGMAS, Skeleton

HAND = {"name": "hand", "keypoints": ["wrist", "thumb_l", "thumb_r"], "skeleton": [[1, 2], [1, 3.0]]}
BODY = [*COCO_SIGMAS]


def test_limbs_count_from_0_and_twins_are_left_and_right() -> None:
    body = Skeleton.from_category({"name": "person", "keypoints": BODY, "skeleton": [[16, 14]]})
    assert body.limbs == ((15, 13),) and body.sigmas == tuple(COCO_SIGMAS.values())
    twins = [body.keypoints[k].replace("left_", "").replace("right_", "") for k in body.flip]
    assert twins == [name.replace("left_", "").replace("right_", "") for name in BODY]
    assert sum(twin == k for k, twin in enumerate(body.flip)) == 1  # the nose


@pytest.mark.parametrize("number", [13, 21])
def test_sets_of_other_sizes_need_sigmas(number: int) -> None:
    names = ["centre", *(f"{side}_{i}" for i in range(number // 2) for side in ("left", "right"))]
    category = {"name": "person", "keypoints": names}
    with pytest.raises(UserError, match=f"have no OKS sigma: give all {number} with --sigmas"):
        Skeleton.from_category(category)
    other = Skeleton.from_category(category, sigmas=[0.05] * number)
    assert other.num_keypoints == number and other.limbs == () and other.flip[:3] == (0, 2, 1)
    assert Skeleton.from_json(other.to_json()) == other


def test_twins_can_be_given() -> None:
    hand = Skeleton.from_category(HAND, [("thumb_l", "thumb_r")], [0.1, 0.2, 0.3])
    assert hand.flip == (0, 2, 1) and hand.limbs == ((0, 1), (0, 2))
    assert Skeleton.from_category(HAND, sigmas=[0.1, 0.2, 0.3]).flip == (0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "pairs", "sigmas", "message"),
    [
        ({}, [("thumb_l", "thumb_r"), ("thumb_r", "wrist")], [0.1] * 3, "the twin of a keypoint's twin"),
        ({}, [("thumb_l", "ear")], [0.1] * 3, "flip pair thumb_l:ear: both must be among the keypoints wrist, thumb_l"),
        ({}, None, [0.1] * 2, "3 keypoints need 3 numbers above 0"),
        ({}, None, [0.1, 0, 0.1], "3 keypoints need 3 numbers above 0"),
        ({}, None, [0.1, float("nan"), 0.1], "3 keypoints need 3 numbers above 0"),
        ({}, None, [0.1, float("inf"), 0.1], "3 keypoints need 3 numbers above 0"),
        ({"keypoints": ["a", "a", "b"]}, None, [0.1] * 3, "each name once"),
        ({"keypoints": []}, None, None, "'hand' has no keypoint names"),
        ({"keypoints": 17}, None, None, "'hand': keypoints 17: a list of names"),
        ({"keypoints": "nose"}, None, None, "'hand': keypoints 'nose': a list of names"),
        ({"keypoints": [1, 2]}, None, None, "keypoints [1, 2]: a list of names"),
        ({"skeleton": 3}, None, None, "'hand': skeleton 3: a list of pairs"),
        ({"skeleton": ["ab"]}, None, None, "skeleton ['ab']: a list of pairs"),
        ({"skeleton": [["wrist", "thumb_l"]]}, None, None, "skeleton [['wrist', 'thumb_l']]: a list of pairs"),
        ({"skeleton": [[1, 2, 3]]}, None, None, "skeleton [[1, 2, 3]]: a list of pairs"),
        ({"skeleton": [[1, None]]}, None, None, "skeleton [[1, None]]: a list of pairs"),
        ({"skeleton": [[1, float("nan")]]}, None, None, "skeleton [[1, nan]]: a list of pairs"),
        ({"skeleton": [[0, 1]]}, None, [0.1] * 3, "joins two of the 3 keypoints (from 1 in the JSON)"),
        ({"skeleton": [[1, 4]]}, None, [0.1] * 3, "joins two of the 3 keypoints (from 1 in the JSON)"),
    ],
)
def test_what_is_no_keypoint_set_is_answered_in_one_line(
    changes: dict[str, Any], pairs: list[tuple[str, str]] | None, sigmas: list[float] | None, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        Skeleton.from_category(HAND | changes, pairs, sigmas)
    assert message in str(caught.value) and "\n" not in str(caught.value)
