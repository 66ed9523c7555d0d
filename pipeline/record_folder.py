"""A record folder: its metadata, its shards, and an index of every record.

    folder = open_record_folder("data/coco")
    folder.skeleton.num_keypoints, folder.splits, folder.shards("train"), folder.index("train")["height"]

`pipeline.json` is written last, so a folder without it is not whole. The folder may come from strangers: opening it checks the
names, types and sizes that `pipeline.json` holds, and reading an index checks it against its checksum and the shards. A folder
written before indexes had checksums (`index_sha256`) opens without that one check; programs of that time read newer folders.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.anchors import AnchorConfig
from pipeline.command import UserError
from pipeline.files import JSON_LIMIT, open_regular, parsed_json
from pipeline.skeleton import Skeleton

RECORD_HEADER_BYTES, RECORD_FOOTER_BYTES = 12, 4  # of TFRecord: length and its checksum, checksum of the data
FRAME_BYTES = RECORD_HEADER_BYTES + RECORD_FOOTER_BYTES

METADATA_FILE = "pipeline.json"
FORMAT_VERSION = 1
NAME = r"[a-z][a-z0-9_]*"  # of records or of a split
_REMEDY = "copy it again or convert anew"

INDEX_DTYPE = np.dtype(
    [
        ("shard", "<i4"),
        ("offset", "<i8"),  # of the record's header in its shard, in bytes
        ("length", "<i8"),  # of the record itself, in bytes
        ("image_id", "<i8"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("persons", "<i4"),  # crowds not counted
        ("crowds", "<i4"),
        ("labelled_persons", "<i4"),  # persons with at least one labelled keypoint
    ]
)


@dataclasses.dataclass(frozen=True)
class RecordFolder:
    """An opened record folder.

    Attributes:
      path: where it lies.
      name: of the records, the first part of the shards' names.
      anchors, short_edges, max_edge: for which the anchors of the records were matched; every short edge plain and flipped.
      skeleton: the keypoint set.
      category_id: of the persons in the JSON.
      splits: what `pipeline.json` says of each: arguments, input_sha256, shards, images, index, index_sha256, summary.
    """

    path: Path
    name: str
    anchors: AnchorConfig
    short_edges: tuple[int, ...]
    max_edge: int
    skeleton: Skeleton
    category_id: int
    splits: Mapping[str, Mapping[str, Any]]

    def shards(self, split: str) -> list[Path]:
        """The files of a split, in the order that the index counts them.

        Raises:
          UserError: no such split, or a file that is missing or of another size than written.
        """
        paths = []
        for shard in self._split(split)["shards"]:
            path = self.path / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "no file" if path.exists() else "missing" if size is None else f"{size} bytes long"
                raise UserError(f"{path}: {found}, {METADATA_FILE} says {shard['bytes']} bytes; {_REMEDY}")
            paths.append(path)
        return paths

    def index(self, split: str) -> NDArray[np.void]:
        """One row of `INDEX_DTYPE` for each record, in the order of shard and position.

        Raises:
          UserError: no such split; an index that is missing, damaged, or of other shards.
        """
        rows, fault = self.unchecked_index(split)
        fault = fault or _index_fault(rows, self._split(split)["shards"])
        if fault:
            raise UserError(f"{self.path / self._split(split)['index']}: {fault}; {_REMEDY}")
        return rows

    def unchecked_index(self, split: str) -> tuple[NDArray[np.void], str]:
        """The rows of an index, and what is wrong with the file ("" if nothing is); whether they fit the shards is not checked.

        Raises:
          UserError: no such split; no rows in the file, or another number of them.
        """
        info = self._split(split)
        path = self.path / info["index"]
        try:
            with open_regular(path, info["images"] * INDEX_DTYPE.itemsize + 4096) as file:
                content = file.read()
            rows: NDArray[np.void] = np.load(io.BytesIO(content), allow_pickle=False)
            dtype, number = rows.dtype, len(rows)
        except Exception as error:  # (whatever a damaged header makes of NumPy)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"{path}: cannot be read ({reason}); {_REMEDY}") from None
        if dtype != INDEX_DTYPE or rows.shape != (info["images"],):
            raise UserError(f"{path}: {number} records, {METADATA_FILE} says {info['images']}; {_REMEDY}")
        digest, noted = hashlib.sha256(content).hexdigest(), info.get("index_sha256")
        fault = "" if noted in (None, digest) else f"sha256 {digest[:12]}…, {METADATA_FILE} says {noted[:12]}…"
        return rows, fault

    def _split(self, split: str) -> Mapping[str, Any]:
        if split not in self.splits:
            raise UserError(f"{self.path}: has no split {split!r}; it has {', '.join(sorted(self.splits)) or 'none'}")
        info = self.splits[split]
        lacking = lacking_keys(info, ("images", "index", "shards"), ("file", "bytes"))
        if lacking:
            raise UserError(f"{self.path / METADATA_FILE}: split {split!r} lacks {', '.join(lacking)}; {_REMEDY}")
        return info


def lacking_keys(
    info: Mapping[str, Any],
    keys: Collection[str] = ("images", "index", "shards", "summary"),
    shard_keys: Collection[str] = ("file", "records", "bytes", "sha256"),
) -> list[str]:
    """The keys of a split and its shards that `pipeline.json` lacks."""
    lacking = sorted(set(keys) - set(info))
    return lacking + [key for shard in info.get("shards", ()) for key in sorted(set(shard_keys) - set(shard))]


def _index_fault(rows: NDArray[np.void], shards: Sequence[Mapping[str, Any]]) -> str:
    """Why an index cannot be that of these shards, in whose files its records must lie one behind the other; "" if it can."""
    if any((rows[field] < (field in ("height", "width"))).any() for field in INDEX_DTYPE.names or ()):
        return "a negative number, or an image without a size"
    if (rows["shard"] >= len(shards)).any() or (np.diff(rows["shard"]) < 0).any():
        return f"its shards are not 0…{len(shards) - 1}, in order"
    bounds = np.searchsorted(rows["shard"], np.arange(len(shards) + 1))
    for shard, first, last in zip(shards, bounds, bounds[1:], strict=False):
        lengths, offsets = rows["length"][first:last], rows["offset"][first:last]
        if (lengths > shard["bytes"]).any():
            return f"a record that is longer than {shard['file']}"
        ends = np.cumsum(lengths + FRAME_BYTES)
        if (offsets != np.concatenate([[0], ends[:-1]])).any() or (int(ends[-1]) if len(ends) else 0) != shard["bytes"]:
            return f"its records do not lie one behind the other in {shard['file']}"
    return ""


def open_record_folder(data_dir: str | Path) -> RecordFolder:
    """Opens a folder that `make_tfrecords` wrote.

    Raises:
      UserError: no such folder, or no whole one.
    """
    folder = Path(data_dir)
    path = folder / METADATA_FILE
    if not path.exists():
        reason = "no such folder" if not folder.is_dir() else f"no {METADATA_FILE} in it"
        raise UserError(
            f"record folder {folder}: {reason}; python -m pipeline.make_tfrecords makes one (and finishes one begun)"
        )
    try:
        with open_regular(path, JSON_LIMIT) as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    return parse_record_folder(folder, content)


def parse_record_folder(folder: str | Path, metadata: bytes) -> RecordFolder:
    """A record folder by the content of its `pipeline.json`.

    Raises:
      UserError: the metadata is damaged or of another format.
    """
    path = f"{folder}/{METADATA_FILE}"

    version = parsed_json(metadata, f"{path}: damaged", lambda content: content["format_version"], remedy=_REMEDY)
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format_version {version!r:.20}, this program reads {FORMAT_VERSION}; convert anew")

    def parse(content: Any) -> RecordFolder:
        faults = [*_faults(content)]
        if faults:
            raise UserError(faults[0])
        return RecordFolder(
            path=Path(folder),
            name=content["dataset_name"],
            anchors=AnchorConfig.from_json(content["anchors"]),
            short_edges=tuple(content["variants"]["short_edges"]),
            max_edge=content["variants"]["max_edge"],
            skeleton=Skeleton.from_json(content["skeleton"]),
            category_id=content["category_id"],
            splits=content["splits"],
        )

    return parsed_json(metadata, f"{path}: damaged", parse, remedy=_REMEDY)


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _plain(value: object) -> bool:
    """Whether a name stays in its folder, on every system."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,250}", value) is not None


def _digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


_SHARD_TYPES = {"file": _plain, "records": _count, "bytes": _count, "sha256": _digest}
_SPLIT_TYPES = {"images": _count, "index": _plain, "index_sha256": _digest, "input_sha256": _digest}


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    """What in the metadata cannot have been written by a conversion: wrong types, names that lead out of the folder.

    A missing key of a split is no fault here: `RecordFolder` names it when the split is used.
    """
    if not (isinstance(content["dataset_name"], str) and re.fullmatch(NAME, content["dataset_name"])):
        yield f"dataset_name {content['dataset_name']!r:.60}: small letters, digits and _ make a name"
    edges, most = content["variants"]["short_edges"], content["variants"]["max_edge"]
    if not _count(most) or not isinstance(edges, list) or not all(_count(edge) and 0 < edge <= most < 2**16 for edge in edges):
        yield f"variants: short_edges {edges!r:.60}, max_edge {most!r:.20} are no sizes in pixels"
    if not _whole(content["category_id"]):
        yield f"category_id {content['category_id']!r:.20} is no whole number"
    for split, info in content["splits"].items():
        if not re.fullmatch(NAME, split):
            yield f"split {split!r:.60}: small letters, digits and _ make a name"
        for key, is_right in _SPLIT_TYPES.items():
            if key in info and not is_right(info[key]):
                yield f"{key} {info[key]!r:.60} of split {split!r:.60}"
        shards = info.get("shards", [])
        if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
            yield f"shards {shards!r:.60} of split {split!r:.60}"
            return
        for shard in shards:
            for key, is_right in _SHARD_TYPES.items():
                if key in shard and not is_right(shard[key]):
                    yield f"{key} {shard[key]!r:.60} of a shard of split {split!r:.60}"
        if not all(_whole(number) for number in info.get("summary", {}).values()):
            yield f"the summary of split {split!r:.60} holds more than whole numbers"
        if not isinstance(info.get("arguments", {}), dict):
            yield f"arguments {info['arguments']!r:.60} of split {split!r:.60}"
