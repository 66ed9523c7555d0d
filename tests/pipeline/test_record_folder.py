from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import records
from pipeline.command import UserError
from pipeline.record_folder import INDEX_DTYPE, RecordFolder, open_record_folder, parse_record_folder


def test_the_index_finds_every_record(coco_sample_records: RecordFolder) -> None:
    rows = coco_sample_records.index("train")
    shards = [path.read_bytes() for path in coco_sample_records.shards("train")]
    assert len(rows) == 79 and len(shards) == 2 and sorted(rows["shard"]) == list(rows["shard"])
    for row in rows:
        begin = row["offset"] + 12
        record = records.parse(tf.constant(shards[row["shard"]][begin : begin + row["length"]]))
        assert int(record["image/source_id"].numpy()) == row["image_id"]
        assert (record["image/height"], record["image/width"]) == (row["height"], row["width"])
        crowd = record["image/object/is_crowd"].numpy()
        assert (np.sum(crowd == 0), np.sum(crowd == 1)) == (row["persons"], row["crowds"])
        assert np.sum(record["image/object/keypoint/num"].numpy() > 0) == row["labelled_persons"]
    assert (rows["persons"].sum(), rows["crowds"].sum(), rows["labelled_persons"].sum()) == (298, 7, 178)


def test_metadata(coco_sample_records: RecordFolder) -> None:
    data = open_record_folder(coco_sample_records.path)
    assert data == coco_sample_records
    assert data.name == "coco_sample" and data.short_edges == (128, 160) and data.max_edge == 1333
    assert data.skeleton.num_keypoints == 17 and data.category_id == 1 and sorted(data.splits) == ["train", "val"]


def test_an_unknown_split_is_answered_with_those_there_are(coco_sample_records: RecordFolder) -> None:
    with pytest.raises(UserError, match=r"'test'.* train, val"):
        coco_sample_records.index("test")
    with pytest.raises(UserError, match="'test'"):
        coco_sample_records.shards("test")


def test_what_is_no_whole_record_folder_is_refused(coco_sample_records: RecordFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_record_folder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no pipeline\.json"):
        open_record_folder(tmp_path)

    copy = tmp_path / "copy"
    shutil.copytree(coco_sample_records.path, copy)
    data = open_record_folder(copy)
    first = data.shards("train")[0]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{first.name}.*bytes"):
        data.shards("train")
    first.unlink()
    with pytest.raises(UserError, match=f"{first.name}: missing"):
        data.shards("train")
    np.save(copy / "index-val.npy", data.index("val")[:-1])
    with pytest.raises(UserError, match="37 records"):
        data.index("val")
    (copy / "index-val.npy").write_bytes(b"")
    with pytest.raises(UserError, match="index-val"):
        data.index("val")

    metadata = json.loads((copy / "pipeline.json").read_text())
    (copy / "pipeline.json").write_text(json.dumps(metadata | {"format_version": 99}))
    with pytest.raises(UserError, match="format_version 99"):
        open_record_folder(copy)
    del metadata["skeleton"]
    (copy / "pipeline.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="damaged"):
        open_record_folder(copy)


Change = Callable[[Any], object]


def of_train(change: Change) -> Change:
    return lambda content: change(content["splits"]["train"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_train(lambda split: split.update(index="../index-train.npy")), "index '../index-train.npy'"),
        (of_train(lambda split: split.update(index="/etc/passwd")), "index '/etc/passwd'"),
        (of_train(lambda split: split.update(index="..")), "index '..'"),
        (of_train(lambda split: split.update(index="a\\\\b")), "index "),
        (of_train(lambda split: split.update(index="a\nb")), "index "),
        (of_train(lambda split: split["shards"][0].update(file="../precious")), "file '../precious'"),
        (of_train(lambda split: split["shards"][1].update(file="sub/precious")), "file 'sub/precious'"),
        (of_train(lambda split: split["shards"][1].update(file="")), "file ''"),
        (of_train(lambda split: split["shards"][1].update(bytes=-1)), "bytes -1"),
        (of_train(lambda split: split.update(images=True)), "images True"),
        (of_train(lambda split: split.update(images=1e30)), "images 1e.30"),
        (lambda content: content.update(dataset_name="../x"), "dataset_name '../x'"),
        (lambda content: content["splits"].update({"../x": {}}), "split '../x'"),
        (lambda content: content["variants"].update(short_edges=[1 << 40]), "short_edges"),
    ],
)
def test_names_that_lead_out_and_wrong_types_are_refused_on_opening(
    coco_sample_records: RecordFolder, tmp_path: Path, change: Change, words: str
) -> None:
    content = json.loads((coco_sample_records.path / "pipeline.json").read_text())
    change(content)
    (tmp_path / "pipeline.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"pipeline.json: damaged .*{words}.*copy it again"):
        open_record_folder(tmp_path)


def replaced(value: Any) -> Iterator[Any]:
    """`value` with each of its parts in turn replaced by others, and left out."""
    others: tuple[Any, ...] = (None, True, -1, 10**30, 1.5, "", "..", [], [[]], {}, {"": 0}, [None] * 3)

    def places(part: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        yield path
        for key, below in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
            yield from places(below, (*path, key))

    for path in places(value, ()):
        for other in (*others, KeyError):
            changed = {"": copy.deepcopy(value)}
            part: Any = changed
            for key in ("", *path)[:-1]:
                part = part[key]
            last = path[-1] if path else ""
            if other is KeyError:
                del part[last]
            else:
                part[last] = other
            if changed:
                yield changed[""]


def test_whatever_stands_in_the_metadata_a_folder_opens_or_is_refused_in_one_line(coco_sample_records: RecordFolder) -> None:
    content = json.loads((coco_sample_records.path / "pipeline.json").read_text())
    refused = opened = 0
    for value in replaced(content):
        try:
            found = parse_record_folder(coco_sample_records.path, json.dumps(value).encode())
            opened += 1
            for split in found.splits:
                found.shards(split)
                found.index(split)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1500
    assert refused > 1000 and opened > 100


def test_a_bit_of_an_index_never_passes(coco_sample_records: RecordFolder, tmp_path: Path) -> None:
    """Also in a folder that was written before indexes had checksums, as far as the bit tells where a record lies."""
    shutil.copytree(coco_sample_records.path, tmp_path / "copy")
    content = json.loads((tmp_path / "copy" / "pipeline.json").read_text())
    assert (
        content["splits"]["val"].pop("index_sha256")
        == hashlib.sha256((tmp_path / "copy" / "index-val.npy").read_bytes()).hexdigest()
    )
    (tmp_path / "copy" / "pipeline.json").write_text(json.dumps(content))
    old, path = open_record_folder(tmp_path / "copy"), tmp_path / "copy" / "index-val.npy"
    rows, sound = old.index("val"), path.read_bytes()
    assert (rows == coco_sample_records.index("val")).all()
    header, rng = len(sound) - rows.nbytes, np.random.default_rng(3)
    for bit in rng.choice(8 * len(sound), 400, replace=False):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path.name}: .*copy it again"):
            RecordFolder.index(open_with(old, coco_sample_records), "val")
        place = (int(bit) // 8 - header) % INDEX_DTYPE.itemsize
        if int(bit) // 8 >= header and place < 20:  # shard, offset, length
            with pytest.raises(UserError, match=f"{path.name}: .*copy it again"):
                old.index("val")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="FIFO"):
        old.index("val")


def open_with(folder: RecordFolder, other: RecordFolder) -> RecordFolder:
    """The files of one folder by the metadata of another."""
    return parse_record_folder(folder.path, (other.path / "pipeline.json").read_bytes())


def test_metadata_that_is_no_file_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipeline.json")
    with pytest.raises(UserError, match=r"pipeline.json: cannot be read \(a FIFO"):
        open_record_folder(tmp_path)
