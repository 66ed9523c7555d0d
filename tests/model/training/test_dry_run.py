"""--dry_run says what a training would do and writes nothing; --config begins with a whole configuration."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model import config as config_lib
from model.api import train
from model.config import Config
from model.training.arguments import Arguments
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def test_a_dry_run_makes_every_check_and_writes_nothing(
    record_folder: RecordFolder,
    small_config: Config,
    trained_in_one_go: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(config_lib.to_json(small_config)))
    before = snapshot(tmp_path)
    new = tmp_path / "new"
    train(data_dir=record_folder.path, model_dir=new, config=tmp_path / "mine.json", steps=1000, dry_run=True)
    output = capsys.readouterr().out
    assert '"fpn_channels": 16' in output and '"steps": 1000' in output
    assert "train: batch: image uint8 [2, " in output and "train: batch: keypoints float32 [2, 8, 17, 3]" in output
    assert "train: steps 0 to 999 of 2 images: " in output and "MB of weights; " in output
    assert "train: time: the first step takes " in output and "train: a dry run: nothing was written" in output
    assert snapshot(tmp_path) == before

    run = tmp_path / "run"
    shutil.copytree(trained_in_one_go, run)
    before = snapshot(tmp_path)
    arguments: dict[str, Any] = {"data_dir": record_folder.path, "model_dir": run, "dry_run": True}
    capsys.readouterr()
    train(**arguments, steps=8)
    assert "train: steps 4 to 7 of 2 images" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds a model with backbone\.width = 8, this run asks for 12"):
        train(**arguments, overrides=["backbone.width=12"])
    assert snapshot(tmp_path) == before


def test_a_configuration_is_a_whole_one_and_stands_alone(small_config: Config, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    whole = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, steps=77))
    path.write_text(json.dumps(config_lib.to_json(whole)))
    places: dict[str, Any] = {"data_dir": "records", "model_dir": tmp_path / "run"}
    assert Arguments(**places, config=path).given_config() == whole
    with pytest.raises(UserError, match=r"--config=.*mine\.json: is a whole configuration; leave --preset=tiny out"):
        Arguments(**places, config=path, preset="tiny")
    path.write_text('{"backbone": {"widht": 3}}')
    with pytest.raises(UserError, match=r"mine\.json: not a configuration \(.*widht.*\); it must hold") as told:
        Arguments(**places, config=path)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"none\.json: not a configuration \(no such file\)"):
        Arguments(**places, config=tmp_path / "none.json")


@pytest.mark.parametrize("value", ["100", "110:100", "5:5", "a:b", "-1:3"])
def test_a_profile_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=rf"--profile={value}: must be two steps FIRST:END such as 100:110"):
        Arguments(data_dir="records", model_dir=tmp_path, profile=value)
