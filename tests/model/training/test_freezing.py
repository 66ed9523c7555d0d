"""Layers that `train.freeze` names: they stay as they are, and have neither gradients nor an optimizer's state."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from model import model_dir
from model.config import TINY, Config
from model.training.freezing import frozen, told
from model.training.loop import Run, train
from model.training.step import Learner
from model.training.strategies import make_strategy
from pipeline.command import UserError
from pipeline.config_overrides import override
from pipeline.record_folder import RecordFolder

PATHS = [
    f"{layer}/{kind}" for layer in ("backbone.conv1", "backbone.layer1.0.conv2", "fpn.inner.0") for kind in ("kernel", "bias")
]


def with_train(config: Config, **values: object) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patterns", "number"),
    [
        ((), 0),
        (("*",), 6),
        (("backbone.*",), 4),
        (("*/bias",), 3),
        (("fpn.inner.0", "backbone.layer[12].*"), 4),
        (("*conv?",), 4),
    ],
)
def test_patterns_match_paths_or_layers(patterns: tuple[str, ...], number: int) -> None:
    assert len(frozen(PATHS, patterns)) == number


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("backbone.layer1.0.conv3", "backbone.layer1.0.conv2"),
        ("zzz", r"there are backbone\.\*, fpn\.\*"),
        ("fpn.inner", "fpn.inner.0"),
    ],
)
def test_a_pattern_that_matches_nothing_is_told_with_what_it_could_have_meant(pattern: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"train.freeze={pattern}: matches no variable; .*{meant}"):
        frozen(PATHS, ["fpn.*", pattern])


def test_frozen_variables_are_counted_and_their_layers_named() -> None:
    assert told(PATHS).startswith("train.freeze leaves 6 variables of 3 layers as they are: backbone.conv1, backbone.layer1.0")
    assert told([f"layer{n}/kernel" for n in range(9)]).endswith("layer4 and 4 more")


@pytest.mark.parametrize("text", ["backbone.*,fpn.inner.[01]", '["backbone.*", "fpn.inner.[01]"]'])
def test_patterns_are_taken_as_people_write_them(text: str) -> None:
    assert override(TINY, [f"train.freeze={text}"]).train.freeze == ("backbone.*", "fpn.inner.[01]")
    assert override(TINY, ["train.freeze=[ab]*"]).train.freeze == ("[ab]*",)
    assert override(TINY, ["train.freeze="]).train.freeze == ()


def test_frozen_layers_stay_as_they_are_and_may_be_thawed_when_training_goes_on(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_train(small_config, freeze=("backbone.*", "fpn.*"), steps=2, warmup_steps=0)
    strategy = make_strategy("one_device")
    fresh = Learner(config, record_folder.skeleton, strategy, precision="float32", jit_compile=False).model.variables_by_path()
    before = {path: variable.numpy() for path, variable in fresh.items()}
    train(config, record_folder, "train", Run(tmp_path / "run"), strategy)
    assert "train: train.freeze leaves " in capsys.readouterr().out
    after = model_dir.load_model(tmp_path / "run").variables_by_path()
    for path, value in before.items():
        assert np.array_equal(after[path], value) == path.startswith(("backbone.", "fpn.")) or path.endswith("bias"), path
    train(with_train(config, freeze=(), steps=3), record_folder, "train", Run(tmp_path / "run"), strategy)
    assert "of its state begin anew, 0 variables of the checkpoint's are left aside" in capsys.readouterr().out
    thawed = model_dir.load_model(tmp_path / "run").variables_by_path()
    assert not np.array_equal(thawed["backbone.conv1/kernel"], before["backbone.conv1/kernel"])


def test_a_model_of_which_nothing_is_left_to_train_is_refused(record_folder: RecordFolder, small_config: Config) -> None:
    with pytest.raises(UserError, match=r"train\.freeze=\*: leaves nothing to train"):
        Learner(
            with_train(small_config, freeze=("*",)), record_folder.skeleton, make_strategy("one_device"),
            precision="float32", jit_compile=False,
        )  # fmt: skip
