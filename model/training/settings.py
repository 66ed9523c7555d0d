"""The configuration of a training, settled from everything that has a say in it.

From the weakest to the strongest: the preset, or the model that training starts from or goes on with; the recipe; --set; the
flags with a name of their own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from model.checkpoint_files import newest_checkpoint
from model.config import Config
from model.model_dir import has_optimizer, load_skeleton
from model.training import auto_recipe
from model.training.arguments import Arguments
from model.training.auto_recipe import Choice, Start, facts_of
from model.training.epochs import in_steps
from model.training.recipe_files import AUTO, read_recipe
from model.training.starting_point import ModelDirectory, StartingPoint, configuration
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder
from pipeline.skeleton import Skeleton


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training does.

    Attributes:
      config: all of it.
      remarks: lines for the log.
      recipe: what the model directory keeps of the recipe; None without one.
    """

    config: Config
    remarks: tuple[str, ...]
    recipe: dict[str, Any] | None = None


def settle(asked: Arguments, start: StartingPoint | None, record_folder: RecordFolder, replicas: int) -> Settings:
    """The settings of a training.

    Args:
      start: what --init names; None if it names nothing, or if the model directory has a checkpoint to go on from.
      replicas: that share a batch.

    Raises:
      UserError: values that do not go together, or a recipe that cannot be followed.
    """
    model_dir = Path(asked.model_dir)
    preset, choices = asked.preset, list[Choice]()
    if asked.recipe == AUTO:
        choices = _fitted(asked, start, record_folder, replicas)
    elif asked.recipe is not None:
        recipe = read_recipe(asked.recipe)
        preset = preset or recipe.preset
        length = [f"epochs={recipe.epochs}"] if recipe.epochs else []
        choices = [Choice(text, f"the recipe {asked.recipe}") for text in (*length, *recipe.set)]
    choices = [choice for choice in choices if choice.set.partition("=")[0] not in asked.chosen_fields()]
    assignments = [choice.set for choice in choices if choice.epochs is None]
    of_recipe = [choice.epochs for choice in choices if choice.epochs is not None]

    begun_with = configuration(model_dir, start, preset, [*assignments, *asked.overrides], asked.given_config())
    epochs = asked.epochs or next(iter(of_recipe), None)
    config, of_epochs = in_steps(asked.applied_to(begun_with), epochs, record_folder, asked.split)
    has_checkpoint = newest_checkpoint(model_dir) is not None
    remarks = (
        *(f"--recipe={asked.recipe}: {choice}" for choice in choices if asked.recipe == AUTO),
        *of_epochs,
        *asked.remarks(begun_with, config, has_checkpoint=has_checkpoint),
    )
    note = {"recipe": asked.recipe, "choices": [dataclasses.asdict(choice) for choice in choices]} if asked.recipe else None
    return Settings(config, remarks, note)


def _fitted(asked: Arguments, start: StartingPoint | None, record_folder: RecordFolder, replicas: int) -> list[Choice]:
    """The choices of --recipe=auto: those of the run before, which are kept, or new ones."""
    model_dir = Path(asked.model_dir)
    checkpoint = newest_checkpoint(model_dir)
    stored = auto_recipe.stored(model_dir)
    if stored is not None and checkpoint is not None:
        return stored
    if checkpoint is not None and has_optimizer(checkpoint):
        raise UserError(
            f"--recipe={AUTO}: the training in {model_dir} has begun without it; leave it out, or start another --model_dir "
            f"with --init={model_dir}"
        )
    config = configuration(model_dir, start, asked.preset, asked.overrides, asked.given_config())
    kind, skeleton = _kind_of(start, model_dir if checkpoint is not None else None)
    facts = dataclasses.replace(
        facts_of(record_folder, asked.split, config, kind, skeleton),
        replicas=replicas,
        batch_size=asked.applied_to(config).train.global_batch_size if asked.chooses("global_batch_size") else None,
        steps=asked.applied_to(config).train.steps if asked.chooses("steps") else None,
        epochs=asked.epochs,
    )
    return auto_recipe.choose(facts, config)


def _kind_of(start: StartingPoint | None, imported: Path | None) -> tuple[Start, Skeleton | None]:
    """What training starts from, and the keypoints of the model that it is, if it is one.

    Args:
      imported: a model directory that holds weights and no training yet.
    """
    if imported is not None:
        return "model", load_skeleton(imported)
    if start is None:
        return "random", None
    if isinstance(start, ModelDirectory):
        return "model", start.model.skeleton
    return "backbone", None  # of a file, or of the old network, whose heads are made anew
