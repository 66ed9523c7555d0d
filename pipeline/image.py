"""From a file's bytes to the pixels that the model sees: one preprocessing for training, evaluation and exported models.

Everything here is TensorFlow and runs alike in tf.data, in a SavedModel and eagerly. Pixels are RGB, 0…255, and uint8 where the
family's rule has them so; the model normalises them, and reorders the channels where its family wants BGR.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.data_config import ResizeRule
from pipeline.pillow_resize import pillow_resize

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"


def decode(image_bytes: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG file to RGB.

    Grey images become three equal channels, CMYK is converted, an alpha channel is dropped, 16 bits become 8. A stored
    rotation (EXIF) is not applied. JPEGs are decoded with libjpeg's accurate method, to the same pixels as in Pillow.

    Args:
      image_bytes: scalar string, the file. What does not begin like a PNG is taken for a JPEG.

    Returns:
      uint8 [h, w, 3].

    Raises:
      tf.errors.InvalidArgumentError: the file is neither a JPEG nor a PNG, or is broken.
    """
    image = tf.cond(
        tf.strings.substr(image_bytes, 0, len(PNG_SIGNATURE)) == PNG_SIGNATURE,
        lambda: tf.io.decode_png(image_bytes, channels=3),
        lambda: tf.io.decode_jpeg(image_bytes, channels=3, dct_method="INTEGER_ACCURATE"),
    )
    image.set_shape([None, None, 3])
    return image


def resized_size_tf(
    height: tf.Tensor,
    width: tf.Tensor,
    short_edge: tf.Tensor | int,
    max_edge: tf.Tensor | int,
    rule: ResizeRule = "standard",
) -> tuple[tf.Tensor, tf.Tensor]:
    """The size at which an image is seen: `data_config.resized_size` in TensorFlow, equal to it everywhere.

    Args:
      height, width: pixels, integer tensors of one shape.
      short_edge: pixels that the shorter side is resized to.
      max_edge: pixels that the longer side may have; it wins over `short_edge`.
      rule: the model's family.

    Returns:
      int32 height and width, at least 1.
    """
    # float64, and the operations in the other one's order: a product close to a half would otherwise fall either way.
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    short_edge, max_edge = tf.cast(short_edge, tf.float64), tf.cast(max_edge, tf.float64)
    shorter, longer = tf.minimum(height, width), tf.maximum(height, width)
    if rule == "matterport":
        scale = tf.maximum(tf.constant(1.0, tf.float64), short_edge / shorter)
        scale = tf.where(tf.round(longer * scale) > max_edge, max_edge / longer, scale)
        rounded = [tf.maximum(tf.cast(tf.round(side * scale), tf.int32), 1) for side in (height, width)]  # half to even
        return rounded[0], rounded[1]
    if rule == "detectron2":
        scale = short_edge / shorter
        again = max_edge / (longer * scale)
        too_long = longer * scale > max_edge
        sides = [tf.where(side == shorter, short_edge, side * scale) for side in (height, width)]
        sides = [tf.where(too_long, side * again, side) for side in sides]
    else:
        scale = tf.minimum(short_edge / shorter, max_edge / longer)
        sides = [side * scale for side in (height, width)]
    half = 0.0 if rule == "torchvision" else 0.5
    resized = [tf.maximum(tf.cast(side + half, tf.int32), 1) for side in sides]
    return resized[0], resized[1]


def pixel_dtype(rule: ResizeRule) -> tf.DType:
    """The dtype of what `resize` gives: float32 under torchvision's rule, which never rounds; else uint8."""
    return tf.float32 if rule == "torchvision" else tf.uint8


def resize(image: tf.Tensor, height: tf.Tensor, width: tf.Tensor, rule: ResizeRule = "standard") -> tf.Tensor:
    """Bilinear with half-pixel centres, as the model's family does it (see `data_config.ResizeRule`).

    Args:
      image: uint8 [h, w, 3].
      height, width: integer scalars.
      rule: the model's family.

    Returns:
      [height, width, 3] of `pixel_dtype(rule)`, 0…255.
    """
    if rule in ("detectron2", "matterport"):
        return pillow_resize(image, height, width)
    size = tf.stack([height, width])
    if rule == "torchvision":
        # Normalising before the resize or after it gives the same values up to rounding, since the weights sum to one.
        return tf.image.resize(tf.cast(image, tf.float32), size)
    # For the same reason, half added to the small source instead of the large result rounds it just as well; and the kernel is
    # much faster on floats than on bytes.
    return tf.cast(tf.image.resize(tf.cast(image, tf.float32) + 0.5, size), tf.uint8)


def flip(image: tf.Tensor) -> tf.Tensor:
    """Exchanges left and right; [h, w, 3]. Called before `resize`, while there are fewer pixels to move."""
    return tf.reverse(image, axis=[1])


def place(image: tf.Tensor, canvas_height: tf.Tensor, canvas_width: tf.Tensor) -> tf.Tensor:
    """Puts an image at the top left of a canvas of zeros.

    Args:
      image: [h, w, 3] of any type, not larger than the canvas.
      canvas_height, canvas_width: integer scalars.

    Returns:
      [canvas_height, canvas_width, 3] of that type.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    rows = tf.reshape(image, [height, 3 * width])  # padding in two dimensions is several times faster than in three
    rows = tf.pad(rows, [[0, canvas_height - height], [0, 3 * (canvas_width - width)]])
    return tf.reshape(rows, [canvas_height, canvas_width, 3])


def covered(image_size: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Which pixels of a canvas the images cover, which lie at its top left: bool [B, height, width, 1].

    Args:
      image_size: int32 [B, 2], height and width of the images.
      height, width: of the canvas.
    """
    rows = tf.expand_dims(tf.range(height), 0) < image_size[:, :1]  # [B, H]
    columns = tf.expand_dims(tf.range(width), 0) < image_size[:, 1:]  # [B, W]
    return tf.expand_dims(tf.expand_dims(rows, 2) & tf.expand_dims(columns, 1), 3)


# What follows reads and applies the rotation that a file stores beside its pixels (EXIF orientation). A viewer applies it, a
# decoder does not. Everything that a user sees of an image (predictions, sheets, examples) is in the frame of a viewer.
_EXIF_SEARCHED = 1 << 16  # bytes at a file's start in which its EXIF block begins, if it has one
_ORIENTATION = 0x0112  # TIFF 6.0's tag 274; values 1…8 as in EXIF 2.3, section 4.6.4
START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # markers of JPEG that no segment follows


def stored_orientation(content: bytes) -> int:
    """The EXIF orientation of a JPEG or PNG file.

    Only the first 64 kB are looked at. A malformed block is no error, and nothing but the orientation is read of it.

    Args:
      content: the file, or its first 64 kB.

    Returns:
      1…8 as EXIF has them, for `upright`; 1 (upright already) if the file holds no orientation that can be read.
    """
    content = content[:_EXIF_SEARCHED]
    blocks = _exif_of_png(content) if content.startswith(PNG_SIGNATURE) else _exif_of_jpeg(content)
    for block in blocks:
        orientation = _orientation_in(block)
        if orientation:
            return orientation
    return 1


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG up to its first scan (ITU-T T.81, B.1): marker, and where the payload begins and ends."""
    place = 2
    while content.startswith(JPEG_SIGNATURE) and place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif marker == _END_OF_IMAGE:
            return
        else:
            end = place + 2 + max(2, int.from_bytes(content[place + 2 : place + 4], "big"))
            yield marker, place + 4, end
            if marker == START_OF_SCAN:
                return
            place = end


def _exif_of_jpeg(content: bytes) -> Iterator[bytes]:
    """The TIFF structures of a JPEG's APP1 segments."""
    for marker, start, end in jpeg_segments(content):
        if marker == _APP1 and content[start : start + 6] == b"Exif\0\0":
            yield content[start + 6 : end]


def _exif_of_png(content: bytes) -> Iterator[bytes]:
    """The TIFF structure of a PNG's eXIf chunk; some programs begin it as a JPEG's segment begins."""
    place = len(PNG_SIGNATURE)
    while place + 8 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] == b"eXIf":
            yield content[place + 8 : end].removeprefix(b"Exif\0\0")
        place = end + 4  # (a checksum follows)


def _orientation_in(tiff: bytes) -> int:
    """The orientation in the first directory of a TIFF structure; 0 if it has none of 1…8."""
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        return 0

    def number(start: int, size: int) -> int:  # (what lies beyond the end reads as 0)
        return int.from_bytes(tiff[start : start + size], "little" if tiff[0] == ord("I") else "big")

    directory = number(4, 4)
    for i in range(number(directory, 2)):
        entry = directory + 2 + 12 * i
        if entry + 12 > len(tiff):
            break
        size = {3: 2, 4: 4}.get(number(entry + 2, 2))  # SHORT, as EXIF wants it, or LONG
        if number(entry, 2) == _ORIENTATION and size is not None and number(entry + 4, 4) == 1:
            orientation = number(entry + 8, size)
            return orientation if 1 <= orientation <= 8 else 0
    return 0


def swaps_sides(orientation: int) -> bool:
    """Whether `upright` exchanges height and width."""
    return orientation >= 5


def upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turns and mirrors decoded pixels as a viewer shows them.

    Args:
      pixels: [h, w, …] of any type, as stored.
      orientation: 1…8, as `stored_orientation` gives it.

    Returns:
      [h, w, …], or [w, h, …] if `swaps_sides`; a new array unless the orientation is 1.
    """
    if swaps_sides(orientation):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
