"""What a person names where a model directory is read, and the flags `--which` and `--weights`. Needs no TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from absl import flags

Which = Literal["newest", "best"]
Weights = Literal["average", "raw"]  # the moving average that training kept (`train.ema_decay`), or the weights themselves
FOLDER = "checkpoints"  # in a model directory


def define_which(flag_values: flags.FlagValues, of: str = "--model") -> None:
    """Defines `--which`.

    Args:
      of: the flag that names the model directory.
    """
    flags.DEFINE_enum(
        "which",
        "newest",
        ["newest", "best"],
        f"Checkpoint of the model directory that {of} names: the newest, or the one with the best keypoint AP of the "
        f"evaluations made in training. {of} may also name one checkpoint, such as run/checkpoints/step-2000.",
        flag_values=flag_values,
    )


def define_weights(flag_values: flags.FlagValues) -> None:
    """Defines `--weights`."""
    flags.DEFINE_enum(
        "weights",
        None,
        ["average", "raw"],
        "Weights of the model directory that --model names: the moving average that training kept (train.ema_decay), or the "
        "weights themselves. By default the average if the checkpoint holds one.",
        flag_values=flag_values,
    )


def model_dir_of(named: Path) -> Path:
    """The model directory that a person names, as such or by one of its checkpoints."""
    if not (named / "config.json").exists():
        for parent in (*named.parents, *named.absolute().parents):
            if parent.name == FOLDER and (parent.parent / "config.json").exists():
                return parent.parent
    return named


def is_in_model_dir(named: Path) -> bool:
    """Whether a path names a checkpoint of a model directory, such as `run/checkpoints/step-200` or `run/checkpoints/best`."""
    return model_dir_of(named) != named
