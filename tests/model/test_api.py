"""The functions for programs in Python take the arguments of the commands, and do what these do."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from model import api
from model.checkpoint_files import newest_checkpoint
from model.config import Config, to_json
from model.model_dir import prepare_model_dir
from model.training.arguments import Arguments
from model.training.metric_descriptions import DESCRIPTIONS
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder
from tests.model.training.conftest import record_folder as record_folder

SPECIAL = {"help", "helpfull", "helpshort", "?", "flagfile", "undefok"}


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_flags_and_keywords_have_the_same_names_and_defaults(name: str) -> None:
    flags = importlib.import_module(f"model.{name}").FLAGS
    keywords = inspect.signature(getattr(api, name)).parameters
    of_flags = {"overrides" if flag == "set" else flag: flags[flag].default for flag in flags if flag not in SPECIAL}
    assert set(keywords) == set(of_flags)
    for keyword, parameter in keywords.items():
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        assert default == (tuple(of_flags[keyword]) if keyword == "overrides" else of_flags[keyword]), keyword


def test_the_checked_arguments_are_those_of_train() -> None:
    keywords = {name: parameter.default for name, parameter in inspect.signature(api.train).parameters.items()}
    fields = {
        field.name: inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(Arguments)
    }
    assert fields == keywords


def test_train_goes_on_and_evaluate_answers_with_figures(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, annotations = tmp_path / "run", record_folder.path.parent / "annotations" / "person_keypoints_train.json"
    prepare_model_dir(run, small_config, record_folder.skeleton)
    data: dict[str, Any] = {"data_dir": record_folder.path, "split": "train"}
    assert api.train(**data, model_dir=run, steps=1, hue=0.1) == run
    api.train(**data, model_dir=run, steps=2, hue=0.1, overrides=["train.momentum=0.5"])
    assert newest_checkpoint(run) == str(run / "checkpoints" / "step-2")
    written = json.loads((run / "config.json").read_text())
    assert written["data"]["hue"] == 0.1 and written["train"]["momentum"] == 0.5
    assert written["backbone"] == json.loads(json.dumps(to_json(small_config)))["backbone"]
    assert "train: 2 steps done" in capsys.readouterr().out
    logged = {name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert logged - {"kind", "step"} <= set(DESCRIPTIONS)  # each curve of TensorBoard is explained
    result = api.evaluate(**data, model=run, annotations=annotations, output_dir=tmp_path)
    assert result.counts["images"] == 12 and 0 <= result.box_ap <= 1
    assert result.written is not None
    assert json.loads(result.written.read_text())["bbox"]["AP"] == result.box_ap == result.boxes["AP"]
    assert str(result).startswith(f"{run} on train of {record_folder.path}\n")
    assert api.evaluate(**data, model=run, annotations=annotations, strategy="mirrored").figures == result.figures
    with pytest.raises(UserError, match="run: has no best checkpoint"):
        api.evaluate(**data, model=run, annotations=annotations, which="best")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "mirror"}, "--strategy=mirror: must be one of one_device, mirrored, multi_worker"),
        ({"precision": "float16"}, "--precision=float16: must be one of float32, mixed_float16, mixed_bfloat16"),
        ({"batch_size": 0}, "--batch_size=0: must be above 0"),
        ({"data_service": "localhost:5050"}, "localhost:5050: must be like grpc://"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        api.train(data_dir=tmp_path, model_dir=tmp_path / "run", **arguments)
