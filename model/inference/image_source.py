"""Where images come from: a file, a folder with its subfolders, a glob, a zip, or a place of Beam's filesystems (gs://, s3://…)."""

from __future__ import annotations

import functools
import glob
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from model.inference.image_folder import SUFFIXES, look_into, some_of
from model.inference.image_input import LARGEST_FILE
from model.inference.image_names import FoundImage
from pipeline import storage
from pipeline.annotation_file import plain_name
from pipeline.command import UserError, counted, reason_of
from pipeline.writing.image_files import ZipMember, find_members, is_zip, member_names, read_member

_GLOB = "*?["


def find_images(given: str, *, subfolders: bool = False, may_be_empty: bool = False) -> tuple[list[FoundImage], list[str]]:
    """The images that a value of `--input` names, sorted by name, and a line for each kind of thing that is passed over.

    Args:
      given: an image, a folder, a glob (with ** for folders below), a zip file, or a URL of any of these.
      subfolders: whether images in folders below a folder are taken, too; their names then have the folders' before them.
      may_be_empty: whether a folder without images is none that is wrong, as annotations may name files below it.

    Raises:
      UserError: nothing there, no image in it, or a zip that is damaged.
    """
    storage.check(given.partition("*")[0].rpartition("/")[0] if storage.is_url(given) else given)
    if is_zip(given):
        return _in_zip(given)
    if storage.is_url(given):
        return _of_url(given, subfolders)
    if not Path(given).exists() and any(sign in given for sign in _GLOB):
        return _of_glob(given)
    if subfolders and Path(given).is_dir():
        return _below(Path(given))
    paths, notes = look_into(Path(given), may_be_empty=may_be_empty)
    return [FoundImage(path, path.name) for path in paths], notes


def _below(folder: Path) -> tuple[list[FoundImage], list[str]]:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    chosen, notes = _chosen(names)
    if not chosen:
        raise UserError(f"--input={folder}: no images in it or below; their names must end in {', '.join([*SUFFIXES, *notes])}")
    return [FoundImage(folder / name, name) for name in chosen], notes


def _of_glob(pattern: str) -> tuple[list[FoundImage], list[str]]:
    fixed = PurePosixPath(*_before_signs(PurePosixPath(pattern).parts))
    paths = sorted(Path(found) for found in glob.glob(pattern, recursive=True) if Path(found).is_file())  # noqa: PTH207 (keeps **)
    by_name = {path.relative_to(fixed).as_posix(): path for path in paths}
    chosen, notes = _chosen(by_name)
    if not chosen:
        raise UserError(f"--input={pattern}: matches no image; names must end in {', '.join([*SUFFIXES, *notes])}")
    return [FoundImage(by_name[name], name) for name in chosen], notes


def _before_signs(parts: Iterable[str]) -> list[str]:
    """The folders before the first that has a sign of a glob."""
    fixed: list[str] = []
    for part in parts:
        if any(sign in part for sign in _GLOB):
            break
        fixed.append(part)
    return fixed


def _chosen(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those names that an image has, sorted, and a line on the others."""
    chosen: list[str] = []
    hidden: list[str] = []
    others: list[str] = []
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            hidden.append(name)
        else:
            (chosen if parts[-1].lower().endswith(SUFFIXES) else others).append(name)
    kinds = {"hidden files": hidden, f"files whose names do not end in {', '.join(SUFFIXES)}": others}
    return chosen, [f"passed over: {len(some)} {kind}: {some_of(some)}" for kind, some in kinds.items() if some]


def _in_zip(location: str) -> tuple[list[FoundImage], list[str]]:
    names = member_names(location)
    chosen, notes = _chosen(dict.fromkeys(names))
    repeated = sorted({name for name in chosen if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not chosen:
        raise UserError(f"--input={location}: no images in it; their names must end in {', '.join([*SUFFIXES, *notes])}")
    if repeated:
        notes.append(f"{counted(len(repeated), 'name')} several times in the zip: {some_of(repeated)}")
    archive = functools.cache(lambda: storage.open_for_reading(location))
    images = []
    for name, member in find_members(location, chosen).items():
        state = (member.content_bytes, member.crc32) if isinstance(member, ZipMember) else (0, 0)
        images.append(FoundImage(Path(location, name), name, _member_reader(f"{location}/{name}", archive, member), state))
    return images, notes


def _member_reader(location: str, archive: Callable[[], BinaryIO], member: ZipMember | str) -> Callable[[], bytes]:
    def read() -> bytes:
        if isinstance(member, str):
            raise UserError(f"{location}: {member}; replace or remove it")
        try:
            return read_member(archive(), member)
        except (OSError, ValueError) as error:
            raise UserError(f"{location}: cannot be read ({reason_of(error)}); replace or remove it") from None

    return read


def _of_url(given: str, subfolders: bool) -> tuple[list[FoundImage], list[str]]:
    if any(sign in given for sign in _GLOB):
        pattern, folder = given, given[: min(given.index(sign) for sign in _GLOB if sign in given)].rpartition("/")[0]
    elif given.lower().endswith(SUFFIXES):
        pattern, folder = given, given.rpartition("/")[0]
    else:
        folder = given.rstrip("/")
        pattern = f"{folder}/{'**' if subfolders else '*'}"
    files = {path.removeprefix(folder).lstrip("/"): (path, size) for path, size in storage.matches(pattern).items()}
    chosen, notes = _chosen(files)
    if not chosen:
        raise UserError(f"--input={given}: no images there; their names must end in {', '.join([*SUFFIXES, *notes])}")
    return [
        FoundImage(Path(plain_name(name)), name, _url_reader(files[name][0]), (files[name][1], 0)) for name in chosen
    ], notes


def _url_reader(location: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return storage.read(location, LARGEST_FILE)
        except OSError as error:
            raise UserError(f"{location}: cannot be read ({reason_of(error)}); replace or remove it") from None

    return read
