"""Which image a file name belongs to, and which id an image has: between a folder and the annotations of a COCO JSON."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pipeline.annotation_file import load_json, plain_name
from pipeline.checked_annotation import whole_number
from pipeline.command import UserError

LARGEST_ID = 2**53  # up to which every reader of JSON keeps whole numbers as they are


def _last_part(file_name: str) -> str:
    return plain_name(file_name).rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class ImageEntry:
    """What annotations say of one image; None stands for what they do not say. Sizes are in pixels."""

    file_name: str | None
    height: int | None
    width: int | None

    @staticmethod
    def from_json(image: Mapping[str, Any]) -> ImageEntry:
        """Reads an entry of the JSON's `images`; a value of another type counts as not said."""
        name, *sides = image.get("file_name"), whole_number(image.get("height")), whole_number(image.get("width"))
        height, width = (side if side is not None and 0 < side < 2**31 else None for side in sides)
        return ImageEntry(name if isinstance(name, str) and name else None, height, width)


@dataclasses.dataclass(frozen=True)
class ImageNames:
    """Images by id, found by their file names."""

    entries: Mapping[int, ImageEntry]

    @cached_property
    def _ids(self) -> Mapping[str, int | None]:
        """The image of each whole name, and of each last part of one; None stands for several images."""
        ids: dict[str, int | None] = {}
        names = [(image_id, entry.file_name) for image_id, entry in self.entries.items() if entry.file_name]
        for key_of in (_last_part, plain_name):  # a whole name wins over another one's last part
            found: dict[str, int | None] = {}
            for image_id, name in names:
                key = key_of(name)
                found[key] = None if found.get(key, image_id) != image_id else image_id
            ids |= found
        return ids

    def __bool__(self) -> bool:
        return bool(self._ids)

    def id_of(self, file_name: str) -> int:
        """The id of the image with that file name, or with that last part of one.

        Raises:
          KeyError: there is no such image; ValueError: there are several.
        """
        image_id: int | None = self._ids[plain_name(file_name)]
        if image_id is None:
            raise ValueError(f"several images are called {file_name!r}")
        return image_id

    def ids_called(self, file_name: str) -> frozenset[int]:
        """The ids of all images whose file name has that last part."""
        return self._ids_by_last_part.get(_last_part(file_name), frozenset())

    @cached_property
    def _ids_by_last_part(self) -> Mapping[str, frozenset[int]]:
        ids: dict[str, set[int]] = {}
        for image_id, entry in self.entries.items():
            if entry.file_name:
                ids.setdefault(_last_part(entry.file_name), set()).add(image_id)
        return {name: frozenset(called) for name, called in ids.items()}


@dataclasses.dataclass(frozen=True)
class FoundImage:
    """An image of a folder, a zip or a store.

    Attributes:
      path: of the file; of what is no file on a disk, the name by which messages call it.
      file_name: with the folders below the one that was given before it.
      read: gives the file's bytes, and raises UserError if it cannot; None: `path` is read.
      state: of what is no file on a disk: another one is another image.
    """

    path: Path
    file_name: str
    read: Callable[[], bytes] | None = None
    state: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class NumberedImage:
    """A file to look at, and what its people are listed under.

    Attributes:
      path: of the file.
      file_name, image_id: in `predictions.json`.
      size: height and width that annotations give it; None if they give none.
      found: where it lies, if that is not simply `path`.
    """

    path: Path
    file_name: str
    image_id: int
    size: tuple[int, int] | None = None
    found: FoundImage | None = None


def image_id_of(path: Path, position: int) -> int:
    """The number that ends a file's name (000000000139.jpg → 139), else its position in the sorted folder, from 0."""
    digits = re.search(r"[0-9]+$", path.stem)
    return int(digits.group()) if digits else position


def _all_found(files: Sequence[Path] | Sequence[FoundImage]) -> list[FoundImage]:
    return [one if isinstance(one, FoundImage) else FoundImage(one, one.name) for one in files]


def numbered(files: Sequence[Path] | Sequence[FoundImage]) -> tuple[list[NumberedImage], str]:
    """Files with ids of which no two are equal, and the rule that gave them, as a sentence.

    The id is `image_id_of`; if that gives two files one id, or one above `LARGEST_ID`, every file's id is its position.
    """
    found = _all_found(files)
    ids = [image_id_of(Path(one.file_name), position) for position, one in enumerate(found)]
    rule = "image_id is the number that ends a file's name, else its position in the sorted folder, from 0"
    if len(set(ids)) < len(ids) or max(ids, default=0) > LARGEST_ID:
        what = "two files have one number" if len(set(ids)) < len(ids) else f"a number is above {LARGEST_ID}"
        rule = f"image_id is a file's position in the sorted folder, from 0: by the numbers that end their names, {what}"
        ids = list(range(len(found)))
    return [NumberedImage(one.path, one.file_name, i, found=one) for one, i in zip(found, ids, strict=True)], rule


def read_image_names(path: str | Path) -> ImageNames:
    """The images of a COCO JSON; their people need not be in it.

    Raises:
      UserError: no such file, no JSON, no list of images, or an image without an id and a file name.
    """
    value = load_json(path)
    images = value.get("images") if isinstance(value, dict) else None
    if not isinstance(images, list) or not images:
        raise UserError(f"{path}: has no list of images; give a COCO JSON, whose images have id and file_name")
    entries: dict[int, ImageEntry] = {}
    for place, image in enumerate(images):
        entry = ImageEntry.from_json(image) if isinstance(image, dict) else None
        image_id = whole_number(image.get("id")) if isinstance(image, dict) else None
        if entry is None or entry.file_name is None or image_id is None or image_id < 0:
            raise UserError(f"{path}: images[{place}] needs an id (a whole number from 0 up) and a file_name; correct it")
        if entries.setdefault(image_id, entry).file_name != entry.file_name:
            raise UserError(f"{path}: images[{place}] has the id {image_id} of another image; give each its own")
    return ImageNames(entries)


def annotated(
    given: Path, files: Sequence[Path] | Sequence[FoundImage], names: ImageNames, source: str
) -> tuple[list[NumberedImage], list[str]]:
    """The images of annotations that lie in a folder, with the annotations' ids and names.

    Args:
      given: the folder that the annotations' file names are relative to; if they are not, their last parts count. Or one file.
      files: the images that lie in the folder itself, or that file; or those of a zip or a store.
      source: the annotations' file, for messages.

    Returns:
      The images by id, and a line for each kind that is left out: images that are missing, files without annotations.

    Raises:
      UserError: no image of the annotations is there.
    """
    folder = given if given.is_dir() else None
    found: list[NumberedImage] = []
    missing: list[str] = []
    there = _all_found(files)
    by_name = {plain_name(one.file_name): one for one in there}
    by_last_part = {_last_part(one.file_name): one for one in there}
    for image_id, entry in sorted(names.entries.items()):
        assert entry.file_name is not None
        one = by_name.get(plain_name(entry.file_name))
        if one is None and folder is not None and (path := _nested(folder, entry.file_name)) is not None:
            one = FoundImage(path, path.name)
        if one is None and len(names.ids_called(entry.file_name)) == 1:
            one = by_last_part.get(_last_part(entry.file_name))
        if one is None:
            missing.append(entry.file_name)
        else:
            size = None if entry.height is None or entry.width is None else (entry.height, entry.width)
            found.append(NumberedImage(one.path, entry.file_name, image_id, size, one))
    if not found:
        raise UserError(
            f"--annotations={source}: none of its {len(missing)} images is in --input={given}; the first is {missing[0]!r}"
        )
    notes = []
    if missing and folder is not None:
        what = f"{len(missing)} of {len(names.entries)} images of {source}"
        notes.append(f"{what} are not in {given}; the first is {missing[0]!r}")
    unknown = sorted({one.path.name for one in there} - {one.path.name for one in found})
    if unknown:
        what = f"{len(unknown)} of {len(files)} images of {given}"
        notes.append(f"passed over: {what}, which are not in {source}; the first is {unknown[0]!r}")
    return found, notes


def _nested(folder: Path, file_name: str) -> Path | None:
    """The file in a folder below, if the name leads there and not out of `folder`."""
    if PureWindowsPath(file_name).anchor or PurePosixPath(file_name).is_absolute() or "\0" in file_name:
        return None
    for name in (file_name, plain_name(file_name)):
        if ".." not in PurePosixPath(plain_name(name)).parts and (folder / name).exists():
            return folder / name
    return None
