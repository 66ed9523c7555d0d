"""What a caller gives as an image (a path, bytes, an array) → the bytes of a JPEG or PNG file without a stored rotation.

Answers are in the frame in which a viewer shows an image: a file that stores a rotation beside its pixels (EXIF orientation) is
turned before a model sees it. The pixels go on as a PNG, which changes none of them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from pipeline import image
from pipeline.command import UserError, reason_of
from pipeline.data_config import MAX_PIXELS, ResizeRule
from pipeline.files import open_regular

ImageInput = str | Path | bytes | npt.NDArray[Any]
LARGEST_FILE = 1 << 28  # bytes: no image is longer; a sparse file may be
_CHANNELS = (1, 3, 4)


def encoded_image(given: ImageInput, name: str) -> bytes:
    """The bytes of an image's file.

    Args:
      given: the path of a JPEG or PNG file; its bytes; or pixels, uint8 [h, w], [h, w, 1], [h, w, 3] (RGB) or [h, w, 4] (RGBA).
      name: of the image, for messages.

    Raises:
      UserError: the file cannot be read, or the pixels have another type or shape.
    """
    if isinstance(given, bytes):
        return given
    if isinstance(given, str | Path):
        return read_image_file(Path(given))
    pixels = np.asarray(given)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS or pixels.size == 0:
        raise UserError(
            f"{name}: an array {pixels.dtype} {list(np.shape(given))}; pixels must be uint8 [height, width, 3], RGB 0…255"
        )
    return _png(np.ascontiguousarray(pixels[..., :3]))


def read_image_file(path: Path) -> bytes:
    """A file's bytes. Raises: UserError for what cannot be read, is no regular file (a FIFO, a device) or is a giant."""
    try:
        with open_regular(path, LARGEST_FILE) as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be read ({reason}); replace or remove it") from None


def without_rotation(encoded: bytes, name: str, *, as_stored: bool = False) -> bytes:
    """The file itself if it stores no rotation, else its pixels as a PNG: as a viewer shows them, or `as_stored`.

    Raises:
      UserError: the file stores a rotation and cannot be decoded.
    """
    orientation = image.stored_orientation(encoded)
    if orientation == 1:
        return encoded
    image_size(encoded, name)
    pixels = decoded(encoded, name)
    return _png(pixels if as_stored else image.upright(pixels, orientation))


def shown_pixels(encoded: bytes, name: str, *, as_stored: bool = False) -> npt.NDArray[np.uint8]:
    """The pixels as a viewer shows them, or `as_stored`: uint8 [h, w, 3]. Raises: UserError for a damaged image."""
    pixels = decoded(encoded, name)
    return pixels if as_stored else image.upright(pixels, image.stored_orientation(encoded))


def image_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Height and width as stored, by the header alone. Raises: UserError for what is no JPEG or PNG, or too large."""
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_PIXELS} pixels; make it smaller") from None
    except Exception:  # Pillow's parsers raise many kinds for broken headers
        raise UserError(f"{name}: not a JPEG or PNG image ({len(encoded)} bytes); replace or remove it") from None
    if height * width > MAX_PIXELS:
        raise UserError(f"{name}: {width}×{height} (width × height) is more than {MAX_PIXELS} pixels; make it smaller")
    return height, width


def decoded(encoded: bytes, name: str) -> npt.NDArray[np.uint8]:
    """The pixels as stored, uint8 [h, w, 3]. Raises: UserError that names an image that is damaged."""
    try:
        pixels: npt.NDArray[np.uint8] = image.decode(tf.constant(encoded)).numpy()
        return pixels
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f"{name}: cannot be decoded ({reason_of(error)}); replace or remove it") from None


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Not compressed: it is decoded at once."""
    encoded: bytes = tf.io.encode_png(pixels, compression=0).numpy()
    return encoded


def letterbox(
    encoded: bytes, height: int, width: int, rule: ResizeRule = "standard"
) -> tuple[npt.NDArray[np.uint8], tuple[int, int], tuple[int, int]]:
    """Fits an image into a canvas of one size, top left, as large as it goes.

    Args:
      encoded: JPEG or PNG.
      height, width: of the canvas.
      rule: how the model's family resizes. torchvision's pixels are rounded: a TFLite file takes bytes.

    Returns:
      uint8 [height, width, 3]; the image's size inside the canvas; its own size (both height, width).
    """
    pixels = image.decode(tf.constant(encoded))
    own = (int(pixels.shape[0]), int(pixels.shape[1]))
    scale = min(height / own[0], width / own[1])
    inside = (max(1, min(height, int(own[0] * scale + 0.5))), max(1, min(width, int(own[1] * scale + 0.5))))
    resized = image.resize(pixels, *inside, "standard" if rule == "torchvision" else rule)  # they differ in the rounding alone
    return image.place(resized, height, width).numpy(), inside, own


def letterbox_file(path: Path, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The pixels that `letterbox` makes of a file as a viewer shows it. Raises: UserError for a file that is no image."""
    encoded = without_rotation(read_image_file(path), str(path))
    image_size(encoded, str(path))
    try:
        return letterbox(encoded, height, width)[0]
    except tf.errors.InvalidArgumentError:
        decoded(encoded, str(path))
        raise
