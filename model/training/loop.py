"""The training loop: batches of `pipeline.loading.batches` in, a model directory out.

One `tf.function` takes one step under `strategy.run`; the loop around it only reads metrics, logs, saves and evaluates. Batches
and every random draw are functions of (seed, step), so a checkpoint is the weights, the optimizer and the step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model import model_dir as checkpoint_lib
from model.config import Config
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.feed import Feed, Interrupt, InterruptedTrainingError
from model.training.metrics_log import LOSSES, Interval, MetricsLog
from model.training.optimizer import learning_rate
from model.training.starting_point import StartingPoint
from model.training.step import Trainer
from model.training.strategies import distribute, num_workers, worker_index
from pipeline.command import Progress, UserError, reason_of
from pipeline.files import write_json
from pipeline.loading.batches import check_compatible, training_batches, training_pool
from pipeline.loading.epoch_plan import NoImagesError
from pipeline.loading.options import PLAIN, LoadingOptions, why_silent
from pipeline.loading.unreadable import Skipped, reading_error
from pipeline.random_draws import step_seed
from pipeline.record_folder import RecordFolder

KEPT_CHECKPOINTS = 3
SECONDS_OF_PATIENCE = 60  # between two lines that say that there is no data


@dataclasses.dataclass(frozen=True)
class Run:
    """How a training runs, as opposed to what it trains (`Config`)."""

    model_dir: Path
    precision: str = "float32"
    jit_compile: bool = False
    save_every: int = 1000  # steps
    evaluate_every: int = 0  # steps; 0: not while training
    log_every: int = 20  # steps between two lines of metrics.jsonl
    options: LoadingOptions = PLAIN


def train(
    config: Config,
    record_folder: RecordFolder,
    split: str,
    run: Run,
    strategy: tf.distribute.Strategy,
    validate: Callable[[KeypointRCNN, MetricsLog, int], None] | None = None,
    start: StartingPoint | None = None,
) -> None:
    """Trains until `config.train.steps`, going on from the newest checkpoint of `run.model_dir`.

    Args:
      config: what to train.
      record_folder, split: records to train on.
      run: where and how.
      strategy: of tf.distribute.
      validate: called by the first worker with the model, the log and the step, every `run.evaluate_every` steps and last.
      start: what to start from where there is no checkpoint yet; by default random weights.

    Raises:
      UserError: a directory of another model, a batch size that replicas cannot share, a loss that is not finite.
      InterruptedTrainingError: after Ctrl-C or SIGTERM.
    """
    workers, worker = num_workers(strategy), worker_index(strategy)
    total, batch_size = config.train.steps, config.train.global_batch_size
    if batch_size % strategy.num_replicas_in_sync:
        raise UserError(
            f"--batch_size={batch_size}: must be a multiple of the {strategy.num_replicas_in_sync} replicas that share it"
        )
    config = dataclasses.replace(config, inference=dataclasses.replace(config.inference, category_id=record_folder.category_id))
    check_compatible(record_folder, config.anchors, config.data, record_folder.skeleton)
    try:
        pool = training_pool(record_folder, split, config.data)
    except NoImagesError as error:  # an ordinary case: a pipeline that converts what there is may have found nothing
        print(f"train: {error}; nothing to do", flush=True)
        return
    for change in checkpoint_lib.prepare_model_dir(run.model_dir, config, record_folder.skeleton) if worker == 0 else ():
        print(f"train: {run.model_dir} was made with other settings; {change}", flush=True)
    trainer = Trainer(config, record_folder.skeleton, strategy, precision=run.precision, jit_compile=run.jit_compile)
    first = _resume(trainer, run.model_dir, worker, start)
    if first >= total:
        print(f"train: {run.model_dir} has been trained for {first} of {total} steps already; nothing to do", flush=True)
        return
    if worker == 0:
        write_json(run.model_dir / "canvases.json", pool.canvases.to_json())
        print(f"train: {split} has {pool}", flush=True)
        if run.options.data_service:
            print(f"train: {run.options.data_service} promises neither an order of batches nor exact resumption", flush=True)
    batches = training_batches(
        record_folder,
        split,
        config.data,
        global_batch_size=batch_size,
        seed=config.train.seed,
        start_step=first,
        num_steps=total - first,
        input_workers=workers,
        input_worker=worker,
        anchors=config.anchors,
        options=run.options,
    )
    with Skipped(record_folder, split, lambda line: print(f"train: {line}", flush=True)) as skipped:
        source = _Source(record_folder, split, skipped)
        with Feed(distribute(batches, strategy)) as feed:
            _loop(trainer, feed, source, run, first, validate)
    print(f"train: {total} steps done; model in {run.model_dir}", flush=True)


def _resume(trainer: Trainer, model_dir: Path, worker: int, start: StartingPoint | None) -> int:
    """Restores the newest checkpoint, else takes what training starts from; returns the number of steps done."""
    newest = checkpoint_lib.newest_checkpoint(model_dir)
    if newest is not None and checkpoint_lib.has_optimizer(newest):
        checkpoint_lib.restore(trainer.checkpoint, newest)
        print(f"train: going on from {newest}, step {int(trainer.step.numpy())} of {trainer.config.train.steps}", flush=True)
    elif newest is not None:
        checkpoint_lib.restore(checkpoint_lib.checkpoint_of(trainer.model), newest, partial=True)
        print(f"train: starts from the imported weights of {model_dir}", flush=True)
    elif start is not None:
        with trainer.strategy.scope():
            print(f"train: {start.fill(trainer.model)}", flush=True)
        if worker == 0:
            write_json(model_dir / checkpoint_lib.NOTE_FILE, dict(start.source))
    return int(trainer.step.numpy())


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where batches come from, for messages."""

    record_folder: RecordFolder
    split: str
    skipped: Skipped


def _loop(
    trainer: Trainer,
    feed: Feed[dict[str, Any]],
    source: _Source,
    run: Run,
    first: int,
    validate: Callable[[KeypointRCNN, MetricsLog, int], None] | None,
) -> None:
    """Takes the steps from `first` on; logs, saves and evaluates when it is time."""
    config, worker, total = trainer.config.train, worker_index(trainer.strategy), trainer.config.train.steps
    # Every worker has to take part in saving; what the others write is of no use to anyone.
    folder = run.model_dir / "checkpoints" if worker == 0 else run.model_dir / f"checkpoints-of-worker-{worker}"
    manager = tf.train.CheckpointManager(
        trainer.checkpoint, str(folder), max_to_keep=KEPT_CHECKPOINTS, step_counter=trainer.step, checkpoint_name="step"
    )
    log = MetricsLog(run.model_dir, first) if worker == 0 else None
    interval = Interval(config.global_batch_size)
    previous: _Step | None = None

    with Interrupt() as interrupt, Progress(total, "train", "step", done=first) as progress:
        for step in range(first, total):
            with interval.waiting():
                batch = _next(feed, source, trainer, run.options, step, interrupt)
            if batch is None:
                if previous is not None:
                    previous.settle(interval, run.model_dir)
                    trainer.step.assign(step)
                    manager.save(checkpoint_number=step)
                raise InterruptedTrainingError(
                    f"stopped at step {step} of {total}, waiting for data; the same command goes on in {run.model_dir}"
                )
            rate = learning_rate(config, step)
            metrics = trainer.train_step(
                batch,
                tf.constant(rate, tf.float32),
                tf.constant(step_seed(config.seed, step), tf.int32),
                tf.constant(float(interrupt.asked)),
            )
            # The step before is looked at now, when the device has its next step already.
            stop = previous is not None and previous.settle(interval, run.model_dir)
            ids = {
                name: trainer.strategy.experimental_local_results(batch[name])
                for name in ("image_id", "unreadable")
                if name in batch
            }
            previous = _Step(step, metrics, ids["image_id"], ids.get("unreadable", ()), source.skipped)
            done, last = step + 1, step + 1 == total
            if step == first:  # contains tracing and compilation: not counted in rates
                previous.settle(interval, run.model_dir)
                interval.restart()
            if log is not None and (done % run.log_every == 0 or last) and interval.steps:
                values = interval.means() | {"learning_rate": rate}
                log.train(done, values)
                progress.advance(0, log.line(values))
                interval.restart()
            progress.advance(1)
            evaluation_due = bool(run.evaluate_every) and done % run.evaluate_every == 0
            if stop or last or evaluation_due or done % run.save_every == 0:
                previous.settle(interval, run.model_dir)  # nothing is saved after a step that went wrong
                trainer.step.assign(done)
                manager.save(checkpoint_number=done)
            if validate is not None and log is not None and not stop and (last or evaluation_due):
                validate(trainer.model, log, done)
                interval.restart()
            if stop and not last:
                raise InterruptedTrainingError(
                    f"stopped at step {done} of {total}; its checkpoint is in {run.model_dir}: the same command goes on"
                )


@dataclasses.dataclass
class _Step:
    """A step that the device may still be working on."""

    step: int
    metrics: dict[str, tf.Tensor]
    image_ids: Sequence[tf.Tensor]
    unreadable: Sequence[tf.Tensor]
    skipped: Skipped
    settled: bool = False

    def settle(self, interval: Interval, model_dir: Path) -> bool:
        """Waits for the step and adds its metrics to `interval`, once. Returns whether some worker was asked to stop.

        Raises:
          UserError: a loss that is not finite. (A gradient that is not finite changes no weight, see `optimizer.py`.)
        """
        values = {name: float(value) for name, value in self.metrics.items()}
        for name in (*LOSSES, "loss"):
            if not math.isfinite(values[name]):
                ids = [int(i) for part in self.image_ids for i in part.numpy()]
                raise UserError(
                    f"step {self.step}: the loss {name} is {values[name]} on images {ids}; the weights of the last checkpoint "
                    f"in {model_dir} are sound: lower --learning_rate or look at these images"
                )
        stop = values.pop("stop") > 0
        if not self.settled:
            interval.add(values)
            for part in self.unreadable:
                self.skipped.see(part.numpy())
            self.settled = True
        return stop


def _next(
    feed: Feed[dict[str, Any]], source: _Source, trainer: Trainer, options: LoadingOptions, step: int, interrupt: Interrupt
) -> dict[str, Any] | None:
    """The batch of `step`; None after Ctrl-C while there was none.

    Raises:
      UserError: the batch cannot be made; names its first image that cannot be read.
    """
    config = trainer.config
    alone = num_workers(trainer.strategy) == 1  # else the others are in the step already, and wait for this one

    def patience(seconds: float) -> bool:
        if interrupt.asked and alone:
            return False
        if seconds % SECONDS_OF_PATIENCE == 0:
            print(f"train: step {step} has been waiting for data for {seconds:.0f} s; {_suspect(source, options)}", flush=True)
        return True

    try:
        return feed.take(patience)
    except tf.errors.OpError as error:
        if isinstance(error, tf.errors.UnavailableError) and not alone:
            raise  # workers ask each other for batches, too, and one has ended: `strategies.naming_lost_workers`
        if options.data_service:
            raise UserError(
                f"--data_service={options.data_service}: {reason_of(error)}; where it is a record, --on_error=skip names it"
            ) from None
        raise reading_error(
            error,
            source.record_folder,
            source.split,
            config.data,
            global_batch_size=config.train.global_batch_size,
            seed=config.train.seed,
            steps=[step],
            way_out="convert the data again, or leave such images out with --on_error=skip",
        ) from None
    except StopIteration:  # workers of a service that were lost took their share with them
        raise UserError(f"--data_service={options.data_service}: ran out of batches; the same command goes on") from None


def _suspect(source: _Source, options: LoadingOptions) -> str:
    """Where data that do not come should come from."""
    if not options.data_service:
        return f"they are read from {source.record_folder.path}"
    silence = why_silent(options.data_service)
    if silence is not None:
        return f"{options.data_service} does not answer ({silence})"
    return f"{options.data_service} answers, its workers send nothing"
