"""COCO keypoint JSON → cleaned, typed annotations per image, in an order that does not depend on the file's.

What is certain is put right and counted (boxes are clipped, points outside the image count as not labelled). What is not
certain (a box with NaN, a list of 50 numbers) makes the whole image an error, since a person who is left out in silence would
be trained as background.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.command import UserError
from pipeline.skeleton import Skeleton

LARGEST = float(np.finfo(np.float32).max)  # of the numbers that a record can hold


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """One annotation.

    Attributes:
      id: of the annotation in the JSON.
      box: x0, y0, x1, y1 in pixels, clipped to the image; of an area above 0.
      area: the JSON's (of the segment), or the box's where the JSON has none.
      is_crowd: the box encloses a crowd.
      keypoints: float64 [K, 3], x, y in pixels as in the JSON, and v: 0 not labelled, 1 hidden, 2 visible; zeros where v = 0.
    """

    id: int
    box: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    keypoints: NDArray[np.float64]

    @property
    def num_labelled(self) -> int:
        return int(np.count_nonzero(self.keypoints[:, 2]))


@dataclasses.dataclass(frozen=True, eq=False)
class CocoImage:
    """One image entry with its persons, sorted by id.

    Attributes:
      error: why the entry cannot be used, "" where it can. Where it cannot, height and width are 0 and persons is empty.
    """

    id: int
    file_name: str
    height: int
    width: int
    persons: tuple[Person, ...]
    error: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class CocoData:
    """A whole annotation file.

    Attributes:
      skeleton: the keypoint set of the category.
      category_id: of the persons.
      images: sorted by id; each id once.
      counts: how often something was put right or left out, over the whole file.
    """

    skeleton: Skeleton
    category_id: int
    images: tuple[CocoImage, ...]
    counts: Mapping[str, int]

    def sha256(self) -> str:
        """Of the content, whatever its order in the JSON."""
        digest = hashlib.sha256(json.dumps([self.category_id, self.skeleton.to_json()]).encode())
        for p in self.images:
            digest.update(repr((p.id, p.file_name, p.height, p.width, p.error)).encode())
            for person in p.persons:
                digest.update(repr((person.id, person.box, person.area, person.is_crowd)).encode())
                digest.update(person.keypoints.astype("<f8").tobytes())
        return digest.hexdigest()


def read_coco(
    path: str | Path,
    *,
    category: str | None = None,
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
) -> CocoData:
    """Reads an annotation file of persons with keypoints.

    Args:
      path: such as person_keypoints_train2017.json; a path or a URL of one of Beam's filesystems.
      category: name of the category; by default the only one with keypoints, or "person" among several.
      flip_pairs, sigmas: as for `Skeleton.from_category`.

    Raises:
      UserError: the file as a whole cannot be used.
    """
    content = _load(path)
    chosen = _category(content["categories"], category, path)
    skeleton = Skeleton.from_category(chosen, flip_pairs, sigmas)
    counts = dict.fromkeys(
        (
            "images_twice",
            "annotations_twice",
            "annotation_ids_twice",
            "annotations_of_no_image",
            "annotations_of_other_categories",
            "boxes_clipped",
            "boxes_without_area",
            "keypoints_outside",
        ),
        0,
    )
    counter = Counter(counts)
    images = _images(content["images"], counter, path)
    persons = _annotations(content["annotations"], images, counter, path)
    entries = []
    for image_id in sorted(images):
        entries.append(_image(images[image_id], persons.pop(image_id, []), chosen["id"], skeleton.num_keypoints, counter))
    return CocoData(skeleton, int(chosen["id"]), tuple(entries), dict(counter))


def _load(path: str | Path) -> dict[str, Any]:
    """The JSON without its segments, which make two thirds of its weight in memory."""

    def without_segments(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("segmentation", None)
        return entry

    try:
        content = json.loads(storage.read(str(path)), object_hook=without_segments)  # (bytes may begin with a byte order mark)
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; give a COCO person_keypoints_*.json") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({storage.reason(error)}); give a COCO person_keypoints_*.json") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch or copy the file again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a {type(content).__name__}; a COCO file is an object with images, annotations, categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise UserError(f"{path}: no list of {key!r}; a COCO keypoint file (person_keypoints_*.json) has it")
    return content


def _category(categories: list[dict[str, Any]], name: str | None, path: str | Path) -> dict[str, Any]:
    names = [str(entry.get("name")) for entry in categories]
    if name is None:
        found = [entry for entry in categories if entry.get("keypoints")]
        if len(found) > 1:
            found = [entry for entry in found if entry.get("name") == "person"]
    else:
        found = [entry for entry in categories if entry.get("name") == name]
    if len(found) != 1 or not _is_integer(found[0].get("id")):
        what = "with keypoints" if name is None else f"named {name!r}"
        raise UserError(
            f"{path}: {len(found)} categories {what} among {names}; one, with an id, is needed (person_keypoints_*.json)"
        )
    return found[0]


def _images(entries: list[dict[str, Any]], counter: Counter[str], path: str | Path) -> dict[int, dict[str, Any]]:
    """Image entries by id. One entry stands for several that say the same; others make an error of the image."""
    images: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if not _is_integer(entry.get("id")) or entry["id"] < 0:
            raise UserError(f"{path}: image id {entry.get('id')!r} is not an integer from 0 up; every image entry needs one")
        entry = {key: entry.get(key) for key in ("id", "file_name", "height", "width")}
        first = images.setdefault(int(entry["id"]), entry)
        if first is not entry:
            counter["images_twice"] += 1
            if {**first, "error": None} != {**entry, "error": None}:
                first["error"] = "several image entries with this id, which differ"
    return images


def _annotations(
    entries: list[dict[str, Any]], images: Mapping[int, Any], counter: Counter[str], path: str | Path
) -> dict[int, list[dict[str, Any]]]:
    """Annotations by image id, each one once, sorted by id and, where ids are not unique, by content."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        image_id = entry.get("image_id")
        if not _is_integer(image_id) or image_id not in images:
            counter["annotations_of_no_image"] += 1
        elif not _is_integer(entry.get("id")):
            raise UserError(f"{path}: annotation id {entry.get('id')!r} of image {image_id} is not an integer; each needs one")
        else:
            by_image[int(image_id)].append(entry)
    seen: set[int] = set()
    for image_id in sorted(by_image):
        group = by_image[image_id]
        if len({entry["id"] for entry in group}) < len(group):  # rare, and sorting by content is slow
            distinct = {json.dumps(entry, sort_keys=True): entry for entry in group}
            counter["annotations_twice"] += len(group) - len(distinct)
            group = [distinct[key] for key in sorted(distinct)]
        by_image[image_id] = sorted(group, key=lambda entry: int(entry["id"]))
        for entry in by_image[image_id]:  # different persons under one id: both stay
            counter["annotation_ids_twice"] += entry["id"] in seen
            seen.add(entry["id"])
    return by_image


class _ImageError(Exception):
    """Why an image cannot be used."""


def _image(
    image: Mapping[str, Any],
    annotations: Iterable[Mapping[str, Any]],
    category_id: int,
    num_keypoints: int,
    counter: Counter[str],
) -> CocoImage:
    image_id, file_name, height, width = int(image["id"]), image["file_name"], image["height"], image["width"]
    persons = []
    try:
        if image.get("error"):
            raise _ImageError(image["error"])
        if not isinstance(file_name, str) or not file_name:
            raise _ImageError("no file_name in the image entry")
        parts = PurePosixPath(file_name).parts + PureWindowsPath(file_name).parts
        if ".." in parts or "\0" in file_name or PurePosixPath(file_name).is_absolute() or PureWindowsPath(file_name).anchor:
            raise _ImageError("file_name leads out of the folder of images")
        if not (_is_integer(height) and _is_integer(width) and height > 0 and width > 0):
            raise _ImageError(f"width {width!r}, height {height!r} in the image entry: whole numbers above 0 are needed")
        for annotation in annotations:
            person = _person(annotation, int(height), int(width), category_id, num_keypoints, counter)
            if person is not None:
                persons.append(person)
    except _ImageError as error:
        return CocoImage(image_id, file_name if isinstance(file_name, str) else "", 0, 0, (), str(error))
    return CocoImage(image_id, file_name, int(height), int(width), tuple(persons))


def _person(
    entry: Mapping[str, Any], height: int, width: int, category_id: int, num_keypoints: int, counter: Counter[str]
) -> Person | None:
    """One annotation put right; None where it is of another category or its box encloses nothing."""
    name = f"annotation {entry['id']}"
    if not _is_integer(entry.get("category_id")):
        raise _ImageError(f"{name}: category_id {entry.get('category_id')!r} is not an integer")
    if entry["category_id"] != category_id:
        counter["annotations_of_other_categories"] += 1
        return None
    x, y, box_width, box_height = _numbers(entry.get("bbox"), 4, f"{name}: bbox")
    x0, x1 = (min(max(v, 0.0), float(width)) for v in (x, x + box_width))
    y0, y1 = (min(max(v, 0.0), float(height)) for v in (y, y + box_height))
    if not (x1 > x0 and y1 > y0):
        counter["boxes_without_area"] += 1
        return None
    counter["boxes_clipped"] += (x0, y0, x1, y1) != (x, y, x + box_width, y + box_height)

    is_crowd = entry.get("iscrowd") or 0
    if is_crowd not in (0, 1):
        raise _ImageError(f"{name}: iscrowd {is_crowd!r} is neither 0 nor 1")
    area = (x1 - x0) * (y1 - y0)
    if entry.get("area") is not None:
        (area,) = _numbers([entry["area"]], 1, f"{name}: area")
        if area < 0:
            raise _ImageError(f"{name}: area {area} is below 0")
    keypoints = np.zeros((num_keypoints, 3))
    if entry.get("keypoints"):
        values = _numbers(entry["keypoints"], 3 * num_keypoints, f"{name}: keypoints")
        if not set(values[2::3]) <= {0, 1, 2}:
            raise _ImageError(f"{name}: visibilities {sorted(set(values[2::3]))} must be 0, 1 or 2")
        keypoints = np.array(values, np.float64).reshape(num_keypoints, 3)
        px, py, visibility = keypoints.T
        outside = (visibility > 0) & ((px < 0) | (px > width) | (py < 0) | (py > height))
        counter["keypoints_outside"] += int(outside.sum())
        keypoints[outside | (visibility == 0)] = 0
    return Person(int(entry["id"]), (x0, y0, x1, y1), area, bool(is_crowd), keypoints)


def _is_integer(value: object) -> TypeGuard[int | float]:
    """Whether it is a whole number that a record can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63 and value == int(value)


def _numbers(value: object, count: int, name: str) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        length = f"{len(value)} numbers" if isinstance(value, list) else repr(value)
        raise _ImageError(f"{name} has {length}, {count} are needed")
    for number in value:
        if type(number) not in (int, float) or not abs(number) <= LARGEST:
            raise _ImageError(f"{name} holds {number!r}, which is no finite number of 32 bits")
    return [float(number) for number in value]
