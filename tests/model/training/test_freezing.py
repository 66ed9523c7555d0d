"""Layers that `train.freeze` names: they stay as they are, and have neither gradients nor an optimizer's state."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model.config import TINY, Config
from model.training.checkpoints import Origin
from model.training.freezing import frozen, told
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


def test_what_was_frozen_may_be_thawed_when_training_goes_on(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def learner(*patterns: str) -> Learner:
        config = with_train(small_config, freeze=patterns)
        return Learner(config, record_folder.skeleton, make_strategy("one_device"), precision="float32", jit_compile=False)

    frozen_one = learner("backbone.*", "fpn.*")
    frozen_one.step.assign(3)
    for variable in frozen_one.optimizer.variables_by_path().values():
        variable.assign(tf.ones_like(variable) * 7)
    path = frozen_one.checkpoint.save(str(tmp_path / "step"))
    thawed, again = learner(), learner("backbone.*", "fpn.*")
    assert Origin(tmp_path, path, None).fill(thawed, writes=False) == 3
    missing = len(thawed.optimizer.variables_by_path()) - len(frozen_one.optimizer.variables_by_path())
    anew = f"{missing} variables of its state begin anew, 0 variables of the checkpoint's are left aside"
    assert missing > 0 and anew in capsys.readouterr().out
    for name, variable in thawed.optimizer.variables_by_path().items():
        if name.startswith("velocity/"):
            frozen_before = name.startswith(("velocity/backbone.", "velocity/fpn."))
            assert np.all(variable.numpy() == (0 if frozen_before else 7)), name
    assert Origin(tmp_path, path, None).fill(again, writes=False) == 3
    assert "anew" not in capsys.readouterr().out


def test_a_model_of_which_nothing_is_left_to_train_is_refused(record_folder: RecordFolder, small_config: Config) -> None:
    with pytest.raises(UserError, match=r"train\.freeze=\*: leaves nothing to train"):
        Learner(
            with_train(small_config, freeze=("*",)), record_folder.skeleton, make_strategy("one_device"),
            precision="float32", jit_compile=False,
        )  # fmt: skip
