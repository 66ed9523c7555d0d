"""What a training goes on from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from model import model_dir as model_dirs
from model.checkpoint_files import OnDamaged, sound_checkpoint
from model.config import Config
from model.training.starting_point import StartingPoint
from model.training.step import Learner
from model.training.strategies import num_workers
from pipeline.command import UserError, counted, say
from pipeline.files import read_json, write_json

RUN_FILE = "run.json"  # how the newest run into a model directory ran: precision, replicas, workers


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a training goes on from. `find_origin` chooses; `fill` gives the learner its values.

    Attributes:
      model_dir: of the training.
      checkpoint: the newest checkpoint of `model_dir`; None if it has no checkpoint.
      start: what `--init` names; it counts only without a checkpoint.
    """

    model_dir: Path
    checkpoint: str | None
    start: StartingPoint | None

    @property
    def resumable(self) -> bool:
        """Whether `checkpoint` holds the optimizer and the step, as those that training saves do."""
        return self.checkpoint is not None and model_dirs.has_optimizer(self.checkpoint)

    def fill(self, learner: Learner, *, writes: bool) -> int:
        """Gives the learner its weights, and its optimizer's state if the checkpoint holds one.

        Args:
          writes: whether this worker notes whose weights they were.

        Returns:
          the number of steps done.
        """
        if self.checkpoint is not None and self.resumable:
            _restore(learner, self.checkpoint)
            learner.optimizer.adopt_restored_scale()
            done = int(learner.step.numpy())
            say(f"train: going on from {self.checkpoint}, step {done} of {learner.config.train.steps}")
            return done
        if self.checkpoint is not None:
            model_dirs.restore(model_dirs.checkpoint_of(learner.model), self.checkpoint, partial=True)
            say(f"train: starts from the imported weights of {self.model_dir}")
        elif self.start is not None:
            with learner.strategy.scope():
                say(f"train: {self.start.fill(learner.model)}")
            if writes:
                write_json(self.model_dir / model_dirs.NOTE_FILE, dict(self.start.source))
        learner.optimizer.start_averages()
        return 0


def _restore(learner: Learner, path: str) -> None:
    """Gives the learner what a checkpoint holds. What it lacks of the optimizer's state begins anew, as in a new training."""
    wanted = {model_dirs.key_of(name): variable for name, variable in learner.optimizer.variables_by_path().items()}
    saved = model_dirs.saved_optimizer(path)
    if wanted.keys() == saved:
        model_dirs.restore(learner.checkpoint, path)
        return
    known = {name: variable for name, variable in wanted.items() if name in saved}
    model_dirs.restore(model_dirs.checkpoint_of(learner.model, known, learner.step), path, partial=True)
    learner.optimizer.start_averages(saved)
    say(
        f"train: the optimizer is not the one of the checkpoint: {counted(len(wanted) - len(known), 'variable')} of its state "
        f"begin anew, {counted(len(saved) - len(known), 'variable')} of the checkpoint's are left aside"
    )


def find_origin(model_dir: Path, config: Config, start: StartingPoint | None, on_damaged: OnDamaged = "previous") -> Origin:
    """Chooses what a training into `model_dir` goes on from. The first of these that exists:

    1. The newest checkpoint of `model_dir` with an optimizer: training goes on as if it had never stopped.
    2. The newest checkpoint of `model_dir` without one, which model.import_weights wrote: its weights, from step 0.
    3. `--init`: a backbone's file or a model directory, from step 0.
    4. Random weights, from step 0; not with frozen norms, whose statistics must come from somewhere.

    A newest checkpoint that is damaged is passed over for the one before it, or an error, as `on_damaged` says.

    Raises:
      UserError: random weights would have frozen norms; a damaged checkpoint.
    """
    checkpoint = sound_checkpoint(model_dir, on_damaged)
    if checkpoint is None and start is None and config.backbone.norm == "frozen_batch":
        raise UserError(
            "backbone.norm=frozen_batch: random weights have no statistics to freeze, and the loss would explode within a few "
            "steps; start from published weights with --init=FILE, or train other norms with --set backbone.norm=group"
        )
    return Origin(model_dir, checkpoint, start)


def note_run(model_dir: Path, learner: Learner, precision: str, done: int, *, writes: bool) -> None:
    """Notes how this run runs in `run.json`, and prints what has changed since the run before.

    Args:
      done: steps that were done before; 0: there was no run before.
      writes: whether this worker writes the note.
    """
    path = model_dir / RUN_FILE
    now = {
        "precision": precision,
        "replicas": learner.strategy.num_replicas_in_sync,
        "workers": num_workers(learner.strategy),
        "first_step": done,
    }
    before = read_json(path) if done and path.exists() else {}
    if not isinstance(before, dict):
        raise UserError(f"{path}: must hold a JSON object, as model.train writes it; remove it")
    if before.get("precision", precision) != precision:
        say(f"train: precision was {before['precision']} until step {done}, and is {precision} from here")
    for unit in ("replicas", "workers"):
        if before.get(unit, now[unit]) != now[unit]:
            say(
                f"train: {unit}: {before[unit]} until step {done}, {now[unit]} from here; the batches stay the same, but sums "
                "are rounded in another order, so the weights equal those of an uninterrupted run only nearly"
            )
    if writes:
        write_json(path, now)
