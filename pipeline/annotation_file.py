"""A COCO keypoint file as it is: one choice of category and one check of annotations, for conversion and evaluation alike.

What tools write in several ways is read in all of them: numbers as text, nested keypoints, points without a label that hold
anything, a compressed file. What is not certain (a box with NaN, a list of 50 numbers) is an error of the image, since a person
who is left out in silence would be trained as background.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import licences, storage
from pipeline.command import UserError, reason_of
from pipeline.skeleton import Skeleton, read_category

LARGEST = float(np.finfo(np.float32).max)  # of the numbers that a record can hold
ALL_CATEGORIES = "all"  # joins all categories that have keypoints
# A box that is made around labelled points reaches beyond the outermost by MARGIN_SHARE of their extent's longer side, and by
# MARGIN_PIXELS at least: a lone point gets a box of 32×32, the size of the smallest anchors.
MARGIN_SHARE, MARGIN_PIXELS = 0.1, 16.0
KEYPOINT_FILE = "person_keypoints_*.json"  # as COCO calls those of its files that have keypoints

Box = tuple[float, float, float, float]


class AnnotationError(Exception):
    """Why an image's annotations cannot be used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Annotation:
    """One annotation of the chosen category, checked but not put right.

    Attributes:
      bbox: x, y, width, height in pixels, as in the JSON.
      area: the JSON's (of the segment), None if it has none.
      keypoints: float64 [K, 3], x, y in pixels and v: 0 not labelled, 1 hidden, 2 visible; zeros where v = 0.
      num_keypoints: the JSON's, or the number of labelled points if it has none.
      label: 1…C, the class in the order of `Skeleton.classes`.
    """

    id: int
    bbox: Box
    area: float | None
    is_crowd: bool
    keypoints: NDArray[np.float64]
    num_keypoints: int
    label: int = 1

    def box(self, height: float | None, width: float | None) -> tuple[Box, bool]:
        """The box as x0, y0, x1, y1, not clipped, and whether it was made: around the labelled points, if it has no area.

        Args:
          height, width: of the image in pixels, None if they are unknown. What lies outside the image has no area.
        """
        left, right = (-np.inf, np.inf) if width is None else (0.0, width)
        top, bottom = (-np.inf, np.inf) if height is None else (0.0, height)
        x, y, w, h = self.bbox
        box = (x, y, x + w, y + h)
        if min(x + w, right) > max(x, left) and min(y + h, bottom) > max(y, top):
            return box, False
        px, py, visibility = self.keypoints.T
        inside = (visibility > 0) & (px >= left) & (px <= right) & (py >= top) & (py <= bottom)
        if not inside.any():
            return box, False
        low, high = self.keypoints[inside, :2].min(axis=0), self.keypoints[inside, :2].max(axis=0)
        margin = max(MARGIN_PIXELS, MARGIN_SHARE * float((high - low).max()))
        return (*(low - margin).tolist(), *(high + margin).tolist()), True


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotationFile:
    """A whole file.

    Attributes:
      category: the entry of the JSON's `categories` that counts; of several joined ones the first, with the names joined.
      category_ids: all that count.
      skeleton: the keypoint set of the category.
      notes: what was found out or assumed about category and keypoints, a line each.
      images: the JSON's entries by id: id, file_name, height, width, and error, which says why the image cannot be used.
      annotations: the JSON's entries by image id, in the file's order, each once; `check` them.
      counts: how often something was put right or left out.
      stated: who made the data, and its licences (see `licences.stated_in`).
    """

    path: str
    category: Mapping[str, Any]
    category_ids: frozenset[int]
    skeleton: Skeleton
    notes: tuple[str, ...]
    images: Mapping[int, Mapping[str, Any]]
    annotations: Mapping[int, Sequence[Mapping[str, Any]]]
    counts: Counter[str]
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def check(self, entry: Mapping[str, Any]) -> Annotation | None:
        """Checks one entry of `annotations`; None if it is of another category, which is counted.

        Raises:
          AnnotationError: the entry is not certain.
        """
        category_id = whole_number(entry.get("category_id"))
        if category_id is None:
            raise AnnotationError(f"annotation {entry['id']}: category_id {entry.get('category_id')!r} is not an integer")
        if category_id not in self.category_ids:
            self.counts["annotations_of_other_categories"] += 1
            return None
        annotation = _annotation(entry, self.skeleton.num_keypoints)
        labels = {number: label for label, (number, _) in enumerate(self.skeleton.classes, 1)}
        return dataclasses.replace(annotation, label=labels[category_id]) if labels else annotation


def read_annotation_file(
    path: str | Path,
    *,
    category: str | None = None,
    classes: bool = False,
    keypoints: Sequence[str] | None = None,
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
    naming: str = "give the keypoints' names with --keypoints",
) -> AnnotationFile:
    """Reads a COCO keypoint file.

    Args:
      path: of the JSON, which may be compressed with gzip; a path or a URL of one of Beam's filesystems.
      category: the name of the category, several with commas between, or "all" for all that have keypoints: several are joined
        into one class. By default the only one with keypoints, or "person" among several.
      classes: keeps several categories apart, as classes that share the keypoints, instead of joining them.
      keypoints: names of the keypoints if the category has none.
      flip_pairs, sigmas: as for `skeleton.read_category`.
      naming: what a person does about keypoints without names, for messages.

    Raises:
      UserError: the file as a whole cannot be used.
    """
    content = load(path)
    chosen, notes = _chosen(content["categories"], category, keypoints, path, naming)
    several = tuple((entry["id"], entry["own_name"]) for entry in chosen) if classes and len(chosen) > 1 else ()
    if several:
        notes = [f"{len(several)} classes share the keypoints: {', '.join(name for _, name in several)}"]
    if not chosen[0]["keypoints"]:
        what = f"category {chosen[0].get('name')!r} has no keypoint names"
        raise UserError(f"{path}: {what}: take a keypoint file ({KEYPOINT_FILE}), or {naming}")
    try:
        skeleton, skeleton_notes = read_category(chosen[0], flip_pairs, sigmas)
        skeleton = dataclasses.replace(skeleton, classes=several)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith("--") else f"{path}: {error}") from None
    counts: Counter[str] = Counter()
    images = _images(content["images"], counts, path)
    annotations = _annotations(content["annotations"], images, counts, path)
    _refuse_shared_files(images, annotations)
    ids = frozenset(entry["id"] for entry in chosen)
    stated = licences.stated_in(content)
    return AnnotationFile(str(path), chosen[0], ids, skeleton, (*notes, *skeleton_notes), images, annotations, counts, stated)


def load(path: str | Path) -> dict[str, Any]:
    """The content of a COCO keypoint file, as `load_json` reads it. Raises: UserError."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a {type(content).__name__}; a COCO file is an object with images, annotations, categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise UserError(f"{path}: no list of {key!r}; a COCO keypoint file ({KEYPOINT_FILE}) has it")
    return content


def load_json(path: str | Path) -> Any:
    """The value of a JSON file of annotations, plain or compressed with gzip, in UTF-8, UTF-16 or UTF-32.

    Segments, which make two thirds of its weight in memory, are left out.

    Raises:
      UserError: no such file, damaged, no JSON.
    """

    def without_segments(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("segmentation", None)
        return entry

    try:
        raw = storage.read(str(path))
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
        return json.loads(raw, object_hook=without_segments)  # (bytes may begin with a byte order mark)
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; give a COCO person_keypoints_*.json") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: compressed with gzip and damaged ({error}); fetch or copy the file again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); give a COCO person_keypoints_*.json") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch or copy the file again") from None


def _chosen(
    categories: list[dict[str, Any]], name: str | None, keypoints: Sequence[str] | None, path: str | Path, naming: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """The categories that count, all with the joined name and the same keypoints, and notes on the choice."""
    categories = [entry if entry.get("name") is not None else {**entry, "name": "person"} for entry in categories]
    names = [str(entry["name"]) for entry in categories]
    with_points = [entry for entry in categories if entry.get("keypoints") or keypoints]
    notes = []
    if name is None:
        found, what = with_points, "with keypoints"
        persons = [entry for entry in found if entry.get("name") == "person"]
        if len(found) > 1 and len(persons) == 1:
            found = persons
            others = ", ".join(str(entry.get("name")) for entry in with_points if entry is not persons[0])
            notes = [f"category 'person' is taken, not {others}; --category=NAME chooses another, --category=all joins them"]
    else:
        found, what = _named(categories, with_points, name), f"named {name!r}"
    if not found:
        way_out = "name one of these, or take another file" if name else f"take a keypoint file ({KEYPOINT_FILE}), or {naming}"
        raise UserError(f"{path}: 0 categories {what} among {names}; {way_out}")
    found = [{**entry, "keypoints": entry.get("keypoints") or list(keypoints or ())} for entry in found]
    if any(entry["keypoints"] != found[0]["keypoints"] for entry in found):
        sets = ", ".join(f"{entry.get('name')}: {_length(entry['keypoints'])} keypoints" for entry in found)
        raise UserError(
            f"{path}: {len(found)} categories {what} and of different keypoint sets ({sets}); --category=NAME takes one"
        )
    if len(found) > 1 and name is None:
        taken = ", ".join(str(entry.get("name")) for entry in found)
        raise UserError(
            f"{path}: {len(found)} categories with the same keypoints ({taken:.200}); --category=all joins them into one "
            "class, --category=NAME,NAME joins some, --category=NAME takes one, --categories=all keeps them apart as classes"
        )
    if len(found) > 1:
        notes = [f"{len(found)} categories are joined into one class: {', '.join(str(entry.get('name')) for entry in found)}"]
    joined = []
    for entry in found:
        number = whole_number(entry.get("id"))
        if number is None or not isinstance(entry["name"], str):
            raise UserError(
                f"{path}: the category {entry.get('name')!r} has the id {entry.get('id')!r}; "
                "a name and a whole number are needed"
            )
        joined.append({**entry, "id": number, "own_name": entry["name"], "name": entry["name"] if len(found) == 1 else name})
    return sorted(joined, key=lambda entry: int(entry["id"])), notes


def _named(categories: list[dict[str, Any]], with_points: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The categories of one name, of several with commas between, or all that have keypoints."""
    found = [entry for entry in categories if entry.get("name") == name]
    if not found and name == ALL_CATEGORIES:
        return with_points
    if not found and "," in name:
        several = [[entry for entry in categories if entry.get("name") == part.strip()] for part in name.split(",")]
        return [entry for part in several for entry in part] if all(several) else []
    return found


def _length(keypoints: object) -> str:
    return str(len(keypoints)) if isinstance(keypoints, list) else "no list of"


def _images(entries: list[dict[str, Any]], counts: Counter[str], path: str | Path) -> dict[int, dict[str, Any]]:
    """Image entries by id. One entry stands for several that say the same; others make an error of the image."""
    images: dict[int, dict[str, Any]] = {}
    for entry in entries:
        image_id = whole_number(entry.get("id"))
        if image_id is None or image_id < 0:
            raise UserError(f"{path}: image id {entry.get('id')!r} is not an integer from 0 up; every image entry needs one")
        counts["ids_as_text"] += isinstance(entry["id"], str)
        entry = {key: entry.get(key) for key in ("id", "file_name", "height", "width")} | {"id": image_id}
        if all(_is_empty(entry[side]) or entry[side] == "" for side in ("height", "width")):
            entry |= {"height": None, "width": None}  # as tools write a size that they do not know
        first = images.setdefault(image_id, entry)
        if first is not entry:
            counts["images_twice"] += 1
            if {**first, "error": None} != {**entry, "error": None}:
                first["error"] = "several image entries with this id, which differ"
    return images


def _annotations(
    entries: list[dict[str, Any]], images: Mapping[int, Any], counts: Counter[str], path: str | Path
) -> dict[int, list[dict[str, Any]]]:
    """Annotations by image id, each one once, with ids that are numbers; sorted by content where ids are not unique."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        image_id, number = whole_number(entry.get("image_id")), whole_number(entry.get("id"))
        if image_id is None:
            what = f"annotation {entry.get('id')!r:.40} has the image_id {entry.get('image_id')!r:.40}"
            raise UserError(f"{path}: {what}; it must be a whole number, that of an image")
        if image_id not in images:
            counts["annotations_of_no_image"] += 1
            continue
        if number is None:
            raise UserError(f"{path}: annotation id {entry.get('id')!r} of image {image_id} is not an integer; each needs one")
        if type(entry["id"]) is not int or type(entry["image_id"]) is not int:
            counts["ids_as_text"] += isinstance(entry["id"], str) + isinstance(entry["image_id"], str)
            entry |= {"id": number, "image_id": image_id}
        by_image[image_id].append(entry)
    seen: set[int] = set()
    for image_id, group in by_image.items():
        if len({entry["id"] for entry in group}) < len(group):  # rare, and sorting by content is slow
            distinct = {json.dumps(entry, sort_keys=True): entry for entry in group}
            counts["annotations_twice"] += len(group) - len(distinct)
            by_image[image_id] = [distinct[key] for key in sorted(distinct)]
        for entry in by_image[image_id]:  # different persons under one id: both stay
            counts["annotation_ids_twice"] += entry["id"] in seen
            seen.add(entry["id"])
    return by_image


def _refuse_shared_files(images: Mapping[int, dict[str, Any]], annotations: Mapping[int, Any]) -> None:
    """Makes an error of images that name one file: each would be trained with the other's people as background."""
    by_name: dict[str, list[int]] = defaultdict(list)
    for image_id, entry in images.items():
        if isinstance(entry["file_name"], str):
            by_name[plain_name(entry["file_name"])].append(image_id)
    for ids in by_name.values():
        if len(ids) > 1 and any(image_id in annotations for image_id in ids):
            for image_id in ids:
                other = min(set(ids) - {image_id})
                images[image_id].setdefault("error", f"image {other} names the same file; join their annotations under one id")


def plain_name(file_name: str) -> str:
    """A file name in the one form in which names are compared: slashes, no `./`, composed characters (NFC)."""
    parts = unicodedata.normalize("NFC", file_name.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _annotation(entry: Mapping[str, Any], num_keypoints: int) -> Annotation:
    name = f"annotation {entry['id']}"
    without_box = entry.get("bbox", []) == []  # `box` makes one around the labelled points; null is a tool's fault
    x, y, width, height = _numbers([0, 0, 0, 0] if without_box else entry["bbox"], 4, f"{name}: bbox")
    is_crowd = entry.get("iscrowd") or 0
    if is_crowd not in (0, 1):
        raise AnnotationError(f"{name}: iscrowd {is_crowd!r} is neither 0 nor 1")
    area = None
    if entry.get("area") is not None:
        (area,) = _numbers([entry["area"]], 1, f"{name}: area")
        if area < 0:
            raise AnnotationError(f"{name}: area {area} is below 0")
    keypoints = np.zeros((num_keypoints, 3))
    if entry.get("keypoints"):
        values = _numbers(_labelled_only(entry["keypoints"]), 3 * num_keypoints, f"{name}: keypoints")
        if not set(values[2::3]) <= {0, 1, 2}:
            raise AnnotationError(f"{name}: visibilities {sorted(set(values[2::3]))} must be 0, 1 or 2")
        keypoints = np.array(values, np.float64).reshape(num_keypoints, 3)
        keypoints[keypoints[:, 2] == 0] = 0
    if without_box and not keypoints.any():
        raise AnnotationError(f"{name} has neither a bbox nor a labelled keypoint")
    given = entry.get("num_keypoints")
    number = int(np.count_nonzero(keypoints[:, 2])) if given is None else whole_number(given)
    if number is None or number < 0:
        raise AnnotationError(f"{name}: num_keypoints is {given!r}; a whole number from 0 up is needed")
    return Annotation(int(entry["id"]), (x, y, width, height), area, bool(is_crowd), keypoints, number)


def _labelled_only(keypoints: object) -> object:
    """The flat list of keypoints with zeros for points that are not labelled, whatever they hold; else as it is."""
    if not isinstance(keypoints, list):
        return keypoints
    if any(isinstance(point, list) for point in keypoints):  # a point that is not labelled may be null or empty
        points = [[0, 0, 0] if point is None or point == [] else point for point in keypoints]
        if all(isinstance(point, list) and len(point) == 3 for point in points):
            keypoints = [number for point in points for number in point]
    if len(keypoints) % 3 or (set(map(type, keypoints)) <= {int, float} and all(map(_is_finite, keypoints))):
        return keypoints
    flat = list(keypoints)
    for place in range(0, len(flat), 3):
        x, y, visibility = flat[place : place + 3]
        empty = all(_is_empty(value) for value in (x, y, visibility))
        if empty or (type(visibility) in (int, float) and visibility == 0):
            flat[place : place + 3] = [0, 0, 0]
    return flat


def _is_finite(number: float) -> bool:
    return abs(number) <= LARGEST


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def whole_number(value: object) -> int | None:
    """A whole number that a record can hold, also if it is written as a float or as text; None for anything else."""
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 2**63 or value != int(value):
        return None
    return int(value)


def _numbers(value: object, count: int, name: str) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        length = f"{len(value)} numbers" if isinstance(value, list) else repr(value)
        raise AnnotationError(f"{name} has {length}, {count} are needed")
    for number in value:
        if type(number) not in (int, float) or not abs(number) <= LARGEST:
            raise AnnotationError(f"{name} holds {number!r:.60}, which is no finite number of 32 bits")
    return [float(number) for number in value]
