"""The rules of the house that a machine can hold: who imports whom, thin commands, the length of files, no former names."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "model", "export")
MAY_IMPORT = {"pipeline": {"pipeline"}, "model": {"pipeline", "model"}, "export": {"pipeline", "model", "export"}}
# Rooms within a package: what each may import of its neighbours; files that lie beside the rooms are open to all of them.
ROOMS = {
    "pipeline/writing": {"pipeline/inspection"},  # a conversion ends with its contact sheet
    "pipeline/loading": set(),
    "pipeline/inspection": {"pipeline/loading"},  # sheets of batches
    "pipeline/synthetic": set(),
    "model/network": set(),
    "model/weights": {"model/network"},
    "model/matterport": {"model/network", "model/weights"},  # the old network; none of the network's files knows of it
    "model/inference": {"model/network", "model/matterport"},
    "model/evaluation": {"model/inference", "model/network"},
    "model/training": {"model/network", "model/weights", "model/evaluation", "model/inference", "model/matterport"},
}
LONGEST_FILE = 420  # lines; what is longer is two concepts
LONGEST_MAIN = 60  # lines of a command's `main`: flags in, one call of a library, its answer printed
FORBIDDEN_NAMES = {"utils", "util", "helpers", "misc", "common"}


def modules() -> dict[str, Path]:
    """The project's modules by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@functools.cache
def imports(path: Path, *, at_import: bool) -> frozenset[str]:
    """The project's modules that a file imports, by dotted name.

    Args:
      at_import: only what is imported with the file itself, and not within its functions.
    """
    return frozenset(_imports(path, at_import=at_import))


def _imports(path: Path, *, at_import: bool) -> Iterator[str]:
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        stack.extend(ast.iter_child_nodes(node))


def room(module: str) -> str:
    return "/".join(module.split(".")[:2])


@pytest.mark.parametrize("module", MODULES)
def test_a_package_imports_only_those_below_it(module: str) -> None:
    package = module.split(".")[0]
    for imported in imports(MODULES[module], at_import=False):
        assert imported.split(".")[0] in MAY_IMPORT[package], f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in ROOMS])
def test_a_room_imports_only_its_neighbours(module: str) -> None:
    for imported in imports(MODULES[module], at_import=False):
        same_package = imported.split(".")[0] == module.split(".")[0]
        if same_package and room(imported) in ROOMS and room(imported) != room(module):
            assert room(imported) in ROOMS[room(module)], f"{module} imports {imported}"


def test_every_room_is_known() -> None:
    rooms = {room(name) for name in MODULES if name.count(".") >= 2}
    assert rooms == set(ROOMS), "state in ROOMS what the new room may import"


def test_no_circle_of_imports() -> None:
    graph = {name: imports(path, at_import=True) - {name} for name, path in MODULES.items()}
    in_order = graphlib.TopologicalSorter(graph).static_order()  # raises CycleError, which names the circle
    assert set(in_order) >= set(MODULES)


def is_command(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if is_command(path)])
def test_commands_are_thin_and_nobody_imports_them(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_MAIN, f"{module}.main has {length} lines"
    for name, path in MODULES.items():
        assert module not in imports(path, at_import=False), f"{name} imports the command {module}"


@pytest.mark.parametrize("path", list(MODULES.values()), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_concept(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    assert path.stem not in FORBIDDEN_NAMES


def test_no_two_files_of_a_room_differ_by_an_ending() -> None:
    def stem(name: str) -> str:
        return re.sub(r"(ing|er|s|e)$", "", name.replace("_", ""))

    seen: dict[tuple[Path, str], Path] = {}
    for path in MODULES.values():
        if path.stem != "__init__":
            key = (path.parent, stem(path.stem))
            assert key not in seen, f"{path} and {seen[key]}"
            seen[key] = path


def test_tests_lie_where_their_files_lie() -> None:
    rooms = {path.parent.relative_to(ROOT) for path in MODULES.values()}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        assert folder in rooms | {Path(), Path("end_to_end"), Path("scripts"), Path("examples"), Path("benchmarks")}, path


def test_graphs_are_traced_as_they_are_written() -> None:
    """AutoGraph takes seconds of every start to convert a network that holds no Python `if` or `for` over tensors."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
            assert "tf.function" not in map(ast.unparse, decorators), f"{name}: say @tf.function(autograph=False)"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tf.function":
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert said.get("autograph") == "False", f"{name}, line {node.lineno}: say autograph=False"
