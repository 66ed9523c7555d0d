"""The annotations that answers are compared with: a COCO keypoint file as it is."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from model.inference.image_names import ImageEntry, ImageNames
from pipeline.annotation_file import read_annotation_file
from pipeline.checked_annotation import Annotation, AnnotationError, whole_number
from pipeline.command import UserError
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
      errors: why the annotations of an image cannot be used, by its id; `check_known` refuses it.
      classes: of several classes that are told apart, category id and name, as in `Skeleton.classes`.
    """

    path: str
    image_ids: tuple[int, ...]
    persons: tuple[Person, ...]
    category: Mapping[str, Any]
    images: Mapping[int, ImageEntry] = dataclasses.field(default_factory=dict)
    without_area: int = 0
    errors: Mapping[int, str] = dataclasses.field(default_factory=dict)
    classes: tuple[tuple[int, str], ...] = ()

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Of the persons: the one category's, or that of each class."""
        return tuple(number for number, _ in self.classes) or (int(self.category["id"]),)

    def skeleton(self, sigmas: Sequence[float] | None = None) -> Skeleton:
        return dataclasses.replace(Skeleton.from_category(self.category, sigmas=sigmas), classes=self.classes)

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
        """Refuses images that the file does not have, or whose annotations cannot be used.

        Raises:
          UserError: one of them is no image of the file, or has an annotation that the conversion refuses, too.
        """
        wanted = set(image_ids)
        if unknown := wanted - set(self.image_ids):
            raise UserError(
                f"{self.path}: has no image with id {min(unknown)}; give the annotations that the records were made of"
            )
        if broken := wanted & self.errors.keys():
            image_id = min(broken)
            raise UserError(f"{self.path}: image {image_id} has a broken annotation: {self.errors[image_id]}; put it right")


def read_ground_truth(
    path: str | Path, category: str | None = None, keypoints: Sequence[str] | None = None, *, classes: bool = False
) -> GroundTruth:
    """Reads a COCO keypoint file, with the conversion's own choice of category and check of annotations.

    Args:
      path: of the JSON.
      category: as for `annotation_file.read_annotation_file`: the name of the one that counts, or of several that are joined.
      keypoints: names of the keypoints if the category has none.
      classes: keeps several categories apart.

    Raises:
      UserError: no such file, not COCO JSON, no such category.
    """
    naming = "name the records with --data_dir, which have the keypoints' names"
    file = read_annotation_file(path, category=category, classes=classes, keypoints=keypoints, naming=naming)
    ids = [number for number, _ in file.skeleton.classes] or [file.category["id"]]
    persons: list[Person] = []
    errors: dict[int, str] = {}
    without_area = 0
    for image_id, entries in file.annotations.items():
        size = [whole_number(file.images[image_id][side]) for side in ("height", "width")]
        try:
            for annotation in filter(None, map(file.check, entries)):
                person = {"image_id": image_id, "category_id": ids[annotation.label - 1], "id": len(persons) + 1}
                persons.append(person | _fields(annotation, *size))
                without_area += annotation.area is None
        except AnnotationError as error:
            errors[image_id] = str(error)
    images = {image_id: ImageEntry.from_json(entry) for image_id, entry in file.images.items()}
    return GroundTruth(
        str(path), tuple(images), tuple(persons), file.category, images, without_area, errors, file.skeleton.classes
    )


def ground_truth_of(path: str | Path, skeleton: Skeleton) -> GroundTruth:
    """Reads the annotations that records of this keypoint set were made from: its category, its names if the file has none."""
    return read_ground_truth(path, skeleton.category, skeleton.keypoints, classes=bool(skeleton.classes))


def _fields(annotation: Annotation, height: int | None, width: int | None) -> dict[str, Any]:
    """The rest of a person in COCO's terms, as in the JSON; a box without area is made around points, as a conversion does."""
    (x0, y0, x1, y1), made = annotation.box(height, width)
    box = [x0, y0, x1 - x0, y1 - y0] if made else list(annotation.bbox)
    area = annotation.area
    return {
        "bbox": box,
        "area": box[2] * box[3] if area is None or (made and area == 0) else area,
        "iscrowd": int(annotation.is_crowd),
        "keypoints": annotation.keypoints.ravel().tolist(),
        "num_keypoints": annotation.num_keypoints,
    }
