"""The charts of a split's statistics: how people, keypoints, boxes and matches are distributed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.anchors import AnchorConfig, cell_anchors
from pipeline.inspection.statistics import (
    ASPECT_EDGES,
    IOU_EDGES,
    MOST_PERSONS,
    SIDE_EDGES,
    SIZE_EDGES,
    WELL_MATCHED,
    RecordStatistics,
)
from pipeline.inspection.svg_chart import COLOURS, INK, chart, named
from pipeline.skeleton import Skeleton

FIRST, SECOND, THIRD = list(COLOURS)[:3]
COCO_SIZES = {"small": 32, "medium": 96}  # pixels: up to which size boxes are called so (cocodataset.org/#detection-eval)


def persons(statistics: RecordStatistics) -> Markup:
    with chart("persons") as drawn:
        axes = drawn.axes
        axes.bar(np.arange(MOST_PERSONS + 1), statistics.persons, color=FIRST, width=0.85)
        ticks = np.arange(0, MOST_PERSONS + 1, 2)
        axes.set(xlabel="persons in an image", ylabel="images", xticks=ticks)
        axes.set_xticklabels([*map(str, ticks[:-1]), f"{MOST_PERSONS}+"])
        axes.grid(axis="x", visible=False)
    return drawn.svg


def keypoints(statistics: RecordStatistics) -> Markup:
    with chart("keypoints") as drawn:
        axes = drawn.axes
        axes.bar(np.arange(len(statistics.keypoints)), statistics.keypoints, color=FIRST, width=0.85)
        axes.set(xlabel="labelled keypoints of a person", ylabel="persons")
        axes.set_xlim(-0.6, len(statistics.keypoints) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
    return drawn.svg


def visibility(statistics: RecordStatistics, skeleton: Skeleton) -> Markup:
    """Each keypoint's share of visible and of hidden points."""
    share = statistics.visibility / np.maximum(statistics.visibility.sum(axis=1, keepdims=True), 1)
    places = np.arange(skeleton.num_keypoints)
    with chart("visibility", 0.6 + 0.19 * skeleton.num_keypoints) as drawn:
        axes = drawn.axes
        axes.barh(places, share[:, 2], color=SECOND)
        axes.barh(places, share[:, 1], left=share[:, 2], color=FIRST)
        axes.set(xlabel="share of the persons with a labelled keypoint", xlim=(0, 1))
        _name_rows(axes, [name.replace("_", " ") for name in skeleton.keypoints])
        _legend(axes, {"visible": SECOND, "labelled but hidden": FIRST})
    return drawn.svg


def balance(names: Sequence[str], differences: Sequence[float]) -> Markup:
    """How much more often left points are labelled than right ones, in percent of both, by pair."""
    with chart("balance", 1.0 + 0.25 * len(names)) as drawn:
        axes = drawn.axes
        colours = [FIRST if difference > 0 else SECOND for difference in differences]
        axes.barh(np.arange(len(names)), differences, color=colours)
        reach = max([5.0, *map(abs, differences)]) * 1.1
        axes.set(xlabel="more right ones ← percent → more left ones", xlim=(-reach, reach))
        axes.axvline(0, color=INK, linewidth=0.8)
        _name_rows(axes, names)
        _legend(axes, {"the left one is labelled more often": FIRST, "the right one": SECOND})
    return drawn.svg


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(np.arange(len(names)), map(named, names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def _legend(axes: Axes, meanings: dict[str, str]) -> None:
    """What colours mean, under the axes."""
    signs = [Patch(color=colour, label=text) for text, colour in meanings.items()]
    axes.figure.legend(handles=signs, loc="outside lower center", ncols=2)


def sizes(statistics: RecordStatistics) -> Markup:
    with chart("sizes") as drawn:
        axes = drawn.axes
        _histogram(axes, statistics.sizes, SIZE_EDGES)
        for name, size in COCO_SIZES.items():
            axes.axvline(np.log2(size), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            place = (np.log2(size), 1)
            axes.annotate(f"{name} ", place, xycoords=("data", "axes fraction"), ha="right", va="bottom", fontsize=8)
        axes.set(xlabel="size of a box: square root of its area, pixels of the image", ylabel="persons")
    return drawn.svg


def aspects(statistics: RecordStatistics, config: AnchorConfig) -> Markup:
    with chart("aspects") as drawn:
        axes = drawn.axes
        _histogram(axes, statistics.aspects, ASPECT_EDGES)
        for ratio in config.aspect_ratios:
            axes.axvline(np.log2(ratio), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(xlabel="height / width of a box; dashed: those of the anchors", ylabel="persons")
    return drawn.svg


def _histogram(axes: Axes, counts: NDArray[np.int64], edges: NDArray[np.float64]) -> None:
    """Bars between edges that are drawn on a logarithmic axis; the first and last one lie beyond the edges."""
    logarithm = np.log2(edges)
    step = logarithm[1] - logarithm[0]
    axes.bar(np.append(logarithm[0] - step, logarithm), counts, width=0.92 * step, align="edge", color=FIRST)
    whole = np.arange(np.ceil(logarithm[0]), np.floor(logarithm[-1]) + 1)
    axes.set_xticks(whole, [f"{2**value:g}" if value >= 0 else f"1/{2**-value:g}" for value in whole])
    axes.grid(axis="x", visible=False)


def best_iou(statistics: RecordStatistics, config: AnchorConfig) -> Markup:
    counts = statistics.best.sum(axis=0)
    with chart("best-iou") as drawn:
        axes = drawn.axes
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
        _legend(axes, {f"no anchor fits (IoU below {WELL_MATCHED})": FIRST, "an anchor fits": THIRD})
    return drawn.svg


def best_by_sides(statistics: RecordStatistics, config: AnchorConfig) -> Markup:
    """Mean of the best IoU by width and height of the box as training sees it, with the shapes of the anchors."""
    number, total = statistics.best_by_sides[:, 1:-1, 1:-1]
    mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    edges = np.log2(SIDE_EDGES)
    shapes = cell_anchors(config).reshape(-1, 4)
    with chart("best-by-sides") as drawn:
        axes = drawn.axes
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
    return drawn.svg
