"""The annotations that answers are compared with: a COCO keypoint file as it is."""

from __future__ import annotations

import dataclasses
import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from model.inference.image_names import ImageEntry, ImageNames
from pipeline.command import UserError
from pipeline.files import read_json
from pipeline.skeleton import Skeleton

Person = Mapping[str, Any]  # an annotation in COCO's terms


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The part of an annotation file that the figures need.

    Attributes:
      path: of the file.
      image_ids: of its images.
      persons: the annotations of the one category, crowds included, numbered from 1: COCO's own evaluation takes an annotation
        of id 0 for no match.
      category: the entry of the JSON's `categories`.
      images: what the file says of each image, by id.
      without_area: number of persons whose annotation has no area; that of the box stands for it.
    """

    path: str
    image_ids: tuple[int, ...]
    persons: tuple[Person, ...]
    category: Mapping[str, Any]
    images: Mapping[int, ImageEntry] = dataclasses.field(default_factory=dict)
    without_area: int = 0

    def skeleton(self, sigmas: Sequence[float] | None = None) -> Skeleton:
        return Skeleton.from_category(self.category, sigmas=sigmas)

    @cached_property
    def by_image(self) -> Mapping[int, Sequence[Person]]:
        """The persons of each image that has any."""
        persons: dict[int, list[Person]] = defaultdict(list)
        for person in self.persons:
            persons[person["image_id"]].append(person)
        return dict(persons)

    @cached_property
    def names(self) -> ImageNames:
        """The images by their file names."""
        return ImageNames(self.images)

    def check_known(self, image_ids: Iterable[int]) -> None:
        """Raises: UserError where one of them is no image of the file."""
        if unknown := set(image_ids) - set(self.image_ids):
            raise UserError(
                f"{self.path}: has no image with id {min(unknown)}; give the annotations that the records were made of"
            )


def read_ground_truth(path: str | Path, category: str | None = None) -> GroundTruth:
    """Reads a COCO keypoint file.

    Args:
      path: of the JSON.
      category: the name of the one that counts; by default the one that has keypoints.

    Raises:
      UserError: no such file, not COCO JSON, no such category, a broken entry.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not all(isinstance(value.get(k), list) for k in ("images", "annotations", "categories")):
        raise UserError(f"{path}: not a COCO annotation file: it needs the lists images, annotations and categories")
    if not all(isinstance(c, dict) and isinstance(c.get("keypoints") or [], list) for c in value["categories"]):
        raise UserError(f"{path}: categories must be objects whose keypoints, if any, are a list; give person_keypoints_*.json")
    named = [c for c in value["categories"] if (c.get("name") == category if category else c.get("keypoints"))]
    if len(named) > 1 and category is None:
        named = [c for c in named if c.get("name") == "person"]
    if len(named) != 1:
        names, what = [c.get("name") for c in value["categories"]], f"named {category!r}" if category else "with keypoints"
        raise UserError(f"{path}: {len(named)} categories {what} among {names}; one is needed (person_keypoints_*.json)")
    name, number = named[0].get("name", ""), named[0].get("id")
    if not isinstance(name, str) or not isinstance(number, int):
        raise UserError(f"{path}: the category {name!r} has the id {number!r}; a name and a whole number are needed")
    images: dict[int, ImageEntry] = {}
    image_ids: list[int] = []
    for place, image in enumerate(value["images"]):
        image_id = image.get("id") if isinstance(image, dict) else None
        if not isinstance(image_id, int) or not 0 <= image_id < 2**63:
            raise UserError(f"{path}: images[{place}] has the id {image_id!r}; it must be a whole number from 0 up, of 64 bits")
        image_ids.append(image_id)
        images[image_id] = ImageEntry.from_json(image)
    size = 3 * len(named[0].get("keypoints") or ())
    persons: list[Person] = []
    without_area = 0
    for place, annotation in enumerate(value["annotations"]):
        try:
            if annotation["category_id"] == named[0]["id"]:
                persons.append({**_person(annotation, size), "id": len(persons) + 1})
                without_area += annotation.get("area") is None
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(f"{path}: annotations[{place}] is broken ({error!r}); correct or remove it") from None
    return GroundTruth(str(path), tuple(image_ids), tuple(persons), named[0], images, without_area)


def _person(annotation: Mapping[str, Any], size: int) -> dict[str, Any]:
    keypoints = [float(x) for x in annotation.get("keypoints") or [0] * size]
    box = [float(x) for x in annotation["bbox"]]
    if len(keypoints) != size or len(box) != 4:
        raise ValueError(f"{len(keypoints)} numbers in keypoints (must be {size}), {len(box)} in bbox (must be 4)")
    num_keypoints = int(annotation.get("num_keypoints", sum(v > 0 for v in keypoints[2::3])))
    if num_keypoints < 0:
        raise ValueError(f"num_keypoints is {num_keypoints}")
    return {
        "image_id": operator.index(annotation["image_id"]),
        "category_id": annotation["category_id"],
        "bbox": box,
        "area": box[2] * box[3] if annotation.get("area") is None else float(annotation["area"]),
        "iscrowd": int(annotation.get("iscrowd") or 0),
        "keypoints": keypoints,
        "num_keypoints": num_keypoints,
    }
