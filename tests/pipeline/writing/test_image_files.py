from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.coco import CocoImage
from pipeline.writing.checked_image import ImageError, check_image
from pipeline.writing.image_files import read_all

HEIGHT, WIDTH = 40, 60
# Left half red, lower right quarter blue: what a rotation moves.
PIXELS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PIXELS[:, : WIDTH // 2, 0] = 255
PIXELS[HEIGHT // 2 :, WIDTH // 2 :, 2] = 255


def encoded(image_format: str = "JPEG", *, mode: str = "RGB", orientation: int = 0, **options: Any) -> bytes:
    image = Image.fromarray(PIXELS).convert(mode)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def read(folder: Path, content: bytes | None, height: int = HEIGHT, width: int = WIDTH) -> tuple[bytes, str, bool]:
    if content is not None:
        (folder / "a.jpg").write_bytes(content)
    ((entry, file),) = read_all(str(folder), [(CocoImage(1, "a.jpg", height, width, ()), None)])
    if isinstance(file, ImageError):
        raise file
    checked = check_image(file, entry)
    assert checked.entry is entry and not checked.shrunk
    return checked.content, checked.image_format, checked.turned


@pytest.mark.parametrize(
    ("options", "image_format"),
    [
        ({}, "jpeg"),
        ({"mode": "L"}, "jpeg"),
        ({"mode": "CMYK"}, "jpeg"),
        ({"progressive": True}, "jpeg"),
        ({"image_format": "PNG"}, "png"),
        ({"image_format": "PNG", "mode": "RGBA"}, "png"),
        ({"image_format": "PNG", "mode": "P"}, "png"),
    ],
)
def test_sound_files_are_taken_as_they_are(tmp_path: Path, options: dict[str, Any], image_format: str) -> None:
    content = encoded(**options)
    assert read(tmp_path, content) == (content, image_format, False)


def png_announcing(height: int, width: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 4) + b"IDATxxxx"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"text", "no image"),
        (encoded("GIF"), "GIF"),
        (encoded()[:100], "truncated"),
        (encoded()[: len(encoded()) // 2], "truncated"),
        (encoded()[:-2], "truncated"),
        (encoded("PNG")[:-20], "truncated"),
        (encoded("PNG").replace(b"IDAT", b"IDAT\1", 1), "truncated or no image"),
        (png_announcing(8_500, 8_500), "8500×8500 pixels"),
        (png_announcing(30_000, 20_000), "far more pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unusable_file_is_an_error_with_a_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(ImageError, match="not a file"):
        read(tmp_path, None)


def test_what_is_no_regular_file_or_a_giant_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="a FIFO, not a file"):
        read(tmp_path, None)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").symlink_to("/dev/zero")
    with pytest.raises(ImageError, match="a device, not a file"):
        read(tmp_path, None)
    (tmp_path / "a.jpg").unlink()
    with (tmp_path / "a.jpg").open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(ImageError, match="1099511627776 bytes long, at most 268435456 are read"):
        read(tmp_path, None)


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (HEIGHT * 2, WIDTH * 2)])
def test_another_size_than_the_annotations_say_is_an_error(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"60×40 pixels, the annotations say"):
        read(tmp_path, encoded(), *size)


def test_a_stored_rotation_is_applied_only_where_the_annotations_mean_the_upright_image(tmp_path: Path) -> None:
    content = encoded(orientation=6, quality=95)
    assert read(tmp_path, content) == (content, "jpeg", False)  # as stored
    upright, image_format, rotated = read(tmp_path, content, height=WIDTH, width=HEIGHT)
    assert rotated and image_format == "jpeg"
    pixels = tf.io.decode_jpeg(upright).numpy()
    assert pixels.shape == (WIDTH, HEIGHT, 3)
    # A quarter turn clockwise: what was left is above, what was below on the right is below on the left.
    assert pixels[5, 20].argmax() == 0 and pixels[5, 20].max() > 200
    assert pixels[WIDTH - 5, 5].argmax() == 2 and pixels[WIDTH - 5, HEIGHT - 5].max() < 50
    assert Image.open(io.BytesIO(upright)).getexif().get(0x0112) is None
    with pytest.raises(ImageError):  # a half turn changes no size
        read(tmp_path, encoded(orientation=3), height=WIDTH, width=HEIGHT)
