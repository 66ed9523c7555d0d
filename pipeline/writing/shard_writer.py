"""One shard of a conversion: reads its own images, writes its records, and notes what it wrote.

This is the work that a Beam worker does. Workers share the output folder with the main process, and talk to it through small
files in the work folder of the split, so that no image travels through Beam and a restart knows what is finished:

    images-00003      the images of the shard (JSON), from the main process
    records-00003-*   the shard while it is being written; one for each attempt, since an engine may make two at once
    progress-00003    one byte for each image done; not in an object store, which cannot append
    facts-00003.json  what the finished shard holds; written before the shard gets its final name
    run-*             exists as long as the workers of this run of the main process shall go on
    stop-*            why they shall stop, from the process that found the reason first
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from pipeline import records, storage
from pipeline.anchors import AnchorConfig
from pipeline.coco import CocoImage, Person
from pipeline.command import UserError, reason_of, shown
from pipeline.files import parsed_json
from pipeline.record_folder import INDEX_DTYPE, RECORD_FOOTER_BYTES, RECORD_HEADER_BYTES
from pipeline.writing.checked_image import CheckedImage, ImageError, ImageRules, check_image
from pipeline.writing.image_files import LocatedImage, UnreadableError, ZipMember, read_all

# Seconds between two looks whether to go on, each of which is a request if the output is an object store.
SECONDS_BETWEEN_LOOKS = 1.0


class MachineError(Exception):
    """A worker runs where it cannot work."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; give places that every worker sees, such as a network disk or gs://")


class StoppedError(Exception):
    """Carries why a run was stopped if the disk is too full to note it."""


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """What all shards of a split have in common.

    Attributes:
      images: where the images lie: a folder or a zip, as a path or a URL.
      output: the record folder, as a path or a URL.
      prefix: of the shards' names, <dataset_name>-<split>.
      work: the work folder of the split, beside the shards.
      run: a name that no other run of the main process has.
      category: name of the persons' category, or of each of several classes.
      rules: what is done with sound images.
    """

    images: str
    output: str
    work: str
    run: str
    prefix: str
    num_shards: int
    category: str | tuple[str, ...]
    anchors: AnchorConfig
    short_edges: tuple[int, ...]
    max_edge: int
    on_error: Literal["fail", "skip"]
    rules: ImageRules = dataclasses.field(default_factory=ImageRules)

    def shard_file(self, number: int) -> str:
        return f"{self.prefix}.tfrecord-{number:05d}-of-{self.num_shards:05d}"

    def shard_path(self, number: int) -> str:
        return storage.join(self.output, self.shard_file(number))

    def images_path(self, number: int) -> str:
        return storage.join(self.work, f"images-{number:05d}")

    def progress_path(self, number: int) -> str:
        return storage.join(self.work, f"progress-{number:05d}")

    def facts_path(self, number: int) -> str:
        return storage.join(self.work, f"facts-{number:05d}.json")


def start_run(settings: ShardSettings) -> None:
    """Lets workers of this run begin; those of earlier runs, if some are left, stop."""
    begun = storage.listing(settings.work, "run-")
    storage.write(storage.join(settings.work, f"run-{settings.run}"), settings.run)
    storage.remove(settings.work, begun)


def stop_run(settings: ShardSettings, reason: str) -> None:
    """Tells all workers of the run to stop; the first reason stands.

    Raises:
      StoppedError: the reason cannot be noted, since the disk is full. The run is stopped nevertheless.
    """
    try:
        if stop_reason(settings) is None:
            storage.write(storage.join(settings.work, f"stop-{settings.run}"), shown(reason))
    except OSError:
        raise StoppedError(reason) from None
    finally:
        storage.remove(settings.work, [f"run-{settings.run}"])


def stop_reason(settings: ShardSettings) -> str | None:
    """Why the run was told to stop; None if it was not."""
    try:
        return storage.read(storage.join(settings.work, f"stop-{settings.run}")).decode()
    except FileNotFoundError:
        return None


def _shall_go_on(settings: ShardSettings) -> bool:
    return storage.exists(storage.join(settings.work, f"run-{settings.run}"))


def write_shard(settings: ShardSettings, number: int) -> None:
    """Writes one shard and its facts. On a failure nothing has the final name, and the run stops.

    Raises:
      MachineError: this machine does not see the output folder or the images.
    """
    try:
        if not _shall_go_on(settings):
            if not storage.exists(storage.join(settings.work, "arguments.json")):
                raise MachineError(f"{settings.output} is not the main process's folder on {socket.gethostname()}")
            return
        if not storage.is_url(settings.images) and not Path(settings.images).exists():
            raise MachineError(f"{settings.images} is not there on {socket.gethostname()}")
        if number in finished_shards(settings, [number]):
            return  # another attempt was faster
        entries = _read_noted(settings.images_path(number))
        with _temporary_file(settings, number) as temporary:
            facts = _write_records(settings, entries, temporary, number)
            if facts is None:
                return
            facts |= {"file": settings.shard_file(number), "bytes": temporary.stat().st_size, "sha256": _sha256(temporary)}
            if not _shall_go_on(settings):
                return
            storage.write(settings.facts_path(number), json.dumps(facts))
            upload_as = storage.join(settings.work, temporary.name)
            storage.publish(temporary, settings.shard_path(number), upload_as=upload_as)
    except UnreadableError as error:
        stop_run(settings, f"{error}; started again, the same command goes on")
    except UserError as error:
        stop_run(settings, str(error))
    except (OSError, tf.errors.OpError) as error:
        why = f"cannot be written ({reason_of(error)}); make room and start again"
        stop_run(settings, f"{settings.shard_path(number)}: {why}")


@contextlib.contextmanager
def _temporary_file(settings: ShardSettings, number: int) -> Iterator[Path]:
    """A file of this machine for the records: in the work folder if that is a path, so that it need only be renamed."""
    with contextlib.ExitStack() as stack:
        folder = settings.work
        if storage.is_url(folder):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="make_tfrecords-"))
        path = Path(folder, f"records-{number:05d}-{uuid.uuid4().hex}")
        stack.callback(path.unlink, missing_ok=True)
        yield path


def _write_records(settings: ShardSettings, entries: list[LocatedImage], path: Path, number: int) -> dict[str, Any] | None:
    """Writes the records to `path`; returns what it wrote, or None if it was told to stop."""
    index: list[list[int]] = []
    errors: list[dict[str, Any]] = []
    ambiguous: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    offset = 0
    progress = os.devnull if storage.is_url(settings.work) else settings.progress_path(number)
    next_look = 0.0
    with (
        tf.io.TFRecordWriter(str(path)) as writer,
        Path(progress).open("wb", buffering=0) as done,
        contextlib.closing(read_all(settings.images, entries)) as files,
    ):
        for entry, file in files:
            if time.monotonic() >= next_look:
                if not _shall_go_on(settings):
                    return None
                next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
            named = {"image_id": entry.id, "file": entry.file_name}
            try:
                checked, record = _record(settings, entry, file)
            except ImageError as error:
                if settings.on_error == "fail":
                    stop_run(settings, image_message(settings.images, entry, str(error)))
                    return None
                errors.append(named | {"reason": str(error)})
                done.write(b".")
                continue
            writer.write(record)
            done.write(b".")
            entry = checked.entry
            crowds = sum(person.is_crowd for person in entry.persons)
            persons = len(entry.persons) - crowds
            labelled = sum(person.num_labelled > 0 and not person.is_crowd for person in entry.persons)
            row = [offset, len(record), entry.id, entry.height, entry.width, persons, crowds, labelled]
            index.append(row)
            offset += RECORD_HEADER_BYTES + len(record) + RECORD_FOOTER_BYTES
            if checked.ambiguous:
                ambiguous.append(named | {"turned": checked.turned})
            counts.update(
                persons=persons,
                crowds=crowds,
                labelled_persons=labelled,
                labelled_keypoints=sum(person.num_labelled for person in entry.persons),
                image_bytes=len(checked.content),
                images_rotated=int(checked.turned),
                images_shrunk=int(checked.shrunk),
                images_meant_upright=int(checked.upright > 0),
                images_meant_as_stored=int(checked.upright < 0),
            )
    return {"records": len(index), "index": index, "errors": errors, "ambiguous": ambiguous, "counts": dict(counts)}


def _record(settings: ShardSettings, entry: CocoImage, file: bytes | ImageError) -> tuple[CheckedImage, bytes]:
    """One image's file → its record. Whatever the file holds and raises, it is an error of this image alone.

    Raises:
      ImageError: the image cannot be used, and why.
    """
    try:
        if isinstance(file, ImageError):
            raise file
        checked = check_image(file, entry, settings.rules)
        matchings = records.match_image(checked.entry, settings.anchors, settings.short_edges, settings.max_edge)
        record = records.encode(checked.entry, checked.content, checked.image_format, settings.category, matchings)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {' '.join(reason_of(error).split())[:300]}") from error
    return checked, record


def noted_images(shard: Sequence[LocatedImage]) -> str:
    """The images of a shard as JSON, whatever fields they have: nothing in a folder that others can write to is unpickled."""
    return json.dumps([dataclasses.asdict(_Noted(*located)) for located in shard], default=lambda array: array.tolist())


@dataclasses.dataclass(frozen=True)
class _Noted:
    entry: CocoImage
    member: ZipMember | str | None


def _read_noted(location: str) -> list[LocatedImage]:
    """Inverse of `noted_images`. Raises: UserError if the file is damaged."""

    def parse(value: Any) -> list[LocatedImage]:
        if not isinstance(value, list):
            raise UserError("no list of images")
        return [(_entry(**noted["entry"]), _member(noted["member"])) for noted in value]

    return parsed_json(storage.read(location, storage.MAX_NOTE_BYTES), f"{location}: is damaged", parse, remedy="start again")


def _entry(persons: list[dict[str, Any]], **fields: Any) -> CocoImage:
    return CocoImage(persons=tuple(_person(**person) for person in persons), **fields)


def _person(box: list[float], keypoints: list[list[float]], **fields: Any) -> Person:
    x0, y0, x1, y1 = box
    return Person(box=(x0, y0, x1, y1), keypoints=np.array(keypoints, np.float64).reshape(-1, 3), **fields)


def _member(value: Any) -> ZipMember | str | None:
    return ZipMember(**value) if isinstance(value, dict) else value


def image_message(images: str, entry: CocoImage, reason: str) -> str:
    """One line that says which image cannot be used, why, and the way out."""
    file = storage.join(images, entry.file_name) if entry.file_name else "(no file)"
    return f"image {entry.id}, {shown(file)}: {shown(reason)}; put it right, or leave such images out with --on_error=skip"


def finished_shards(settings: ShardSettings, numbers: list[int] | range) -> dict[int, dict[str, Any]]:
    """What `write_shard` noted of those shards that are there and finished."""
    one = f"{numbers[0]:05d}" if len(numbers) == 1 else ""
    noted = storage.listing(settings.work, f"facts-{one}")
    shards = storage.listing(settings.output, f"{settings.prefix}.tfrecord-{one}")
    finished = {}
    for number in numbers:
        if f"facts-{number:05d}.json" in noted and settings.shard_file(number) in shards:
            try:
                facts: dict[str, Any] = json.loads(storage.read(settings.facts_path(number), storage.MAX_NOTE_BYTES))
                sound = _is_sound(facts, settings.shard_file(number), shards[settings.shard_file(number)])
                sound = sound and all(image["turned"] == settings.rules.turn_ambiguous for image in facts["ambiguous"])
            except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue  # damaged since: the shard is written again
            if sound and not (facts["errors"] and settings.on_error == "fail"):
                finished[number] = facts
    return finished


def _is_sound(facts: Mapping[str, Any], file: str, size: int) -> bool:
    """Whether noted facts are of the types that were written, of a shard of that name and size. What is damaged may raise."""
    rows = np.array(facts["index"], np.int64).reshape(-1, len(INDEX_DTYPE.names or ()) - 1)
    return (
        facts["file"] == file
        and facts["bytes"] == size
        and facts["records"] == len(facts["index"]) == len(rows)
        and bool((rows >= 0).all())
        and len(facts["sha256"]) == 64
        and isinstance(facts["errors"], list)
        and all(isinstance(error["reason"], str) for error in facts["errors"])
        and all(type(count) is int for count in facts["counts"].values())
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
