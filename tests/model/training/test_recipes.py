"""Recipes and presets: what is read, listed, fitted to records, stored, and overruled by flags."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import api
from model import config as config_lib
from model.config import PRESETS, R50_FPN, TINY, Config
from model.model_dir import prepare_model_dir
from model.training import recipe_files
from model.training.arguments import Arguments
from model.training.auto_recipe import RECIPE_FILE, Choice, Facts, choose, facts_of, poor_share, stored
from model.training.learning_rate import learning_rate
from model.training.recipe_files import PRESET_FIGURES, read_recipe
from model.training.settings import settle
from model.training.starting_point import open_starting_point
from pipeline import config_overrides
from pipeline.anchors import AnchorConfig
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder

ROOT = Path(__file__).parents[3]
BOXES = np.array([[60, 120], [100, 110], [200, 390], [40, 35]], np.float32)


def facts(**changes: Any) -> Facts:
    known: dict[str, Any] = {
        "images": 300, "boxes": BOXES, "short_edges": R50_FPN.data.short_edges, "max_edge": 1333, "alone": (),
        "start": "model", "new_keypoints": False, "anchors": R50_FPN.anchors,
    }  # fmt: skip
    return Facts(**(known | changes))


def chosen(facts: Facts, config: Config = R50_FPN) -> dict[str, str]:
    return dict(choice.set.split("=") for choice in choose(facts, config))


def test_every_recipe_applies_and_says_whence_its_figures_are() -> None:
    assert {"detectron2_1x", "detectron2_3x", "lsj_long", "finetune_small"} <= set(recipe_files.names())
    printed = "\n".join(recipe_files.recipe_help())
    for name in recipe_files.names():
        recipe = read_recipe(name)
        config_overrides.override(config_lib.preset(recipe.preset or "r50_fpn"), recipe.set)
        assert f"{name}: {recipe.about}" in printed
        assert all(figure.source and str(figure) in printed for figure in recipe.figures)
    assert read_recipe("detectron2_3x").set != read_recipe("detectron2_1x").set


@pytest.mark.parametrize(("name", "steps", "falls"), [("1x", 90_000, (60_000, 80_000)), ("3x", 270_000, (210_000, 250_000))])
def test_detectron2s_schedules(name: str, steps: int, falls: tuple[int, int]) -> None:
    train = config_overrides.override(R50_FPN, read_recipe(f"detectron2_{name}").set).train
    assert (train.steps, train.global_batch_size) == (steps, 16)
    for step, factor in zip(falls, (0.1, 0.01), strict=True):
        assert learning_rate(train, step - 1) == pytest.approx(0.02 * factor * 10)
        assert learning_rate(train, step) == pytest.approx(0.02 * factor)


def test_recipes_are_packaged() -> None:
    assert "recipes/*.json" in (ROOT / "pyproject.toml").read_text()
    assert {path.suffix for path in recipe_files.FOLDER.iterdir()} == {".json"}


@pytest.mark.parametrize(("flag", "words"), [("--preset", PRESETS), ("--recipe", ["detectron2_1x", "auto:"])])
def test_lists_are_printed_before_tensorflow_is_imported(flag: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "model.train", f"{flag}=help"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0 and not ended.stderr, ended
    assert all(word in ended.stdout for word in words) and "(published: " in ended.stdout
    if flag == "--preset":
        assert set(PRESET_FIGURES) == set(PRESETS) and "too small for photographs" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "detectron2"}, "--recipe=detectron2: must be auto, one of detectron2_1x, "),
        ({"recipe": "absent.json"}, r"absent\.json: not a recipe \(no such file\)"),
        ({"recipe": "detectron2_1x", "preset": "tiny"}, "--recipe=detectron2_1x: is made for --preset=r50_fpn"),
        ({"recipe": "finetune_small"}, "--recipe=finetune_small: starts from a trained model; name its directory with --init"),
    ],
)
def test_recipes_that_cannot_be_followed(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        api.train(data_dir=tmp_path, model_dir=tmp_path / "run", **arguments)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(
        '{"about": "Mine.", "starts_from": "random", "epochs": 3, "set": ["train.momentum=0.8"]}'
    )
    assert read_recipe(str(tmp_path / "mine.json")).epochs == 3
    for wrong, message in (
        ({"presets": "tiny"}, r"unknown fields \['presets'\]"),
        ({"epochs": -3}, "epochs -3 must be from 1 to 10000"),
        ({"set": ["train.rate=3"]}, "train has no 'rate'"),
        ({"preset": "huge"}, "preset 'huge' must be one of"),
    ):
        (tmp_path / "mine.json").write_text(json.dumps({"about": "Mine.", "starts_from": "random"} | wrong))
        with pytest.raises(UserError, match=rf"mine\.json: not a recipe.*{message}"):
            read_recipe(str(tmp_path / "mine.json"))


@pytest.mark.parametrize("content", ["{", "[]", '{"recipe": "auto", "choices": [{"set": "epochs=-1", "reason": ""}]}'])
def test_choices_that_were_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / RECIPE_FILE).write_text(content)
    with pytest.raises(UserError, match=r"recipe\.json: not a recipe's choices"):
        stored(tmp_path)


def test_the_fewer_images_the_more_often_and_the_more_carefully() -> None:
    few, many = chosen(facts(images=66)), chosen(facts(images=60_000))
    assert int(few["epochs"]) > int(many["epochs"])
    assert int(few["train.global_batch_size"]) < int(many["train.global_batch_size"]) == 16
    assert int(few["backbone.frozen_stages"]) > int(many["backbone.frozen_stages"])
    assert few["data.brightness"] == "0.4" and "data.brightness" not in many
    assert int(few["data.num_canvases"]) < R50_FPN.data.num_canvases and "data.num_canvases" not in many


def test_the_rate_is_that_of_the_start_and_of_the_batch() -> None:
    of_backbone = chosen(facts(start="backbone", images=60_000))
    assert float(of_backbone["train.learning_rate"]) == R50_FPN.train.learning_rate
    of_model = chosen(facts(images=60_000))
    assert float(of_model["train.learning_rate"]) == pytest.approx(R50_FPN.train.learning_rate / 10)
    assert float(chosen(facts(new_keypoints=True))["train.learning_rate"]) > float(chosen(facts())["train.learning_rate"])
    assert "backbone.frozen_stages" not in chosen(facts(start="random"), TINY)
    assert "train.global_batch_size=6" in [choice.set for choice in choose(facts(replicas=3), R50_FPN)]


def test_the_length_that_is_asked_for_counts() -> None:
    assert chosen(facts(epochs=4))["train.warmup_steps"] == chosen(facts(steps=300))["train.warmup_steps"] == "30"
    assert chosen(facts(steps=300, new_keypoints=True))["train.warmup_steps"] == "100"
    assert chosen(facts(steps=300, new_keypoints=True, start="backbone"))["train.warmup_steps"] == "30"
    own = R50_FPN.train.learning_rate * 4 / 16
    for epochs, share in ((4, 1.0), (40, 0.5), (100, 0.25)):  # of 75 steps
        assert float(chosen(facts(epochs=epochs, new_keypoints=True))["train.learning_rate"]) == pytest.approx(own * share)
    assert "data.brightness" in chosen(facts(epochs=10)) and "data.brightness" not in chosen(facts(epochs=9))


def test_sides_without_twins_are_not_mirrored() -> None:
    assert chosen(facts(alone=("left_paw",)))["data.flip"] == "false" and "data.flip" not in chosen(facts())


def test_anchors_are_fitted_only_where_boxes_fit_badly() -> None:
    assert not {"anchors.sizes", "data.anchors"} & set(chosen(facts()))
    small = facts(boxes=BOXES / 12)
    fitted = chosen(small)
    sizes = tuple(float(size) for size in fitted["anchors.sizes"].split(","))
    before, after = (poor_share(small.boxes, config) for config in (R50_FPN.anchors, AnchorConfig(sizes=sizes)))
    assert fitted["data.anchors"] == "online" and after <= before / 2
    recorded = chosen(facts(anchors=AnchorConfig(sizes=(8, 16, 32, 64, 128))))
    assert recorded["data.anchors"] == "online" and "anchors.sizes" not in recorded


def test_the_sizes_of_the_records_are_taken() -> None:
    taken = chosen(facts(short_edges=(96, 128), max_edge=192))
    assert (taken["data.short_edges"], taken["data.max_edge"]) == ("96,128", "192")
    assert (taken["inference.short_edge"], taken["inference.max_edge"]) == ("128", "192")


@pytest.mark.parametrize("images", [1, 66, 3000, 118_000])
@pytest.mark.parametrize("start", ["random", "backbone", "model"])
@pytest.mark.parametrize("config", [TINY, R50_FPN])
def test_every_choice_can_be_set(images: int, start: str, config: Config) -> None:
    choices = choose(facts(images=images, start=start, boxes=BOXES / 9, short_edges=(96,), max_edge=160), config)
    config_overrides.override(config, [choice.set for choice in choices if not choice.set.startswith("epochs=")])
    assert all(choice.reason for choice in choices)
    assert len({choice.set.partition("=")[0] for choice in choices}) == len(choices)


def test_the_boxes_of_records_are_measured_as_training_sees_them(record_folder: RecordFolder, small_config: Config) -> None:
    found = facts_of(record_folder, "train", small_config, "random", None)
    assert 0 < found.images <= 12 and found.boxes.shape[1] == 2 and len(found.boxes) >= found.images
    assert (found.boxes > 0).all() and found.boxes.max() <= 192
    assert (found.short_edges, found.max_edge) == (record_folder.short_edges, record_folder.max_edge)


def test_a_training_with_the_automatic_recipe(
    record_folder: RecordFolder,
    small_config: Config,
    trained_in_one_go: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a trained model; flags win; a resumed run keeps the choices."""
    before, run = tmp_path / "before", tmp_path / "run"
    shutil.copytree(trained_in_one_go, before)
    capsys.readouterr()
    api.train(data_dir=record_folder.path, model_dir=run, init=before, recipe="auto", steps=1, overrides=["data.hue=0.1"])
    printed = capsys.readouterr().out
    note = json.loads((run / "recipe.json").read_text())
    choices = [Choice(**choice) for choice in note["choices"]]
    assert note["recipe"] == "auto" and all(f"train: --recipe=auto: {choice}" in printed for choice in choices)
    config = config_lib.load(run / "config.json")
    assert config.train.steps == 1 and config.data.hue == 0.1 and config.data.brightness == 0.0
    assert config.train.learning_rate == pytest.approx(small_config.train.learning_rate * 4 / 2 / 10)
    assert not any(choice.set.startswith(("epochs", "train.steps", "data.hue")) for choice in choices)

    asked = Arguments(data_dir=record_folder.path, model_dir=tmp_path / "other", init=before, recipe="auto", epochs=20)
    other = settle(asked, open_starting_point(before, "newest"), record_folder, 1).config.train
    assert other.warmup_steps == other.steps // 10 > 1

    asked = Arguments(data_dir=record_folder.path, model_dir=run, recipe="auto", steps=2, overrides=["data.hue=0.1"])
    again = settle(asked, None, record_folder, 1)
    assert again.recipe == note
    assert again.config == dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    with pytest.raises(UserError, match=f"--recipe=auto: the training in {before} has begun without it"):
        api.train(data_dir=record_folder.path, model_dir=before, recipe="auto")


def test_the_epochs_of_a_recipe(record_folder: RecordFolder, small_config: Config, tmp_path: Path) -> None:
    two = {"about": "Two.", "starts_from": "random", "epochs": 2, "set": ["train.momentum=0.8"]}
    (tmp_path / "two.json").write_text(json.dumps(two))
    prepare_model_dir(tmp_path / "run", small_config, record_folder.skeleton)
    asked = Arguments(data_dir=record_folder.path, model_dir=tmp_path / "run", recipe=str(tmp_path / "two.json"), batch_size=4)
    config = settle(asked, None, record_folder, 1).config
    assert config.train.momentum == 0.8 and 6 <= config.train.steps <= 8
