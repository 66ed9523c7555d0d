"""A keypoint set: names, limbs, flip pairs and OKS sigmas in one object.

It is made once, from the `categories` of a COCO JSON file, written with the records (`pipeline.json`) and read from there by
the model, the evaluation and the exports. Nothing else in this project knows how many keypoints a person has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from pipeline.command import UserError
from pipeline.sides import mirror_twins, named_sides, plain_names

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
      classes: of several classes that share the keypoints, the category id of the JSON and the name of each, by ascending id:
        the class of label 1 first. Empty for one class.
    """

    category: str
    keypoints: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...]
    flip: tuple[int, ...]
    sigmas: tuple[float, ...]
    classes: tuple[tuple[int, str], ...] = ()

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
        ids, names = ([one[place] for one in self.classes] for place in (0, 1))
        if len(ids) == 1 or len(set(ids)) != len(ids) or len(set(names)) != len(names):
            raise UserError(f"classes {list(self.classes)}: several classes are needed, each with an id and a name of its own")

    @property
    def num_classes(self) -> int:
        return max(1, len(self.classes))

    def class_name(self, label: int) -> str:
        """The name of the class of a label, 1…C."""
        return self.classes[label - 1][1] if self.classes else self.category

    def class_names(self, labels: Iterable[int]) -> list[str] | None:
        """The names of the classes of some labels, for a drawing; None if there is one class, whose name tells nothing."""
        return [self.class_name(int(label)) for label in labels] if self.classes else None

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
            **({"classes": [{"id": number, "name": name} for number, name in self.classes]} if self.classes else {}),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Skeleton:
        """Inverse of `to_json`. Raises: what Python raises on a value of another form; UserError if the parts do not fit."""
        if not isinstance(value, Mapping):
            raise UserError("a keypoint set is an object with category, keypoints, limbs, flip and sigmas")
        classes = tuple((int(one["id"]), one["name"]) for one in value.get("classes", ()))
        names = [value["category"], *value["keypoints"], *(name for _, name in classes)]
        if not isinstance(value["keypoints"], list) or not all(isinstance(name, str) for name in names):
            raise UserError("category, keypoints and classes must have names")
        return Skeleton(
            category=value["category"],
            keypoints=tuple(value["keypoints"]),
            limbs=tuple((int(a), int(b)) for a, b in value["limbs"]),
            flip=tuple(int(k) for k in value["flip"]),
            sigmas=tuple(float(s) for s in value["sigmas"]),
            classes=classes,
        )

    @staticmethod
    def from_category(
        category: Mapping[str, Any],
        flip_pairs: Sequence[tuple[str, str]] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Skeleton:
        """`read_category` without the notes."""
        return read_category(category, flip_pairs, sigmas)[0]


def read_category(
    category: Mapping[str, Any],
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
) -> tuple[Skeleton, tuple[str, ...]]:
    """Reads a keypoint set off an entry of the JSON's `categories`.

    Args:
      category: has `name`, `keypoints` (names) and `skeleton` (pairs of places in `keypoints`, counted from 1, or of names).
      flip_pairs: names of mirror twins; by default they are found by the names' sides (`pipeline.sides`).
      sigmas: the OKS constant of each keypoint, or one for all. By default COCO's by name, and `default_sigma` for other names.

    Returns:
      The skeleton, and a line for each thing that was found out, assumed or left out: mirror twins, sides without a twin,
      sigmas that are not COCO's, limbs that do not fit. Limbs are for drawings alone, so they never refuse a keypoint set.

    Raises:
      UserError: no keypoint names, a flip pair that names no keypoint, or sigmas that do not fit.
    """
    what, names = f"category {category.get('name')!r}", category.get("keypoints") or ()
    if not names:
        raise UserError(
            f"{what} has no keypoint names: take a keypoint file (person_keypoints_*.json), or give the names with --keypoints"
        )
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{what}: keypoints {names!r:.60}: a list of names is needed")
    names = tuple(names)
    limbs, limb_notes = _limbs(category.get("skeleton"), names)
    flip, flip_notes = _flip(names, flip_pairs)
    all_sigmas, sigma_notes = _sigmas(names, sigmas)
    name = category.get("name", "person")
    skeleton = Skeleton(name if isinstance(name, str) else str(name), names, limbs, flip, all_sigmas)
    return skeleton, (*flip_notes, *sigma_notes, *limb_notes)


def _flip(names: tuple[str, ...], flip_pairs: Sequence[tuple[str, str]] | None) -> tuple[tuple[int, ...], list[str]]:
    if flip_pairs is None:
        flip = list(mirror_twins(names))
    else:
        flip = list(range(len(names)))
        for left, right in flip_pairs:
            if left not in names or right not in names:
                raise UserError(f"--flip_pairs={left}:{right}: both must be among the keypoints {', '.join(names)}")
            flip[names.index(left)], flip[names.index(right)] = names.index(right), names.index(left)
    pairs = [f"{names[k]} - {names[twin]}" for k, twin in enumerate(flip) if k < twin]
    notes = [f"mirror twins: {', '.join(pairs) if pairs else 'none'}"]
    if alone := sides_without_twin(names, flip):
        notes.append(
            f"{', '.join(alone)}: a side in the name, and no mirror twin; --flip_pairs=LEFT:RIGHT,… names the twins, without "
            "which mirrored images have wrong labels"
        )
    return tuple(flip), notes


def sides_without_twin(names: Sequence[str], flip: Sequence[int]) -> list[str]:
    """Names that tell a side although a mirror leaves them where they are."""
    named = named_sides(names)
    return [name for k, name in enumerate(names) if named[k] != "middle" and flip[k] == k]


def default_sigma(num_keypoints: int) -> float:
    """The OKS sigma of a keypoint that is none of COCO's: 1/K as Ultralytics has it, within the range of COCO's own."""
    return min(max(1 / num_keypoints, min(COCO_SIGMAS.values())), max(COCO_SIGMAS.values()))


def given_sigmas(sigmas: Sequence[float], num_keypoints: int) -> tuple[float, ...]:
    """The OKS constant of each keypoint, given as one for each or one for all. Raises: UserError if they are not."""
    every = tuple(float(sigma) for sigma in (tuple(sigmas) * num_keypoints if len(sigmas) == 1 else sigmas))
    if len(every) != num_keypoints or any(not 0 < sigma < math.inf for sigma in every):
        given = ",".join(f"{sigma:g}" for sigma in sigmas)
        raise UserError(f"--sigmas={given}: {num_keypoints} keypoints need {num_keypoints} numbers above 0, or one for all")
    return every


def _sigmas(names: tuple[str, ...], sigmas: Sequence[float] | None) -> tuple[tuple[float, ...], list[str]]:
    if sigmas is not None:
        return given_sigmas(sigmas, len(names)), []
    default = default_sigma(len(names))
    plain = plain_names(names)
    unknown = [name for name, known in zip(names, plain, strict=True) if known not in COCO_SIGMAS]
    notes = [
        f"OKS sigma {default:.3f} is assumed (1/K within COCO's range) for {', '.join(unknown)}; only evaluation needs it, "
        "--sigmas gives others"
    ]
    return tuple(COCO_SIGMAS.get(known, default) for known in plain), notes if unknown else []


def _limbs(given: object, names: tuple[str, ...]) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """Limbs, counted from 0, and a line on the limbs that are left out."""
    if given is None:
        return (), []
    if not isinstance(given, list | tuple):
        return (), [f"skeleton {given!r:.60} is no list of pairs of keypoints: drawings have no limbs"]
    limbs = [_ends(limb, names) for limb in given]
    numbers = [limb for limb in limbs if limb is not None]
    from_0 = any(0 in limb for limb in numbers) and all(0 <= end < len(names) for limb in numbers for end in limb)
    first = 0 if from_0 else 1
    fits = [limb is not None and all(first <= end < first + len(names) for end in limb) for limb in limbs]
    notes = ["the skeleton's numbers count the keypoints from 0: so all of them fit"] if from_0 else []
    if not all(fits):
        notes.append(
            f"{fits.count(False)} of {len(fits)} limbs are left out of drawings, such as {given[fits.index(False)]!r:.40}: "
            f"they do not join two of the {len(names)} keypoints, counted from {first}"
        )
    return tuple((limb[0] - first, limb[1] - first) for limb, fit in zip(limbs, fits, strict=True) if limb and fit), notes


def _ends(limb: object, names: tuple[str, ...]) -> tuple[int, int] | None:
    """A limb's two numbers as in the file, or the places of two names counted from 1; None if it has neither."""
    if not isinstance(limb, list | tuple) or len(limb) != 2:
        return None
    if all(end in names for end in limb if isinstance(end, str)):
        limb = [names.index(end) + 1 if isinstance(end, str) else end for end in limb]
    return (int(limb[0]), int(limb[1])) if all(map(_is_whole, limb)) else None


def _is_whole(end: object) -> TypeGuard[int | float]:
    return isinstance(end, int | float) and not isinstance(end, bool) and abs(end) < 2**31 and end == int(end)


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
