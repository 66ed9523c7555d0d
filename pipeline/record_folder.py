"""A folder of records: its metadata, its shards, and an index of every record, for whoever reads it.

    data = open_record_folder("data/coco")
    data.skeleton.num_keypoints, data.splits, data.shards("train"), data.index("train")["height"]

`pipeline.json` is written last, so a folder without it is not whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.anchors import AnchorConfig
from pipeline.command import UserError
from pipeline.skeleton import Skeleton

RECORD_HEADER_BYTES, RECORD_FOOTER_BYTES = 12, 4  # of TFRecord: length and its checksum, checksum of the data


METADATA_FILE = "pipeline.json"
FORMAT_VERSION = 1

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
    """An opened folder of records.

    Attributes:
      path: where it lies.
      name: of the data set, the first part of the shards' names.
      anchors, short_edges, max_edge: for which the anchors of the records were matched; every short edge plain and flipped.
      skeleton: the keypoint set.
      category_id: of the persons in the JSON.
      splits: what `pipeline.json` says of each: arguments, input_sha256, shards, images, index, summary.
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
            size = path.stat().st_size if path.exists() else None
            if size != shard["bytes"]:
                found = "missing" if size is None else f"{size} bytes long"
                raise UserError(f"{path}: {found}, {METADATA_FILE} says {shard['bytes']} bytes; copy it again or convert anew")
            paths.append(path)
        return paths

    def index(self, split: str) -> NDArray[np.void]:
        """One row of `INDEX_DTYPE` for each record, in the order of shard and position.

        Raises:
          UserError: no such split, or an index that is missing or of other records.
        """
        info = self._split(split)
        path = self.path / info["index"]
        try:
            rows: NDArray[np.void] = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error}); copy it again or convert anew") from None
        if rows.dtype != INDEX_DTYPE or len(rows) != info["images"]:
            raise UserError(
                f"{path}: {len(rows)} records, {METADATA_FILE} says {info['images']}; copy it again or convert anew"
            )
        return rows

    def _split(self, split: str) -> Mapping[str, Any]:
        if split not in self.splits:
            raise UserError(f"split {split!r}: {self.path} has {', '.join(sorted(self.splits)) or 'none'}")
        return self.splits[split]


def open_record_folder(data_dir: str | Path) -> RecordFolder:
    """Opens a folder that `make_tfrecords` wrote.

    Raises:
      UserError: no such folder, or no whole one.
    """
    folder = Path(data_dir)
    path = folder / METADATA_FILE
    if not path.exists():
        reason = "no such folder" if not folder.is_dir() else f"no {METADATA_FILE} in it"
        raise UserError(f"data set {folder}: {reason}; python -m pipeline.make_tfrecords makes one (and finishes one begun)")
    return parse_record_folder(folder, path.read_bytes())


def parse_record_folder(folder: str | Path, metadata: bytes) -> RecordFolder:
    """A data set by the content of its `pipeline.json`.

    Raises:
      UserError: the metadata is damaged or of another format.
    """
    path = f"{folder}/{METADATA_FILE}"
    try:
        content = json.loads(metadata)
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(f"{path}: format_version {version}, this program reads {FORMAT_VERSION}; convert anew")
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
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); copy it again or convert anew") from None
