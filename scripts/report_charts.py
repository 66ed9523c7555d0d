"""Curves of a training run as SVG that takes its colours from the page around it, so that it is right in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Stand-ins for colours of the page's style sheet.
_INK, _LINE = "#010203", "#040506"
_COLOURS = {"#0a0001": "--c1", "#0a0002": "--c2", "#0a0003": "--c3", "#0a0004": "--c4", "#0a0005": "--c5", "#0a0006": "--c6"}
_STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "text.color": _INK, "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE, "xtick.color": _LINE, "ytick.color": _LINE, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK,
    "grid.color": _LINE, "grid.linewidth": 0.5, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6,
}  # fmt: skip
_SIZE = (4.8, 3.1)  # inches: narrow, so that letters stay readable on a phone

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
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        steps = [line["step"] for line in train]
        colours = list(_COLOURS)
        total = [line["loss"] for line in train]
        axes.plot(steps, total, color=colours[0], alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(total), color=colours[0], label="sum")
        for colour, (name, title) in zip(colours[1:], LOSSES.items(), strict=True):
            axes.plot(steps, smooth([line[name] for line in train]), color=colour, label=title, linewidth=1.2)
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None), xlim=(0, None))
        axes.legend(ncols=2)
        return _svg(figure, "losses")


def ap_chart(lines: Sequence[dict[str, Any]], baseline: float) -> str:
    """Keypoint and box AP over the steps, with the AP of a mean pose in the true boxes."""
    evaluations = [line for line in lines if line["kind"] == "eval"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        colours = list(_COLOURS)
        steps = [0] + [line["step"] for line in evaluations]
        for colour, name, title in ((colours[0], "keypoint_ap", "keypoint AP"), (colours[1], "box_ap", "box AP")):
            values = [0.0] + [line[name] for line in evaluations]
            axes.plot(steps, values, color=colour, marker="o", markersize=3.5, label=f"{title}, {values[-1]:.3f} at last")
        axes.axhline(baseline, color=_INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.7)
        axes.annotate("  mean pose in the true boxes", (0, baseline), (4, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel="step", ylabel="AP on val", ylim=(0, 1), xlim=(0, max(steps[-1], 1) * 1.02))
        axes.legend(loc="upper left")
        return _svg(figure, "ap")


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of a twentieth of the curve, narrower at its ends."""
    data, half = np.asarray(values, np.float64), max(1, len(values) // 40)
    return [float(data[max(0, i - half) : i + half + 1].mean()) for i in range(len(data))]


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element that fills its container; ids are made unique in the page by `name`."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'id="([A-Za-z0-9_.]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for stand_in, variable in {_INK: "--ink", _LINE: "--line", **_COLOURS}.items():
        text = text.replace(stand_in, f"var({variable})")
    return re.sub(r"font: ([^;\"]*)'[^\"]*\"", r'font: \1sans-serif"', text)
