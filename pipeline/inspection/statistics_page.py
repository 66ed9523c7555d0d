"""The statistics of a split as one page that needs no other file: `statistics.html` with its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.drawing import BOX, draw_boxes, sides
from pipeline.image_writer import encode
from pipeline.inspection import distributions
from pipeline.inspection.contact_sheet import image_of
from pipeline.inspection.html_page import Tile, jpeg_source, render
from pipeline.inspection.statistics import SIZE_EDGES, WELL_MATCHED, RecordStatistics, WorstBox
from pipeline.record_folder import RecordFolder
from pipeline.record_reader import Record, read_records
from pipeline.skeleton import Skeleton

CROP, CONTEXT = 220, 1.6  # pixels of a crop's sides; how much more than the box it shows
SMALLEST_CROP = 48.0  # pixels of the image
CLASSES_SHOWN = 6  # those that most persons are of


def statistics_page(record_folder: RecordFolder, split: str, statistics: RecordStatistics) -> str:
    """The page as HTML. Reads the records of the worst matched boxes again, for their images."""
    skeleton, anchors = record_folder.skeleton, record_folder.anchors
    pairs = mirror_pairs(skeleton)
    labelled = statistics.visibility[:, 1:].sum(axis=1)
    keypoint_charts = {"Labelled points": distributions.visibility(statistics, skeleton)}
    if pairs:
        difference = [100 * (labelled[a] - labelled[b]) / max(labelled[a] + labelled[b], 1) for a, b in pairs]
        names = [_pair_name(skeleton, pair) for pair in pairs]
        keypoint_charts["Left against right"] = distributions.balance(names, difference)
    matching: dict[str, Any] = {"matching_charts": None}
    if record_folder.short_edges:
        matching = {
            "matching_charts": {
                "How well boxes are matched": distributions.best_iou(statistics, anchors),
                "Which boxes are matched well": distributions.best_by_sides(statistics, anchors),
            },
            "well_matched": WELL_MATCHED,
            "positives": _heat_table(record_folder, statistics.positives, statistics.boxes, ".1f"),
            "poor": _heat_table(record_folder, statistics.poor, statistics.boxes, ".0%"),
            "worst": list(_worst(record_folder, split, statistics.worst)),
        }
    return render(
        Path(__file__).with_name("statistics.html"),
        name=record_folder.name,
        split=split,
        images=f"{statistics.images:,}",
        folder=str(record_folder.path),
        tiles=_tiles(statistics, skeleton),
        people_charts={
            "Persons in an image": distributions.persons(statistics),
            "Labelled keypoints of a person": distributions.keypoints(statistics),
            "Size of boxes": distributions.sizes(statistics),
            "Shape of boxes": distributions.aspects(statistics, anchors),
        },
        keypoint_charts=keypoint_charts,
        pair_rows=[_pair_row(statistics, skeleton, pair) for pair in pairs],
        **matching,
    )


def mirror_pairs(skeleton: Skeleton) -> list[tuple[int, int]]:
    """Keypoints that are mirror twins, the left one first."""
    side = sides(skeleton)
    pairs = [(k, twin) for k, twin in enumerate(skeleton.flip) if k < twin]
    return [(b, a) if side[a] == "right" else (a, b) for a, b in pairs]


def _pair_name(skeleton: Skeleton, pair: tuple[int, int]) -> str:
    """What the names of the twins have in common, such as "shoulder"; else the left one's."""
    left, right = (skeleton.keypoints[k].replace("_", " ").split() for k in pair)
    common = [word for word in left if word in right]
    return " ".join(common or left)


def _tiles(statistics: RecordStatistics, skeleton: Skeleton) -> list[Tile]:
    persons = int(statistics.sizes.sum())
    with_points = int(statistics.keypoints[1:].sum())
    labelled = int(statistics.visibility[:, 1:].sum())
    tiles = [
        Tile(f"{statistics.images:,}", "images", kind="main"),
        Tile(f"{persons:,}", f"persons, {persons / max(statistics.images, 1):.1f} in an image"),
        Tile(f"{with_points:,}", "of them with labelled keypoints"),
        Tile(f"{labelled:,}", f"labelled points, {labelled / max(with_points, 1):.1f} each"),
        Tile(f"{statistics.crowds:,}", f"crowds, in {statistics.images_with_crowds:,} images"),
    ]
    if skeleton.classes:
        most = sorted(zip(statistics.classes.tolist(), skeleton.classes, strict=True), reverse=True)
        some = ", ".join(f"{name} {count:,}" for count, (_, name) in most[:CLASSES_SHOWN])
        tiles.append(Tile(f"{len(most):,}", f"classes: {some}{', …' if len(most) > CLASSES_SHOWN else ''}"))
    matched = int(statistics.boxes.sum())
    if matched:
        tiles.append(Tile(f"{statistics.poor.sum() / matched:.1%}", f"of boxes: best anchor below IoU {WELL_MATCHED}"))
    return tiles


def _pair_row(statistics: RecordStatistics, skeleton: Skeleton, pair: tuple[int, int]) -> list[str]:
    """A row on a pair of twins: its name, how often each and both are labelled, how often the left one is further right."""
    counts = [statistics.visibility[k, 1:].sum() for k in pair]
    both, crossed = statistics.crossed[pair[0]]
    share = f"{crossed / both:.0%}" if both else "–"
    return [_pair_name(skeleton, pair), *(f"{count:,}" for count in counts), f"{both:,}", share]


def _heat_table(record_folder: RecordFolder, values: NDArray[np.int64], boxes: NDArray[np.int64], form: str) -> dict[str, Any]:
    """Values per box by variant and size, sizes that no box has left out; each with the strength of its colour in percent."""
    shown = np.flatnonzero(boxes.sum(axis=0))
    with np.errstate(invalid="ignore"):
        means = values / np.where(boxes > 0, boxes, np.nan)
    largest = np.nanmax(means, initial=1e-9) if shown.size else 1.0
    names = ["< 4", *(f"{edge:.0f}" for edge in SIZE_EDGES)]
    rows = []
    for variant in range(len(values)):
        cells = [
            {
                "text": "–" if np.isnan(mean) else f"{mean:{form}}",
                "strength": 0 if np.isnan(mean) else round(60 * mean / largest),
            }
            for mean in means[variant, shown].tolist()
        ]
        name = f"{record_folder.short_edges[variant // 2]}{', flipped' if variant % 2 else ''}"
        rows.append({"variant": name, "cells": cells})
    return {"sizes": [names[size] for size in shown], "rows": rows}


def _worst(record_folder: RecordFolder, split: str, worst: Sequence[WorstBox]) -> Iterator[dict[str, Any]]:
    """Crops of the boxes that are matched worst, each with its best IoU and its size."""
    index = record_folder.index(split)
    records = read_records(record_folder, split, [index[box.place] for box in worst])
    for box, record in zip(worst, records, strict=True):
        text = f"IoU {box.iou:.2f}, {box.size[0]:.0f} × {box.size[1]:.0f} px"
        yield {"text": text, "source": jpeg_source(_crop(record, box)), "image_id": box.image_id}


def _crop(record: Record, box: WorstBox) -> bytes:
    """A square around a box, outlined, as JPEG."""
    corners = record.boxes[box.number] * np.array([record.width, record.height] * 2)
    x0, y0, x1, y1 = corners.tolist()
    side = max(CONTEXT * max(x1 - x0, y1 - y0), SMALLEST_CROP)
    left, top = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2
    square = (left, top, left + side, top + side)
    crop = image_of(record).transform((CROP, CROP), Image.Transform.EXTENT, square, Image.Resampling.BICUBIC)
    place = (corners - [left, top, left, top]) * CROP / side
    return encode(draw_boxes(np.asarray(crop), place[None], BOX, 1.0, 2), "jpeg", quality=85)
