"""Flags that say what batches are made of: the records' own, except for what is asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from absl import flags

from pipeline import batch_flags
from pipeline.batch_flags import BatchConfig
from pipeline.command import UserError
from pipeline.data_config import DataConfig
from pipeline.record_folder import RecordFolder


def given(record_folder: RecordFolder, *arguments: str, **changes: Any) -> BatchConfig:
    values = flags.FlagValues()
    batch_flags.define(values)
    values(["command", *arguments])
    return batch_flags.batch_config(values, record_folder, **changes)


def test_without_flags_they_are_the_records_own(small_record_folder: RecordFolder) -> None:
    own = BatchConfig(small_record_folder.anchors, DataConfig(short_edges=(96, 128), max_edge=192))
    assert given(small_record_folder, num_canvases=None) == own


def test_records_without_matching_are_matched_online(small_record_folder: RecordFolder) -> None:
    bare = dataclasses.replace(small_record_folder, short_edges=())
    assert given(bare).data == DataConfig(anchors="online")


def test_each_flag_has_its_say(small_record_folder: RecordFolder) -> None:
    arguments = (
        "--set=data.jitter_canvas=64",
        "--set=data.anchors=online",
        "--set=anchors.sizes=[8,16,32,64,128]",
        "--hue=0.1",
    )
    config = given(small_record_folder, *arguments, "--brightness=0.3", "--contrast=0.4", "--saturation=0.5", num_canvases=2)
    assert config.anchors == dataclasses.replace(small_record_folder.anchors, sizes=(8.0, 16.0, 32.0, 64.0, 128.0))
    assert config.data == DataConfig(
        short_edges=(96, 128),
        max_edge=192,
        anchors="online",
        jitter_canvas=64,
        num_canvases=2,
        brightness=0.3,
        contrast=0.4,
        saturation=0.5,
        hue=0.1,
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--set=data.jitter_canvas=64", r"add data\.anchors=online"),
        ("--set=rpn.nms_threshold=0.5", "no section 'rpn'; there are anchors, data"),
        ("--set=data.flop=true", r"did you mean flip\?"),
        ("--hue=0.7", r"data\.hue=0\.7"),
    ],
)
def test_a_wrong_value_is_one_line(small_record_folder: RecordFolder, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        given(small_record_folder, argument)
    assert "\n" not in str(error.value)


def test_images_are_not_mirrored_if_sides_have_no_twins(
    small_record_folder: RecordFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    def folder(flip: tuple[int, ...], *names: str) -> RecordFolder:
        skeleton = dataclasses.replace(
            small_record_folder.skeleton, limbs=(), flip=flip, keypoints=names, sigmas=(0.1,) * len(names)
        )
        return dataclasses.replace(small_record_folder, skeleton=skeleton)

    sided = folder((0, 1, 2), "nose", "eyeL", "eyeR")
    with pytest.raises(UserError, match=r"--flip: .* tell sides \(eyeL, eyeR\) .*--flip_pairs=.*--noflip"):
        batch_flags.check_flip(True, sided)
    batch_flags.check_flip(False, sided)
    batch_flags.check_flip(True, folder((0, 1), "wrist", "thumb"))  # a hand without sides
    batch_flags.check_flip(True, folder((1, 0), "eyeL", "eyeR"))
    assert capsys.readouterr().out == ""
    batch_flags.check_flip(True, folder((1, 0, 2), "eyeL", "eyeR", "left ear"))
    assert capsys.readouterr().out.startswith("left ear: no mirror twin")
