"""Re-reads a record folder against its metadata: `pipeline.json`, TFDS's files, shards, index, and every record.

`verify` looks at the files, one after the other. `check_record` finds whatever can be wrong with one record, from the record
itself and its row of the index.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format
from numpy.typing import NDArray

from pipeline import image, records, storage
from pipeline.command import UserError, reason_of
from pipeline.files import JSON_LIMIT, open_regular
from pipeline.image import PNG_SIGNATURE
from pipeline.record_folder import METADATA_FILE, RECORD_FOOTER_BYTES, RECORD_HEADER_BYTES, RecordFolder, lacking_keys
from pipeline.record_reader import Record, decode_record, read_payload

_RECORDS_AT_ONCE = 64  # bounds the memory, and the wait after Ctrl-C


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that is not as it was written.

    Attributes:
      file: the file that it was found in.
      offset: of the record, in bytes from the beginning of the file; None if the file as a whole is meant.
    """

    file: Path
    offset: int | None
    reason: str

    def __str__(self) -> str:
        place = "" if self.offset is None else f", record at byte {self.offset}"
        return f"{self.file}{place}: {self.reason}"


def verify(record_folder: RecordFolder, split: str, advance: Callable[[int], None]) -> Iterator[Fault]:
    """Looks for faults of one split, in the order of the files.

    Args:
      split: one that the folder has.
      advance: called with 1 for each record.
    """
    info = record_folder.splits[split]
    missing = lacking_keys(info)
    if missing:
        yield Fault(record_folder.path / METADATA_FILE, None, f"split {split!r} lacks {', '.join(missing)}")
        return
    yield from _metadata(record_folder, split)
    try:
        index, damage = record_folder.unchecked_index(split)
        if damage:
            yield Fault(record_folder.path / info["index"], None, damage)
    except UserError as error:
        yield Fault(record_folder.path / info["index"], None, str(error).partition(": ")[2])
        index = None
    totals: Counter[str] = Counter()
    whole = index is not None
    for number, shard in enumerate(info["shards"]):
        path = record_folder.path / shard["file"]
        if not path.exists():
            yield Fault(path, None, "missing")
            whole = False
            continue
        yield from _shard(path, shard)
        if index is None:
            continue
        rows = index[index["shard"] == number]
        yield from _frames(path, shard, rows)
        there = rows[rows["offset"] + rows["length"] + RECORD_HEADER_BYTES + RECORD_FOOTER_BYTES <= path.stat().st_size]
        whole &= len(there) == len(rows)
        for fault in _records(path, there, record_folder, totals, advance):
            whole = False
            yield fault
    if index is not None and whole:
        yield from _totals(record_folder, split, index, totals)


def _metadata(record_folder: RecordFolder, split: str) -> Iterator[Fault]:
    """Checks what TFDS reads, and looks for files that are missing or do not belong to the split."""
    info = record_folder.splits[split]
    listed = {shard["file"] for shard in info["shards"]}
    for path in sorted(record_folder.path.glob(f"{record_folder.name}-{split}.tfrecord-*")):
        if path.name not in listed:
            yield Fault(path, None, f"{METADATA_FILE} does not list it")
    features_file = record_folder.path / "features.json"
    try:
        with open_regular(features_file, JSON_LIMIT) as file:
            features = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        yield Fault(record_folder.path / "dataset_info.json", None, f"TFDS cannot read it or features.json ({error})")
        return
    expected = json_format.MessageToDict(records.features().to_proto())
    if features != expected:  # (before TFDS imports the modules that the file names)
        yield Fault(features_file, None, "not the features of these records")
        return
    try:
        builder = tfds.builder_from_directory(record_folder.path)
    except Exception as error:  # (whatever a damaged file makes of TFDS)
        yield Fault(record_folder.path / "dataset_info.json", None, f"TFDS cannot read it or features.json ({error})")
        return
    lengths = [shard["records"] for shard in info["shards"]]
    if split not in builder.info.splits or builder.info.splits[split].shard_lengths != lengths:
        yield Fault(record_folder.path / "dataset_info.json", None, f"not the records of split {split!r} in {METADATA_FILE}")
    errors = record_folder.path / f"errors-{split}.jsonl"
    try:
        lines = len(storage.read(str(errors), storage.MAX_NOTE_BYTES).splitlines()) if errors.exists() else 0
    except OSError as error:
        yield Fault(errors, None, f"cannot be read ({reason_of(error)})")
        return
    skipped = info["summary"].get("images_skipped")
    if lines != skipped:
        yield Fault(errors, None, f"{lines} lines, {METADATA_FILE} counts {skipped}")


def _shard(path: Path, shard: dict[str, Any]) -> Iterator[Fault]:
    size = path.stat().st_size
    if size != shard["bytes"]:
        yield Fault(path, None, f"{size} bytes long, {METADATA_FILE} says {shard['bytes']}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard["sha256"]:
        yield Fault(path, None, f"sha256 {digest[:12]}…, {METADATA_FILE} says {shard['sha256'][:12]}…")


def _frames(path: Path, shard: dict[str, Any], rows: NDArray[np.void]) -> Iterator[Fault]:
    """Whether the records of the index lie one behind the other and fill the file."""
    if len(rows) != shard["records"]:
        yield Fault(path, None, f"{len(rows)} records in the index, {METADATA_FILE} says {shard['records']}")
    ends = rows["offset"] + rows["length"] + RECORD_HEADER_BYTES + RECORD_FOOTER_BYTES
    starts = np.concatenate([[0], ends[:-1]]) if len(rows) else ends
    for row in rows[rows["offset"] != starts]:
        yield Fault(path, int(row["offset"]), "the index has it there, but the record before ends elsewhere")
    if (ends[-1] if len(rows) else 0) != shard["bytes"]:
        yield Fault(path, None, f"the index ends at byte {ends[-1] if len(rows) else 0} of {shard['bytes']}")
    lost = int((ends > path.stat().st_size).sum())
    if lost:
        yield Fault(path, int(rows["offset"][-lost]), f"this and all later records, {lost}, lie beyond the end of the file")


def _records(
    path: Path, rows: NDArray[np.void], record_folder: RecordFolder, totals: Counter[str], advance: Callable[[int], None]
) -> Iterator[Fault]:
    """Every record of a shard, checked in threads; adds to `totals` what the records count for."""

    def read(row: np.void) -> bytes | str:
        try:
            payload = read_payload(path, int(row["offset"]), int(row["length"]))
        except tf.errors.OpError as error:
            return f"cannot be read ({reason_of(error)})"
        return payload if len(payload) == row["length"] else f"{len(payload)} bytes long, the index says {row['length']}"

    def check(payload: bytes | str, row: np.void) -> tuple[list[str], Counter[str]]:
        return ([payload], Counter()) if isinstance(payload, str) else check_record(payload, row, record_folder)

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(rows), _RECORDS_AT_ONCE):
            some = rows[first : first + _RECORDS_AT_ONCE]
            for row, (reasons, counts) in zip(some, pool.map(check, map(read, some), some), strict=True):
                totals.update(counts)
                for reason in reasons:
                    yield Fault(path, int(row["offset"]), f"image {row['image_id']}: {reason}")
            advance(len(some))


def _totals(record_folder: RecordFolder, split: str, index: NDArray[np.void], totals: Counter[str]) -> Iterator[Fault]:
    summary = record_folder.splits[split]["summary"]
    twice = len(index) - len(np.unique(index["image_id"]))
    if twice:
        yield Fault(record_folder.path / record_folder.splits[split]["index"], None, f"{twice} images are listed twice")
    for key, value in totals.items():
        if summary.get(key) != value:
            yield Fault(
                record_folder.path / METADATA_FILE,
                None,
                f"{key} {summary.get(key)} in split {split!r}, its records have {value}",
            )


def check_record(payload: bytes, row: np.void, record_folder: RecordFolder) -> tuple[list[str], Counter[str]]:
    """Checks a serialized record.

    Args:
      row: its row of the index.

    Returns:
      what is wrong, in words; and what it counts for in the split's summary (nothing if it cannot be read).
    """
    example = tf.train.Example()
    try:
        example.ParseFromString(payload)
    except Exception as error:  # (protobuf's own class depends on its implementation)
        return [f"no tf.train.Example ({error})"], Counter()
    wrong = list(_layout(example, record_folder))
    if wrong:
        return wrong, Counter()
    try:
        record = decode_record(payload, record_folder.skeleton.num_keypoints)
    except ValueError as error:  # a name that is not UTF-8, an id that is no number
        return [f"no record ({error})"], Counter()
    wrong += [*_index(record, row), *_objects(example, record, record_folder), *_image(example, record)]
    boxes = list(_boxes(record))
    wrong += boxes or _anchors(record, record_folder)  # (only boxes as they should be can be matched)
    labelled = (record.keypoints[..., 2] > 0).sum(axis=1)
    return wrong, Counter(
        persons=int((~record.is_crowd).sum()),
        crowds=int(record.is_crowd.sum()),
        labelled_persons=int((labelled[~record.is_crowd] > 0).sum()),
        labelled_keypoints=int(labelled.sum()),
        image_bytes=len(record.image_bytes),
    )


def _layout(example: tf.train.Example, record_folder: RecordFolder) -> Iterator[str]:
    """Keys, types and lengths of the values."""
    feature = example.features.feature
    expected = records.KIND_OF_KEY
    for key in sorted(set(feature) - set(expected)):
        yield f"{key}: no key of the record"
    lengths = {}
    for key, kind in expected.items():
        if key not in feature:
            yield f"{key}: missing"
            continue
        found = feature[key].WhichOneof("kind")
        if found not in (kind, None):  # (an empty list may have none)
            yield f"{key}: {found}, {kind} is expected"
            continue
        lengths[key] = len(getattr(feature[key], kind).value)
    if len(lengths) < len(expected):
        return
    objects = lengths["image/object/bbox/xmin"]
    wanted = {"[]": 1, "[P]": objects, "[P·K]": objects * record_folder.skeleton.num_keypoints}
    for field in records.FIELDS:
        if field.shape != "[V, …]":
            if lengths[field.key] != wanted[field.shape]:
                yield f"{field.key}: {lengths[field.key]} values, {wanted[field.shape]} are expected"
            continue
        values, rows = records.ragged_keys(field.key)
        row_lengths = np.array(feature[rows].int64_list.value, np.int64)
        variants = 2 * len(record_folder.short_edges)
        if len(row_lengths) != variants or (row_lengths < 0).any() or row_lengths.sum() != lengths[values]:
            yield f"{field.key}: {lengths[values]} values in {len(row_lengths)} lists that do not fit, or not {variants} lists"


def _index(record: Record, row: np.void) -> Iterator[str]:
    labelled = (record.keypoints[..., 2] > 0).any(axis=1)
    found = {
        "image_id": record.image_id,
        "height": record.height,
        "width": record.width,
        "persons": int((~record.is_crowd).sum()),
        "crowds": int(record.is_crowd.sum()),
        "labelled_persons": int((labelled & ~record.is_crowd).sum()),
    }
    for name, value in found.items():
        if value != row[name]:
            yield f"{name} {value}, the index says {row[name]}"


def _objects(example: tf.train.Example, record: Record, record_folder: RecordFolder) -> Iterator[str]:
    feature = example.features.feature

    def integers(key: str) -> list[int]:
        return list(feature[f"image/object/{key}"].int64_list.value)

    if (np.diff(record.object_ids) < 0).any():
        yield "objects are not sorted by id"
    skeleton, labels = record_folder.skeleton, integers("class/label")
    known = all(1 <= label <= skeleton.num_classes for label in labels)
    texts = [skeleton.class_name(label).encode() for label in labels] if known else []
    if not known or texts != list(feature["image/object/class/text"].bytes_list.value):
        if skeleton.classes:
            yield f"class: labels and names are not those of the {skeleton.num_classes} classes in the metadata"
        else:
            yield f"class: not label 1 and {skeleton.category!r} for every object"
    if not set(integers("is_crowd")) <= {0, 1}:
        yield "is_crowd: neither 0 nor 1"
    areas = np.array(feature["image/object/area"].float_list.value)
    if not (np.isfinite(areas).all() and (areas >= 0).all()):
        yield f"areas {areas.tolist()}: not all finite and at least 0"
    if not np.isin(record.keypoints[..., 2], (0, 1, 2)).all():
        yield "keypoint visibility: neither 0, 1 nor 2"
    labelled = record.keypoints[..., 2] > 0
    points = record.keypoints[..., :2]
    if not ((points[labelled] >= 0) & (points[labelled] <= 1)).all():
        yield "a labelled keypoint lies outside the image"
    if points[~labelled].any():
        yield "a keypoint that is not labelled has a place"
    if labelled.sum(axis=1).tolist() != integers("keypoint/num"):
        yield f"keypoint/num {integers('keypoint/num')}, labelled are {labelled.sum(axis=1).tolist()}"


def _boxes(record: Record) -> Iterator[str]:
    low, high = record.boxes[:, :2], record.boxes[:, 2:]
    for number in np.flatnonzero(~((low >= 0) & (low <= high) & (high <= 1)).all(axis=1)):
        yield f"box {record.boxes[number].tolist()} of object {number}: not 0 ≤ low ≤ high ≤ 1"


def _image(example: tf.train.Example, record: Record) -> Iterator[str]:
    stored = example.features.feature["image/key/sha256"].bytes_list.value[0].decode(errors="replace")
    found = hashlib.sha256(record.image_bytes).hexdigest()
    if found != stored:
        yield f"sha256 of the image is {found[:12]}…, image/key/sha256 says {stored[:12]}…"
    stored_format = example.features.feature["image/format"].bytes_list.value[0]
    if stored_format != (b"png" if record.image_bytes.startswith(PNG_SIGNATURE) else b"jpeg"):
        yield f"image/format is {stored_format.decode(errors='replace')!r}, the image is of another one"
    try:
        height, width, _ = image.decode(tf.constant(record.image_bytes)).shape
    except tf.errors.OpError as error:
        yield f"the image {record.file_name} cannot be decoded ({reason_of(error)})"
        return
    if (height, width) != (record.height, record.width):
        yield f"the image is {width}×{height}, image/width and image/height say {record.width}×{record.height}"


def _anchors(record: Record, record_folder: RecordFolder) -> Iterator[str]:
    """The stored matching against the one that the stored boxes have."""
    expected = records.match_objects(
        record.boxes,
        record.is_crowd,
        (record.height, record.width),
        record_folder.anchors,
        record_folder.short_edges,
        record_folder.max_edge,
    )
    for number, (stored, right) in enumerate(zip(record.matchings, expected, strict=True)):
        pairs: list[tuple[str, Any, Any]] = [
            ("positive", stored.positive, right.positive),
            ("positive_box", stored.positive_box, right.positive_box),
            ("ignored", stored.ignored, right.ignored),
        ]
        for name, got, wanted in pairs:
            if not np.array_equal(got, wanted):
                variant = f"short edge {record_folder.short_edges[number // 2]}{', flipped' if number % 2 else ''}"
                yield f"anchors/{name} at {variant}: {len(got)} stored, not the {len(wanted)} that the boxes give"
                break
