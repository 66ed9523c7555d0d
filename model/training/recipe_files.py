"""Recipes: named settings of a training, each a JSON file in `recipes/` with what it is known to reach; and what presets reach.

Reading them needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from model.config import PRESETS
from pipeline import config_overrides
from pipeline.command import UserError
from pipeline.files import checked_json

FOLDER = Path(__file__).with_name("recipes")
AUTO = "auto"  # the recipe that `auto_recipe` fits to the records
MOST_EPOCHS = 10_000
HELP = "help"  # lists the recipes, or the presets
START_NAMES = {"random": "random weights", "backbone": "a ResNet's file (--init)", "model": "a trained model (--init)"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One thing that is known of a training: a result, the hardware, the time.

    Attributes:
      what: the figure in words.
      status: whether others have published it, or this project has measured it.
      source: where it is published, or the command that measures it.
    """

    what: str
    status: Literal["published", "measured"]
    source: str

    def __str__(self) -> str:
        return f"{self.what} ({self.status}: {self.source})"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
      about: one sentence on what it is for.
      starts_from: the weights that it is made for.
      preset: the configuration that it changes; None: that of the model it starts from.
      epochs: instead of `train.steps`.
      set: values of the configuration, as --set takes them.
      figures: what is known of it; nothing if nobody has published or measured it.
    """

    about: str
    starts_from: Literal["random", "backbone", "model"]
    preset: str | None = None
    epochs: int | None = None
    set: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()


_DETECTRON2 = "Detectron2's MODEL_ZOO.md, for the recipe that the preset follows"
PRESET_FIGURES: Mapping[str, tuple[Figure, ...]] = {
    "tiny": (
        Figure("keypoint AP 61.8 and box AP 54.6 on 200 unseen rendered images", "measured", "bash scripts/demo.sh"),
        Figure(
            "2,800 steps of 4 images on two CPU cores without AVX-512, 14 min 32 s with all stages",
            "measured",
            "bash scripts/demo.sh",
        ),
    ),
    "r50_fpn": (
        Figure("keypoint AP 65.5 and box AP 55.4 on COCO val2017", "published", _DETECTRON2),
        Figure("270,000 steps of 16 images on eight V100, 24 hours, 5.0 GB of memory on each", "published", _DETECTRON2),
    ),
    "r101_fpn": (
        Figure("keypoint AP 66.1 and box AP 56.4 on COCO val2017", "published", _DETECTRON2),
        Figure("270,000 steps of 16 images on eight V100, 29 hours, 6.1 GB of memory on each", "published", _DETECTRON2),
    ),
    "x101_fpn": (
        Figure("keypoint AP 66.0 and box AP 57.3 on COCO val2017", "published", _DETECTRON2),
        Figure("270,000 steps of 16 images on eight V100, 55 hours, 8.7 GB of memory on each", "published", _DETECTRON2),
    ),
}
_PRESET_ABOUT: Mapping[str, str] = {
    "tiny": "for the demo and tests: a small network for small rendered images, from random weights; too small for photographs",
    "r50_fpn": "ResNet-50 and FPN, for photographs",
    "r101_fpn": "ResNet-101 and FPN, for photographs",
    "x101_fpn": "ResNeXt-101 32×8d and FPN, for photographs",
}


def names() -> list[str]:
    """The names of the recipes that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_recipe(name: str) -> Recipe:
    """The recipe of that name, or of a file whose name ends with .json.

    Raises:
      UserError: no such recipe, or a file that is none.
    """
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if not name.endswith(".json") and name not in names():
        raise UserError(f"--recipe={name}: must be {AUTO}, one of {', '.join(names())}, or a .json file; {HELP} lists them")

    def parse(value: Any) -> Recipe:
        recipe = config_overrides.from_json(Recipe, value)
        if recipe.preset is not None and recipe.preset not in PRESETS:
            raise UserError(f"preset {recipe.preset!r} must be one of {', '.join(PRESETS)}")
        if recipe.epochs is not None and not 1 <= recipe.epochs <= MOST_EPOCHS:
            raise UserError(f"epochs {recipe.epochs} must be from 1 to {MOST_EPOCHS}")
        config_overrides.override(PRESETS[recipe.preset or "r50_fpn"], recipe.set)
        return recipe

    return checked_json(path, "not a recipe", parse, remedy=f"those in {FOLDER} show the form")


def preset_help() -> list[str]:
    """What --preset=help prints: each preset, what it reaches, and on what hardware."""
    lines = ["Presets. AP is in percent."]
    for name in PRESETS:
        lines += ["", f"{name}: {_PRESET_ABOUT[name]}", *(f"  {figure}" for figure in PRESET_FIGURES[name])]
    return [*lines, "", "A few hundred or thousand images of your own: --init=MODEL_DIR --recipe=auto, without --preset."]


def recipe_help() -> list[str]:
    """What --recipe=help prints."""
    lines = [f"Recipes, in {FOLDER}. AP is in percent."]
    for name in names():
        recipe = read_recipe(name)
        lines += ["", f"{name}: {recipe.about}", f"  starts from {START_NAMES[recipe.starts_from]}"]
        lines += [f"  {figure}" for figure in recipe.figures] or ["  neither published nor measured"]
        length = [f"{recipe.epochs} epochs"] if recipe.epochs else []
        lines.append(f"  sets {', '.join([*length, *recipe.set])}")
    return [*lines, "", f"{AUTO}: fits the settings to the records and to what training starts from, and says why."]
