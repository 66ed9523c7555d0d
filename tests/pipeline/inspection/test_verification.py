"""Whatever is changed in a finished record folder is found, and named with its file and place."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.inspection.verification import check_record, verify
from pipeline.record_folder import INDEX_DTYPE, METADATA_FILE, open_record_folder
from pipeline.record_reader import read_payload

SHARD, INDEX = "small-train.tfrecord-00001-of-00002", "index-train.npy"


@pytest.fixture
def folder(small_records: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(small_records, tmp_path / "records"))


def faults(folder: Path) -> list[str]:
    """What is wrong, without the folder's name."""
    return [str(fault).removeprefix(f"{folder}/") for fault in verify(open_record_folder(folder), "train", lambda _: None)]


def offset(folder: Path, number: int) -> int:
    """Of the record with that number in the second shard."""
    index = open_record_folder(folder).index("train")
    return int(index["offset"][index["shard"] == 1][number])


def test_what_was_written_is_right(small_records: Path) -> None:
    seen: list[int] = []
    assert not list(verify(open_record_folder(small_records), "train", seen.append))
    assert sum(seen) == 24


def test_the_real_photographs_are_right(coco_sample_records: Any) -> None:
    for split in ("train", "val"):
        assert not list(verify(coco_sample_records, split, lambda _: None))


@pytest.mark.parametrize("place", [20, 2000, -20], ids=["first bytes", "image", "last bytes"])
def test_one_bit_in_a_record(folder: Path, place: int) -> None:
    start, end = offset(folder, 3), offset(folder, 4)
    content = bytearray((folder / SHARD).read_bytes())
    content[(start if place > 0 else end) + place] ^= 4
    (folder / SHARD).write_bytes(content)
    found = faults(folder)
    assert [fault.partition(": ")[0] for fault in found] == [SHARD, f"{SHARD}, record at byte {start}"]
    assert "sha256" in found[0] and "corrupted" in found[1] and "image " in found[1]


def test_one_bit_in_the_length_of_a_record(folder: Path) -> None:
    start = offset(folder, 3)
    content = bytearray((folder / SHARD).read_bytes())
    content[start] ^= 1
    (folder / SHARD).write_bytes(content)
    found = faults(folder)  # the records behind are found through the index
    assert len(found) == 2 and found[1].startswith(f"{SHARD}, record at byte {start}: ") and "corrupted" in found[1]


@pytest.mark.parametrize(("key", "value"), [("image/filename", b"\xff.jpg"), ("image/source_id", b"one")])
def test_a_name_that_is_not_utf_8_and_an_id_that_is_no_number(key: str, value: bytes, folder: Path) -> None:
    """A record of another program, with right checksums."""
    record_folder = open_record_folder(folder)
    row = record_folder.index("train")[0]
    example = tf.train.Example()
    example.ParseFromString(read_payload(record_folder.shards("train")[row["shard"]], int(row["offset"]), int(row["length"])))
    example.features.feature[key].bytes_list.value[:] = [value]
    (wrong,), counts = check_record(example.SerializeToString(), row, record_folder)
    assert wrong.startswith("no record (") and not counts


def test_an_end_that_is_missing(folder: Path) -> None:
    start = offset(folder, -2)
    with (folder / SHARD).open("r+b") as file:
        file.truncate(start + 100)
    found = faults(folder)
    assert len(found) == 3 and "bytes long" in found[0] and "sha256" in found[1]
    assert found[2].startswith(f"{SHARD}, record at byte {start}: ") and "2, lie beyond the end" in found[2]


def test_files_that_are_missing_or_too_many(folder: Path) -> None:
    (folder / SHARD).rename(folder / "small-train.tfrecord-00001-of-00003")
    assert faults(folder) == [
        f"small-train.tfrecord-00001-of-00003: {METADATA_FILE} does not list it",
        f"{SHARD}: missing",
    ]


def change_index(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        rows = np.load(folder / INDEX)
        np.save(folder / INDEX, change(rows))

    return apply


def change_metadata(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / METADATA_FILE).read_text())
        change(content["splits"]["train"])
        (folder / METADATA_FILE).write_text(json.dumps(content))

    return apply


def more_persons(rows: Any) -> Any:
    rows["persons"][5] += 1
    return rows


def shifted(rows: Any) -> Any:
    rows["offset"][5] += 1
    return rows


def twice(rows: Any) -> Any:
    rows["image_id"][5] = rows["image_id"][6]
    return rows


def rename_a_feature(folder: Path) -> None:
    path = folder / "features.json"
    path.write_text(path.read_text().replace("is_crowd", "is_group"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_index(more_persons), [(INDEX, "sha256"), ("record at byte", "the index says")]),
        (change_index(shifted), [(INDEX, "sha256"), *[("ends elsewhere",)] * 2, ("record at byte", "cannot be read")]),
        (change_index(twice), [(INDEX, "sha256"), ("image_id", "the index says")]),
        (change_index(lambda rows: rows[:-1]), [(INDEX, "23 records")]),
        (lambda folder: (folder / INDEX).write_bytes(b"nonsense"), [(INDEX, "cannot be read")]),
        (lambda folder: (folder / INDEX).unlink(), [(INDEX, "cannot be read")]),
        (change_metadata(lambda split: split["shards"][1].update(sha256="0" * 64)), [(SHARD, "sha256", "000000000000")]),
        (change_metadata(lambda split: split["shards"][1].update(bytes=5)), [(SHARD, "bytes long"), ("ends at byte",)]),
        (change_metadata(lambda split: split["shards"][1].pop("sha256")), [(METADATA_FILE, "lacks sha256")]),
        (change_metadata(lambda split: split.pop("shards")), [(METADATA_FILE, "lacks shards")]),
        (change_metadata(lambda split: split["summary"].update(persons=1)), [(METADATA_FILE, "persons 1 ")]),
        (change_metadata(lambda split: split["summary"].pop("persons")), [(METADATA_FILE, "persons None ")]),
        (change_metadata(lambda split: split["summary"].pop("images_skipped")), [("errors-train.jsonl", "counts None")]),
        (change_metadata(lambda split: split["summary"].update(images_skipped=1)), [("errors-train.jsonl", "counts 1")]),
        (lambda folder: (folder / "dataset_info.json").write_text("{"), [("dataset_info.json",)]),
        (lambda folder: (folder / "features.json").unlink(), [("dataset_info.json", "features.json")]),
        (rename_a_feature, [("features.json", "not the features")]),
    ],
)  # fmt: skip
def test_metadata_that_do_not_fit(folder: Path, damage: Callable[[Path], Any], words: list[tuple[str, ...]]) -> None:
    damage(folder)
    found = faults(folder)
    assert len(found) == len(words), found
    for fault, expected in zip(found, words, strict=True):
        assert all(word in fault for word in expected), fault


def test_a_record_folder_that_was_never_finished_is_refused(folder: Path) -> None:
    assert np.load(folder / INDEX).dtype == INDEX_DTYPE
    (folder / METADATA_FILE).unlink()
    with pytest.raises(Exception, match=METADATA_FILE):
        open_record_folder(folder)


def test_no_module_that_features_json_names_is_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "hostile.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(folder))
    path = folder / "features.json"
    for content in (
        path.read_text().replace("tensorflow_datasets.core.features.scalar", "hostile"),
        '{"type": "hostile.A", "content": 1}',
    ):
        path.write_text(content)
        assert faults(folder) == ["features.json: not the features of these records"]
    assert "hostile" not in sys.modules
