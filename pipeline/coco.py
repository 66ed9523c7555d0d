"""COCO keypoint JSON → cleaned, typed annotations per image, in an order that does not depend on the file's.

`annotation_file.py` reads and checks the file. Here, what is certain is put right and counted: boxes are clipped or made around
their points, points outside the image count as not labelled, sizes that are missing are read off the images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotation_file import AnnotationFile, read_annotation_file
from pipeline.checked_annotation import Annotation, AnnotationError, whole_number
from pipeline.skeleton import Skeleton

# File names → what is known of each: height and width in pixels as stored, and whether a stored rotation exchanges them; or the
# reason why nothing is.
Measure = Callable[[Sequence[str]], Mapping[str, tuple[int, int, bool] | str]]
NO_SIZE = "no width and height in the image entry; the conversion reads them off the image"


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """One annotation.

    Attributes:
      id: of the annotation in the JSON.
      box: x0, y0, x1, y1 in pixels, clipped to the image; of an area above 0.
      area: the JSON's (of the segment), or the box's if the JSON has none.
      is_crowd: the box encloses a crowd.
      keypoints: float64 [K, 3], x, y in pixels as in the JSON, and v: 0 not labelled, 1 hidden, 2 visible; zeros where v = 0.
      label: 1…C, the class in the order of `Skeleton.classes`.
    """

    id: int
    box: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    keypoints: NDArray[np.float64]
    label: int = 1

    @property
    def num_labelled(self) -> int:
        return int(np.count_nonzero(self.keypoints[:, 2]))


@dataclasses.dataclass(frozen=True, eq=False)
class CocoImage:
    """One image entry with its persons, sorted by id.

    Attributes:
      error: why the entry cannot be used, "" if it can. If it cannot, height and width are 0 and persons is empty.
      without_size: of an entry whose size was read off the image, the sha256 of what the JSON says of it; else "".
    """

    id: int
    file_name: str
    height: int
    width: int
    persons: tuple[Person, ...]
    error: str = ""
    without_size: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class CocoData:
    """A whole annotation file.

    Attributes:
      skeleton: the keypoint set of the category.
      category_id: of the persons; of several categories that are joined, the smallest.
      images: sorted by id; each id once.
      counts: how often something was put right or left out, over the whole file.
      notes: what was found out or assumed about category and keypoints, a line each.
      stated: who made the data, and its licences (see `licences.stated_in`).
    """

    skeleton: Skeleton
    category_id: int
    images: tuple[CocoImage, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def sha256(self) -> str:
        """The sha256 of the content, which does not depend on its order in the JSON."""
        digest = hashlib.sha256(json.dumps([self.category_id, self.skeleton.to_json()]).encode())
        for p in self.images:
            if p.without_size:
                digest.update(repr((p.id, p.file_name, p.without_size)).encode())
                continue
            digest.update(repr((p.id, p.file_name, p.height, p.width, p.error)).encode())
            for person in p.persons:
                digest.update(repr((person.id, person.box, person.area, person.is_crowd)).encode())
                digest.update(person.keypoints.astype("<f8").tobytes())
                if self.skeleton.classes:
                    digest.update(repr(person.label).encode())
        return digest.hexdigest()


# What is counted, in the order of the summary.
COUNTS = (
    "images_twice",
    "sizes_read_off_images",
    "annotations_twice",
    "annotation_ids_twice",
    "annotations_of_no_image",
    "annotations_of_other_categories",
    "ids_as_text",
    "boxes_clipped",
    "boxes_made_around_points",
    "boxes_without_area",
    "keypoints_outside",
)


def read_coco(
    path: str | Path,
    *,
    category: str | None = None,
    classes: bool = False,
    keypoints: Sequence[str] | None = None,
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
    measure: Measure | None = None,
) -> CocoData:
    """Reads an annotation file of persons with keypoints.

    Args:
      path, category, classes, keypoints, flip_pairs, sigmas: as for `read_annotation_file`.
      measure: finds out the sizes that the JSON does not have; without it, images without a size are errors.

    Raises:
      UserError: the file as a whole cannot be used.
    """
    file = read_annotation_file(
        path, category=category, classes=classes, keypoints=keypoints, flip_pairs=flip_pairs, sigmas=sigmas
    )
    counter = file.counts
    counter.update(dict.fromkeys(COUNTS, 0))
    checked = {image_id: _checked(file, image_id) for image_id in sorted(file.images)}
    unsized = [
        image_id
        for image_id, found in checked.items()
        if not isinstance(found, str) and None in (file.images[image_id]["height"], file.images[image_id]["width"])
    ]
    sizes = _measured(unsized, file, checked, measure)
    entries = []
    for image_id, found in checked.items():
        name = file.images[image_id]["file_name"]
        name = name if isinstance(name, str) else ""
        size = sizes.get(image_id)
        without_size = _digest(found) if image_id in sizes and not isinstance(found, str) else ""
        if isinstance(size, str) or isinstance(found, str):
            error = found if isinstance(found, str) else str(size)
            entries.append(CocoImage(image_id, name, 0, 0, (), error, without_size))
            continue
        counter["sizes_read_off_images"] += size is not None
        height, width = size or (int(file.images[image_id]["height"]), int(file.images[image_id]["width"]))
        persons = [_person(annotation, height, width, counter) for annotation in found]
        kept = tuple(person for person in persons if person is not None)
        entries.append(CocoImage(image_id, name, height, width, kept, "", without_size))
    counts = {name: counter[name] for name in COUNTS}
    return CocoData(file.skeleton, int(file.category["id"]), tuple(entries), counts, file.notes, file.stated)


def _checked(file: AnnotationFile, image_id: int) -> list[Annotation] | str:
    """The annotations of an image, sorted by id, or why the image cannot be used."""
    entry = file.images[image_id]
    file_name = entry["file_name"]
    if entry.get("error"):
        return str(entry["error"])
    if not isinstance(file_name, str) or not file_name:
        return "no file_name in the image entry"
    parts = PurePosixPath(file_name).parts + PureWindowsPath(file_name).parts
    if ".." in parts or "\0" in file_name or PurePosixPath(file_name).is_absolute() or PureWindowsPath(file_name).anchor:
        return "file_name leads out of the folder of images"
    height, width = entry["height"], entry["width"]
    sides = [whole_number(side) for side in (height, width) if side is not None]
    if not all(side is not None and side > 0 for side in sides):
        return f"width {width!r}, height {height!r} in the image entry: whole numbers above 0 are needed"
    try:
        found = [file.check(annotation) for annotation in file.annotations.get(image_id, ())]
    except AnnotationError as error:
        return str(error)
    return sorted((annotation for annotation in found if annotation is not None), key=lambda annotation: annotation.id)


def _measured(
    unsized: Sequence[int], file: AnnotationFile, checked: Mapping[int, Any], measure: Measure | None
) -> dict[int, tuple[int, int] | str]:
    """Height and width of images of which the JSON has none, in the frame that their annotations mean; or the reason."""
    if measure is None or not unsized:
        return dict.fromkeys(unsized, NO_SIZE)
    known = measure([file.images[image_id]["file_name"] for image_id in unsized])
    sizes: dict[int, tuple[int, int] | str] = {}
    either: list[int] = []  # a stored rotation exchanges the sides, and the annotations fit both ways
    upright = 0  # how many more fit only the image upright than only the image as stored
    for image_id in unsized:
        found = known[file.images[image_id]["file_name"]]
        if isinstance(found, str):
            sizes[image_id] = found
            continue
        height, width, exchanged = found
        fits_stored, fits_upright = (_fit(checked[image_id], h, w) for h, w in ((height, width), (width, height)))
        if exchanged and fits_stored == fits_upright:
            either.append(image_id)
        turned = exchanged and fits_upright and not fits_stored
        upright += turned - (exchanged and fits_stored and not fits_upright)
        sizes[image_id] = (width, height) if turned else (height, width)
    for image_id in either if upright > 0 else ():
        stored = sizes[image_id]
        sizes[image_id] = (int(stored[1]), int(stored[0]))
    return sizes


def _fit(annotations: Sequence[Annotation], height: int, width: int) -> bool:
    """Whether all boxes and labelled points lie within an image; one pixel beyond its edge is allowed."""
    for annotation in annotations:
        x, y, w, h = annotation.bbox
        if x + w > width + 1 or y + h > height + 1 or (annotation.keypoints[:, :2] > (width + 1, height + 1)).any():
            return False
    return True


def _digest(annotations: Sequence[Annotation]) -> str:
    digest = hashlib.sha256()
    for a in annotations:
        digest.update(repr((a.id, a.bbox, a.area, a.is_crowd)).encode() + a.keypoints.astype("<f8").tobytes())
        if a.label > 1:
            digest.update(repr(a.label).encode())
    return digest.hexdigest()


def _person(annotation: Annotation, height: int, width: int, counter: Counter[str]) -> Person | None:
    """One annotation put right; None if its box encloses nothing of the image and no point in it is labelled."""
    keypoints = annotation.keypoints
    px, py, visibility = keypoints.T
    outside = (visibility > 0) & ((px < 0) | (px > width) | (py < 0) | (py > height))
    box, made = annotation.box(height, width)
    x0, x1 = (min(max(value, 0.0), float(width)) for value in box[::2])
    y0, y1 = (min(max(value, 0.0), float(height)) for value in box[1::2])
    if not (x1 > x0 and y1 > y0):
        counter["boxes_without_area"] += 1
        return None
    counter["boxes_made_around_points"] += made
    counter["boxes_clipped"] += not made and (x0, y0, x1, y1) != box
    counter["keypoints_outside"] += int(outside.sum())
    keypoints[outside] = 0
    area = annotation.area
    if area is None or (made and area == 0):
        area = (x1 - x0) * (y1 - y0)
    return Person(annotation.id, (x0, y0, x1, y1), area, annotation.is_crowd, keypoints, annotation.label)
