"""A COCO keypoint file as it is: one choice of category, for conversion and evaluation alike.

What tools write in several ways is read in all of them: compressed files, ids as text, sizes that are missing. Each annotation
is checked by `checked_annotation.py`.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import licences, storage
from pipeline.checked_annotation import Annotation, AnnotationError, checked_annotation, is_empty, whole_number
from pipeline.command import UserError, reason_of
from pipeline.skeleton import Skeleton, read_category

ALL_CATEGORIES = "all"  # joins all categories that have keypoints
KEYPOINT_FILE = "person_keypoints_*.json"  # as COCO calls those of its files that have keypoints


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
        annotation = checked_annotation(entry, self.skeleton.num_keypoints)
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
        if all(is_empty(entry[side]) or entry[side] == "" for side in ("height", "width")):
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
