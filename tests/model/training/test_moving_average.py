"""The moving average of the weights: kept through a stop, evaluated, and loaded instead of the raw weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model import model_dir
from model.checkpoint_files import newest_checkpoint
from model.config import Config
from model.inference.predictor import open_model
from model.training.loop import Run, train
from model.training.strategies import make_strategy
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder

Values = dict[str, np.ndarray]


def values(model: model_dir.Network) -> Values:
    return {path: variable.numpy() for path, variable in model.variables_by_path().items()}


def assert_equal(found: Values, expected: Values) -> None:
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, path)


@pytest.fixture(scope="module")
def config(small_config: Config) -> Config:
    kept = {"ema_decay": 0.5, "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
    return dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, **kept))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(config: Config, record_folder: RecordFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Values]:
    """A model directory, trained in one go on one device; and the weights that its last evaluation saw."""
    folder = tmp_path_factory.mktemp("average") / "run"
    seen: list[Values] = []
    train(
        config, record_folder, "train", Run(folder), make_strategy("one_device"), lambda model, *_: seen.append(values(model))
    )
    return folder, seen[-1]


def test_what_is_evaluated_is_what_is_loaded_by_default(trained: tuple[Path, Values]) -> None:
    folder, evaluated = trained
    assert_equal(values(model_dir.load_model(folder)), evaluated)
    assert_equal(values(model_dir.load_model(folder, weights="average")), evaluated)
    raw = values(model_dir.load_model(folder, weights="raw"))
    assert all(not np.array_equal(raw[path], evaluated[path]) for path in raw if path.endswith("kernel"))
    checkpoint = tf.train.load_checkpoint(str(newest_checkpoint(folder)))
    for path, value in raw.items():
        key = f"model/{model_dir.key_of(path).replace('.', '..')}/.ATTRIBUTES/VARIABLE_VALUE"  # TensorFlow's escape
        np.testing.assert_array_equal(checkpoint.get_tensor(key), value)


def test_stopping_changes_neither_weights_nor_averages_nor_the_optimizer(
    trained: tuple[Path, Values], config: Config, record_folder: RecordFolder, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    with pytest.raises(StopError):  # in the evaluation, while the averages are in the variables' place
        train(config, record_folder, "train", Run(tmp_path, evaluate_every=2), make_strategy("one_device"), stop)
    train(config, record_folder, "train", Run(tmp_path), make_strategy("one_device"))
    whole, parts = (tf.train.load_checkpoint(str(newest_checkpoint(path))) for path in (trained[0], tmp_path))
    names = sorted(parts.get_variable_to_shape_map())
    assert names == sorted(whole.get_variable_to_shape_map())
    assert any(name.startswith("optimizer/square..") for name in names)
    for name in names:
        if name.endswith("VARIABLE_VALUE"):
            np.testing.assert_allclose(parts.get_tensor(name), whole.get_tensor(name), rtol=1e-3, atol=1e-5, err_msg=name)


def test_an_average_that_begins_late_begins_with_the_weights(
    config: Config, record_folder: RecordFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_(**changes: object) -> Config:
        return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))  # type: ignore[arg-type]

    train(with_(ema_decay=0.0, steps=1), record_folder, "train", Run(tmp_path), make_strategy("one_device"))
    with pytest.raises(UserError, match=r"--weights=average: .*step-1 holds no moving average"):
        open_model(tmp_path, weights="average")
    first = values(model_dir.load_model(tmp_path))
    capsys.readouterr()
    train(with_(ema_decay=0.9, steps=2), record_folder, "train", Run(tmp_path), make_strategy("one_device"))
    assert "of its state begin anew, 0 variables of the checkpoint's" in capsys.readouterr().out
    raw, average = (values(model_dir.load_model(tmp_path, weights=weights)) for weights in ("raw", "average"))
    for path, value in first.items():  # AdamW has counted one update already: d is 2 / 11
        np.testing.assert_allclose(average[path], value * 2 / 11 + raw[path] * 9 / 11, rtol=1e-4, atol=1e-6, err_msg=path)


def test_two_replicas_evaluate_the_average_and_go_on_with_the_weights(
    config: Config, record_folder: RecordFolder, tmp_path: Path, two_replicas: tf.distribute.Strategy
) -> None:
    seen: list[Values] = []
    run = Run(tmp_path, evaluate_every=1, save_every=1, keep=9)
    train(config, record_folder, "train", run, two_replicas, lambda model, *_: seen.append(values(model)))
    raw, average = (values(model_dir.load_model(tmp_path, weights=weights)) for weights in ("raw", "average"))
    assert_equal(seen[-1], average)
    assert all(not np.array_equal(raw[path], average[path]) for path in raw if path.endswith("kernel"))
    decays = [min(0.5, n / (9 + n)) for n in range(1, 5)]
    path = "rpn.conv/kernel"  # the average of the weights of all steps, which evaluation between them has not disturbed
    key = f"model/{path.replace('.', '..').replace('/', '..')}/.ATTRIBUTES/VARIABLE_VALUE"
    expected = None
    for number, decay in enumerate(decays, start=1):
        weight = tf.train.load_checkpoint(str(tmp_path / "checkpoints" / f"step-{number}")).get_tensor(key)
        if expected is not None:
            expected = decay * expected + (1 - decay) * weight
            np.testing.assert_allclose(seen[number - 1][path], expected, rtol=1e-4, atol=1e-7)
        expected = seen[number - 1][path]
