"""The statistics of a split as one page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from pipeline.anchors import AnchorConfig, cell_anchors
from pipeline.drawing import BOX, draw_boxes, sides
from pipeline.inspection.contact_sheet import image_of
from pipeline.inspection.html_page import CHART_STYLE, COLOURS, INK, SIZE, page, svg, table
from pipeline.inspection.statistics import (
    ASPECT_EDGES,
    IOU_EDGES,
    MOST_PERSONS,
    SIDE_EDGES,
    SIZE_EDGES,
    WELL_MATCHED,
    RecordStatistics,
    WorstBox,
)
from pipeline.record_folder import RecordFolder
from pipeline.record_reader import Record, read_records
from pipeline.skeleton import Skeleton

CROP, CONTEXT = 220, 1.6  # pixels of a crop's sides; how much more than the box it shows
SMALLEST_CROP = 48.0  # pixels of the image
_LOOK = (
    "<style>td.heat { text-align: right; font-variant-numeric: tabular-nums; padding: .3rem .5rem; }"
    " .charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }"
    " .crops { grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }</style>"
)


def statistics_page(record_folder: RecordFolder, split: str, statistics: RecordStatistics) -> str:
    """The page as HTML. Reads the records of the worst matched boxes again, for their images."""
    skeleton, anchors = record_folder.skeleton, record_folder.anchors
    pairs = mirror_pairs(skeleton)
    charts = {
        "Persons in an image": persons(statistics),
        "Labelled keypoints of a person": keypoints(statistics),
        "Size of boxes": sizes(statistics),
        "Shape of boxes": aspects(statistics, anchors),
    }
    labelled = statistics.visibility[:, 1:].sum(axis=1)
    points = {"Labelled points": visibility(statistics, skeleton)}
    if pairs:
        difference = [100 * (labelled[a] - labelled[b]) / max(labelled[a] + labelled[b], 1) for a, b in pairs]
        points["Left against right"] = balance([_pair_name(skeleton, pair) for pair in pairs], difference)
    parts = [
        _LOOK,
        f"<h1>{html.escape(record_folder.name)}, split {html.escape(split)}</h1>",
        f'<p class="soft">Read from {statistics.images:,} records in {html.escape(str(record_folder.path))}.</p>',
        f'<div class="headline">{_headline(statistics)}</div>',
        "<h2>People</h2>",
        _charts(charts),
        "<h2>Keypoints</h2>",
        _charts(points),
        _pairs_table(statistics, skeleton, pairs) if pairs else "",
    ]
    if record_folder.short_edges:
        matching = {
            "How well boxes are matched": best_iou(statistics, anchors),
            "Which boxes are matched well": best_by_sides(statistics, anchors),
        }
        parts += [
            "<h2>Anchors</h2>",
            f"<p>Over all variants. A box whose best anchor has an IoU below {WELL_MATCHED} has no anchor that fits: it trains "
            "that one, which has a shape far from its own.</p>",
            _charts(matching),
            "<h3>Positive anchors of a box</h3><p>Mean, by variant and by the size of the box in that variant (square root of "
            "its area in pixels, from the number at the head on). Very small and very large boxes have many, all equally far "
            "off.</p>",
            _heat_table(record_folder, statistics.positives, statistics.boxes, ".1f"),
            "<h3>Boxes that no anchor matches well</h3>"
            f"<p>Share of the boxes whose best anchor has an IoU below {WELL_MATCHED}.</p>",
            _heat_table(record_folder, statistics.poor, statistics.boxes, ".0%"),
            _worst(record_folder, split, statistics.worst),
        ]
    return page(f"{record_folder.name}, {split}", "\n".join(parts))


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
        ("main", f"{statistics.images:,}", "images"),
        ("", f"{persons:,}", f"persons, {persons / max(statistics.images, 1):.1f} in an image"),
        ("", f"{with_points:,}", "of them with labelled keypoints"),
        ("", f"{labelled:,}", f"labelled points, {labelled / max(with_points, 1):.1f} each"),
        ("", f"{statistics.crowds:,}", f"crowds, in {statistics.images_with_crowds:,} images"),
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
        "<p>Who faces the camera has his left points further right in the image: well above half of the persons in most data "
        "sets. Near or below half for all pairs, left and right may be confused.</p>"
    )


def _heat_table(record_folder: RecordFolder, values: NDArray[np.int64], boxes: NDArray[np.int64], form: str) -> str:
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
        rows.append([f"{record_folder.short_edges[variant // 2]}{', flipped' if variant % 2 else ''}", *cells])
    head = ["variant", *(f"{names[size]}#" for size in shown)]
    return f'<div class="box"><table>{table(head, rows)}</table></div>'


def _worst(record_folder: RecordFolder, split: str, worst: Sequence[WorstBox]) -> str:
    """Crops of the boxes that are matched worst, each with its best IoU."""
    if not worst:
        return ""
    index = record_folder.index(split)
    figures = []
    for box, record in zip(worst, read_records(record_folder, split, [index[box.place] for box in worst]), strict=True):
        crop = base64.b64encode(_crop(record, box)).decode()
        text = f"IoU {box.iou:.2f}, {box.size[0]:.0f} × {box.size[1]:.0f} px"
        figures.append(
            f'<figure class="pair"><img alt="{text}" src="data:image/jpeg;base64,{crop}"><figcaption><span>{text}</span>'
            f"<code>{box.image_id}</code></figcaption></figure>"
        )
    return (
        "<p>The worst of them, with the IoU in their best variant, their size, and the id of the image: "
        f'</p><div class="gallery crops">{"".join(figures)}</div>'
    )


def _crop(record: Record, box: WorstBox) -> bytes:
    """A square around a box, outlined, as JPEG."""
    corners = record.boxes[box.number] * np.array([record.width, record.height] * 2)
    x0, y0, x1, y1 = corners.tolist()
    side = max(CONTEXT * max(x1 - x0, y1 - y0), SMALLEST_CROP)
    left, top = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2
    square = (left, top, left + side, top + side)
    crop = image_of(record).transform((CROP, CROP), Image.Transform.EXTENT, square, Image.Resampling.BICUBIC)
    place = (corners - [left, top, left, top]) * CROP / side
    encoded = io.BytesIO()
    Image.fromarray(draw_boxes(np.asarray(crop), place[None], BOX, 1.0, 2)).save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


# The charts of `statistics_page.py`.

FIRST, SECOND, THIRD = list(COLOURS)[:3]
COCO_SIZES = {"small": 32, "medium": 96}  # pixels: up to which size boxes are called so (cocodataset.org/#detection-eval)


class _Chart:
    """A figure while it is drawn; `svg` holds it afterwards."""

    svg = ""


@contextmanager
def _chart(name: str, height: float = SIZE[1]) -> Iterator[tuple[Axes, _Chart]]:
    chart = _Chart()
    with matplotlib.rc_context(CHART_STYLE):
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        yield figure.subplots(), chart
        chart.svg = svg(figure, name)


def persons(statistics: RecordStatistics) -> str:
    with _chart("persons") as (axes, chart):
        axes.bar(np.arange(MOST_PERSONS + 1), statistics.persons, color=FIRST, width=0.85)
        ticks = np.arange(0, MOST_PERSONS + 1, 2)
        axes.set(xlabel="persons in an image", ylabel="images", xticks=ticks)
        axes.set_xticklabels([*map(str, ticks[:-1]), f"{MOST_PERSONS}+"])
        axes.grid(axis="x", visible=False)
    return chart.svg


def keypoints(statistics: RecordStatistics) -> str:
    with _chart("keypoints") as (axes, chart):
        axes.bar(np.arange(len(statistics.keypoints)), statistics.keypoints, color=FIRST, width=0.85)
        axes.set(xlabel="labelled keypoints of a person", ylabel="persons")
        axes.set_xlim(-0.6, len(statistics.keypoints) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
    return chart.svg


def visibility(statistics: RecordStatistics, skeleton: Skeleton) -> str:
    """Each keypoint's share of visible and of hidden points."""
    share = statistics.visibility / np.maximum(statistics.visibility.sum(axis=1, keepdims=True), 1)
    places = np.arange(skeleton.num_keypoints)
    with _chart("visibility", 0.6 + 0.19 * skeleton.num_keypoints) as (axes, chart):
        axes.barh(places, share[:, 2], color=SECOND, label="visible")
        axes.barh(places, share[:, 1], left=share[:, 2], color=FIRST, label="labelled but hidden")
        axes.set(xlabel="share of the persons with a labelled keypoint", xlim=(0, 1))
        _name_rows(axes, [name.replace("_", " ") for name in skeleton.keypoints])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return chart.svg


def balance(names: Sequence[str], differences: Sequence[float]) -> str:
    """How much more often left points are labelled than right ones, in percent of both, by pair."""
    with _chart("balance", 1.0 + 0.25 * len(names)) as (axes, chart):
        colours = [FIRST if difference > 0 else SECOND for difference in differences]
        axes.barh(np.arange(len(names)), differences, color=colours)
        reach = max([5.0, *map(abs, differences)]) * 1.1
        axes.set(xlabel="more right ones ← percent → more left ones", xlim=(-reach, reach))
        axes.axvline(0, color=INK, linewidth=0.8)
        _name_rows(axes, names)
    return chart.svg


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def sizes(statistics: RecordStatistics) -> str:
    with _chart("sizes") as (axes, chart):
        _histogram(axes, statistics.sizes, SIZE_EDGES)
        for name, size in COCO_SIZES.items():
            axes.axvline(np.log2(size), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            place = (np.log2(size), 1)
            axes.annotate(f"{name} ", place, xycoords=("data", "axes fraction"), ha="right", va="bottom", fontsize=8)
        axes.set(xlabel="size of a box: square root of its area, pixels of the image", ylabel="persons")
    return chart.svg


def aspects(statistics: RecordStatistics, config: AnchorConfig) -> str:
    with _chart("aspects") as (axes, chart):
        _histogram(axes, statistics.aspects, ASPECT_EDGES)
        for ratio in config.aspect_ratios:
            axes.axvline(np.log2(ratio), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(xlabel="height / width of a box; dashed: those of the anchors", ylabel="persons")
    return chart.svg


def _histogram(axes: Axes, counts: NDArray[np.int64], edges: NDArray[np.float64]) -> None:
    """Bars between edges that are drawn on a logarithmic axis; the first and last one lie beyond the edges."""
    logarithm = np.log2(edges)
    step = logarithm[1] - logarithm[0]
    axes.bar(np.append(logarithm[0] - step, logarithm), counts, width=0.92 * step, align="edge", color=FIRST)
    whole = np.arange(np.ceil(logarithm[0]), np.floor(logarithm[-1]) + 1)
    axes.set_xticks(whole, [f"{2**value:g}" if value >= 0 else f"1/{2**-value:g}" for value in whole])
    axes.grid(axis="x", visible=False)


def best_iou(statistics: RecordStatistics, config: AnchorConfig) -> str:
    counts = statistics.best.sum(axis=0)
    with _chart("best-iou") as (axes, chart):
        width = IOU_EDGES[1] - IOU_EDGES[0]
        poor = IOU_EDGES[:-1] < WELL_MATCHED - 1e-9
        axes.bar(
            IOU_EDGES[:-1], counts / max(counts.sum(), 1), width=0.92 * width, align="edge", color=np.where(poor, FIRST, THIRD)
        )
        axes.axvline(config.positive_iou, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(
            xlabel="IoU of a box with its best anchor; dashed: positive from here on", ylabel="share of boxes", xlim=(0, 1)
        )
        axes.grid(axis="x", visible=False)
    return chart.svg


def best_by_sides(statistics: RecordStatistics, config: AnchorConfig) -> str:
    """Mean of the best IoU by width and height of the box as training sees it, with the shapes of the anchors."""
    number, total = statistics.best_by_sides[:, 1:-1, 1:-1]
    mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    edges = np.log2(SIDE_EDGES)
    shapes = cell_anchors(config).reshape(-1, 4)
    with _chart("best-by-sides") as (axes, chart):
        mesh = axes.pcolormesh(edges, edges, mean.T, vmin=0, vmax=1, cmap="viridis", edgecolors="face", linewidth=0.1)
        width, height = np.log2(shapes[:, 2:] - shapes[:, :2]).T
        axes.plot(width, height, "o", markersize=5, markerfacecolor="none", color=INK, label="anchors")
        ticks = np.arange(np.ceil(edges[0]), np.floor(edges[-1]) + 1)
        names = [f"{2**tick:g}" for tick in ticks]
        axes.set_xticks(ticks, names)
        axes.set_yticks(ticks, names)
        axes.set(xlabel="width of the box, pixels as training sees it", ylabel="height of the box")
        axes.figure.colorbar(mesh, label="mean IoU of the best anchor")
        axes.legend(loc="lower right")
    return chart.svg
