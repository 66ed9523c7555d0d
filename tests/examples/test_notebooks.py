"""The notebooks run from top to bottom on a tiny model, with nothing downloaded, and carry no outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = ("train", "demo", "inference", "inspect")  # the first makes what the others look at
# A network and images so small that a training takes seconds.
SETTINGS = (
    "data.short_edges=[96]", "data.max_edge=128", "data.sampled_anchors=64", "data.num_canvases=1", "backbone.width=8",
    "backbone.fpn_channels=16", "rpn.top_k_train=60", "rpn.top_k_test=60", "rpn.proposals_train=40", "rpn.proposals_test=60",
    "box_head.rois=16", "box_head.channels=32", "keypoint_head.rois=6", "keypoint_head.convolutions=1",
    "keypoint_head.channels=16", "inference.short_edge=96", "inference.max_edge=128", "inference.score_threshold=0.0",
    "inference.max_detections=5", "train.global_batch_size=2",
)  # fmt: skip


def cells(name: str) -> list[dict[str, Any]]:
    notebook: dict[str, Any] = json.loads((EXAMPLES / f"{name}.ipynb").read_text())
    found: list[dict[str, Any]] = notebook["cells"]
    return found


def run(name: str) -> list[Any]:
    """Runs a notebook's cells one after the other, and returns what each would show: the value of its last line."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]), f"{name}.ipynb, cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{name}.ipynb, cell {number}", "exec"), namespace)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), f"{name}.ipynb, cell {number}", "eval"), namespace))
    return shown


def test_no_notebook_is_forgotten() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_stripped(name: str) -> None:
    for cell in cells(name):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, f"{name}.ipynb: clear its outputs before a commit"
        assert not cell["metadata"]


@pytest.mark.slow
def test_every_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    monkeypatch.setenv("NOTEBOOK_FOLDER", str(tmp_path))
    monkeypatch.setenv("NOTEBOOK_STEPS", "3")
    monkeypatch.setenv("NOTEBOOK_IMAGES", "12")
    monkeypatch.setenv("NOTEBOOK_SETTINGS", " ".join(SETTINGS))
    monkeypatch.setenv("NOTEBOOK_SCORE", "0")
    monkeypatch.syspath_prepend(str(EXAMPLES.parent))
    shown = {name: run(name) for name in NOTEBOOKS}
    kinds = {name: [type(value) for value in values if value is not None] for name, values in shown.items()}
    for name, images, figures in (("train", 2, 1), ("demo", 2, 0), ("inference", 1, 1), ("inspect", 5, 3)):
        assert sum(issubclass(kind, Image.Image) for kind in kinds[name]) == images, name
        assert sum(issubclass(kind, Figure) for kind in kinds[name]) == figures, name
    figure = next(value for value in shown["train"] if isinstance(value, Figure))
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}
    assert len(lines) == 6 and all(len(values) and np.isfinite(values).all() for values in lines.values())
    total = sum(values for name, values in lines.items() if name != "loss")
    np.testing.assert_allclose(lines["loss"], total, rtol=1e-3)
    assert "people found in 16 images" in capsys.readouterr().out
