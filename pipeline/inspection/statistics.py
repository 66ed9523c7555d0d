"""Counts over all records of a split, in one pass: people, their keypoints, their boxes, and how well anchors match those.

What is kept does not grow with the number of records.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline import anchors, data_config
from pipeline.record_folder import RecordFolder
from pipeline.record_reader import Record, read_records

Counts = NDArray[np.int64]
Sums = NDArray[np.float64]

MOST_PERSONS = 20  # images with more count as such
SIZE_EDGES = 2.0 ** np.arange(2, 10.5, 0.5)  # pixels, of the square root of a box's area; smaller and larger ones at the ends
ASPECT_EDGES = 2.0 ** np.linspace(-3, 3, 25)  # height / width
IOU_EDGES = np.linspace(0, 1, 21)
SIDE_EDGES = 2.0 ** np.arange(2, 10.75, 0.25)  # pixels, of a box's width and height
WELL_MATCHED = 0.5  # a box whose best anchor has a smaller IoU than this is poorly matched
WORST_KEPT = 12


@dataclasses.dataclass(frozen=True, order=True)
class WorstBox:
    """A box that is poorly matched in every variant. The order is from the worst on.

    Attributes:
      iou: of the best anchor of its best variant.
      place: of its record in the index.
      number: of the object in the record.
    """

    iou: float
    place: int
    number: int
    image_id: int
    object_id: int
    size: tuple[float, float]  # width, height in pixels of the image


@dataclasses.dataclass(eq=False)
class RecordStatistics:
    """Counts. K keypoints, V variants, S bins of `SIZE_EDGES`; crowds are counted nowhere but in `crowds`.

    Attributes:
      persons: int64 [MOST_PERSONS + 1], images by number of persons.
      classes: int64 [C], persons by class, in the order of `Skeleton.classes`.
      keypoints: int64 [K + 1], persons by number of labelled keypoints.
      visibility: int64 [K, 3], keypoints by visibility, of persons with a labelled one.
      crossed: int64 [K, 2] of keypoints with a mirror twin: both are labelled; and then this one lies right of its twin.
      sizes: int64 [S], boxes by size in pixels of the image.
      aspects: int64 [len(ASPECT_EDGES) + 1], boxes by height / width.
      boxes: int64 [V, S], boxes by size in pixels of the variant.
      positives: int64 [V, S], positive anchors of those boxes.
      best: int64 [V, len(IOU_EDGES) − 1], boxes by the IoU of their best anchor.
      poor: int64 [V, S], boxes whose best anchor has an IoU below WELL_MATCHED.
      best_by_sides: float64 [2, width, height] of bins of `SIDE_EDGES` over all variants: boxes, and the sum of their best IoU.
      worst: some of the boxes that are matched worst, from the worst on.
    """

    images: int
    crowds: int
    images_with_crowds: int
    persons: Counts
    classes: Counts
    keypoints: Counts
    visibility: Counts
    crossed: Counts
    sizes: Counts
    aspects: Counts
    boxes: Counts
    positives: Counts
    best: Counts
    poor: Counts
    best_by_sides: Sums
    worst: list[WorstBox]

    @staticmethod
    def empty(num_keypoints: int, num_variants: int, num_classes: int = 1) -> RecordStatistics:
        sizes, sides = len(SIZE_EDGES) + 1, len(SIDE_EDGES) + 1

        def zeros(*shape: int) -> Counts:
            return np.zeros(shape, np.int64)

        return RecordStatistics(
            images=0,
            crowds=0,
            images_with_crowds=0,
            persons=zeros(MOST_PERSONS + 1),
            classes=zeros(num_classes),
            keypoints=zeros(num_keypoints + 1),
            visibility=zeros(num_keypoints, 3),
            crossed=zeros(num_keypoints, 2),
            sizes=zeros(sizes),
            aspects=zeros(len(ASPECT_EDGES) + 1),
            boxes=zeros(num_variants, sizes),
            positives=zeros(num_variants, sizes),
            best=zeros(num_variants, len(IOU_EDGES) - 1),
            poor=zeros(num_variants, sizes),
            best_by_sides=np.zeros((2, sides, sides)),
            worst=[],
        )


def collect(record_folder: RecordFolder, split: str, advance: Callable[[int], None]) -> RecordStatistics:
    """Reads every record of a split once.

    Args:
      advance: called with 1 for each record.

    Raises:
      UserError: no such split, or a damaged file.
    """
    skeleton = record_folder.skeleton
    statistics = RecordStatistics.empty(skeleton.num_keypoints, 2 * len(record_folder.short_edges), skeleton.num_classes)
    for place, record in enumerate(read_records(record_folder, split, record_folder.index(split))):
        _count_people(statistics, record, record_folder)
        _count_matching(statistics, record, record_folder, place)
        advance(1)
    return statistics


def _count_people(statistics: RecordStatistics, record: Record, record_folder: RecordFolder) -> None:
    person = ~record.is_crowd
    crowds = int(record.is_crowd.sum())
    statistics.images += 1
    statistics.crowds += crowds
    statistics.images_with_crowds += crowds > 0
    statistics.persons[min(int(person.sum()), MOST_PERSONS)] += 1
    statistics.classes += np.bincount(record.labels[person] - 1, minlength=len(statistics.classes))

    points = record.keypoints[person]  # [P, K, 3]
    visibility = points[..., 2].astype(np.int64)
    labelled = visibility > 0
    statistics.keypoints += np.bincount(labelled.sum(axis=1), minlength=len(statistics.keypoints))
    for value in range(3):
        statistics.visibility[:, value] += (visibility[labelled.any(axis=1)] == value).sum(axis=0)
    twin = list(record_folder.skeleton.flip)
    both = labelled & labelled[:, twin] & (np.array(twin) != np.arange(len(twin)))
    statistics.crossed[:, 0] += both.sum(axis=0)
    statistics.crossed[:, 1] += (both & (points[..., 0] > points[:, twin, 0])).sum(axis=0)

    sides = _sides(record.boxes[person], record.height, record.width)
    np.add.at(statistics.sizes, _bins(_size(sides), SIZE_EDGES), 1)
    np.add.at(statistics.aspects, _bins(sides[:, 1] / np.maximum(sides[:, 0], 1e-6), ASPECT_EDGES), 1)


def _count_matching(statistics: RecordStatistics, record: Record, record_folder: RecordFolder, place: int) -> None:
    persons = np.flatnonzero(~record.is_crowd)
    if not len(persons) or not record.matchings:
        return
    best_of_all = np.zeros(len(persons))
    for variant, matching in enumerate(record.matchings):
        height, width = data_config.resized_size(
            record.height, record.width, record_folder.short_edges[variant // 2], record_folder.max_edge
        )
        boxes = anchors.variant_boxes(record.boxes[persons], height, width, flipped=bool(variant % 2))
        best = best_iou(record_folder.anchors, matching, boxes, height, width)
        best_of_all = np.maximum(best_of_all, best)
        sides = _sides(boxes, 1, 1)
        size = _bins(_size(sides), SIZE_EDGES)
        np.add.at(statistics.boxes[variant], size, 1)
        np.add.at(statistics.positives[variant], size, np.bincount(matching.positive_box, minlength=len(record.boxes))[persons])
        np.add.at(statistics.poor[variant], size, best < WELL_MATCHED)
        statistics.best[variant] += np.histogram(best, IOU_EDGES)[0]
        cells = (_bins(sides[:, 0], SIDE_EDGES), _bins(sides[:, 1], SIDE_EDGES))
        np.add.at(statistics.best_by_sides[0], cells, 1)
        np.add.at(statistics.best_by_sides[1], cells, best)
    sides = _sides(record.boxes[persons], record.height, record.width)
    for number, iou, (box_width, box_height) in zip(persons.tolist(), best_of_all.tolist(), sides.tolist(), strict=True):
        if iou < WELL_MATCHED:
            box = WorstBox(iou, place, number, record.image_id, int(record.object_ids[number]), (box_width, box_height))
            statistics.worst = heapq.nsmallest(WORST_KEPT, [*statistics.worst, box])


def best_iou(
    config: anchors.AnchorConfig, matching: anchors.Matching, boxes: NDArray[np.float32], height: int, width: int
) -> NDArray[np.float32]:
    """The largest IoU of each box with any anchor, float32 [P] from boxes [P, 4] in pixels of the resized image.

    A box's best anchor is always positive, though perhaps matched to another box: so only the positive ones are looked at.
    """
    if not len(matching.positive):
        return np.zeros(len(boxes), np.float32)
    places = anchors.corners(config, matching.positive, height, width)
    return np.asarray(anchors.iou(places[:, None], boxes).max(axis=0))


def _sides(boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.float64]:
    """Width and height of boxes, float64 [P, 2], scaled."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).astype(np.float64) * (width, height))


def _size(sides: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(sides.prod(axis=1)))


def _bins(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 below the first edge, len(edges) from the last one on."""
    return np.asarray(np.searchsorted(edges, values, side="right"), np.int64)
