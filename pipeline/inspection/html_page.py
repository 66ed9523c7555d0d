"""What pages of figures share: one look, in light and in dark, and their tables. Pages need no other file and no network."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.figure import Figure

STYLE = """\
:root {
  --paper: #fbfbf9; --card: #ffffff; --ink: #1d2329; --soft: #5d6872; --line: #d9dee2; --accent: #b45309; --code: #f1f3f4;
  --c1: #b45309; --c2: #1d6fb8; --c3: #2f855a; --c4: #a33b8f; --c5: #6b7280; --c6: #c0392b; --bad: #b3261e; --good: #2f7a4d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181c; --card: #1c2228; --ink: #e6eaed; --soft: #9aa6b0; --line: #353f48; --accent: #f0a34b; --code: #232b32;
    --c1: #f0a34b; --c2: #67b2f3; --c3: #6fcf97; --c4: #d98bd0; --c5: #9aa6b0; --c6: #ef7b6f; --bad: #ff8a80; --good: #7fd6a0;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.8rem 0 .3rem; }
p { margin: .3rem 0 .9rem; max-width: 46rem; }
.soft, figcaption { color: var(--soft); }
.soft { font-size: .92rem; }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.headline div, .chart, .pair, .box { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.headline div { padding: .8rem 1rem .7rem; }
.headline b { display: block; font-size: 1.75rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.headline span { font-size: .85rem; color: var(--soft); }
.headline .main b { color: var(--accent); }
.bad { color: var(--bad); } .good { color: var(--good); }
.charts, .gallery { display: grid; gap: .8rem; margin-top: .8rem; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.gallery { grid-template-columns: repeat(auto-fill, minmax(min(100%, 31rem), 1fr)); }
.chart { margin: 0; padding: .9rem .9rem .6rem; }
.chart svg { width: 100%; height: auto; display: block; }
.chart figcaption { font-size: .85rem; margin-bottom: .4rem; }
.pair { margin: 0; overflow: hidden; }
.pair div { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
.pair img { width: 100%; height: auto; display: block; }
.pair figcaption { font-size: .85rem; padding: .35rem .7rem .45rem; display: flex; justify-content: space-between; gap: 1rem; }
.box { overflow-x: auto; margin-top: .8rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .42rem .8rem; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child th, tr:first-child td { border-top: 0; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bar { width: 40%; min-width: 6rem; }
td.bar i { display: block; height: .65rem; margin-top: .42rem; border-radius: .2rem; background: var(--c2); min-width: 2px; }
code, pre { font: .86rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
td code { overflow-wrap: break-word; }
pre { background: var(--code); border-radius: .6rem; padding: .9rem 1rem; overflow-x: auto; margin: .8rem 0; }
pre em { color: var(--soft); font-style: normal; }
details summary { cursor: pointer; color: var(--soft); font-size: .92rem; margin-top: .8rem; }
.key i { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin: 0 .3em 0 .8em; }
"""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def page(title: str, body: str) -> str:
    """A whole page; `title` as text, `body` as HTML."""
    return _PAGE.format(title=title.replace("&", "&amp;").replace("<", "&lt;"), style=STYLE, body=body)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of ready-made cells; a column whose title ends in "#" is one of numbers."""
    kinds = [' class="n"' if title.endswith("#") else "" for title in head]
    lines = ["".join(f"<th{kind}>{title.rstrip('#')}</th>" for kind, title in zip(kinds, head, strict=True))]
    for row in rows:
        lines.append("".join(c if c.startswith("<td") else f"<td{k}>{c}</td>" for k, c in zip(kinds, row, strict=True)))
    return "".join(f"<tr>{line}</tr>" for line in lines)


# Charts as SVG that takes its colours from the page around it (`STYLE`), so that it is right in light and in dark.
#
# Draw with `matplotlib.rc_context(CHART_STYLE)`, in colours of `COLOURS` and `INK` only, and end with `svg`.

# Stand-ins for colours of the page's style sheet.
INK, LINE = "#010203", "#040506"
COLOURS = {"#0a0001": "--c1", "#0a0002": "--c2", "#0a0003": "--c3", "#0a0004": "--c4", "#0a0005": "--c5", "#0a0006": "--c6"}
CHART_STYLE = {
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
