"""A model directory: `config.json`, `skeleton.json`, `checkpoints/`, and `weights.json` if it began with somebody's weights.

Saving, resuming, and loading for inference.

Checkpoints hold raw variables by path, not layer objects: a layer kept in a list would be dropped in silence, and optimizer
slots that are numbered would not survive a change in the order of layers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import tensorflow as tf

from model import config as config_lib
from model.config import Config
from model.matterport.config import MatterportConfig
from model.matterport.network import MaskRCNN
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline.command import UserError, reason_of, say
from pipeline.files import an_object, checked_json, only_writer, read_json, write_file, write_json
from pipeline.skeleton import Skeleton

OnDamaged = Literal["previous", "fail"]
NOTE_FILE = "weights.json"  # whose weights it began with, and under which licence
_RESTORE = "restore the file that was written with the model"
# What may change between two runs into the same directory; all else decides what the weights mean.
FREE_SECTIONS = ("train", "inference", "data")


class Network(Protocol):
    """What a checkpoint is made of."""

    def variables_by_path(self) -> dict[str, tf.Variable]: ...


def _keyed(variables: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    return {path.replace("/", "."): variable for path, variable in variables.items()}


def checkpoint_of(
    model: Network, optimizer: Mapping[str, tf.Variable] | None = None, step: tf.Variable | None = None
) -> tf.train.Checkpoint:
    """What a checkpoint of a model holds.

    Args:
      optimizer: the optimizer's variables by path; None: the model alone, as `has_optimizer` tells later.
      step: the number of steps taken, int64 scalar; goes with `optimizer`.
    """
    parts: dict[str, Any] = {"model": _keyed(model.variables_by_path())}
    if optimizer is not None:
        parts |= {"optimizer": _keyed(optimizer), "step": step}
    return tf.train.Checkpoint(**parts)


def check_is_directory(model_dir: Path) -> None:
    """Raises: UserError if the name is a file's."""
    if model_dir.exists() and not model_dir.is_dir():
        raise UserError(f"--model_dir={model_dir}: is a file; name a directory")


def prepare_model_dir(model_dir: Path, config: Config, skeleton: Skeleton) -> list[str]:
    """Writes `config.json` and `skeleton.json`, and compares them with what an earlier run wrote, if it got to a checkpoint.

    Returns:
      What differs from the earlier run and may, as "train.steps: 100 → 200".

    Raises:
      UserError: the directory holds a model of another architecture or keypoint set, or a damaged one; or is something else.
    """
    changes: list[str] = []
    check_is_directory(model_dir)
    config_path, skeleton_path = model_dir / "config.json", model_dir / "skeleton.json"
    if config_path.exists() and newest_checkpoint(model_dir) is not None:
        previous = config_lib.load(config_path)
        for section, field, old, new in _differences(previous, config):
            if section not in FREE_SECTIONS:
                what = "preset" if section == "preset" else f"{section}.{field}"
                raise UserError(
                    f"--model_dir={model_dir}: holds a model with {what} = {old!r}, this run asks for {new!r}; "
                    "give the same flags or another --model_dir"
                )
            changes.append(f"{section}.{field}: {old!r} → {new!r}")
        known = load_skeleton(model_dir)
        for field in (f.name for f in dataclasses.fields(Skeleton)):
            if getattr(known, field) != getattr(skeleton, field):
                raise UserError(
                    f"--model_dir={model_dir}: its model's keypoint set has {field} = {getattr(known, field)}, "
                    f"that of the records {getattr(skeleton, field)}; give another --model_dir"
                )
    model_dir.mkdir(parents=True, exist_ok=True)
    write_file(skeleton_path, json.dumps(skeleton.to_json(), indent=2) + "\n")
    write_file(config_path, json.dumps(config_lib.to_json(config), indent=2) + "\n")
    return changes


def check_new(model_dir: Path) -> None:
    """Raises: UserError unless `model_dir` can become a new directory."""
    if not model_dir.name or (model_dir.exists() and (not model_dir.is_dir() or any(model_dir.iterdir()))):
        raise UserError(f"--model_dir={model_dir}: exists already; name a new directory")


def write_new(
    model_dir: Path, model: Network, config: Mapping[str, Any], skeleton: Skeleton, source: Mapping[str, Any]
) -> None:
    """Writes a model directory with a checkpoint at step 0.

    All of it lies under another name first, so that a directory of that name is whole.

    Args:
      model_dir: passes `check_new`.
      config: of the model, as JSON.
      source: whose weights they are, for `NOTE_FILE`.
    """
    temporary = model_dir.with_name(f".{model_dir.name}.unfinished")
    with only_writer(model_dir.with_name(f".{model_dir.name}.import"), "import"):
        check_new(model_dir)  # another import may have ended since
        shutil.rmtree(temporary, ignore_errors=True)  # of an import that was killed
        try:
            temporary.mkdir()
            write_json(temporary / "config.json", dict(config))
            write_json(temporary / "skeleton.json", skeleton.to_json())
            write_json(temporary / NOTE_FILE, dict(source))
            folder = str(temporary / "checkpoints")
            manager = tf.train.CheckpointManager(checkpoint_of(model), folder, 1, checkpoint_name="step")
            note_checksums(manager.save(checkpoint_number=0))
            if model_dir.exists():
                model_dir.rmdir()  # empty
            temporary.replace(model_dir)
        except tf.errors.OpError as error:
            raise UserError(
                f"{model_dir}: the weights could not be written ({reason_of(error)}); make room, and try again"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _differences(old: Config, new: Config) -> list[tuple[str, str, object, object]]:
    found: list[tuple[str, str, object, object]] = []
    if old.preset != new.preset:
        found.append(("preset", "", old.preset, new.preset))
    for section in (f.name for f in dataclasses.fields(Config) if f.name != "preset"):
        before, after = getattr(old, section), getattr(new, section)
        for field in (f.name for f in dataclasses.fields(before)):
            if getattr(before, field) != getattr(after, field):
                found.append((section, field, getattr(before, field), getattr(after, field)))
    return found


def load_skeleton(model_dir: Path) -> Skeleton:
    """The keypoint set of a model directory or of a SavedModel's assets. Raises: UserError if `skeleton.json` is not sound."""
    return checked_json(model_dir / "skeleton.json", "not a keypoint set", Skeleton.from_json, remedy=_RESTORE)


def load_note(model_dir: Path) -> dict[str, Any] | None:
    """What `weights.json` says of the weights that the model began with; None if it began with random ones.

    Raises:
      UserError: the file is damaged.
    """
    path = model_dir / NOTE_FILE
    if not path.exists():
        return None
    return checked_json(path, "not a note on weights", an_object, remedy=_RESTORE)


def newest_checkpoint(model_dir: Path) -> str | None:
    """The newest checkpoint's path; None before the first one.

    A checkpoint is whole once its index is there; the file that says which is the newest comes last, and may be missing if a
    process was killed in between.

    Raises:
      UserError: that file is damaged, or what it names is gone.
    """
    folder = model_dir / "checkpoints"
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
    present = sorted((index.stem for index in folder.glob("*.index")), key=lambda name: (len(name), name))  # step-8, step-20
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
    digests: dict[str, str] = {}
    for file in _files_of(path):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    write_json(Path(f"{path}.sha256"), digests)


def damage(path: str) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were saved, or came without checksums."""
    note = Path(f"{path}.sha256")
    if not note.exists():
        return None
    try:
        digests = dict(read_json(note))
    except (UserError, TypeError, ValueError):
        return f"{note.name} is damaged"
    present = {file.name: file for file in _files_of(path)}
    for name, digest in digests.items():
        if name not in present:
            return f"{name} is missing"
        with present[name].open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                return f"{name} is not as it was saved: its sha256 differs"
    return None


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
    others = sorted(Path(newest).parent.glob("*.index"), key=lambda index: (len(index.stem), index.stem), reverse=True)
    for path in (str(index.with_suffix("")) for index in others):
        if path != newest and damage(path) is None:
            say(f"{newest}: damaged ({wrong}); {Path(path).name} is taken instead")
            return path
    raise UserError(f"{newest}: damaged ({wrong}), and there is no sound one before it; restore it, or name another directory")


def _files_of(path: str) -> list[Path]:
    """The index and the data of a checkpoint."""
    folder, name = Path(path).parent, Path(path).name
    return sorted(
        file for file in folder.glob(f"{name}.*") if re.fullmatch(r"\.(index|data-\d+-of-\d+)", file.name[len(name) :])
    )


def load_model(model_dir: str | Path) -> KeypointRCNN:
    """The model of a directory that `model.train` or `model.import_weights` wrote, in float32, with the newest weights.

    Raises:
      UserError: no such directory, no configuration or no checkpoint in it, or one that is damaged or of another model.
    """
    model_dir = Path(model_dir)
    if not (model_dir / "config.json").exists():
        raise UserError(
            f"--model={model_dir}: has no config.json; name a directory that model.train or model.import_weights wrote"
        )
    path = sound_checkpoint(model_dir)
    if path is None:
        raise UserError(f"--model={model_dir}: has no checkpoint yet; train with --model_dir={model_dir} first")
    config = config_lib.load(model_dir / "config.json")
    try:
        model = KeypointRCNN(config, load_skeleton(model_dir))
    except (MemoryError, OverflowError, TypeError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"{model_dir / 'config.json'}: no model of this can be built ({reason_of(error)}); restore it"
        ) from None
    restore(checkpoint_of(model), path, partial=True)
    return model


def load_any(model_dir: str | Path) -> KeypointRCNN | MaskRCNN:
    """As `load_model`, or the old network of a directory that `model.import_weights --source=matterport` wrote."""
    model_dir = Path(model_dir)
    path = newest_checkpoint(model_dir) if (model_dir / "config.json").exists() else None
    config = None if path is None else config_lib.load_any(model_dir / "config.json")
    if path is None or not isinstance(config, MatterportConfig):
        return load_model(model_dir)
    model = MaskRCNN(config, load_skeleton(model_dir))
    restore(checkpoint_of(model), path, partial=True)
    return model


def has_optimizer(path: str) -> bool:
    """Whether training can go on from a checkpoint as if nothing had been; those of imported weights hold a model alone.

    Raises:
      UserError: its index is damaged.
    """
    try:
        return any(name.startswith("optimizer/") for name, _ in tf.train.list_variables(path))
    except (LookupError, TypeError, ValueError, tf.errors.OpError) as error:  # LookupError: of an index that is cut short
        raise UserError(
            f"{path}: a damaged checkpoint ({reason_of(error)}); restore it, or remove {path}.* and "
            f"{Path(path).parent / 'checkpoint'} to go on from the one before"
        ) from None


def restore(checkpoint: tf.train.Checkpoint, path: str, *, partial: bool = False) -> None:
    """Reads `path` into the variables; with `partial` it may hold more. Raises: UserError if it is another model's."""
    try:
        # `restore` also takes the counter that a CheckpointManager adds to what it saves.
        status = checkpoint.read(path) if partial else checkpoint.restore(path)
        status.assert_existing_objects_matched()
        (status.expect_partial if partial else status.assert_consumed)()
    except (AssertionError, IndexError, ValueError, tf.errors.OpError) as error:  # IndexError: of a file that is cut short
        reason = reason_of(error)
        raise UserError(f"{path}: a checkpoint of another model, or damaged ({reason}); give its own configuration") from None
