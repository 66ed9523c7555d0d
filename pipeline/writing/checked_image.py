"""Whether an image's file is sound, and what becomes of it: taken as it is, turned upright, or made smaller.

A file is sound if training's own decoder (TensorFlow's) reads it. A record holds the file's bytes as they are, with two
exceptions, in which the pixels are written anew and all metadata is dropped: a stored rotation (EXIF) that the annotations mean
to be applied, and an image of more pixels than were wanted.
"""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
import zlib
from typing import Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from pipeline import image
from pipeline.coco import CocoImage
from pipeline.command import reason_of
from pipeline.data_config import MAX_PIXELS
from pipeline.image_writer import encode

JPEG_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan: of what comes after it; FF 00 is data, D0…D7 restart it
_HEIF = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF"}  # brands of ISO 14496-12's ftyp box


class ImageError(Exception):
    """Why an image cannot become a record."""


@dataclasses.dataclass(frozen=True)
class ImageRules:
    """What is done with sound images.

    Attributes:
      max_pixels: the most pixels of an image that is decoded; an image of more is an error.
      shrink_larger_than: images of more pixels are shrunk to this number; 0 leaves all as they are.
      turn_ambiguous: a stored rotation is applied if the annotations' size fits both ways, too (half turns, mirrors, squares).
    """

    max_pixels: int = MAX_PIXELS
    shrink_larger_than: int = 0
    turn_ambiguous: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedImage:
    """A sound image, ready for its record.

    Attributes:
      entry: its annotations, in pixels of the image as it is now.
      content: the encoded bytes.
      turned: a stored rotation was applied.
      shrunk: the image was made smaller.
      ambiguous: the annotations' size does not tell whether they mean the image with its stored rotation.
      upright: 1 if the size tells that they do, −1 if it tells that they mean the image as stored, 0 if it tells nothing.
    """

    entry: CocoImage
    content: bytes
    image_format: Literal["jpeg", "png"]
    turned: bool = False
    shrunk: bool = False
    ambiguous: bool = False
    upright: int = 0


def check_image(content: bytes, entry: CocoImage, rules: ImageRules = ImageRules()) -> CheckedImage:
    """Checks the file of an image against its entry, and turns or shrinks it if it must be.

    A JPEG's header and tables are read and its scan is followed to the end (0.5 ms); its pixels are decoded only if it is not
    one plain scan between sound ends, since TensorFlow's decoder accepts damaged data there. A PNG is decoded.

    Raises:
      ImageError: the reason in words.
    """
    image_format, height, width = stored_size(content)
    shrunk = 0 < rules.shrink_larger_than < height * width
    ratio = 1  # by which a JPEG is decoded smaller at little cost
    while shrunk and image_format == "jpeg" and ratio < 8 and height * width >= rules.shrink_larger_than * (2 * ratio) ** 2:
        ratio *= 2
    if height * width > rules.max_pixels * ratio**2:
        raise ImageError(_too_large(height, width, rules.max_pixels))
    orientation = image.stored_orientation(content)
    shown = (width, height) if image.swaps_sides(orientation) else (height, width)
    wanted = (entry.height, entry.width)
    if wanted not in ((height, width), shown):
        raise ImageError(f"{width}×{height} pixels, the annotations say {entry.width}×{entry.height}")
    ambiguous = orientation != 1 and shown == (height, width)
    turned = rules.turn_ambiguous if ambiguous else wanted != (height, width)
    upright = 0 if shown == (height, width) or entry.without_size else (1 if turned else -1)
    if not turned and not shrunk:
        _check_decodes(content, image_format)
        return CheckedImage(entry, content, image_format, ambiguous=ambiguous, upright=upright)
    pixels = _decoded(content, image_format, ratio)
    if shrunk:
        pixels = _shrunk(pixels, height, width, rules.shrink_larger_than)
    if turned:
        pixels = image.upright(pixels, orientation)
    entry = _scaled(entry, *pixels.shape[:2])
    return CheckedImage(entry, encode(pixels, image_format), image_format, turned, shrunk, ambiguous, upright)


def stored_size(content: bytes) -> tuple[Literal["jpeg", "png"], int, int]:
    """Format, height and width in pixels as the header says, without a stored rotation.

    Raises:
      ImageError: the file is neither JPEG nor PNG, or has no whole header.
    """
    if content.startswith(image.PNG_SIGNATURE) and content[12:16] == b"IHDR" and len(content) >= 33:
        image_format, height, width = "png", int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
    elif content.startswith(image.JPEG_SIGNATURE):
        try:
            height, width, _ = tf.io.extract_jpeg_shape(content).numpy().tolist()
        except tf.errors.OpError as error:
            raise ImageError(f"truncated or no image ({_reason_of_pillow(content) or reason_of(error)})") from None
        image_format = "jpeg"
    else:
        raise ImageError(_unknown(content))
    if height < 1 or width < 1:
        raise ImageError(f"truncated or no image ({width}×{height} pixels in the header)")
    return ("png" if image_format == "png" else "jpeg"), height, width


def _too_large(height: int, width: int, most: int) -> str:
    way_out = "--max_pixels raises the limit, --shrink_larger_than makes such images smaller"
    if height * width > 4 * most:
        return f"far more pixels in the header ({width}×{height}) than the {most} that are decoded; {way_out}"
    return f"{width}×{height} pixels in the header, at most {most} are decoded; {way_out}"


def _check_decodes(content: bytes, image_format: Literal["jpeg", "png"]) -> None:
    """Raises: ImageError if the file does not end as it should, or TensorFlow's decoder does not read it."""
    if image_format == "png":
        _check_chunks(content)
        _decoded(content, image_format)
        return
    if not content.endswith(JPEG_END) and (reason := _reason_of_pillow(content)).startswith("image file is truncated"):
        raise ImageError(f"truncated or no image ({reason})")
    scan = next((end for marker, _, end in image.jpeg_segments(content) if marker == image.START_OF_SCAN), len(content))
    next_marker = _MARKER.search(content, scan)
    if next_marker is None or next_marker.group() != JPEG_END:
        _decoded(content, image_format)
        return
    try:
        tf.io.decode_and_crop_jpeg(content, [0, 0, 1, 1], channels=3, dct_method="INTEGER_ACCURATE")
    except tf.errors.OpError as error:
        raise ImageError(f"truncated or no image ({_reason_of_pillow(content) or reason_of(error)})") from None


def _check_chunks(content: bytes) -> None:
    """Raises: ImageError if a PNG's chunks do not reach its end with sound checksums, or hold no image data."""
    place, names = len(image.PNG_SIGNATURE), set()
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        name = content[place + 4 : place + 8]
        if end + 4 > len(content):
            break
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise ImageError(f"truncated or no image (the checksum of its chunk {name.decode('latin-1')!r} is wrong)")
        names.add(name)
        if name == b"IEND":
            break
        place = end + 4
    if b"IDAT" not in names or b"IEND" not in names:
        missing = "image data" if b"IDAT" not in names else "end"
        raise ImageError(f"truncated or no image (a PNG without {missing})")


def _decoded(content: bytes, image_format: Literal["jpeg", "png"], ratio: int = 1) -> npt.NDArray[np.uint8]:
    """uint8 [h, w, 3] as `pipeline.image.decode` has it for training, of a JPEG also at a half, a quarter, an eighth."""
    try:
        if image_format == "png":
            pixels = tf.io.decode_png(content, channels=3)
        else:
            pixels = tf.io.decode_jpeg(content, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")
    except tf.errors.OpError as error:
        raise ImageError(f"truncated or no image ({_reason_of_pillow(content) or reason_of(error)})") from None
    decoded: npt.NDArray[np.uint8] = pixels.numpy()
    return decoded


def _shrunk(pixels: npt.NDArray[np.uint8], height: int, width: int, most: int) -> npt.NDArray[np.uint8]:
    """Makes an image smaller in its proportions.

    Args:
      pixels: uint8 [h, w, 3], perhaps decoded at a fraction of the size in the header.
      height, width: in the header.
      most: number of pixels that the result has at most.
    """
    scale = (most / (height * width)) ** 0.5
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _scaled(entry: CocoImage, height: int, width: int) -> CocoImage:
    """The entry in pixels of the same image of another size."""
    x, y = width / entry.width, height / entry.height
    if (x, y) == (1.0, 1.0):
        return entry
    persons = tuple(
        dataclasses.replace(
            person,
            box=(person.box[0] * x, person.box[1] * y, person.box[2] * x, person.box[3] * y),
            area=person.area * x * y,
            keypoints=person.keypoints * (x, y, 1.0),
        )
        for person in entry.persons
    )
    return dataclasses.replace(entry, height=height, width=width, persons=persons)


def _unknown(content: bytes) -> str:
    """What a file is that is neither JPEG nor PNG."""
    name = _HEIF.get(content[8:12], "") if content[4:8] == b"ftyp" else ""
    reason = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as opened:
                name = name or opened.format or ""
    except Exception as error:
        reason = str(error).partition(" <")[0] or type(error).__name__  # (without the address of a buffer)
    if name and name not in ("JPEG", "MPO", "PNG"):
        return f"a {name} file; JPEG and PNG are read"
    return f"truncated or no image ({reason or 'its header is damaged'})"


def _reason_of_pillow(content: bytes) -> str:
    """Why Pillow does not read a file that TensorFlow refuses: it says more. "" if it reads the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as opened:
                opened.load()
    except Exception as error:
        return str(error).partition(" <")[0] or type(error).__name__
    return ""
