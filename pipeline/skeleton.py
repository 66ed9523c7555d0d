"""A keypoint set: names, limbs, flip pairs and OKS sigmas in one object.

It is made once, from the `categories` of a COCO JSON file, written with the records (`pipeline.json`) and read from there by
the model, the evaluation and the exports. Nothing else in this project knows how many keypoints a person has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.command import UserError

# OKS sigmas of the COCO keypoint challenge, by name (cocodataset.org/#keypoints-eval; pycocotools/cocoeval.py).
COCO_SIGMAS: Mapping[str, float] = {
    "nose": 0.026,
    "left_eye": 0.025,
    "right_eye": 0.025,
    "left_ear": 0.035,
    "right_ear": 0.035,
    "left_shoulder": 0.079,
    "right_shoulder": 0.079,
    "left_elbow": 0.072,
    "right_elbow": 0.072,
    "left_wrist": 0.062,
    "right_wrist": 0.062,
    "left_hip": 0.107,
    "right_hip": 0.107,
    "left_knee": 0.087,
    "right_knee": 0.087,
    "left_ankle": 0.089,
    "right_ankle": 0.089,
}


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """The facts of one keypoint set.

    Attributes:
      category: name of the category that the keypoints belong to, such as "person".
      keypoints: names, in the order of the annotations; K of them.
      limbs: pairs of indices into `keypoints` (0-based, unlike the JSON's) that a drawing joins.
      flip: for each keypoint the index of its mirror twin, itself if it has none: an involution of 0…K−1.
      sigmas: the OKS constant of each keypoint (standard deviation of the annotators over sqrt(area)).
    """

    category: str
    keypoints: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...]
    flip: tuple[int, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.keypoints)
        if count == 0 or len(set(self.keypoints)) != count:
            raise UserError(f"keypoints {list(self.keypoints)}: there must be at least one name, and each name once")
        if any(not 0 <= end < count for limb in self.limbs for end in limb):
            raise UserError(f"skeleton {list(self.limbs)}: a limb joins two of the {count} keypoints (from 1 in the JSON)")
        if sorted(self.flip) != list(range(count)) or any(self.flip[twin] != k for k, twin in enumerate(self.flip)):
            raise UserError(f"flip {list(self.flip)}: the twin of a keypoint's twin must be the keypoint itself")
        if len(self.sigmas) != count or any(not 0 < sigma < math.inf for sigma in self.sigmas):
            raise UserError(f"sigmas {list(self.sigmas)}: {count} keypoints need {count} numbers above 0")

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoints)

    def to_json(self) -> dict[str, Any]:
        return {
            "category": self.category,
            "keypoints": list(self.keypoints),
            "limbs": [list(limb) for limb in self.limbs],
            "flip": list(self.flip),
            "sigmas": list(self.sigmas),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Skeleton:
        """Inverse of `to_json`. Raises: what Python raises on a value of another form; UserError if the parts do not fit."""
        names = [value["category"], *value["keypoints"]]
        if not isinstance(value["keypoints"], list) or not all(isinstance(name, str) for name in names):
            raise TypeError("category and keypoints must be names")
        return Skeleton(
            category=value["category"],
            keypoints=tuple(value["keypoints"]),
            limbs=tuple((int(a), int(b)) for a, b in value["limbs"]),
            flip=tuple(int(k) for k in value["flip"]),
            sigmas=tuple(float(s) for s in value["sigmas"]),
        )

    @staticmethod
    def from_category(
        category: Mapping[str, Any],
        flip_pairs: Sequence[tuple[str, str]] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Skeleton:
        """Reads a keypoint set off an entry of the JSON's `categories`.

        Args:
          category: has `name`, `keypoints` (names) and `skeleton` (pairs, counted from 1).
          flip_pairs: names of mirror twins; by default `left_x` and `right_x` are twins.
          sigmas: OKS constants; may be left out where every name is one of COCO's.

        Raises:
          UserError: no keypoint names, limbs that are no pairs, a flip pair that names no keypoint, or sigmas that are missing.
        """
        what, names, limbs = (
            f"category {category.get('name')!r}",
            category.get("keypoints") or (),
            category.get("skeleton") or (),
        )
        if not names:
            raise UserError(
                f"{what} has no keypoint names: take a keypoint file (person_keypoints_*.json), not instances_*.json"
            )
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{what}: keypoints {names!r:.60}: a list of names is needed")
        if not isinstance(limbs, list | tuple) or not all(_is_pair(limb) for limb in limbs):
            raise UserError(f"{what}: skeleton {limbs!r:.60}: a list of pairs of keypoints is needed, each counted from 1")
        names = tuple(names)
        if flip_pairs is None:
            flip_pairs = [(n, "right_" + n[5:]) for n in names if n.startswith("left_") and "right_" + n[5:] in names]
        flip = list(range(len(names)))
        for left, right in flip_pairs:
            if left not in names or right not in names:
                raise UserError(f"flip pair {left}:{right}: both must be among the keypoints {', '.join(names)}")
            flip[names.index(left)], flip[names.index(right)] = names.index(right), names.index(left)
        if sigmas is None:
            missing = [name for name in names if name not in COCO_SIGMAS]
            if missing:
                raise UserError(f"keypoints {', '.join(missing)} have no OKS sigma: give all {len(names)} with --sigmas")
            sigmas = [COCO_SIGMAS[name] for name in names]
        return Skeleton(
            category=str(category.get("name", "person")),
            keypoints=names,
            limbs=tuple((int(a) - 1, int(b) - 1) for a, b in limbs),
            flip=tuple(flip),
            sigmas=tuple(float(s) for s in sigmas),
        )


def _is_pair(limb: object) -> bool:
    return isinstance(limb, list | tuple) and len(limb) == 2 and all(isinstance(e, int | float) and e % 1 == 0 for e in limb)


COCO_PERSON = Skeleton.from_category(
    {
        "name": "person",
        "keypoints": list(COCO_SIGMAS),
        "skeleton": [
            *([16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9], [8, 10], [9, 11]),
            *([2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7]),
        ],
    }
)  # as the category of COCO's person_keypoints_*.json
