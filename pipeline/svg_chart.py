"""Charts as SVG that takes its colours from the page around it (`html_page.STYLE`), so that it is right in light and in dark.

Draw with `matplotlib.rc_context(STYLE)`, in colours of `COLOURS` and `INK` only, and end with `svg`.
"""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.figure import Figure

# Stand-ins for colours of the page's style sheet.
INK, LINE = "#010203", "#040506"
COLOURS = {"#0a0001": "--c1", "#0a0002": "--c2", "#0a0003": "--c3", "#0a0004": "--c4", "#0a0005": "--c5", "#0a0006": "--c6"}
STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": LINE, "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "grid.color": LINE, "grid.linewidth": 0.5, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6,
}  # fmt: skip
SIZE = (4.8, 3.1)  # inches: narrow, so that letters stay readable on a phone


def svg(figure: Figure, name: str) -> str:
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
    for stand_in, variable in {INK: "--ink", LINE: "--line", **COLOURS}.items():
        text = text.replace(stand_in, f"var({variable})")
    return re.sub(r"font: ([^;\"]*)'[^\"]*\"", r'font: \1sans-serif"', text)
