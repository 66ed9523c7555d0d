"""docs/PATH.md leads to functions that exist, each with a docstring."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| \[(.+?)\]\(\.\./(.+?)\) \| `(.+?)` \| .+ \|$", (ROOT / "docs/PATH.md").read_text(), flags=re.M)


def test_the_path_has_twelve_functions() -> None:
    assert len(ROWS) == len(set(ROWS)) == 12


@pytest.mark.parametrize(("shown", "file", "function"), ROWS, ids=[row[2] for row in ROWS])
def test_each_function_is_where_the_page_says(shown: str, file: str, function: str) -> None:
    assert shown == file
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
    for name in function.split("."):
        found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
        assert len(found) == 1, f"{file} has no {name} of {function}"
        body = found[0].body
    assert (isinstance(found[0], ast.FunctionDef) and ast.get_docstring(found[0])) or function == "main"
