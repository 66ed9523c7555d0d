"""The evaluator of a cluster: a process beside the training that evaluates every checkpoint it finds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from model import config as config_lib
from model.checkpoint_files import newest_checkpoint, step_of
from model.interrupt import Interrupt
from model.model_dir import load_model, restore_weights
from model.network.keypoint_rcnn import KeypointRCNN
from model.training import best_checkpoint
from model.training.metrics_log import MetricsLog
from model.training.run import Validate
from pipeline.command import UserError, say

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 60.0  # that say that it waits


def follow(model_dir: Path, validate: Validate) -> None:
    """Evaluates the newest checkpoint, again and again, until that of the last step has been evaluated.

    The figures go to `evaluator/` in the model directory, so that this process and the training never write to one file.

    Args:
      model_dir: of a training that runs elsewhere; may not exist yet.
      validate: as the training takes it.

    Raises:
      UserError: a directory of something else, or damaged.
      InterruptedWorkError: after Ctrl-C, SIGTERM or SIGHUP.
    """
    model: KeypointRCNN | None = None
    evaluated = -1
    log: MetricsLog | None = None
    with Interrupt("train: the evaluator stops") as interrupt:

        def hear() -> None:
            if interrupt.asked:
                raise interrupt.error(f"the evaluator of {model_dir} was stopped; the same command goes on")

        while True:
            path = _wait_for_another(model_dir, evaluated, hear)
            step = step_of(path)
            try:
                if model is None:
                    model = load_model(model_dir)
                else:
                    restore_weights(model, path)
            except UserError:
                if newest_checkpoint(model_dir) == path:
                    raise
                continue  # the training has removed this one, as it has newer ones
            log = log or MetricsLog(model_dir / "evaluator", step)
            if not log.has_evaluation(step):
                validate(model, log, step, hear)
                best_checkpoint.offer(model_dir, step, log.evaluation_of(step) or {})
            evaluated = step
            total = config_lib.load(model_dir / "config.json").train.steps
            if step >= total:
                log.close()
                say(
                    f"train: the evaluator has evaluated step {step} of {total}, the last; figures in {model_dir / 'evaluator'}"
                )
                return


def _wait_for_another(model_dir: Path, evaluated: int, hear: Callable[[], None]) -> str:
    """The path of a checkpoint that is newer than step `evaluated`."""
    started = last_line = time.monotonic()
    while True:
        hear()
        path = newest_checkpoint(model_dir) if (model_dir / "config.json").exists() else None
        if path is not None and step_of(path) > evaluated:
            return path
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            say(f"train: the evaluator has been waiting for a checkpoint in {model_dir} for {now - started:.0f} s")
        time.sleep(SECONDS_BETWEEN_LOOKS)
