"""One record as NumPy sees it, read by its place in a shard: for looking at records, not for training (`batches.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline import anchors, records
from pipeline.command import UserError, reason_of
from pipeline.record_folder import RecordFolder
from pipeline.records import read_serialized
from pipeline.skeleton import Skeleton

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """What `records.FIELDS` describes, in arrays of P objects and K keypoints.

    Attributes:
      image_bytes: the encoded image, of `height` × `width` pixels.
      boxes: float32 [P, 4], x0, y0, x1, y1 as fractions of width and height: the very numbers that anchors are matched with.
      is_crowd: bool [P].
      labels: int64 [P], 1…C, the class of each in the order of `Skeleton.classes`.
      object_ids: int64 [P], annotation ids.
      keypoints: float32 [P, K, 3], x, y as fractions of width and height, and visibility 0, 1, 2.
      matchings: one for each variant, with names of anchors.
    """

    image_id: int
    file_name: str
    image_bytes: bytes
    height: int
    width: int
    boxes: NDArray[np.float32]
    is_crowd: NDArray[np.bool_]
    labels: NDArray[np.int64]
    object_ids: NDArray[np.int64]
    keypoints: NDArray[np.float32]
    matchings: tuple[anchors.Matching, ...]


def read_records(record_folder: RecordFolder, split: str, rows: Iterable[np.void]) -> Iterator[Record]:
    """Reads the records of some rows of the split's index, one after the other.

    Raises:
      UserError: no such split, or a damaged file.
    """
    shards = record_folder.shards(split)
    for row in rows:
        path = shards[row["shard"]]
        try:
            payload = read_payload(path, int(row["offset"]), int(row["length"]))
            record = decode_record(payload, record_folder.skeleton.num_keypoints)
        except (tf.errors.OpError, ValueError, IndexError) as error:
            raise UserError(
                f"{path}, record at byte {row['offset']}: damaged ({reason_of(error)}); "
                "python -m pipeline.inspect_records --verify lists what else is"
            ) from None
        yield record


def read_payload(path: Path, offset: int, length: int) -> bytes:
    """The serialized record at a place in a shard; both checksums are checked.

    Raises:
      tf.errors.DataLossError: the file is damaged there; tf.errors.OpError: it cannot be read.
    """
    payload: bytes = _read_payload(str(path), offset, length).numpy()
    return payload


@tf.function(
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64)], autograph=False
)
def _read_payload(path: tf.Tensor, offset: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    return read_serialized(path, offset, length)


def decode_record(payload: bytes, num_keypoints: int) -> Record:
    """A serialized record → its arrays.

    Raises:
      ValueError, IndexError: it is none, or its lists do not fit together.
    """
    example = tf.train.Example()
    try:
        example.ParseFromString(payload)
    except Exception as error:  # (protobuf's own class depends on its implementation)
        raise ValueError(f"no tf.train.Example: {error}") from None
    feature = example.features.feature

    def integers(key: str) -> NDArray[np.int64]:
        return np.array(feature[key].int64_list.value, np.int64)

    def floats(key: str) -> NDArray[np.float32]:
        return np.array(feature[key].float_list.value, np.float32)

    def lists(key: str) -> list[NDArray[np.int64]]:
        values, lengths = (integers(k) for k in records.ragged_keys(key))
        if lengths.sum() != len(values) or (lengths < 0).any():
            raise ValueError(f"{key}: {len(values)} values in lists of {lengths.sum()}")
        return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []

    points = [
        floats("image/object/keypoint/x"),
        floats("image/object/keypoint/y"),
        integers("image/object/keypoint/visibility").astype(np.float32),
    ]
    boxes = np.stack([floats(f"image/object/bbox/{side}") for side in _SIDES], axis=-1)
    rows = zip(lists("anchors/positive"), lists("anchors/positive_box"), lists("anchors/ignored"), strict=True)
    return Record(
        image_id=int(feature["image/source_id"].bytes_list.value[0]),
        file_name=feature["image/filename"].bytes_list.value[0].decode(),
        image_bytes=feature["image/encoded"].bytes_list.value[0],
        height=feature["image/height"].int64_list.value[0],
        width=feature["image/width"].int64_list.value[0],
        boxes=boxes,
        is_crowd=integers("image/object/is_crowd") > 0,
        labels=integers("image/object/class/label"),
        object_ids=integers("image/object/id"),
        keypoints=np.stack(points, axis=-1).reshape(len(boxes), num_keypoints, 3),
        matchings=tuple(anchors.Matching(np.cumsum(p), b, np.cumsum(i)) for p, b, i in rows),
    )


def pixel_keypoints(record: Record, skeleton: Skeleton, height: int, width: int, *, flipped: bool) -> NDArray[np.float32]:
    """Keypoints in pixels of the image resized to height × width, left and right exchanged if it is flipped.

    Returns:
      float32 [P, K, 3], zeros if not labelled.
    """
    points = record.keypoints * np.array([width, height, 1], np.float32)
    if flipped:
        points[..., 0] = np.float32(width) - points[..., 0]
        points = points[:, list(skeleton.flip)]
    points[points[..., 2] == 0] = 0
    return points
