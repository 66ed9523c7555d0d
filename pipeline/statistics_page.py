"""The statistics of a split as one page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import statistics_charts
from pipeline.contact_sheet import picture_of
from pipeline.drawing import BOX, draw_boxes, sides
from pipeline.html_page import page, table
from pipeline.record_folder import DataSet
from pipeline.record_reader import Record, read_records
from pipeline.record_statistics import SIZE_EDGES, WELL_MATCHED, RecordStatistics, WorstBox
from pipeline.skeleton import Skeleton

CROP, CONTEXT = 220, 1.6  # pixels of a crop's sides; how much more than the box it shows
SMALLEST_CROP = 48.0  # pixels of the picture
_LOOK = (
    "<style>td.heat { text-align: right; font-variant-numeric: tabular-nums; padding: .3rem .5rem; }"
    " .charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }"
    " .crops { grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }</style>"
)


def statistics_page(data_set: DataSet, split: str, statistics: RecordStatistics) -> str:
    """The page as HTML. Reads the records of the worst matched boxes again, for their pictures."""
    skeleton, anchors = data_set.skeleton, data_set.anchors
    pairs = mirror_pairs(skeleton)
    charts = {
        "Persons in a picture": statistics_charts.persons(statistics),
        "Labelled keypoints of a person": statistics_charts.keypoints(statistics),
        "Size of boxes": statistics_charts.sizes(statistics),
        "Shape of boxes": statistics_charts.aspects(statistics, anchors),
    }
    labelled = statistics.visibility[:, 1:].sum(axis=1)
    points = {"Labelled points": statistics_charts.visibility(statistics, skeleton)}
    if pairs:
        difference = [100 * (labelled[a] - labelled[b]) / max(labelled[a] + labelled[b], 1) for a, b in pairs]
        points["Left against right"] = statistics_charts.balance([_pair_name(skeleton, pair) for pair in pairs], difference)
    parts = [
        _LOOK,
        f"<h1>{html.escape(data_set.name)}, split {html.escape(split)}</h1>",
        f'<p class="soft">Read from {statistics.pictures:,} records in {html.escape(str(data_set.folder))}.</p>',
        f'<div class="headline">{_headline(statistics)}</div>',
        "<h2>People</h2>",
        _charts(charts),
        "<h2>Keypoints</h2>",
        _charts(points),
        _pairs_table(statistics, skeleton, pairs) if pairs else "",
    ]
    if data_set.short_edges:
        matching = {
            "How well boxes are matched": statistics_charts.best_iou(statistics, anchors),
            "Which boxes are matched well": statistics_charts.best_by_sides(statistics, anchors),
        }
        parts += [
            "<h2>Anchors</h2>",
            f"<p>Over all variants. A box whose best anchor has an IoU below {WELL_MATCHED} has no anchor that fits: it trains "
            "that one, which has a shape far from its own.</p>",
            _charts(matching),
            "<h3>Positive anchors of a box</h3><p>Mean, by variant and by the size of the box in that variant (square root of "
            "its area in pixels, from the number at the head on). Very small and very large boxes have many, all equally far "
            "off.</p>",
            _heat_table(data_set, statistics.positives, statistics.boxes, ".1f"),
            "<h3>Boxes that no anchor matches well</h3>"
            f"<p>Share of the boxes whose best anchor has an IoU below {WELL_MATCHED}.</p>",
            _heat_table(data_set, statistics.poor, statistics.boxes, ".0%"),
            _worst(data_set, split, statistics.worst),
        ]
    return page(f"{data_set.name}, {split}", "\n".join(parts))


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


def _headline(statistics: RecordStatistics) -> str:
    persons = int(statistics.sizes.sum())
    with_points = int(statistics.keypoints[1:].sum())
    labelled = int(statistics.visibility[:, 1:].sum())
    tiles = [
        ("main", f"{statistics.pictures:,}", "pictures"),
        ("", f"{persons:,}", f"persons, {persons / max(statistics.pictures, 1):.1f} in a picture"),
        ("", f"{with_points:,}", "of them with labelled keypoints"),
        ("", f"{labelled:,}", f"labelled points, {labelled / max(with_points, 1):.1f} each"),
        ("", f"{statistics.crowds:,}", f"crowds, in {statistics.pictures_with_crowds:,} pictures"),
    ]
    matched = int(statistics.boxes.sum())
    if matched:
        tiles.append(("", f"{statistics.poor.sum() / matched:.1%}", f"of boxes: best anchor below IoU {WELL_MATCHED}"))
    return "".join(f'<div class="{kind}"><b>{value}</b><span>{text}</span></div>' for kind, value, text in tiles)


def _charts(charts: dict[str, str]) -> str:
    figures = [f'<figure class="chart"><figcaption>{title}</figcaption>{svg}</figure>' for title, svg in charts.items()]
    return f'<div class="charts">{"".join(figures)}</div>'


def _pairs_table(statistics: RecordStatistics, skeleton: Skeleton, pairs: Sequence[tuple[int, int]]) -> str:
    rows = []
    for pair in pairs:
        counts = [statistics.visibility[k, 1:].sum() for k in pair]
        both, crossed = statistics.crossed[pair[0]]
        share = f"{crossed / both:.0%}" if both else "–"
        rows.append([html.escape(_pair_name(skeleton, pair)), *(f"{count:,}" for count in counts), f"{both:,}", share])
    head = ["pair", "left labelled#", "right labelled#", "both#", "left one further right#"]
    return (
        f'<div class="box"><table>{table(head, rows)}</table></div>'
        "<p>Who faces the camera has his left points further right in the picture: well above half of the persons in most data "
        "sets. Near or below half for all pairs, left and right may be confused.</p>"
    )


def _heat_table(data_set: DataSet, values: NDArray[np.int64], boxes: NDArray[np.int64], form: str) -> str:
    """Values per box by variant and size, sizes that no box has left out."""
    shown = np.flatnonzero(boxes.sum(axis=0))
    with np.errstate(invalid="ignore"):
        means = values / np.where(boxes > 0, boxes, np.nan)
    largest = np.nanmax(means, initial=1e-9) if shown.size else 1.0
    names = ["&lt; 4", *(f"{edge:.0f}" for edge in SIZE_EDGES)]
    rows = []
    for variant in range(len(values)):
        cells = [
            '<td class="heat">–</td>'
            if np.isnan(mean)
            else f'<td class="heat" style="background:color-mix(in srgb, var(--c2) {60 * mean / largest:.0f}%, transparent)">'
            f"{mean:{form}}</td>"
            for mean in means[variant, shown]
        ]
        rows.append([f"{data_set.short_edges[variant // 2]}{', flipped' if variant % 2 else ''}", *cells])
    head = ["variant", *(f"{names[size]}#" for size in shown)]
    return f'<div class="box"><table>{table(head, rows)}</table></div>'


def _worst(data_set: DataSet, split: str, worst: Sequence[WorstBox]) -> str:
    """Crops of the boxes that are matched worst, each with its best IoU."""
    if not worst:
        return ""
    index = data_set.index(split)
    figures = []
    for box, record in zip(worst, read_records(data_set, split, [index[box.place] for box in worst]), strict=True):
        crop = base64.b64encode(_crop(record, box)).decode()
        text = f"IoU {box.iou:.2f}, {box.size[0]:.0f} × {box.size[1]:.0f} px"
        figures.append(
            f'<figure class="pair"><img alt="{text}" src="data:image/jpeg;base64,{crop}"><figcaption><span>{text}</span>'
            f"<code>{box.image_id}</code></figcaption></figure>"
        )
    return (
        "<p>The worst of them, with the IoU in their best variant, their size, and the id of the picture: "
        f'</p><div class="gallery crops">{"".join(figures)}</div>'
    )


def _crop(record: Record, box: WorstBox) -> bytes:
    """A square around a box, outlined, as JPEG."""
    corners = record.boxes[box.number] * np.array([record.width, record.height] * 2)
    x0, y0, x1, y1 = corners.tolist()
    side = max(CONTEXT * max(x1 - x0, y1 - y0), SMALLEST_CROP)
    left, top = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2
    square = (left, top, left + side, top + side)
    crop = picture_of(record).transform((CROP, CROP), Image.Transform.EXTENT, square, Image.Resampling.BICUBIC)
    place = (corners - [left, top, left, top]) * CROP / side
    encoded = io.BytesIO()
    Image.fromarray(draw_boxes(np.asarray(crop), place[None], BOX, 1.0, 2)).save(encoded, "JPEG", quality=85)
    return encoded.getvalue()
