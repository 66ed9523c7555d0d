"""The training loop: batches of `pipeline.dataset` in, a model directory out.

One `tf.function` takes one step under `strategy.run`; the loop around it only reads metrics, logs, saves and evaluates. Batches
and every random draw are functions of (seed, step), so a checkpoint is the weights, the optimizer and the step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import tensorflow as tf

from model import checkpoint as checkpoint_lib
from model.config import Config
from model.json_files import write_json
from model.keypoint_rcnn import KeypointRCNN
from model.metrics_log import LOSSES, Interval, MetricsLog
from model.optimizer import Sgd
from model.schedule import learning_rate
from model.starting_point import StartingPoint
from model.strategies import num_workers, worker_index
from pipeline import dataset
from pipeline.command import Progress, UserError
from pipeline.data_set import DataSet
from pipeline.loading import PLAIN, Loading
from pipeline.plan import NoImagesError
from pipeline.record_reader import reason_of
from pipeline.skeleton import Skeleton
from pipeline.unreadable import Skipped

KEPT_CHECKPOINTS = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """How a training runs, as opposed to what it trains (`Config`)."""

    model_dir: Path
    precision: str = "float32"
    jit_compile: bool = False
    save_every: int = 1000  # steps
    evaluate_every: int = 0  # steps; 0: not while training
    log_every: int = 20  # steps between two lines of metrics.jsonl
    loading: Loading = PLAIN


class InterruptedTrainingError(UserError):
    """Ctrl-C or SIGTERM; the checkpoint has been saved."""


class Trainer:
    """A model and its optimizer under a strategy, and the compiled step.

    Args:
      config: the model and its schedule.
      skeleton: the keypoint set.
      strategy: any of tf.distribute's synchronous ones.
      precision: Keras policy of the layers.
      jit_compile: whether XLA compiles each replica's step (not on several logical CPU devices, where it cannot).
    """

    def __init__(
        self, config: Config, skeleton: Skeleton, strategy: tf.distribute.Strategy, *, precision: str, jit_compile: bool
    ) -> None:
        self.config, self.strategy = config, strategy
        with strategy.scope():
            self.model = KeypointRCNN(config, skeleton, precision=precision, seed=config.train.seed)
            self._trainable = self.model.variables_by_path(trainable_only=True)
            self.optimizer = Sgd(
                self._trainable,
                momentum=config.train.momentum,
                weight_decay=config.train.weight_decay,
                clip_norm=config.train.clip_norm,
                dynamic_loss_scale=precision == "mixed_float16",
            )
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        self.checkpoint = checkpoint_lib.checkpoint_of(self.model, self.optimizer, self.step)
        replica_step = tf.function(self._replica_step, jit_compile=True) if jit_compile else self._replica_step

        @tf.function(reduce_retracing=True)
        def train_step(batch: dict[str, tf.Tensor], rate: tf.Tensor, seed: tf.Tensor, stop: tf.Tensor) -> dict[str, tf.Tensor]:
            per_replica = strategy.run(replica_step, args=(batch, rate, seed, stop))
            # Every value has been reduced over the replicas already: any one's will do.
            return {name: strategy.experimental_local_results(value)[0] for name, value in per_replica.items()}

        self.train_step: Callable[..., dict[str, tf.Tensor]] = train_step

    def gradients(self, batch: dict[str, tf.Tensor], seed: tf.Tensor) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """In replica context: this replica's share of the global batch's gradient, of the scaled loss, and reduced metrics.

        Each loss is Σ sum / Σ count with both sums over the *global* batch, so the gradients of all replicas add up to those of
        one replica that sees everything.
        """
        context = tf.distribute.get_replica_context()
        with tf.GradientTape() as tape:
            losses, watched = self.model.losses(batch, seed)
            if "unreadable" in batch:
                watched["unreadable"] = tf.reduce_sum(tf.cast(batch["unreadable"] >= 0, tf.float32))
            names = list(losses)
            counts = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack([losses[name][1] for name in names]))
            shares = tf.stack([losses[name][0] for name in names]) / tf.maximum(counts, 1.0)
            weights = [self.config.train.keypoint_loss_weight if name == "keypoint" else 1.0 for name in names]
            loss = tf.reduce_sum(shares * tf.constant(weights))
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, list(self._trainable.values()), unconnected_gradients=tf.UnconnectedGradients.ZERO)
        values = tf.concat([shares, [loss], tf.stack(list(watched.values()))], axis=0)
        values = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.SUM, values))
        return gradients, dict(zip([*names, "loss", *watched], values, strict=True))

    def _replica_step(
        self, batch: dict[str, tf.Tensor], rate: tf.Tensor, seed: tf.Tensor, stop: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        gradients, metrics = self.gradients(batch, seed)
        metrics |= self.optimizer.apply(gradients, rate)
        # Workers must stop after the same step, or those that go on wait for ever: each learns here whether any was asked to.
        context = tf.distribute.get_replica_context()
        metrics["stop"] = context.all_reduce(
            tf.distribute.ReduceOp.SUM, tf.identity(stop)
        )  # one on each device, to be added up
        return metrics

    def distribute(self, batches: tf.data.Dataset) -> Iterator[dict[str, Any]]:
        """Splits each batch of this worker over its replicas, in order."""
        replicas = self.strategy.num_replicas_in_sync // num_workers(self.strategy)

        def split(batch: dict[str, tf.Tensor]) -> tf.data.Dataset:
            parts = {
                name: tf.reshape(value, tf.concat([[replicas, value.shape[0] // replicas], tf.shape(value)[1:]], 0))
                for name, value in batch.items()
            }
            shapes = {name: [value.shape[0] // replicas, *value.shape[1:]] for name, value in batch.items()}
            slices = tf.data.Dataset.from_tensor_slices(parts)
            return slices.map(lambda part: {name: tf.ensure_shape(value, shapes[name]) for name, value in part.items()})

        def per_replica(_: tf.distribute.InputContext) -> tf.data.Dataset:
            return batches.flat_map(split) if replicas > 1 else batches

        return iter(self.strategy.distribute_datasets_from_function(per_replica))


def train(
    config: Config,
    data_set: DataSet,
    split: str,
    run: Run,
    strategy: tf.distribute.Strategy,
    validate: Callable[[KeypointRCNN, MetricsLog, int], None] | None = None,
    start: StartingPoint | None = None,
) -> None:
    """Trains until `config.train.steps`, going on from the newest checkpoint of `run.model_dir`.

    Args:
      config: what to train.
      data_set, split: records to train on.
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
    dataset.check_compatible(data_set, config.anchors, config.data, data_set.skeleton)
    try:
        pool = dataset.training_pool(data_set, split, config.data)
    except NoImagesError as error:  # an ordinary case: a pipeline that converts what there is may have found nothing
        print(f"train: {error}; nothing to do", flush=True)
        return
    for change in checkpoint_lib.prepare_model_dir(run.model_dir, config, data_set.skeleton) if worker == 0 else ():
        print(f"train: {run.model_dir} was made with other settings; {change}", flush=True)
    trainer = Trainer(config, data_set.skeleton, strategy, precision=run.precision, jit_compile=run.jit_compile)
    # Every worker has to take part in saving; what the others write is of no use to anyone.
    folder = run.model_dir / "checkpoints" if worker == 0 else run.model_dir / f"checkpoints-of-worker-{worker}"
    manager = tf.train.CheckpointManager(
        trainer.checkpoint, str(folder), max_to_keep=KEPT_CHECKPOINTS, step_counter=trainer.step, checkpoint_name="step"
    )
    newest = checkpoint_lib.newest_checkpoint(run.model_dir)
    if newest is not None and checkpoint_lib.has_optimizer(newest):
        checkpoint_lib.restore(trainer.checkpoint, newest)
    elif newest is not None:
        checkpoint_lib.restore(checkpoint_lib.checkpoint_of(trainer.model), newest, partial=True)
        print(f"train: starts from the imported weights of {run.model_dir}", flush=True)
    elif start is not None:
        with strategy.scope():
            print(f"train: {start.fill(trainer.model)}", flush=True)
        if worker == 0:
            write_json(run.model_dir / checkpoint_lib.NOTE_FILE, dict(start.source))
    first = int(trainer.step.numpy())
    if first >= total:
        print(f"train: {run.model_dir} has been trained for {first} of {total} steps already; nothing to do", flush=True)
        return
    if first:
        print(f"train: going on from {newest}, step {first} of {total}", flush=True)
    if worker == 0:
        write_json(run.model_dir / "canvases.json", pool.canvases.to_json())
        print(f"train: {split} has {pool}", flush=True)
        if run.loading.data_service:
            print(f"train: {run.loading.data_service} promises neither an order of batches nor exact resumption", flush=True)

    def save(step: int) -> None:
        trainer.step.assign(step)
        manager.save(checkpoint_number=step)

    batches = dataset.training_batches(
        data_set,
        split,
        config.data,
        global_batch_size=batch_size,
        seed=config.train.seed,
        start_step=first,
        num_steps=total - first,
        input_workers=workers,
        input_worker=worker,
        anchors=config.anchors,
        loading=run.loading,
    )

    def unreadable(step: int) -> list[str]:
        return dataset.describe_unreadable(
            data_set, split, config.data, global_batch_size=batch_size, seed=config.train.seed, step=step
        )

    skipped = Skipped(data_set, split, lambda line: print(f"train: {line}", flush=True))
    iterator = trainer.distribute(batches)
    log = MetricsLog(run.model_dir, first) if worker == 0 else None
    interval = Interval(batch_size)
    previous: _Step | None = None

    with _Interrupt() as interrupt, skipped, Progress(total, "train", "step", done=first) as progress:
        for step in range(first, total):
            with interval.waiting():
                batch = _next(iterator, run.loading, functools.partial(unreadable, step))
            rate = learning_rate(config.train, step)
            metrics = trainer.train_step(
                batch,
                tf.constant(rate, tf.float32),
                tf.constant((config.train.seed * 1_000_003 + step) % 2**31, tf.int32),
                tf.constant(float(interrupt.asked)),
            )
            # The step before is looked at now, when the device has its next step already.
            stop = previous is not None and previous.settle(interval, run.model_dir)
            ids = {
                name: strategy.experimental_local_results(batch[name]) for name in ("image_id", "unreadable") if name in batch
            }
            previous = _Step(step, metrics, ids["image_id"], ids.get("unreadable", ()), skipped)
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
                save(done)
            if validate is not None and log is not None and not stop and (last or evaluation_due):
                validate(trainer.model, log, done)
                interval.restart()
            if stop and not last:
                raise InterruptedTrainingError(
                    f"stopped at step {done} of {total}; its checkpoint is in {run.model_dir}: the same command goes on"
                )
    print(f"train: {total} steps done; model in {run.model_dir}", flush=True)


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


def _next(iterator: Iterator[dict[str, Any]], loading: Loading, unreadable: Callable[[], list[str]]) -> dict[str, Any]:
    """The next batch; `unreadable` names the images of it that cannot be read."""
    try:
        return next(iterator)
    except tf.errors.OpError as error:
        if loading.data_service:
            raise UserError(
                f"--data_service={loading.data_service}: {reason_of(error)}; where it is a record, --on_error=skip names it"
            ) from None
        named = unreadable() or [f"the data cannot be read ({reason_of(error)})"]
        raise UserError(f"{named[0]}; convert the data again, or leave such images out with --on_error=skip") from None
    except StopIteration:  # workers of a service that were lost took their share with them
        raise UserError(f"--data_service={loading.data_service}: ran out of batches; the same command goes on") from None


class _Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag that is looked at between two steps; a second Ctrl-C ends at once."""

    def __enter__(self) -> _Interrupt:
        self.asked = False
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("train: saving a checkpoint, then stopping", flush=True)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
