"""Each single thing that can be wrong inside a record whose checksum is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from pipeline import records
from pipeline.inspection.verification import check_record
from pipeline.record_folder import open_record_folder
from pipeline.record_reader import read_payload

Feature = Any


def values(feature: Feature, key: str) -> Any:
    return getattr(feature[key], records.KIND_OF_KEY[key]).value


def put(key: str, place: int, value: object) -> Callable[[Feature], None]:
    def change(feature: Feature) -> None:
        values(feature, key)[place] = value

    return change


def append(key: str, value: object) -> Callable[[Feature], None]:
    return lambda feature: values(feature, key).append(value)


def as_floats(feature: Feature) -> None:
    feature["image/height"].float_list.value.append(1.0)  # (the kinds exclude each other)


def without_the_image_s_end(feature: Feature) -> None:
    values(feature, "image/encoded")[0] = values(feature, "image/encoded")[0][:-200]


def swapped_ids(feature: Feature) -> None:
    ids = values(feature, "image/object/id")
    ids[0], ids[1] = ids[1], ids[0]


def other_matching(key: str) -> Callable[[Feature], None]:
    def change(feature: Feature) -> None:
        values(feature, f"anchors/{key}/ragged_flat_values")[-1] += 1

    return change


OBJECT, POINT = "image/object/", "image/object/keypoint/"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda feature: feature.pop("image/filename"), "image/filename: missing"),
        (lambda feature: feature["image/depth"].int64_list.value.append(1), "image/depth: no key"),
        (as_floats, "image/height: float_list, int64_list"),
        (append("image/width", 3), "image/width: 2 values, 1"),
        (append(f"{OBJECT}area", 3.0), f"{OBJECT}area: 4 values, 3"),
        (append(f"{POINT}x", 0.5), f"{POINT}x: 16 values, 15"),
        (append("anchors/positive/ragged_row_lengths_0", 0), "anchors/positive: "),
        (append("anchors/ignored/ragged_flat_values", 1), "anchors/ignored: "),
        (put("image/source_id", 0, b"77"), "image_id 77, the index says"),
        (put("image/height", 0, 91), "the index says"),
        (put(f"{OBJECT}bbox/xmin", 1, -0.1), "not 0 ≤ low ≤ high ≤ 1"),
        (put(f"{OBJECT}bbox/ymax", 1, float("nan")), "not 0 ≤ low ≤ high ≤ 1"),
        (put(f"{OBJECT}class/label", 0, 2), "class: "),
        (put(f"{OBJECT}class/text", 0, b"dog"), "class: "),
        (put(f"{OBJECT}is_crowd", 0, 2), "is_crowd: "),
        (put(f"{OBJECT}area", 0, float("inf")), "areas "),
        (swapped_ids, "not sorted by id"),
        (put(f"{POINT}visibility", 0, 3), "visibility: "),
        (put(f"{POINT}num", 0, 5), "keypoint/num"),
        (put(f"{POINT}x", 0, 1.5), "outside the image"),
        (put(f"{POINT}visibility", 0, 0), "not labelled has a place"),
        (put("image/key/sha256", 0, b"0" * 64), "sha256 of the image"),
        (put("image/format", 0, b"jpeg"), "image/format is 'jpeg'"),
        (without_the_image_s_end, "cannot be decoded"),
        (other_matching("positive"), "anchors/positive at short edge 128, flipped"),
        (other_matching("positive_box"), "anchors/positive"),
        (other_matching("ignored"), "anchors/ignored at short edge 128, flipped"),
        (put(f"{OBJECT}bbox/xmax", 1, 0.99), "anchors/"),
    ],
)
def test_each_fault_is_named(small_records: Path, change: Callable[[Feature], Any], words: str) -> None:
    record_folder = open_record_folder(small_records)
    row = next(row for row in record_folder.index("train") if row["image_id"] == 6)  # three persons
    payload = read_payload(record_folder.shards("train")[row["shard"]], int(row["offset"]), int(row["length"]))
    assert check_record(payload, row, record_folder)[0] == []
    example = tf.train.Example.FromString(payload)
    change(example.features.feature)
    wrong, _ = check_record(example.SerializeToString(), row, record_folder)
    assert any(words in reason for reason in wrong), wrong


def test_bytes_that_are_no_record(small_records: Path) -> None:
    record_folder = open_record_folder(small_records)
    wrong, counts = check_record(b"\xff\xff\xff", record_folder.index("train")[0], record_folder)
    assert len(wrong) == 1 and "no tf.train.Example" in wrong[0] and not counts
