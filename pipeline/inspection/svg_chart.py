"""Charts as SVG that takes its colours from the page around it (`page.html`), so that it is right in light and in dark.

Matplotlib draws; what it writes has fixed colours and ids, which would clash in a page of several charts. So the elements (not
the text) are gone through once more: colours become variables of the page, and ids begin with the chart's name.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.command import shown

# Stand-ins for colours of the page's style sheet.
INK, LINE = "#010203", "#040506"
COLOURS = {"#0a0001": "--c1", "#0a0002": "--c2", "#0a0003": "--c3", "#0a0004": "--c4", "#0a0005": "--c5", "#0a0006": "--c6"}
CHART_STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": LINE, "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "grid.color": LINE, "grid.linewidth": 0.5, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6,
    "text.parse_math": False,  # a keypoint may be called $\frac$
}  # fmt: skip
SIZE = (4.8, 3.1)  # inches: narrow, so that letters stay readable on a phone
LONGEST_NAME = 40  # letters


class Chart:
    """A chart while it is drawn on `axes`; `svg` holds it afterwards."""

    def __init__(self, axes: Axes) -> None:
        self.axes, self.svg = axes, Markup()


@contextmanager
def chart(name: str, height: float = SIZE[1]) -> Iterator[Chart]:
    """A chart of some height in inches, drawn in colours of `COLOURS` and `INK` only; `name` is its own in the page."""
    with matplotlib.rc_context(CHART_STYLE):
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        drawn = Chart(figure.subplots())
        yield drawn
        drawn.svg = svg(figure, name)


def named(text: str) -> str:
    """A name that comes from data, in one line that is not too long for a chart."""
    line = shown(text)
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"


def svg(figure: Figure, name: str) -> Markup:
    """The figure as an element that fills its container; ids are made unique in the page by `name`."""
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # its own fonts lay out the text, the reader's show it
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(content.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # HTML knows SVG's elements without a namespace
        element.attrib = {key.rpartition("}")[2]: _of_page(key, value, name) for key, value in element.attrib.items()}
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    del root.attrib["width"], root.attrib["height"]
    root.set("role", "img")
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _of_page(key: str, value: str, name: str) -> str:
    """An attribute's value with the page's colours and font, and with ids that begin with `name`."""
    if key == "id":
        return f"{name}-{value}"
    if value.startswith("#") and key.endswith("href"):
        return f"#{name}-{value[1:]}"
    value = value.replace("url(#", f"url(#{name}-")
    for stand_in, variable in {INK: "--ink", LINE: "--line", **COLOURS}.items():
        value = value.replace(stand_in, f"var({variable})")
    return re.sub(r"(font: [^';]*)'[^;]*", r"\1sans-serif", value)
