"""Several steps in one call of TensorFlow give the numbers of single steps, to the bit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from model.config import Config
from model.training.arguments import Arguments
from model.training.loop import Run, train
from model.training.step import Learner
from model.training.stepper import Stepper
from model.training.strategies import distribute, make_strategy
from pipeline.command import UserError
from pipeline.loading.batches import training_batches
from pipeline.record_folder import RecordFolder
from scripts.kills import differences
from tests.model.training.test_loop import COLOURS

STEPS = 15
FIRST = 5  # of the resumed training


def variables_of(learner: Learner) -> dict[str, tf.Variable]:
    return learner.model.variables_by_path() | learner.optimizer.variables_by_path()


@dataclasses.dataclass
class Calls:
    canvases: list[list[tuple[int, ...]]] = dataclasses.field(default_factory=list)  # of the batches that were taken together
    several: int = 0  # calls of more than one step


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    start = Stepper._start

    def noting(self: Stepper, first: int, batches: Any) -> Any:
        found.canvases.append([tuple(batch["image"].shape[1:3]) for batch in batches])
        before = self._learner.take_steps

        def counting(*arguments: Any) -> Any:
            found.several += 1
            return before(*arguments)

        counting.experimental_get_tracing_count = before.experimental_get_tracing_count  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(self._learner, "take_steps", counting)
            return start(self, first, batches)

    monkeypatch.setattr(Stepper, "_start", noting)
    return found


def test_a_training_that_goes_on_in_calls_of_several_steps_ends_with_the_same_bits(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, calls: Calls
) -> None:
    """On two canvases, and resumed at a step of the other one than the first: which was traced first does not matter."""
    config = dataclasses.replace(
        small_config,
        data=dataclasses.replace(small_config.data, **COLOURS),
        train=dataclasses.replace(small_config.train, steps=STEPS, ema_decay=0.9),
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(config, record_folder, "train", Run(whole, save_every=FIRST, log_every=5, keep=STEPS), make_strategy("one_device"))
    canvases = [canvas for (canvas,) in calls.canvases]
    assert len(canvases) == STEPS and len(set(canvases)) == 2 and not calls.several
    assert canvases[FIRST] != canvases[0], canvases

    shutil.copytree(whole, resumed)
    for path in (resumed / "checkpoints").iterdir():
        if not path.name.startswith(f"step-{FIRST}."):
            path.unlink()
    calls.canvases.clear()
    train(config, record_folder, "train", Run(resumed, steps_per_call=2, log_every=5), make_strategy("one_device"))
    assert [canvas for together in calls.canvases for canvas in together] == canvases[FIRST:]
    together = [len(set(batches)) for batches in calls.canvases if len(batches) == 2]
    assert calls.several == together.count(1) > 0 and together.count(2) > 0
    assert differences(whole, resumed, STEPS) == []


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({}, [4] * 6),
        ({"log_every": 10}, [4, 4, 1, 1, 4, 4, 1, 1, 4]),
        ({"save_every": 6}, [4, 1, 1, 4, 1, 1, 4, 1, 1, 1, 1]),
        ({"evaluate_every": 5}, [4, 1, 4, 1, 4, 1, 4, 1, 4]),
        ({"profile": (6, 8)}, [4, 1, 1, 1, 1, 4, 4, 4, 4]),
        ({"steps_per_call": 1}, [1] * 24),
    ],
)
def test_nothing_that_is_to_be_done_falls_between_the_steps_of_a_call(
    run: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    stepper: Any = Stepper.__new__(Stepper)
    stepper._run, stepper._first, stepper._total = Run(tmp_path, **{"steps_per_call": 4} | run), 0, 24
    step, found = 0, []
    while step < 24:
        found.append(stepper._steps_in_a_call(step))
        step += found[-1]
    assert step == 24 and found[: len(expected)] == expected


@pytest.mark.slow
@pytest.mark.campaign
def test_several_steps_of_two_replicas_give_the_same_bits(
    record_folder: RecordFolder, small_config: Config, two_replicas: tf.distribute.Strategy
) -> None:
    learner = Learner(small_config, record_folder.skeleton, two_replicas, precision="float32", jit_compile=False)
    batches = list(
        distribute(
            training_batches(record_folder, "train", small_config.data, global_batch_size=2, seed=3, num_steps=3), two_replicas
        )
    )
    rates, seeds, stop = tf.constant([0.01, 0.02, 0.03]), tf.constant([7, 8, 9]), tf.constant(0.0)
    variables = learner.model.variables_by_path() | learner.optimizer.variables_by_path()
    before = {path: tf.identity(variable) for path, variable in variables.items()}

    def values() -> dict[str, bytes]:
        return {path: tf.convert_to_tensor(variable).numpy().tobytes() for path, variable in variables.items()}

    singly = [learner.take_step(batch, rates[n], seeds[n], stop) for n, batch in enumerate(batches)]
    expected = values()
    assert expected != {path: value.numpy().tobytes() for path, value in before.items()}
    for path, variable in variables.items():
        variable.assign(before[path])
    together = learner.take_steps(batches, rates, seeds, stop)
    assert values() == expected
    for one, other in zip(singly, together, strict=True):
        assert {name: float(value) for name, value in one.items()} == {name: float(value) for name, value in other.items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps_per_call": 0}, "must be above 0"),
        ({"steps_per_call": 21}, "a line of the log comes every 20"),
        ({"steps_per_call": 8, "save_every": 5}, "must be at most --save_every, which is 5"),
        ({"steps_per_call": 8, "eval_every": 5, "eval_split": "val", "eval_annotations": "a.json"}, "--eval_every, which is 5"),
    ],
)
def test_a_number_of_steps_that_no_call_can_take_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Arguments(data_dir="records", model_dir="run", **given)
