"""The page for programs in Python is the one that the docstrings make; its example runs in tests/model/inference."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import pytest

from scripts import api_page


@functools.cache
def page() -> str:
    return api_page.page()


def test_the_page_is_not_stale() -> None:
    assert api_page.PAGE.read_text() == page(), "run python -m scripts.api_page"


def test_every_name_is_explained() -> None:
    parts = page().split("\n### ")[1:]
    assert len(parts) == sum(len(names) for modules in api_page.CHAPTERS.values() for _, names in modules)
    for part in parts:
        assert len(part.rpartition("```\n")[2].strip()) > 20, part


def example(path: str, *more: int, size: int | None = None, **rest: Any) -> list[str]:
    """Reads.

    In two lines
    of text.

    Args:
      path, size: what it
        reads: all.
      more: numbers.

    Returns:
      names: of
        files.

    Raises:
      ValueError: never.
    """
    return [path]


@dataclasses.dataclass
class Example:
    """Holds."""

    names: list[str] = dataclasses.field(default_factory=list)


def test_signatures_and_docstrings() -> None:
    line = "example(path: str, *more: int, size: int | None = None, **rest: Any) -> list[str]"
    assert api_page.signature("example", example) == line
    assert api_page.signature("Example", Example) == "Example(names: list[str] = …)"
    assert api_page.prose(inspect.getdoc(example) or "").splitlines() == [
        "Reads.", "", "In two lines", "of text.", "",
        "**Args**", "", "- `path`, `size`: what it reads: all.", "- `more`: numbers.", "",
        "**Returns**", "", "- names: of files.", "",
        "**Raises**", "", "- `ValueError`: never.",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["convert", "train", "evaluate", "export_model", "import_model", "open_model"])
def test_every_commands_function_is_there(command: str) -> None:
    assert f".{command}`" in page()
