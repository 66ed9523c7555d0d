"""Curves of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pipeline.inspection.html_page import CHART_STYLE, COLOURS, INK, SIZE, svg

LOSSES = {
    "rpn_objectness": "RPN objectness",
    "rpn_box": "RPN box",
    "box_class": "person or not",
    "box_delta": "box",
    "keypoint": "keypoints",
}


def loss_chart(lines: Sequence[dict[str, Any]]) -> str:
    """The losses over the steps, smoothed; the sum unsmoothed behind its curve. `lines` are those of `metrics.jsonl`."""
    train = [line for line in lines if line["kind"] == "train"]
    with matplotlib.rc_context(CHART_STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        steps = [line["step"] for line in train]
        colours = list(COLOURS)
        total = [line["loss"] for line in train]
        axes.plot(steps, total, color=colours[0], alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(total), color=colours[0], label="sum")
        for colour, (name, title) in zip(colours[1:], LOSSES.items(), strict=True):
            axes.plot(steps, smooth([line[name] for line in train]), color=colour, label=title, linewidth=1.2)
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None), xlim=(0, None))
        axes.legend(ncols=2)
        return svg(figure, "losses")


def ap_chart(lines: Sequence[dict[str, Any]], baseline: float) -> str:
    """Keypoint and box AP over the steps, with the AP of a mean pose in the true boxes."""
    evaluations = [line for line in lines if line["kind"] == "eval"]
    with matplotlib.rc_context(CHART_STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        colours = list(COLOURS)
        steps = [0] + [line["step"] for line in evaluations]
        for colour, name, title in ((colours[0], "keypoint_ap", "keypoint AP"), (colours[1], "box_ap", "box AP")):
            values = [0.0] + [line[name] for line in evaluations]
            axes.plot(steps, values, color=colour, marker="o", markersize=3.5, label=f"{title}, {values[-1]:.3f} at last")
        axes.axhline(baseline, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.7)
        axes.annotate("  mean pose in the true boxes", (0, baseline), (4, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel="step", ylabel="AP on val", ylim=(0, 1), xlim=(0, max(steps[-1], 1) * 1.02))
        axes.legend(loc="upper left")
        return svg(figure, "ap")


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of a twentieth of the curve, narrower at its ends."""
    data, half = np.asarray(values, np.float64), max(1, len(values) // 40)
    return [float(data[max(0, i - half) : i + half + 1].mean()) for i in range(len(data))]
