"""Curves of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.inspection.svg_chart import COLOURS, chart

LOSSES = {
    "rpn_objectness": "RPN objectness",
    "rpn_box": "RPN box",
    "box_class": "person or not",
    "box_delta": "box",
    "keypoint": "keypoints",
}


def loss_chart(lines: Sequence[dict[str, Any]]) -> Markup:
    """The losses over the steps, smoothed; the sum unsmoothed behind its curve. `lines` are those of `metrics.jsonl`."""
    train = [line for line in lines if line["kind"] == "train"]
    with chart("losses") as drawn:
        axes = drawn.axes
        steps = [line["step"] for line in train]
        colours = list(COLOURS)
        total = [_number(line["loss"]) for line in train]
        axes.plot(steps, total, color=colours[0], alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(total), color=colours[0], label="sum")
        for colour, (name, title) in zip(colours[1:], LOSSES.items(), strict=True):
            axes.plot(steps, smooth([_number(line[name]) for line in train]), color=colour, label=title, linewidth=1.2)
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None), xlim=(0, None))
        axes.legend(ncols=2)
    return drawn.svg


def _number(value: float | None) -> float:
    """A metric; null stands in the log for one that was not finite."""
    return float("nan") if value is None else value


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of a twentieth of the curve, narrower at its ends."""
    data, half = np.asarray(values, np.float64), max(1, len(values) // 40)
    return [float(data[max(0, i - half) : i + half + 1].mean()) for i in range(len(data))]
