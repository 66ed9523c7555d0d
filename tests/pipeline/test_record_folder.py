from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import records
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder, open_record_folder


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
