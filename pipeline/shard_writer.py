"""One shard of a conversion: reads its own pictures, writes its records, and notes what it wrote.

This is the work that a Beam worker does. Workers share the output folder with the main process, and talk to it through small
files in the work folder of the split, so that no picture travels through Beam and a restart knows what is finished:

    pictures-00003    the pictures of the shard (pickle), from the main process
    records-00003     the shard while it is being written
    progress-00003    one byte for each picture done
    facts-00003.json  what the finished shard holds; written before the shard gets its final name
    stop              why everybody should stop, from whoever met it first
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf
from PIL import Image, ImageOps

from pipeline import records
from pipeline.anchors import AnchorConfig
from pipeline.coco import Picture
from pipeline.files import publish, write_file

# A header may announce any size; 2^26 pixels are 200 MB once decoded.
MAX_PIXELS = 1 << 26
RECORD_HEADER_BYTES, RECORD_FOOTER_BYTES = 12, 4  # of TFRecord: length and its checksum, checksum of the data
_EXIF_ORIENTATION = 0x0112


class PictureError(Exception):
    """Why a picture cannot become a record."""


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """What all shards of a split have in common.

    Attributes:
      images: the folder of the pictures.
      output: the folder of the data set.
      work: the work folder of the split, on the same file system.
      prefix: of the shards' names, <dataset_name>-<split>.
      category: name of the persons' category.
    """

    images: Path
    output: Path
    work: Path
    prefix: str
    num_shards: int
    category: str
    anchors: AnchorConfig
    short_edges: tuple[int, ...]
    max_edge: int
    on_error: Literal["fail", "skip"]

    def shard_file(self, number: int) -> str:
        return f"{self.prefix}.tfrecord-{number:05d}-of-{self.num_shards:05d}"

    def pictures_path(self, number: int) -> Path:
        return self.work / f"pictures-{number:05d}"

    def progress_path(self, number: int) -> Path:
        return self.work / f"progress-{number:05d}"

    @property
    def stop_path(self) -> Path:
        return self.work / "stop"


def read_image(folder: Path, picture: Picture) -> tuple[bytes, Literal["jpeg", "png"], bool]:
    """Reads the file of a picture and checks it against its entry.

    What costs nearly nothing is always checked (header, size, the mark at a JPEG's end, a PNG's checksums). Pixels are decoded
    only where a JPEG does not end as it should: decoding takes 2 ms, as long as all else together, and finds nothing more,
    since decoders accept damaged data between sound ends.

    Returns:
      The encoded bytes, their format, and whether a stored rotation had to be applied: the entry's size is that of the picture
      upright. A rotation that does not change the size is not applied.

    Raises:
      PictureError: with the reason in words.
    """
    path = folder / picture.file_name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PictureError("no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise PictureError("not a file") from None
    except OSError as error:
        raise PictureError(f"cannot be read ({error.strerror})") from None
    if not content:
        raise PictureError("the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image_format: Literal["jpeg", "png"]
            if image.format in ("JPEG", "MPO"):  # MPO: a JPEG with further pictures behind it
                image_format = "jpeg"
            elif image.format == "PNG":
                image_format = "png"
            else:
                raise PictureError(f"a {image.format} file; JPEG and PNG are read")
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError(f"{width}×{height} pixels in the header, at most {MAX_PIXELS} are decoded")
            rotated = False
            if (width, height) != (picture.width, picture.height):
                rotated = (height, width) == (picture.width, picture.height) and image.getexif().get(
                    _EXIF_ORIENTATION
                ) in range(5, 9)
                if not rotated:
                    raise PictureError(f"{width}×{height} pixels, the annotations say {picture.width}×{picture.height}")
            if rotated:
                upright = io.BytesIO()
                ImageOps.exif_transpose(image).convert("RGB").save(upright, "JPEG", quality=95, subsampling=0)
                return upright.getvalue(), "jpeg", True
            if image_format == "png":
                image.verify()
            elif not content.endswith(b"\xff\xd9"):
                image.load()
    except Image.DecompressionBombError:
        raise PictureError(f"far more pixels in the header than the {MAX_PIXELS} that are decoded") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error).partition(" <")[0]  # (without the address of a buffer)
        raise PictureError(f"truncated or no picture ({reason})") from None
    return content, image_format, False


def write_shard(settings: ShardSettings, number: int) -> None:
    """Writes one shard and its facts. On a failure nothing has the final name, and the reason lies in the stop file."""
    temporary = settings.work / f"records-{number:05d}"
    facts: dict[str, Any] | None = None
    try:
        pictures: list[Picture] = pickle.loads(settings.pictures_path(number).read_bytes())
        facts = _write_records(settings, pictures, temporary, settings.progress_path(number))
        if facts is None:
            return
        file = settings.shard_file(number)
        facts |= {"file": file, "bytes": temporary.stat().st_size, "sha256": _sha256(temporary)}
        write_file(facts_path(settings.work, number), json.dumps(facts))
        publish(temporary, settings.output / file)
    except (OSError, tf.errors.OpError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message
        stop(
            settings,
            f"{settings.output / settings.shard_file(number)}: cannot be written ({reason}); make room and start again",
        )
    finally:
        temporary.unlink(missing_ok=True)


def _write_records(settings: ShardSettings, pictures: list[Picture], path: Path, progress: Path) -> dict[str, Any] | None:
    """Writes the records to `path`; returns what it wrote, or None if it was told to stop."""
    index: list[list[int]] = []
    errors: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    offset = 0
    with tf.io.TFRecordWriter(str(path)) as writer, progress.open("wb", buffering=0) as done:
        for picture in pictures:
            if settings.stop_path.exists():
                return None
            try:
                if picture.error:
                    raise PictureError(picture.error)
                content, image_format, rotated = read_image(settings.images, picture)
            except PictureError as error:
                if settings.on_error == "fail":
                    stop(settings, picture_message(settings.images, picture, str(error)))
                    return None
                errors.append({"image_id": picture.id, "file": picture.file_name, "reason": str(error)})
                done.write(b".")
                continue
            matchings = records.match_picture(picture, settings.anchors, settings.short_edges, settings.max_edge)
            record = records.encode(picture, content, image_format, settings.category, matchings)
            writer.write(record)
            done.write(b".")
            crowds = sum(person.is_crowd for person in picture.persons)
            persons = len(picture.persons) - crowds
            labelled = sum(person.num_labelled > 0 and not person.is_crowd for person in picture.persons)
            row = [offset, len(record), picture.id, picture.height, picture.width, persons, crowds, labelled]
            index.append(row)
            offset += RECORD_HEADER_BYTES + len(record) + RECORD_FOOTER_BYTES
            counts.update(
                persons=persons,
                crowds=crowds,
                labelled_persons=labelled,
                labelled_keypoints=sum(person.num_labelled for person in picture.persons),
                image_bytes=len(content),
                images_rotated=int(rotated),
            )
    return {"records": len(index), "index": index, "errors": errors, "counts": dict(counts)}


def picture_message(images: Path, picture: Picture, reason: str) -> str:
    """One line that says which picture cannot be used, why, and the way out."""
    file = images / picture.file_name if picture.file_name else "(no file)"
    return f"image {picture.id}, {file}: {reason}; put it right, or leave such pictures out with --on_error=skip"


def stop(settings: ShardSettings, reason: str) -> None:
    """Tells all writers of the split to stop; the first reason stands."""
    try:
        descriptor = os.open(settings.stop_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(reason)


def facts_path(work: Path, number: int) -> Path:
    return work / f"facts-{number:05d}.json"


def read_facts(settings: ShardSettings, number: int) -> dict[str, Any] | None:
    """What `write_shard` noted, if the shard is there and finished."""
    path, shard = facts_path(settings.work, number), settings.output / settings.shard_file(number)
    if not path.exists() or not shard.exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text())
    if facts["bytes"] != shard.stat().st_size or (facts["errors"] and settings.on_error == "fail"):
        return None
    return facts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
