"""What a training is asked for: the flags of `model.train`, which are the keywords of `model.api.train`, and their rules.

It is checked without TensorFlow, so that a wrong flag is answered before TensorFlow loads, which takes seconds.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from model import config as config_lib
from model.checkpoint_names import Which, is_in_model_dir, model_dir_of
from model.config import Config
from model.training.cluster import own_cluster
from model.training.learning_rate import advice_on_batch_size, advice_on_warmup
from model.training.recipe_files import AUTO, MOST_EPOCHS, read_recipe
from pipeline import config_overrides
from pipeline.batch_flags import COLOURS
from pipeline.command import UserError
from pipeline.files import checked_json
from pipeline.loading.options import Cache, LoadingOptions, OnError

Strategy = Literal["one_device", "mirrored", "multi_worker", "tpu"]
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]
OnDamaged = Literal["previous", "fail"]
OnNonfinite = Literal["stop", "skip"]
LOG_EVERY = 20  # steps between two lines of metrics.jsonl
FIELDS = {  # of the configuration, that have a flag of their own
    "steps": "train.steps",
    "batch_size": "train.global_batch_size",
    "learning_rate": "train.learning_rate",
    "scale_learning_rate": "train.scale_learning_rate",
    "seed": "train.seed",
    **{name: f"data.{name}" for name in ("flip", *COLOURS)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of a training, as `model.api.train` explains them.

    Raises:
      UserError: a value that cannot be, arguments that contradict each other, or a wrong preset, configuration or override.
    """

    data_dir: str | Path
    model_dir: str | Path
    split: str = "train"
    preset: str | None = None
    config: str | Path | None = None
    recipe: str | None = None
    init: str | Path | None = None
    which: Which = "newest"
    overrides: Sequence[str] = ()
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    scale_learning_rate: bool | None = None
    seed: int | None = None
    flip: bool | None = None
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    strategy: Strategy = "one_device"
    precision: Precision = "float32"
    jit_compile: bool = False
    steps_per_call: int = 1
    save_every: int = 1000
    keep: int = 3
    keep_every: int = 0
    on_damaged_checkpoint: OnDamaged = "previous"
    on_nonfinite: OnNonfinite = "stop"
    eval_split: str | None = None
    eval_annotations: str | Path | None = None
    eval_every: int = 0
    patience: int = 0
    eval_loss: bool = False
    on_error: OnError = "fail"
    cache: Cache = "none"
    data_service: str = ""
    cpu_devices: int = 1
    deterministic: bool = False
    peak_tflops: float | None = None
    profile: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name, kind in (
            ("strategy", Strategy),
            ("precision", Precision),
            ("on_damaged_checkpoint", OnDamaged),
            ("on_nonfinite", OnNonfinite),
            ("which", Which),
        ):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"--{name}={getattr(self, name)}: must be one of {', '.join(get_args(kind))}")
        self._check_cluster()
        self._check_tpu()
        self._check_evaluation()
        for name in (
            "steps",
            "epochs",
            "batch_size",
            "learning_rate",
            "save_every",
            "keep",
            "steps_per_call",
            "cpu_devices",
            "peak_tflops",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name}={value}: must be above 0")
        self._check_calls()
        if self.keep_every < 0:
            raise UserError(f"--keep_every={self.keep_every}: must be 0 or more")
        if self.epochs is not None and self.epochs > MOST_EPOCHS:
            raise UserError(f"--epochs={self.epochs}: must be {MOST_EPOCHS} or less")
        if self.epochs is not None and self.chooses("steps"):
            raise UserError(f"--epochs={self.epochs}: excludes --steps and --set train.steps; give one of them")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UserError(f"--seed={self.seed}: must be from 0 to 2^63 - 1")
        if self.which != "newest" and not self.init:
            raise UserError(
                f"--which={self.which}: needs --init, whose model directory it is about; training goes on from the newest"
            )
        if self.init and not Path(self.init).exists() and not is_in_model_dir(Path(self.init)):
            raise UserError(f"--init={self.init}: does not exist; give a ResNet's file or a model directory")
        _ = self.loading, self.profiled  # which check their own
        self._check_configuration()

    def _check_cluster(self) -> None:
        if self.is_evaluator and not self.eval_split:
            raise UserError("TF_CONFIG: this task is the evaluator; it needs --eval_split and --eval_annotations")

    def _check_calls(self) -> None:
        """Nothing is done between the steps of a call: the log, checkpoints and evaluations must leave room for one."""
        for what, every in (
            ("a line of the log comes every", LOG_EVERY),
            ("it must be at most --save_every, which is", self.save_every),
            ("it must be at most --eval_every, which is", self.eval_every or self.steps_per_call),
        ):
            if self.steps_per_call > every:
                raise UserError(f"--steps_per_call={self.steps_per_call}: {what} {every}")

    def _check_tpu(self) -> None:
        if self.strategy != "tpu":
            return
        if self.eval_split is not None:
            raise UserError(
                f"--eval_split={self.eval_split}: an evaluation decodes images beside the network, which a TPU cannot do; "
                "leave it out, and run model.evaluate on the checkpoints"
            )
        if self.precision == "mixed_float16":
            raise UserError("--precision=mixed_float16: TPUs do not compute in float16; give --precision=mixed_bfloat16")
        for flag, value, plain, reason in (
            ("jit_compile", self.jit_compile, False, "XLA compiles every step of a TPU; leave it out"),
            ("cpu_devices", self.cpu_devices, 1, "splits the CPU, and --strategy=tpu trains on TPUs; leave it out"),
        ):
            if value != plain:
                raise UserError(f"--{flag}={value}: {reason}")

    def _check_evaluation(self) -> None:
        if (self.eval_split is None) != (self.eval_annotations is None):
            raise UserError("--eval_split and --eval_annotations: give both or neither")
        if self.eval_every < 0:
            raise UserError(f"--eval_every={self.eval_every}: must be 0 or more")
        if self.eval_loss and not self.eval_split:
            raise UserError("--eval_loss: needs --eval_split and --eval_annotations; give both, or leave it out")
        if self.eval_loss and self.is_evaluator:
            raise UserError("--eval_loss: the evaluator of a cluster measures AP alone; leave it out of its command")
        if self.eval_every and not self.eval_split:
            raise UserError(
                f"--eval_every={self.eval_every}: needs --eval_split and --eval_annotations; give both, or leave it out"
            )

        if self.patience < 0:
            raise UserError(f"--patience={self.patience}: must be 0 or more")
        if self.patience and not self.eval_every:
            raise UserError(
                f"--patience={self.patience}: counts evaluations; give --eval_split, --eval_annotations and --eval_every, too"
            )
        if self.patience and self.strategy == "multi_worker":
            raise UserError(
                f"--patience={self.patience}: works on one machine; with --strategy=multi_worker only one worker evaluates, "
                "and the others do not hear of it; leave it out"
            )

    def _check_configuration(self) -> None:
        recipe = None if self.recipe in (None, AUTO) else read_recipe(self.recipe)
        of_recipe = recipe.preset if recipe is not None else None
        if of_recipe is not None and self.preset not in (None, of_recipe):
            raise UserError(f"--recipe={self.recipe}: is made for --preset={of_recipe}; leave --preset={self.preset} out")
        if of_recipe is not None and self.config is not None:
            raise UserError(f"--recipe={self.recipe}: is made for --preset={of_recipe}; leave --config={self.config} out")
        config = self.given_config() or config_lib.preset(self.preset or of_recipe or "r50_fpn")
        if self.init and (Path(self.init).is_dir() or is_in_model_dir(Path(self.init))):
            _check_is_model_directory(Path(self.init))
            own = config_lib.load_any(model_dir_of(Path(self.init)) / "config.json")
            if isinstance(own, Config):  # the old network's says nothing of training
                for flag, value in (
                    ("preset", self.preset),
                    ("config", self.config),
                    ("recipe", self.recipe if of_recipe else None),
                ):
                    if value:
                        raise UserError(
                            f"--init={self.init}: a model directory has a configuration of its own; leave --{flag}={value} out"
                        )
                config = own
        elif recipe is not None and recipe.starts_from == "model" and not (Path(self.model_dir) / "config.json").is_file():
            raise UserError(f"--recipe={self.recipe}: starts from a trained model; name its directory with --init")
        if (Path(self.model_dir) / "config.json").is_file():
            config = config_lib.load(Path(self.model_dir) / "config.json")
        config_overrides.override(config, [*(recipe.set if recipe is not None else ()), *self.overrides])

    def given_config(self) -> Config | None:
        """The configuration of the file that --config names; None without it."""
        if self.config is None:
            return None
        if self.preset is not None:
            raise UserError(f"--config={self.config}: is a whole configuration; leave --preset={self.preset} out")
        return checked_json(
            self.config, "not a configuration", config_lib.from_json, remedy="it must hold what a model's config.json holds"
        )

    @property
    def is_evaluator(self) -> bool:
        """Whether this process evaluates the checkpoints of a training that other processes of its cluster do."""
        return self.strategy == "multi_worker" and own_cluster().is_evaluator

    @property
    def profiled(self) -> tuple[int, int] | None:
        """The steps that are profiled, as `Run.profile`."""
        if self.profile is None:
            return None
        found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", self.profile)
        if not found or not int(found[1]) < int(found[2]):
            raise UserError(f"--profile={self.profile}: must be two steps FIRST:END such as 100:110, the first below the other")
        return int(found[1]), int(found[2])

    @property
    def loading(self) -> LoadingOptions:
        """How batches are loaded."""
        return LoadingOptions(on_error=self.on_error, cache=self.cache, data_service=self.data_service)

    def applied_to(self, config: Config) -> Config:
        """The configuration with the values of --steps, --batch_size and their like."""
        changes: dict[str, dict[str, Any]] = {"train": {}, "data": {}}
        for name, field in FIELDS.items():
            if (value := getattr(self, name)) is not None:
                section, _, key = field.partition(".")
                changes[section][key] = value
        return dataclasses.replace(
            config,
            train=dataclasses.replace(config.train, **changes["train"]),
            data=dataclasses.replace(config.data, **changes["data"]),
        )

    def chosen_fields(self) -> set[str]:
        """The fields of the configuration that are given, as flags of their own or with --set; and "epochs" with the steps."""
        chosen = {text.partition("=")[0] for text in self.overrides}
        chosen |= {field for name, field in FIELDS.items() if getattr(self, name) is not None}
        return chosen | ({"epochs"} if self.epochs is not None or "train.steps" in chosen else set())

    def chooses(self, name: str) -> bool:
        """Whether a field of the section `train` is given."""
        return f"train.{name}" in self.chosen_fields()

    def remarks(self, before: Config, config: Config, *, has_checkpoint: bool) -> tuple[str, ...]:
        """Lines on what these arguments do that somebody may have overlooked.

        Args:
          before, config: the configuration without and with --batch_size and its like.
          has_checkpoint: whether the model directory holds a checkpoint to go on from.
        """
        remarks: list[str | None] = []
        if self.init and has_checkpoint:
            remarks.append(f"--init={self.init} is passed over, because {self.model_dir} holds a checkpoint to go on from")
        if config.train.scale_learning_rate or not self.chooses("learning_rate"):
            remarks.append(advice_on_batch_size(before.train, config.train))
        remarks.append(advice_on_warmup(config.train))
        return tuple(filter(None, remarks))


def _check_is_model_directory(init: Path) -> None:
    """Raises: UserError if the folder that --init names is none; a SavedModel is named as such."""
    if any((folder / "saved_model.pb").is_file() for folder in (init, *init.glob("[0-9]*"))):
        raise UserError(
            f"--init={init}: a SavedModel, which holds no model to train; give the model directory that it was exported from"
        )
    if not (model_dir_of(init) / "config.json").is_file():
        raise UserError(
            f"--init={init}: has no config.json; name a directory that model.train or model.import_weights wrote, or the file "
            "of a ResNet"
        )
