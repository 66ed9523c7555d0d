"""A record read for looking at is the one that training reads."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import records
from pipeline.coco import CocoImage
from pipeline.command import UserError
from pipeline.data_config import DataConfig, resized_size
from pipeline.loading.batches import training_batches
from pipeline.record_folder import RecordFolder
from pipeline.record_reader import decode_record, pixel_keypoints, read_records
from tests.conftest import SKELETON, MakeRecordFolder, random_image


def test_boxes_keypoints_and_matching_are_those_of_the_batches(small_record_folder: RecordFolder) -> None:
    rows = {int(row["image_id"]): row for row in small_record_folder.index("train")}
    config = DataConfig(short_edges=(96, 128), max_edge=192, max_boxes=8, sampled_anchors=32, num_canvases=2)
    flips = set()
    for batch in training_batches(small_record_folder, "train", config, global_batch_size=1, seed=0, num_steps=20):
        image_id, (height, width) = int(batch["image_id"][0]), batch["image_size"][0].numpy().tolist()
        record = next(read_records(small_record_folder, "train", [rows[image_id]]))
        assert (record.image_id, record.height, record.width) == (image_id, *batch["original_size"][0].numpy().tolist())
        assert (height, width) in [resized_size(record.height, record.width, edge, 192) for edge in (96, 128)]
        kept = slice(len(record.boxes))
        for flipped in (False, True):
            points = pixel_keypoints(record, SKELETON, height, width, flipped=flipped)
            if np.allclose(points, batch["keypoints"][0, kept], atol=1e-3):
                flips.add(flipped)
                break
        else:
            pytest.fail(f"keypoints of image {image_id} are neither the record's nor its mirror image's")
        np.testing.assert_array_equal(record.is_crowd, batch["box_kind"][0, kept].numpy() == 2)
    assert flips == {False, True}


def test_it_holds_the_very_matching(small_record_folder: RecordFolder, entries: dict[int, CocoImage]) -> None:
    record_folder = small_record_folder
    row = next(row for row in record_folder.index("train") if row["image_id"] == 8)  # with a crowd
    record = next(read_records(record_folder, "train", [row]))
    expected = records.match_image(entries[8], record_folder.anchors, record_folder.short_edges, record_folder.max_edge)
    for stored, right in zip(record.matchings, expected, strict=True):
        np.testing.assert_array_equal(stored.positive, right.positive)
        np.testing.assert_array_equal(stored.positive_box, right.positive_box)
        np.testing.assert_array_equal(stored.ignored, right.ignored)
    assert record.is_crowd.tolist() == [False, True] and record.object_ids.tolist() == [800, 801]


def test_a_damaged_file_makes_one_line(make_record_folder: MakeRecordFolder) -> None:
    rng = np.random.default_rng(3)
    record_folder = make_record_folder([random_image(i, rng, 1) for i in (1, 2)])
    row = record_folder.index("train")[0]
    path = record_folder.shards("train")[0]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"record at byte 0: damaged \(corrupted record at \d+\); .*--verify") as caught:
        next(read_records(record_folder, "train", [row]))
    assert "\n" not in str(caught.value)


def test_lists_that_do_not_fit_are_refused() -> None:
    with pytest.raises((ValueError, IndexError)):
        decode_record(b"", 5)
    with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
        decode_record(b"\xff\xff", 5)
