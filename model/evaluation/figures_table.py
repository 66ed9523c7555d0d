"""The figures of an evaluation as text for people. A dash stands for a figure that the annotations leave undefined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.command import counted, shown

_LEGEND = (
    "AP is average precision, AR average recall, from 0 to 1: means over the thresholds 0.50, 0.55, …, 0.95 of OKS (keypoints)",
    "or IoU (boxes). AP50 and AP75 are at one threshold; small, medium, large: areas below 32², below 96², above, in pixels;",
    "AR_10: of the ten best boxes an image.",
)

_RECALLS = (("keypoints", "AR"), ("bbox", "AR_100"))


def table(figures: Mapping[str, Any]) -> str:
    """What `model.evaluation.evaluator.evaluate` returns, as text of several lines."""
    counts, what = figures["counts"], str(figures.get("category", "person"))
    singular, plural = ("person", "people") if what == "person" else (f"annotated {what!r}", f"{what!r}")
    lines = [
        f"{counted(counts['images'], 'image')}, "
        f"{counted(counts['persons'], singular, singular + ('s' if singular == 'person' else ''))}, "
        f"{counts['persons_with_keypoints']} with keypoints, {counted(counts['crowds'], 'crowd')}; "
        f"{counts['results']} {plural} found",
        *(f"note: {note}" for note in figures.get("notes", ())),
        "",
    ]
    for kind, title in (("keypoints", "keypoints"), ("bbox", "boxes")):
        for which in ("AP", "AR"):
            cells = [f"{name} {_share(value)}" for name, value in figures[kind].items() if name.startswith(which)]
            lines.append(f"{title if which == 'AP' else '':<10} " + " ".join(f"{cell:<16}" for cell in cells).rstrip())
    lines += [*_classes(figures.get("classes", {})), *_LEGEND, "", *_joints(figures["joints"], what), "", *_twins(figures)]
    return "\n".join(shown(line) for line in lines).rstrip()


def _classes(classes: Mapping[str, Any]) -> list[str]:
    """A line for each class; the figures above are the means over the classes."""
    if not classes:
        return []
    width = max(len(name) for name in [*classes, "class"])
    lines = ["", f"{'class':<{width}}  keypoint AP    AP50      AR  box AP    AP50      AR"]
    for name, figures in classes.items():
        keypoints, boxes = ([figures[kind][which] for which in ("AP", "AP50", recall)] for kind, recall in _RECALLS)
        cells = [f"{_share(keypoints[0]):>11}", *(f"{_share(value):>7}" for value in [*keypoints[1:], *boxes])]
        lines.append(f"{name:<{width}}  {' '.join(cells)}")
    return [*lines, "The figures of all classes are the means over those that have annotations.", ""]


def _share(value: float | None) -> str:
    return "–" if value is None or value == -1.0 else f"{value:.3f}"


def _joints(joints: Mapping[str, Mapping[str, Any]], what: str) -> list[str]:
    width = max(len(name) for name in joints)
    lines = [f"{'joint':<{width}}  labelled   found  mean error  median   hits"]
    for name, row in joints.items():
        lines.append(
            f"{name:<{width}}  {row['labelled']:>8} {row['found']:>7} {_share(row['mean_error']):>11} "
            f"{_share(row['median_error']):>7} {_share(row['hit']):>6}"
        )
    return [
        *lines,
        f"found: labelled in a {what} that a box finds (IoU 0.5). Errors are distances as shares of the root of the area;",
        "hits are joints whose own term of OKS is 0.5 or more.",
    ]


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
    return [
        *lines,
        "compared: found with both joints labelled; first, second: how often that joint lies nearer the other's truth.",
        f"{counted(swapped['pairs'], 'pair')} swapped back{gain}",
    ]
