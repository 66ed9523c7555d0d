"""Counts over records equal counts over the annotations that they were made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import anchors, data_config
from pipeline.coco import CocoImage
from pipeline.inspection.statistics import MOST_PERSONS, WELL_MATCHED, WORST_KEPT, RecordStatistics, best_iou, collect
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.record_reader import read_records


@pytest.fixture(scope="module")
def statistics(small_records: Path) -> RecordStatistics:
    return collect(open_record_folder(small_records), "train", lambda _: None)


def test_people_and_keypoints(statistics: RecordStatistics, entries: dict[int, CocoImage]) -> None:
    people = [[person for person in entry.persons if not person.is_crowd] for entry in entries.values()]
    assert statistics.images == 24 and (statistics.crowds, statistics.images_with_crowds) == (2, 2)
    np.testing.assert_array_equal(statistics.persons, np.bincount([len(p) for p in people], minlength=MOST_PERSONS + 1))
    points = np.stack([person.keypoints for group in people for person in group])  # [all, K, 3]
    labelled = points[..., 2] > 0
    np.testing.assert_array_equal(statistics.keypoints, np.bincount(labelled.sum(axis=1), minlength=6))
    assert labelled.any(axis=1).all()  # (so that every person counts below)
    for value in range(3):
        np.testing.assert_array_equal(statistics.visibility[:, value], (points[..., 2] == value).sum(axis=0))
    for left, right in ((1, 2), (3, 4)):
        both = labelled[:, left] & labelled[:, right]
        further = both & (points[:, left, 0] > points[:, right, 0])
        assert statistics.crossed[left].tolist() == [both.sum(), further.sum()]
    assert statistics.crossed[0].tolist() == [0, 0]  # the nose has no twin
    assert statistics.sizes.sum() == statistics.aspects.sum() == len(points)


def test_sizes_and_shapes(statistics: RecordStatistics, entries: dict[int, CocoImage]) -> None:
    boxes = np.array([person.box for entry in entries.values() for person in entry.persons if not person.is_crowd])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert statistics.sizes[: 2 * 4 + 1].sum() == (np.sqrt(width * height) < 64).sum()  # 4 · 2⁴ pixels
    assert statistics.aspects[:13].sum() == (height < width).sum()


def test_every_positive_anchor_belongs_to_a_box(statistics: RecordStatistics, small_records: Path) -> None:
    record_folder = open_record_folder(small_records)
    records = list(read_records(record_folder, "train", record_folder.index("train")))
    for variant in range(4):
        assert statistics.positives[variant].sum() == sum(len(record.matchings[variant].positive) for record in records)
        assert statistics.boxes[variant].sum() == statistics.best[variant].sum() == statistics.sizes.sum()
    assert statistics.best_by_sides[0].sum() == statistics.boxes.sum()


def test_the_best_anchor_is_that_of_the_whole_grid(coco_sample_records: RecordFolder) -> None:
    record_folder = coco_sample_records
    for record in read_records(record_folder, "train", record_folder.index("train")[:12]):
        for variant, matching in enumerate(record.matchings):
            size = data_config.resized_size(
                record.height, record.width, record_folder.short_edges[variant // 2], record_folder.max_edge
            )
            boxes = anchors.variant_boxes(record.boxes[~record.is_crowd], *size, flipped=bool(variant % 2))
            if len(boxes):
                whole = anchors.iou(anchors.grid(record_folder.anchors, *size)[:, None], boxes).max(axis=0)
                np.testing.assert_array_equal(best_iou(record_folder.anchors, matching, boxes, *size), whole)


def test_the_worst_boxes_come_first(coco_sample_records: RecordFolder) -> None:
    found = collect(coco_sample_records, "train", lambda _: None)
    assert 0 < len(found.worst) <= WORST_KEPT and found.worst == sorted(found.worst)
    assert all(box.iou < WELL_MATCHED for box in found.worst)
    index = coco_sample_records.index("train")
    record = next(read_records(coco_sample_records, "train", [index[found.worst[0].place]]))
    assert (record.image_id, record.object_ids[found.worst[0].number]) == (found.worst[0].image_id, found.worst[0].object_id)
    below = found.best[:, :10].sum(axis=1)  # of IOU_EDGES, up to 0.5
    np.testing.assert_array_equal(found.poor.sum(axis=1), below)


def test_anchors_of_a_grid_by_name() -> None:
    config = anchors.AnchorConfig()
    grid = anchors.grid(config, 100, 131)
    names = np.random.default_rng(0).permutation(len(grid))[:500].astype(np.int64)
    np.testing.assert_array_equal(anchors.corners(config, names, 100, 131), grid[names])
