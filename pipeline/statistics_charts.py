"""The charts of `statistics_page.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.anchors import AnchorConfig, cell_anchors
from pipeline.record_statistics import (
    ASPECT_EDGES,
    IOU_EDGES,
    MOST_PERSONS,
    SIDE_EDGES,
    SIZE_EDGES,
    WELL_MATCHED,
    RecordStatistics,
)
from pipeline.skeleton import Skeleton
from pipeline.svg_chart import COLOURS, INK, SIZE, STYLE, svg

FIRST, SECOND, THIRD = list(COLOURS)[:3]
COCO_SIZES = {"small": 32, "medium": 96}  # pixels: up to which size boxes are called so (cocodataset.org/#detection-eval)


class _Chart:
    """A figure while it is drawn; `svg` holds it afterwards."""

    svg = ""


@contextmanager
def _chart(name: str, height: float = SIZE[1]) -> Iterator[tuple[Axes, _Chart]]:
    chart = _Chart()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        yield figure.subplots(), chart
        chart.svg = svg(figure, name)


def persons(statistics: RecordStatistics) -> str:
    with _chart("persons") as (axes, chart):
        axes.bar(np.arange(MOST_PERSONS + 1), statistics.persons, color=FIRST, width=0.85)
        ticks = np.arange(0, MOST_PERSONS + 1, 2)
        axes.set(xlabel="persons in a picture", ylabel="pictures", xticks=ticks)
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
        axes.set(xlabel="size of a box: square root of its area, pixels of the picture", ylabel="persons")
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
