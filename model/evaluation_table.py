"""The figures of an evaluation for reading. A dash stands for what the annotations leave undefined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(figures: Mapping[str, Any]) -> str:
    """What `model.evaluation.evaluate` returns, as text of several lines."""
    counts = figures["counts"]
    lines = [
        f"{counts['images']} pictures, {counts['persons']} persons, {counts['persons_with_keypoints']} with keypoints, "
        f"{counts['crowds']} crowds; {counts['results']} people found",
        "",
    ]
    for kind, title in (("keypoints", "keypoints"), ("bbox", "boxes")):
        for which in ("AP", "AR"):
            cells = [f"{name} {_share(value)}" for name, value in figures[kind].items() if name.startswith(which)]
            lines.append(f"{title if which == 'AP' else '':<10} " + " ".join(f"{cell:<16}" for cell in cells).rstrip())
    return "\n".join([*lines, "", *_joints(figures["joints"]), "", *_twins(figures)]).rstrip()


def _share(value: float | None) -> str:
    return "–" if value is None or value == -1.0 else f"{value:.3f}"


def _joints(joints: Mapping[str, Mapping[str, Any]]) -> list[str]:
    width = max(len(name) for name in joints)
    lines = [f"{'joint':<{width}}  labelled   found  mean error  median   hits"]
    for name, row in joints.items():
        lines.append(
            f"{name:<{width}}  {row['labelled']:>8} {row['found']:>7} {_share(row['mean_error']):>11} "
            f"{_share(row['median_error']):>7} {_share(row['hit']):>6}"
        )
    return lines


def _twins(figures: Mapping[str, Any]) -> list[str]:
    if not figures["twins"]:
        return []
    names = [" / ".join(pair["joints"]) for pair in figures["twins"]]
    title = "nearer the twin's truth"
    width = max(len(name) for name in [*names, title])
    lines = [f"{title:<{width}}  compared   first  second   share"]
    for name, pair in zip(names, figures["twins"], strict=True):
        first, second = pair["confused"]
        lines.append(f"{name:<{width}}  {pair['compared']:>8} {first:>7} {second:>7} {_share(pair['share']):>7}")
    swapped = figures["swapped_back"]
    ap = swapped["keypoints"]["AP"]
    gain = "" if ap == -1.0 else f": keypoint AP {ap:.3f}, {swapped['AP_gain']:+.3f}"
    return [*lines, f"{swapped['pairs']} pairs swapped back{gain}"]
