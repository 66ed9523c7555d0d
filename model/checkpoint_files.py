"""The files of a model directory's checkpoints: which there are, which is meant, and whether they are as they were saved.

DIR/checkpoints/checkpoint        says which is the newest; TensorFlow's own form
DIR/checkpoints/step-200.*        the index, the data, and the sha256 of both
DIR/checkpoints/best/best.json    says which is the best, with the figures of its evaluation
DIR/checkpoints/best/step-100.*   its files
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from model.checkpoint_names import FOLDER, Which, is_in_model_dir, model_dir_of
from pipeline.command import UserError, say
from pipeline.files import changed_file, checked_json, note_sha256

OnDamaged = Literal["previous", "fail"]
BEST = "best"


@dataclasses.dataclass(frozen=True)
class Best:
    """What `best.json` says: the step of the best checkpoint, and the figures of its evaluation by name."""

    step: int
    figures: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "figures": dict(self.figures)}

    @classmethod
    def from_json(cls, value: Any) -> Best:
        figures = {str(name): None if figure is None else float(figure) for name, figure in value["figures"].items()}
        return cls(int(value["step"]), figures)


def chosen_checkpoint(named: Path, which: Which = "newest") -> str | None:
    """The checkpoint that a person names; None if the model directory has no checkpoint yet.

    Args:
      named: a model directory; or one of its checkpoints, by its name (`run/checkpoints/step-200`), a file of it, or as
        `run/checkpoints/best`.
      which: of a model directory.

    Raises:
      UserError: what is named is not there or damaged. If the newest is damaged, it is named, and the one before it is taken.
    """
    if which == "best" or (is_in_model_dir(named) and named.name == BEST):
        return _best_checkpoint(model_dir_of(named))
    if not is_in_model_dir(named):
        return sound_checkpoint(named)
    whole = Path(re.sub(r"\.(index|sha256|data-\d+-of-\d+)$", "", str(named)))
    if not Path(f"{whole}.index").exists():
        present = ", ".join(path.stem for path in by_step(whole.parent)) or "none"
        raise UserError(f"{named}: no such checkpoint; {whole.parent} has {present}")
    return _undamaged(str(whole))


def read_best(model_dir: Path) -> Best | None:
    """What `best.json` says; None if no evaluation has made it yet. Raises: UserError if it is damaged."""
    path = model_dir / FOLDER / BEST / "best.json"
    if not path.exists():
        return None
    return checked_json(path, "not a note on the best checkpoint", Best.from_json, remedy="restore it, or take --which=newest")


def _best_checkpoint(model_dir: Path) -> str:
    best = read_best(model_dir)
    if best is None:
        raise UserError(
            f"{model_dir}: has no best checkpoint, because no evaluation has been made while it was trained "
            "(model.train --eval_split); take --which=newest"
        )
    return _undamaged(str(model_dir / FOLDER / BEST / f"step-{best.step}"))


def _undamaged(path: str) -> str:
    wrong = damage(path) if Path(f"{path}.index").exists() else f"{Path(path).name}.index is missing"
    if wrong is not None:
        raise UserError(f"{path}: damaged ({wrong}); restore it, or take another checkpoint")
    return path


def step_of(path: str | Path) -> int:
    """The step of a checkpoint: 200 of `…/step-200` or `…/step-200.index`; 0 of a name without a number."""
    found = re.search(r"-(\d+)(\.index)?$", str(path))
    return int(found[1]) if found else 0


def by_step(folder: Path) -> list[Path]:
    """The indices of the checkpoints of a folder, those of later steps last: step-8, step-20."""
    return sorted(folder.glob("*.index"), key=lambda index: (len(index.stem), index.stem))


def newest_checkpoint(model_dir: Path) -> str | None:
    """The newest checkpoint's path; None before the first one.

    A checkpoint is whole once its index is there; the file that says which is the newest comes last, and may be missing if a
    process was killed in between.

    Raises:
      UserError: that file is damaged, or what it names is gone.
    """
    folder = model_dir / FOLDER
    state_file = folder / "checkpoint"  # TensorFlow's name for it
    try:
        state = tf.train.get_checkpoint_state(str(folder))
    except ValueError:  # of a file that is empty, or no text
        state = None
    path: str | None = state.model_checkpoint_path if state else None
    named = [path, *state.all_model_checkpoint_paths] if state else []
    if any(Path(name).parent.absolute() != folder.absolute() for name in named):  # saving removes the older ones of them
        raise UserError(f"{state_file}: names checkpoints of another folder; restore it, or remove it")
    if path is not None and Path(f"{path}.index").exists():
        return path
    present = [index.stem for index in by_step(folder)]
    if present and not state_file.exists():
        return str(folder / present[-1])
    if present:
        line = f'model_checkpoint_path: "{present[-1]}"'
        raise UserError(f"{state_file}: does not name a checkpoint beside it; restore it, or let {line} be all that it holds")
    if state_file.exists():
        raise UserError(f"{state_file}: the checkpoint that it should name is gone; restore both, or remove {folder}")
    return None


def note_checksums(path: str) -> None:
    """Brings a checkpoint that has just been saved to the disk, and writes the sha256 of its files to `PATH.sha256`."""
    for file in files_of(path):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    note_sha256(files_of(path), Path(f"{path}.sha256"), Path(path).parent)


def damage(path: str) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were saved, or came without checksums."""
    return changed_file(Path(f"{path}.sha256"), Path(path).parent)


def sound_checkpoint(model_dir: Path, on_damaged: OnDamaged = "previous") -> str | None:
    """The newest checkpoint whose files are as they were saved; None if there is no checkpoint yet.

    Args:
      on_damaged: what happens if the newest checkpoint is damaged. "previous": it is named, and the one before it is taken.
        "fail": an error.

    Raises:
      UserError: as `newest_checkpoint`; the newest is damaged, and no other is to be taken or is sound.
    """
    newest = newest_checkpoint(model_dir)
    wrong = damage(newest) if newest is not None else None
    if newest is None or wrong is None:
        return newest
    if on_damaged == "fail":
        raise UserError(
            f"{newest}: damaged ({wrong}); restore it, or take the one before with --on_damaged_checkpoint=previous"
        )
    for path in (str(index.with_suffix("")) for index in reversed(by_step(Path(newest).parent))):
        if path != newest and damage(path) is None:
            say(f"{newest}: damaged ({wrong}); {Path(path).name} is taken instead")
            return path
    raise UserError(f"{newest}: damaged ({wrong}), and there is no sound one before it; restore it, or name another directory")


def files_of(path: str) -> list[Path]:
    """The index and the data of a checkpoint."""
    folder, name = Path(path).parent, Path(path).name
    return sorted(
        file for file in folder.glob(f"{name}.*") if re.fullmatch(r"\.(index|data-\d+-of-\d+)", file.name[len(name) :])
    )
