"""The folder of drawn images that `model.predict` leaves. Each file carries a mark, so that nothing else is ever removed."""

from __future__ import annotations

import io
from collections.abc import Set
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.annotation_file import plain_name
from pipeline.files import write_file

_MARK = "people drawn by model.predict"


def place(folder: Path, file_name: str) -> Path:
    """Where the drawing of an image goes; an image of a folder below goes to a folder below."""
    parts = [part for part in plain_name(file_name).split("/") if part not in ("", ".", "..")]
    return folder.joinpath(*parts)


def crop_names(file_name: str, people: int) -> list[str]:
    """The names of an image's cut out people, from 1: photograph_1.jpg, photograph_2.jpg."""
    stem, dot, ending = file_name.rpartition(".")
    return [f"{stem}_{number}{dot}{ending}" for number in range(1, people + 1)]


def cut_out(pixels: npt.NDArray[np.uint8], box: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """What a box, x0, y0, x1, y1 in pixels, holds of an image; at least one pixel."""
    height, width = pixels.shape[:2]
    x0, y0 = (int(min(max(low, 0), side - 1)) for low, side in zip(box[:2], (width, height), strict=True))
    x1, y1 = (
        int(min(max(np.ceil(high), low + 1), side)) for high, low, side in zip(box[2:], (x0, y0), (width, height), strict=True)
    )
    return pixels[y0:y1, x0:x1]


def write(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Writes pixels in the format that the name says, whole or not at all. Raises: OSError."""
    encoded = io.BytesIO()
    drawn = Image.fromarray(pixels)
    if path.suffix.lower() == ".png":
        mark = PngInfo()
        mark.add_text("Comment", _MARK)
        drawn.save(encoded, "PNG", pnginfo=mark)
    else:
        drawn.save(encoded, "JPEG", quality=90, comment=_MARK)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, encoded.getvalue())


def remove_others(folder: Path, file_names: Set[str]) -> int:
    """Removes the drawings of earlier runs except those of some images, and folders that are empty then; returns how many."""
    if not folder.is_dir():
        return 0
    keep = {place(folder, name) for name in file_names}
    removed = 0
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folders that they lie in
        if path.is_dir() and not path.is_symlink():
            _remove_if_empty(path)
        elif path not in keep and _is_drawing(path):
            path.unlink()
            removed += 1
    if not keep:
        _remove_if_empty(folder)
    return removed


def _is_drawing(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as drawn:
            comment = drawn.info.get("comment", drawn.info.get("Comment", b""))
    except Exception:  # Pillow's parsers raise many kinds; this command wrote no such file
        return False
    return comment in (_MARK, _MARK.encode())


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
