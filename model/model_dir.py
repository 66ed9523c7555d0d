"""A model directory: `config.json`, `skeleton.json`, `checkpoints/`, and `weights.json` if it began with somebody's weights.

Saving, resuming, and loading for inference.

Checkpoints hold raw variables by path, not layer objects: a layer kept in a list would be dropped in silence, and optimizer
slots that are numbered would not survive a change in the order of layers.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf

from model import config as config_lib
from model.checkpoint_files import chosen_checkpoint, newest_checkpoint, note_checksums
from model.checkpoint_names import Weights, Which, model_dir_of
from model.config import Config
from model.matterport.config import MatterportConfig
from model.matterport.network import MaskRCNN
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline.command import UserError, reason_of
from pipeline.files import an_object, checked_json, only_writer, write_file, write_json
from pipeline.skeleton import Skeleton

AVERAGE = "average/"  # before the path of a variable: its moving average, which is a part of the optimizer's state
NOTE_FILE = "weights.json"  # whose weights it began with, and under which licence
_RESTORE = "restore the file that was written with the model"
# What may change between two runs into the same directory; all else decides what the weights mean.
FREE_SECTIONS = ("train", "inference", "data")


class Network(Protocol):
    """What a checkpoint is made of."""

    def variables_by_path(self) -> dict[str, tf.Variable]: ...


def key_of(path: str) -> str:
    """What a checkpoint calls the variable of that path."""
    return path.replace("/", ".")


def _keyed(variables: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    return {key_of(path): variable for path, variable in variables.items()}


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
    """Writes `config.json` and `skeleton.json`, after `check_model_dir`, which see."""
    changes = check_model_dir(model_dir, config, skeleton)
    model_dir.mkdir(parents=True, exist_ok=True)
    write_file(model_dir / "skeleton.json", json.dumps(skeleton.to_json(), indent=2) + "\n")
    write_file(model_dir / "config.json", json.dumps(config_lib.to_json(config), indent=2) + "\n")
    return changes


def check_model_dir(model_dir: Path, config: Config, skeleton: Skeleton) -> list[str]:
    """Compares `config.json` and `skeleton.json` with what an earlier run wrote, if it got to a checkpoint.

    Returns:
      What differs from the earlier run and may, as "train.steps: 100 → 200".

    Raises:
      UserError: the directory holds a model of another architecture or keypoint set, or a damaged one; or is something else.
    """
    changes: list[str] = []
    check_is_directory(model_dir)
    config_path = model_dir / "config.json"
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


def load_model(
    named: str | Path, which: Which = "newest", flag: str = "--model", weights: Weights | None = None
) -> KeypointRCNN:
    """The model of a directory that `model.train` or `model.import_weights` wrote, in float32.

    Args:
      named: the model directory, or one of its checkpoints: `run/checkpoints/step-200`.
      which: the checkpoint of the model directory: the newest, or the best of the evaluations made in training.
      flag: which names it, for messages.
      weights: as `restore_weights` takes them.

    Raises:
      UserError: no such directory, no configuration or no checkpoint in it, or one that is damaged or of another model.
    """
    model_dir = model_dir_of(Path(named))
    if not (model_dir / "config.json").exists():
        raise UserError(f"{flag}={named}: has no config.json; name a directory that model.train or model.import_weights wrote")
    path = chosen_checkpoint(Path(named), which)
    if path is None:
        raise UserError(f"{flag}={model_dir}: has no checkpoint yet; train with --model_dir={model_dir} first")
    config = config_lib.load(model_dir / "config.json")
    try:
        model = KeypointRCNN(config, load_skeleton(model_dir), blank=True)
    except (MemoryError, OverflowError, TypeError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"{model_dir / 'config.json'}: no model of this can be built ({reason_of(error)}); restore it"
        ) from None
    restore_weights(model, path, weights)
    return model


def load_any(
    named: str | Path, which: Which = "newest", flag: str = "--model", weights: Weights | None = None
) -> KeypointRCNN | MaskRCNN:
    """As `load_model`, or the old network of a directory that `model.import_weights --source=matterport` wrote."""
    model_dir = model_dir_of(Path(named))
    is_old = (model_dir / "config.json").exists() and newest_checkpoint(model_dir) is not None
    config = config_lib.load_any(model_dir / "config.json") if is_old else None
    path = chosen_checkpoint(Path(named), which) if isinstance(config, MatterportConfig) else None
    if path is None or not isinstance(config, MatterportConfig):
        return load_model(named, which, flag, weights)
    model = MaskRCNN(config, load_skeleton(model_dir))
    restore_weights(model, path, weights)
    return model


def has_optimizer(path: str) -> bool:
    """Whether training can go on from a checkpoint as if nothing had been; those of imported weights hold a model alone.

    Raises:
      UserError: its index is damaged.
    """
    return bool(saved_optimizer(path))


def saved_optimizer(path: str) -> set[str]:
    """The optimizer's variables that a checkpoint holds, by the keys that `checkpoint_of` gives them.

    Raises:
      UserError: its index is damaged.
    """
    try:
        names = [name for name, _ in tf.train.list_variables(path)]
    except (LookupError, TypeError, ValueError, tf.errors.OpError) as error:  # LookupError: of an index that is cut short
        raise UserError(
            f"{path}: a damaged checkpoint ({reason_of(error)}); restore it, or remove {path}.* and "
            f"{Path(path).parent / 'checkpoint'} to go on from the one before"
        ) from None
    return {name.split("/")[1].replace("..", ".") for name in names if name.startswith("optimizer/")}  # TensorFlow's escape


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


def has_average(path: str) -> bool:
    """Whether a checkpoint holds a moving average of the weights."""
    return any(key.startswith(key_of(AVERAGE)) for key in saved_optimizer(path))


def restore_weights(model: Network, path: str, weights: Weights | None = None) -> None:
    """Gives a model the weights of a checkpoint.

    Args:
      weights: "average": their moving average; "raw": the weights themselves; None: the average if the checkpoint holds one.

    Raises:
      UserError: "average" of a checkpoint that holds none; as `restore`.
    """
    saved = saved_optimizer(path)
    plain = _keyed(model.variables_by_path())
    averages = {key_of(AVERAGE) + key: variable for key, variable in plain.items() if key_of(AVERAGE) + key in saved}
    if weights == "average" and not averages:
        raise UserError(
            f"--weights=average: {path} holds no moving average, which --set train.ema_decay=0.9998 would keep in training; "
            "leave the flag out"
        )
    if weights == "raw" or not averages:
        restore(checkpoint_of(model), path, partial=True)
        return
    others = {key: variable for key, variable in plain.items() if key_of(AVERAGE) + key not in averages}
    restore(tf.train.Checkpoint(model=others, optimizer=averages), path, partial=True)
