"""Flags that say what batches are made of: those of model.train, for all commands that make, show or measure batches."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from pipeline import config_overrides
from pipeline.anchors import AnchorConfig
from pipeline.command import UserError, say
from pipeline.data_config import DataConfig
from pipeline.record_folder import RecordFolder
from pipeline.skeleton import sides_without_twin

COLOURS = ("brightness", "contrast", "saturation", "hue")


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """The sections of a model's configuration that decide its batches."""

    anchors: AnchorConfig
    data: DataConfig


def define_colours(flag_values: flags.FlagValues) -> None:
    """Defines the strengths of the colour jitter."""
    for name in ("brightness", "contrast", "saturation"):
        flags.DEFINE_float(name, None, "Colour jitter: factors drawn from 1 ± this; 0.4 is usual.", flag_values=flag_values)
    flags.DEFINE_float(
        "hue", None, "Colour jitter: turns of the circle drawn from ± this; 0.1 is usual.", flag_values=flag_values
    )


def colours(flag_values: flags.FlagValues) -> dict[str, float]:
    """The strengths that were given, as fields of `DataConfig`."""
    values = {name: flag_values[name].value for name in COLOURS}
    return {name: value for name, value in values.items() if value is not None}


def define(flag_values: flags.FlagValues) -> None:
    """Defines `--set` and the colours for a command that knows records but no model."""
    flags.DEFINE_multi_string(
        "set",
        [],
        "Sets one value of what batches are made of, as model.train does, such as data.anchors=online; may be repeated.",
        flag_values=flag_values,
    )
    define_colours(flag_values)


def check_flip(flip: bool, record_folder: RecordFolder) -> None:
    """Refuses to mirror images whose keypoints tell sides without mirror twins: half of the labels would be wrong.

    A keypoint set without any side, such as a hand's, may be mirrored. If only some keypoints lack a twin, a line is printed.

    Args:
      flip: whether half of the images are mirrored.

    Raises:
      UserError: images are mirrored, the names of keypoints tell sides, and no keypoint has a twin.
    """
    skeleton = record_folder.skeleton
    alone = sides_without_twin(skeleton.keypoints, skeleton.flip) if flip else []
    way_out = "convert again with --flip_pairs=LEFT:RIGHT,…, or train with --noflip"
    if alone and skeleton.flip == tuple(range(skeleton.num_keypoints)):
        raise UserError(
            f"--flip: the keypoints of {record_folder.path} tell sides ({', '.join(alone)}) and none has a mirror twin, so "
            f"that mirrored images would have wrong labels; {way_out}"
        )
    if alone:
        say(f"{', '.join(alone)}: no mirror twin, so that mirrored images have wrong labels there; {way_out}")


def batch_config(flag_values: flags.FlagValues, record_folder: RecordFolder, **changes: Any) -> BatchConfig:
    """What training would make of records: their own short edges and matching, except what the flags change.

    Args:
      flag_values: flags that `define` defined.
      changes: values of further fields of `DataConfig`, from other flags of a command; None changes nothing.

    Raises:
      UserError: a flag holds no value of its field's type.
    """
    own = DataConfig(anchors="online")  # of records that hold no matching
    if record_folder.short_edges:
        own = DataConfig(short_edges=record_folder.short_edges, max_edge=record_folder.max_edge)
    config = config_overrides.override(BatchConfig(record_folder.anchors, own), flag_values["set"].value)
    given = {name: value for name, value in changes.items() if value is not None} | colours(flag_values)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **given))
