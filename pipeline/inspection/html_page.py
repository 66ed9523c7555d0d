"""Pages of figures, rendered by Jinja: one look, in light and in dark. A page needs no other file and no network.

A page is a template that extends `page.html` and takes its tables and charts from `parts.html`, which lie beside this file.
Every value of a template is escaped, so names that come from data are shown as they are.
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.command import shown


@dataclasses.dataclass(frozen=True)
class Tile:
    """One of the figures at the head of a page.

    Attributes:
      value, text: the figure, and what it is.
      kind: a class of the style sheet: "main", "baseline".
      above: a word above the figure.
    """

    value: str
    text: str
    kind: str = ""
    above: str = ""


def render(template: Path, **values: Any) -> str:
    """The page that a template makes of some values.

    Args:
      template: a file; those that it extends or imports lie beside it, or beside this module.
      values: what the template names. All of it is escaped, but `Markup`, which only `svg_chart.svg` makes.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_control_characters,
    )
    return environment.get_template(template.name).render(**values)


def _without_control_characters(value: Any) -> Any:
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def jpeg_source(content: bytes) -> str:
    """What an `img` has for its `src`, so that a page holds its images."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
