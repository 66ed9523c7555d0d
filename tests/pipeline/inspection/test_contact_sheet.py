"""Contact sheets show every record as the variant that was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipeline.command import UserError
from pipeline.drawing import BOX, CROWD
from pipeline.inspection import contact_sheet, sheet
from pipeline.inspection.contact_sheet import Variant, chosen_rows, draw_record, rows_of
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.record_reader import read_records
from tests.conftest import SKELETON, MakeRecordFolder, random_image


def test_chosen_images_are_spread_and_have_people(small_record_folder: RecordFolder) -> None:
    rows = chosen_rows(small_record_folder, "train", 12)
    assert len(rows) == 12 and len({int(row["image_id"]) for row in rows}) == 12
    assert all(row["persons"] + row["crowds"] > 0 for row in rows)
    assert {int(row["shard"]) for row in rows} == {0, 1}
    assert len(chosen_rows(small_record_folder, "train", 100)) == 21  # all but the three with nobody
    assert [row["image_id"] for row in rows_of(small_record_folder, "train", [7, 3])] == [7, 3]
    with pytest.raises(UserError, match="--image_id=77: not among the 24 images of split"):
        rows_of(small_record_folder, "train", [77])


def test_images_of_nobody_are_drawn_where_there_are_no_others(make_record_folder: MakeRecordFolder) -> None:
    record_folder = make_record_folder([random_image(i, np.random.default_rng(i), 0) for i in (1, 2)])
    assert len(chosen_rows(record_folder, "train", 12)) == 2


def test_mirrored_records_are_mirrored_drawings(small_record_folder: RecordFolder) -> None:
    for number in (4, 8, 20):  # two with a crowd
        (row,) = rows_of(small_record_folder, "train", [number])
        record = next(read_records(small_record_folder, "train", [row]))
        grey = np.full((200, 300, 3), 90, np.uint8)
        plain = draw_record(grey, record, SKELETON, flipped=False)
        mirrored = draw_record(grey, record, SKELETON, flipped=True)
        boxes = [(drawing == BOX).all(axis=-1) for drawing in (plain, mirrored[:, ::-1])]
        near = boxes[1] | np.roll(boxes[1], 1, axis=1) | np.roll(boxes[1], -1, axis=1)  # a pixel may be cut off elsewhere
        assert boxes[0].sum() > 100 and (boxes[0] & ~near).sum() < 0.05 * boxes[0].sum()
        assert bool((plain == CROWD).all(axis=-1).any()) == bool(record.is_crowd.any())


def test_a_sheet_of_a_variant(small_record_folder: RecordFolder) -> None:
    rows = chosen_rows(small_record_folder, "train", 4)
    sizes = {"width": 800, "row_height": 120}
    plain, flipped, matched = (
        np.asarray(contact_sheet.contact_sheet(small_record_folder, "train", rows, variant, **sizes))
        for variant in (Variant(), Variant(flipped=True), Variant(flipped=True, short_edge=96))
    )
    assert plain.shape == flipped.shape and (plain != flipped).any()
    green = (matched == contact_sheet.POSITIVE).all(axis=-1) | (np.abs(matched - np.array(contact_sheet.POSITIVE)) < 60).all(-1)
    assert green.sum() > 500
    again = contact_sheet.contact_sheet(small_record_folder, "train", rows, Variant(), **sizes)
    assert (np.asarray(again) == plain).all()
    with pytest.raises(UserError, match=r"--short_edge=100: .* 96, 128"):
        contact_sheet.contact_sheet(small_record_folder, "train", rows, Variant(short_edge=100), **sizes)


def test_real_photographs(coco_sample_records: RecordFolder, tmp_path: Path) -> None:
    rows = chosen_rows(coco_sample_records, "val", 5)
    made = contact_sheet.contact_sheet(coco_sample_records, "val", rows, Variant(True, 160), width=900, row_height=150)
    sheet.write_sheet(made, tmp_path / "sheet.png")
    assert np.asarray(made).std() > 40 and (tmp_path / "sheet.png").stat().st_size > 100_000


def test_a_image_that_cannot_be_decoded_is_a_grey_one(small_records: Path) -> None:
    record_folder = open_record_folder(small_records)
    record = next(read_records(record_folder, "train", [rows_of(record_folder, "train", [6])[0]]))
    broken = dataclasses.replace(record, image_bytes=b"nonsense")
    entry = np.asarray(contact_sheet.image_of(broken))
    assert entry.shape == (record.height, record.width, 3) and (entry[-1] == 60).all() and (entry > 200).any()
