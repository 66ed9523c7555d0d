"""Re-reads a folder of records against its metadata: `pipeline.json`, TFDS's files, shards, index, and every record."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from pipeline import records
from pipeline.command import UserError, reason_of
from pipeline.record_checks import check_record
from pipeline.record_folder import METADATA_FILE, RECORD_FOOTER_BYTES, RECORD_HEADER_BYTES, DataSet
from pipeline.record_reader import read_payload

_SPLIT_KEYS, _SHARD_KEYS = {"images", "index", "shards", "summary"}, {"file", "records", "bytes", "sha256"}
_RECORDS_AT_ONCE = 64  # bounds the memory, and the wait after Ctrl-C


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that is not as it was written.

    Attributes:
      file: in which it is.
      offset: of the record in it, in bytes from its beginning; None where the file as a whole is meant.
    """

    file: Path
    offset: int | None
    reason: str

    def __str__(self) -> str:
        place = "" if self.offset is None else f", record at byte {self.offset}"
        return f"{self.file}{place}: {self.reason}"


def verify(data_set: DataSet, split: str, advance: Callable[[int], None]) -> Iterator[Fault]:
    """Looks for faults of one split, in the order of the files.

    Args:
      split: one that the data set has.
      advance: is told of every record that was looked at.
    """
    info = data_set.splits[split]
    missing = sorted(_SPLIT_KEYS - set(info)) + [key for s in info.get("shards", ()) for key in sorted(_SHARD_KEYS - set(s))]
    if missing:
        yield Fault(data_set.folder / METADATA_FILE, None, f"split {split!r} lacks {', '.join(missing)}")
        return
    yield from _metadata(data_set, split)
    try:
        index = data_set.index(split)
    except UserError as error:
        yield Fault(data_set.folder / info["index"], None, str(error).partition(": ")[2])
        index = None
    totals: Counter[str] = Counter()
    whole = index is not None
    for number, shard in enumerate(info["shards"]):
        path = data_set.folder / shard["file"]
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
        for fault in _records(path, there, data_set, totals, advance):
            whole = False
            yield fault
    if index is not None and whole:
        yield from _totals(data_set, split, index, totals)


def _metadata(data_set: DataSet, split: str) -> Iterator[Fault]:
    """What TFDS reads, and files that should not or should be there."""
    info = data_set.splits[split]
    listed = {shard["file"] for shard in info["shards"]}
    for path in sorted(data_set.folder.glob(f"{data_set.name}-{split}.tfrecord-*")):
        if path.name not in listed:
            yield Fault(path, None, f"{METADATA_FILE} does not list it")
    try:
        builder = tfds.builder_from_directory(data_set.folder)
    except Exception as error:  # (whatever a damaged file makes of TFDS)
        yield Fault(data_set.folder / "dataset_info.json", None, f"TFDS cannot read it or features.json ({error})")
        return
    if builder.info.features.to_json() != records.features().to_json():
        yield Fault(data_set.folder / "features.json", None, "not the features of these records")
    lengths = [shard["records"] for shard in info["shards"]]
    if split not in builder.info.splits or builder.info.splits[split].shard_lengths != lengths:
        yield Fault(data_set.folder / "dataset_info.json", None, f"not the records of split {split!r} in {METADATA_FILE}")
    errors = data_set.folder / f"errors-{split}.jsonl"
    lines = len(errors.read_bytes().splitlines()) if errors.exists() else 0
    if lines != info["summary"]["images_skipped"]:
        yield Fault(errors, None, f"{lines} lines, {METADATA_FILE} counts {info['summary']['images_skipped']}")


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
    path: Path, rows: NDArray[np.void], data_set: DataSet, totals: Counter[str], advance: Callable[[int], None]
) -> Iterator[Fault]:
    """Every record of a shard, checked in threads; adds to `totals` what the records count for."""

    def read(row: np.void) -> bytes | str:
        try:
            payload = read_payload(path, int(row["offset"]), int(row["length"]))
        except tf.errors.OpError as error:
            return f"cannot be read ({reason_of(error)})"
        return payload if len(payload) == row["length"] else f"{len(payload)} bytes long, the index says {row['length']}"

    def check(payload: bytes | str, row: np.void) -> tuple[list[str], Counter[str]]:
        return ([payload], Counter()) if isinstance(payload, str) else check_record(payload, row, data_set)

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(rows), _RECORDS_AT_ONCE):
            some = rows[first : first + _RECORDS_AT_ONCE]
            for row, (reasons, counts) in zip(some, pool.map(check, map(read, some), some), strict=True):
                totals.update(counts)
                for reason in reasons:
                    yield Fault(path, int(row["offset"]), f"image {row['image_id']}: {reason}")
            advance(len(some))


def _totals(data_set: DataSet, split: str, index: NDArray[np.void], totals: Counter[str]) -> Iterator[Fault]:
    summary = data_set.splits[split]["summary"]
    twice = len(index) - len(np.unique(index["image_id"]))
    if twice:
        yield Fault(data_set.folder / data_set.splits[split]["index"], None, f"{twice} pictures are listed twice")
    for key, value in totals.items():
        if summary[key] != value:
            yield Fault(
                data_set.folder / METADATA_FILE, None, f"{key} {summary[key]} in split {split!r}, its records have {value}"
            )
