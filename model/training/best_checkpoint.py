"""Keeps the checkpoint whose evaluation gave the best keypoint AP, in `checkpoints/best`, with its figures."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from model.checkpoint_files import BEST, Best, files_of, read_best
from model.checkpoint_names import FOLDER
from pipeline.command import UserError, reason_of, say
from pipeline.files import publish, write_json

BY = "keypoint_ap"


def offer(model_dir: Path, step: int, figures: Mapping[str, float | None]) -> None:
    """Keeps the checkpoint of `step` if it is the best so far. What cannot be kept is said, and ends nothing.

    A kill leaves the best before or this one, whole.

    Args:
      figures: of the evaluation of this step, by name.
    """
    figure = figures.get(BY)
    if figure is None or not math.isfinite(figure) or figure < 0:  # undefined: the evaluation says why
        return
    folder, name = model_dir / FOLDER / BEST, f"step-{step}"
    try:
        before = read_best(model_dir)
    except UserError as error:
        say(f"train: {error}; this evaluation counts as the first")
        before = None
    known = before.figures.get(BY) if before is not None else None
    if known is not None and known >= figure:
        return
    path = model_dir / FOLDER / name
    if not Path(f"{path}.index").exists():
        say(f"train: step {step} is the best so far (keypoint AP {figure:.3f}), but its checkpoint is not there to be kept")
        return
    try:
        folder.mkdir(exist_ok=True)
        for part in (*files_of(str(path)), Path(f"{path}.sha256")):
            _link(part, folder / part.name)
        write_json(folder / "best.json", Best(step, figures).to_json())
        for other in folder.glob("step-*"):
            if other.name.partition(".")[0] != name:
                other.unlink(missing_ok=True)
    except OSError as error:
        say(f"train: {folder}: the best checkpoint, of step {step}, could not be kept ({reason_of(error)})")
        return
    say(f"train: step {step} is the best so far (keypoint AP {figure:.3f}); kept in {folder}")


def _link(file: Path, to: Path) -> None:
    """Gives a file a second name, which takes no room; a copy where the file system has no such links."""
    to.unlink(missing_ok=True)
    try:
        os.link(file, to)
    except OSError:
        unfinished = to.with_name(f".{to.name}")
        shutil.copyfile(file, unfinished)
        publish(unfinished, to)
