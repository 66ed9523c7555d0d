"""Everything that can be wrong with one record, found out from the record itself and its row of the index."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import image, records
from pipeline.command import reason_of
from pipeline.image import PNG_SIGNATURE
from pipeline.record_folder import DataSet
from pipeline.record_reader import Record, decode_record


def check_record(payload: bytes, row: np.void, data_set: DataSet) -> tuple[list[str], Counter[str]]:
    """Checks a serialized record.

    Args:
      row: its row of the index.

    Returns:
      what is wrong, in words; and what it counts for in the split's summary (nothing, where it cannot be read).
    """
    example = tf.train.Example()
    try:
        example.ParseFromString(payload)
    except Exception as error:  # (protobuf's own class depends on its implementation)
        return [f"no tf.train.Example ({error})"], Counter()
    wrong = list(_layout(example, data_set))
    if wrong:
        return wrong, Counter()
    record = decode_record(payload, data_set.skeleton.num_keypoints)
    wrong += [*_index(record, row), *_objects(example, record, data_set), *_picture(example, record)]
    boxes = list(_boxes(record))
    wrong += boxes or _anchors(record, data_set)  # (only boxes as they should be can be matched)
    labelled = (record.keypoints[..., 2] > 0).sum(axis=1)
    return wrong, Counter(
        persons=int((~record.is_crowd).sum()),
        crowds=int(record.is_crowd.sum()),
        labelled_persons=int((labelled[~record.is_crowd] > 0).sum()),
        labelled_keypoints=int(labelled.sum()),
        image_bytes=len(record.image_bytes),
    )


def _layout(example: tf.train.Example, data_set: DataSet) -> Iterator[str]:
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
    wanted = {"[]": 1, "[P]": objects, "[P·K]": objects * data_set.skeleton.num_keypoints}
    for field in records.FIELDS:
        if field.shape != "[V, …]":
            if lengths[field.key] != wanted[field.shape]:
                yield f"{field.key}: {lengths[field.key]} values, {wanted[field.shape]} are expected"
            continue
        values, rows = records.ragged_keys(field.key)
        row_lengths = np.array(feature[rows].int64_list.value, np.int64)
        variants = 2 * len(data_set.short_edges)
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


def _objects(example: tf.train.Example, record: Record, data_set: DataSet) -> Iterator[str]:
    feature = example.features.feature

    def integers(key: str) -> list[int]:
        return list(feature[f"image/object/{key}"].int64_list.value)

    if (np.diff(record.object_ids) < 0).any():
        yield "objects are not sorted by id"
    category = data_set.skeleton.category.encode()
    if any(label != 1 for label in integers("class/label")) or any(
        text != category for text in feature["image/object/class/text"].bytes_list.value
    ):
        yield f"class: not label 1 and {data_set.skeleton.category!r} for every object"
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
        yield "a labelled keypoint lies outside the picture"
    if points[~labelled].any():
        yield "a keypoint that is not labelled has a place"
    if labelled.sum(axis=1).tolist() != integers("keypoint/num"):
        yield f"keypoint/num {integers('keypoint/num')}, labelled are {labelled.sum(axis=1).tolist()}"


def _boxes(record: Record) -> Iterator[str]:
    low, high = record.boxes[:, :2], record.boxes[:, 2:]
    for number in np.flatnonzero(~((low >= 0) & (low <= high) & (high <= 1)).all(axis=1)):
        yield f"box {record.boxes[number].tolist()} of object {number}: not 0 ≤ low ≤ high ≤ 1"


def _picture(example: tf.train.Example, record: Record) -> Iterator[str]:
    stored = example.features.feature["image/key/sha256"].bytes_list.value[0].decode(errors="replace")
    found = hashlib.sha256(record.image_bytes).hexdigest()
    if found != stored:
        yield f"sha256 of the picture is {found[:12]}…, image/key/sha256 says {stored[:12]}…"
    stored_format = example.features.feature["image/format"].bytes_list.value[0]
    if stored_format != (b"png" if record.image_bytes.startswith(PNG_SIGNATURE) else b"jpeg"):
        yield f"image/format is {stored_format.decode(errors='replace')!r}, the picture is of another one"
    try:
        height, width, _ = image.decode(tf.constant(record.image_bytes)).shape
    except tf.errors.OpError as error:
        yield f"the picture {record.file_name} cannot be decoded ({reason_of(error)})"
        return
    if (height, width) != (record.height, record.width):
        yield f"the picture is {width}×{height}, image/width and image/height say {record.width}×{record.height}"


def _anchors(record: Record, data_set: DataSet) -> Iterator[str]:
    """The stored matching against the one that the stored boxes have."""
    expected = records.match_objects(
        record.boxes,
        record.is_crowd,
        (record.height, record.width),
        data_set.anchors,
        data_set.short_edges,
        data_set.max_edge,
    )
    for number, (stored, right) in enumerate(zip(record.matchings, expected, strict=True)):
        pairs: list[tuple[str, Any, Any]] = [
            ("positive", stored.positive, right.positive),
            ("positive_box", stored.positive_box, right.positive_box),
            ("ignored", stored.ignored, right.ignored),
        ]
        for name, got, wanted in pairs:
            if not np.array_equal(got, wanted):
                variant = f"short edge {data_set.short_edges[number // 2]}{', flipped' if number % 2 else ''}"
                yield f"anchors/{name} at {variant}: {len(got)} stored, not the {len(wanted)} that the boxes give"
                break
