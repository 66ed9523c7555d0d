"""The training loop: batches of `pipeline.loading.batches` in, a model directory out.

One `tf.function` takes one step under `strategy.run`; the loop around it only reads metrics, logs, saves and evaluates. Batches
and every random draw are functions of (seed, step), so a checkpoint is the weights, the optimizer and the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model import model_dir as model_dirs
from model.config import Config
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.checkpoints import KEPT_CHECKPOINTS, Origin, Saver, find_origin, note_run
from model.training.data_source import DataSource, advice_on_inference_size, advice_on_padding
from model.training.feed import Feed
from model.training.interrupt import Interrupt
from model.training.learning_rate import learning_rate
from model.training.metrics_log import LOSSES, Interval, MetricsLog, notes
from model.training.starting_point import StartingPoint
from model.training.step import Learner
from model.training.strategies import advice_on_missing_gpu, describe, num_workers, worker_index
from model.training_data import note_training_data
from pipeline.command import Progress, UserError, counted, reason_of, say
from pipeline.files import only_writer, write_json
from pipeline.loading.batches import check_compatible, training_pool
from pipeline.loading.epoch_plan import NoImagesError, Pool
from pipeline.loading.options import PLAIN, LoadingOptions
from pipeline.loading.unreadable import Skipped
from pipeline.random_draws import step_seed
from pipeline.record_folder import RecordFolder
from pipeline.records import READ_ERRORS

SECONDS_OF_PATIENCE = 60  # between two lines that say that training waits for data
EARLY_STEPS = 100  # a loss that explodes within them does so because of the learning rate or the initial weights
MOST_SKIPPED_IN_A_ROW = 10  # steps whose gradient is not finite though the loss is not scaled up

# Takes the model, the log, the step, and a function to call now and then, which raises if the training shall stop.
Validate = Callable[[KeypointRCNN, MetricsLog, int, Callable[[], None]], None]


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
    keep: int = KEPT_CHECKPOINTS  # the newest
    on_damaged_checkpoint: model_dirs.OnDamaged = "previous"
    remarks: tuple[str, ...] = ()  # printed after the first line, which says what trains


def train(
    config: Config,
    record_folder: RecordFolder,
    split: str,
    run: Run,
    strategy: tf.distribute.Strategy,
    validate: Validate | None = None,
    start: StartingPoint | None = None,
) -> None:
    """Trains until `config.train.steps`, going on from the newest checkpoint of `run.model_dir`.

    Args:
      config: what to train.
      record_folder, split: records to train on.
      run: where and how.
      strategy: of tf.distribute.
      validate: called by the first worker every `run.evaluate_every` steps and after the last.
      start: what to start from if there is no checkpoint yet; by default random weights.

    Raises:
      UserError: a directory of another model, a batch size that replicas cannot share, random weights with frozen norms, a loss
        that is not finite, gradients that are not finite again and again.
      InterruptedTrainingError: after Ctrl-C, SIGTERM or SIGHUP.
    """
    _check_batch_size(config, strategy)
    say(f"train: {describe(strategy, run.precision, config.train.global_batch_size)}")
    for remark in filter(None, (advice_on_missing_gpu(strategy, run.precision), *run.remarks)):
        say(f"train: {remark}")
    config = dataclasses.replace(config, inference=dataclasses.replace(config.inference, category_id=record_folder.category_id))
    check_compatible(record_folder, config.anchors, config.data, record_folder.skeleton)
    try:
        pool = training_pool(record_folder, split, config.data)
    except NoImagesError as error:  # an ordinary case: an automated conversion may find no image
        say(f"train: {error}; nothing to do")
        return
    model_dirs.check_is_directory(run.model_dir)
    with only_writer(run.model_dir, "training") if worker_index(strategy) == 0 else contextlib.nullcontext():
        origin = find_origin(run.model_dir, config, start, run.on_damaged_checkpoint)
        learner, first = _prepare(config, record_folder, run, strategy, origin)
        with Skipped(record_folder, split, lambda line: say(f"train: {line}")) as skipped:
            source = DataSource(record_folder, split, config, run.options, skipped)
            _go_on(learner, source, pool, run, first, validate)


def _prepare(
    config: Config, record_folder: RecordFolder, run: Run, strategy: tf.distribute.Strategy, origin: Origin
) -> tuple[Learner, int]:
    """Makes the model directory and the learner, which gets what it goes on from. Returns the learner and the steps done."""
    writes = worker_index(strategy) == 0
    for change in model_dirs.prepare_model_dir(run.model_dir, config, record_folder.skeleton) if writes else ():
        say(f"train: {run.model_dir} was made with other settings; {change}")
    learner = Learner(config, record_folder.skeleton, strategy, precision=run.precision, jit_compile=run.jit_compile)
    return learner, origin.fill(learner, writes=writes)


def _go_on(learner: Learner, source: DataSource, pool: Pool, run: Run, first: int, validate: Validate | None) -> None:
    """Makes up the evaluation of the step before `first` if it was interrupted, then takes the steps from `first` on."""
    config, total = learner.config, learner.config.train.steps
    log = MetricsLog(run.model_dir, first) if worker_index(learner.strategy) == 0 else None
    missing = validate is not None and log is not None and _evaluation_is_missing(log, run, first, total)
    if first >= total and not missing:
        say(f"train: {run.model_dir} has been trained for {first} of {total} steps already; nothing to do")
        return
    note_run(run.model_dir, learner, run.precision, first, writes=log is not None)
    if log is not None:
        write_json(run.model_dir / "canvases.json", pool.canvases.to_json())
        note_training_data(run.model_dir, source.record_folder, source.split)
        say(f"train: {source.split} has {pool}")
        for advice in filter(None, (advice_on_padding(pool, config), advice_on_inference_size(config))):
            say(f"train: {advice}")
        if run.options.data_service:
            say(f"train: {run.options.data_service} promises neither an order of batches nor exact resumption")
    with contextlib.ExitStack() as stack:
        if log is not None:
            stack.callback(log.close)
        loop = _Loop(
            learner,
            source,
            run,
            validate,
            log,
            feed=stack.enter_context(Feed(source.batches(learner, first))),
            interrupt=stack.enter_context(Interrupt()),
            progress=stack.enter_context(Progress(total, "train", "step", done=first)),
        )
        if missing:
            loop.evaluate(first)
        loop.take_steps(first)
    say(f"train: {counted(total, 'step')} done{loop.result()}; model in {run.model_dir}")


def _check_batch_size(config: Config, strategy: tf.distribute.Strategy) -> None:
    if config.train.global_batch_size % strategy.num_replicas_in_sync:
        raise UserError(
            f"--batch_size={config.train.global_batch_size}: must be a multiple of the {strategy.num_replicas_in_sync} "
            "replicas that share it"
        )


def _evaluation_is_missing(log: MetricsLog, run: Run, done: int, total: int) -> bool:
    """Whether the newest checkpoint's step was to be evaluated, and the process was stopped before the end of it."""
    due = done >= total or (done > 0 and run.evaluate_every > 0 and done % run.evaluate_every == 0)
    return due and not log.has_evaluation(done)


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step that the device may still be working on."""

    number: int
    metrics: dict[str, tf.Tensor]
    image_ids: Sequence[tf.Tensor]
    unreadable: Sequence[tf.Tensor]


class _Loop:
    """Takes the steps of a run. One step, in this order:

    1. Wait for its batch. Meanwhile the device works on the step before.
    2. Start it. The device takes it over, and Python goes on at once.
    3. Settle the step before, whose metrics are read now because the device has its next work already. A loss that is not
       finite ends the training before anything of it is saved. The metrics also say whether any worker was asked to stop:
       all workers read the same sum, so all stop after the same step.
    4. Log, if it is time: the means of the settled steps.
    5. Save, if it is time or the training shall stop. This step is settled first: nothing is saved after one that went wrong.
    6. Evaluate, if it is time: after the save, so that a kill costs no step, and the next start makes the evaluation up.
    7. Stop, if it is asked to.
    """

    def __init__(
        self,
        learner: Learner,
        source: DataSource,
        run: Run,
        validate: Validate | None,
        log: MetricsLog | None,
        *,
        feed: Feed[dict[str, Any]],
        interrupt: Interrupt,
        progress: Progress,
    ) -> None:
        self._learner, self._source, self._run, self._validate, self._log = learner, source, run, validate, log
        self._feed, self._interrupt, self._progress = feed, interrupt, progress
        self._config, self._total = learner.config.train, learner.config.train.steps
        self._alone = num_workers(learner.strategy) == 1
        self._saver = Saver(learner, run.model_dir, worker_index(learner.strategy), run.keep)
        self._interval = Interval()
        self._pending: _Step | None = None  # started, and not settled yet
        self._is_saved = True  # whether no step has been started since the last checkpoint
        self._stop = False  # whether some worker was asked to stop
        self._skipped_in_a_row = self._skipped = self._settled = 0
        self._loss = ""

    def take_steps(self, first: int) -> None:
        """Takes the steps from `first` on, to the end of training."""
        for step in range(first, self._total):
            done, last = step + 1, step + 1 == self._total
            batch = self._wait_for_batch(step)  # 1
            before = self._pending
            self._pending = self._start(step, batch)  # 2
            self._settle(before)  # 3
            if step == first and not last:  # it contains tracing and compilation: not counted in rates
                self._settle_pending()
                self._interval.restart()
            self._log_if_due(step)  # 4
            self._progress.advance(1)
            evaluation_due = last or (self._run.evaluate_every > 0 and done % self._run.evaluate_every == 0)
            if self._stop or evaluation_due or done % self._run.save_every == 0:
                self._settle_pending()
                self._saver.save(done, required=self._stop or last)  # 5
                self._is_saved = True
            if evaluation_due and (last or not self._stop):
                self.evaluate(done)  # 6
            if self._stop and not last:  # 7
                raise self._interrupt.error(
                    f"stopped at step {done} of {self._total}; its checkpoint is in {self._run.model_dir}: the same command "
                    "goes on"
                )

    def result(self) -> str:
        """The last loss and the number of skipped steps, for the last line.

        Raises:
          UserError: none of them changed a weight.
        """
        if self._settled and self._skipped == self._settled:
            raise UserError(
                f"none of the {self._settled} steps changed a weight, because no gradient was finite; {self._ways_out()}"
            )
        return f"{self._loss}, {self._skipped} of them skipped (gradient not finite)" if self._skipped else self._loss

    def _wait_for_batch(self, step: int) -> dict[str, Any]:
        """1. The batch of `step`.

        Raises:
          InterruptedTrainingError: training was asked to stop before the batch came.
          UserError: the batch cannot be made. It names the first image that cannot be read. The steps before are saved.
        """
        try:
            with self._interval.waiting():
                batch = self._feed.take(lambda seconds: self._is_patient(step, seconds))
        except (*READ_ERRORS, StopIteration) as error:
            if isinstance(error, tf.errors.UnavailableError) and not self._alone:
                raise  # workers ask each other for batches, too, and one has ended: `strategies.naming_lost_workers`
            self._save_before_ending(step)
            raise self._source.error(error, step) from None
        if batch is None:
            self._save_before_ending(step)
            raise self._interrupt.error(
                f"stopped at step {step} of {self._total}, waiting for data; the same command goes on in {self._run.model_dir}"
            )
        return batch

    def _is_patient(self, step: int, seconds: float) -> bool:
        if self._interrupt.asked and self._alone:  # else the others are in the step already, and wait for this one
            return False
        if seconds % SECONDS_OF_PATIENCE == 0:
            say(f"train: step {step} has been waiting for data for {seconds:.0f} s; {self._source.why_waiting()}")
        return True

    def _save_before_ending(self, step: int) -> None:
        """Saves the steps before `step`, unless they are saved; not among other workers, who take no part in it now."""
        if self._alone and not self._is_saved:
            self._settle_pending()
            self._saver.save(step, required=False)

    def _start(self, step: int, batch: dict[str, Any]) -> _Step:
        """2. Hands a step to the device."""
        self._is_saved = False
        with self._naming_lack_of_memory(step):
            metrics = self._learner.take_step(
                batch,
                tf.constant(learning_rate(self._config, step), tf.float32),
                tf.constant(step_seed(self._config.seed, step), tf.int32),
                tf.constant(float(self._interrupt.asked)),
            )
        local = self._learner.strategy.experimental_local_results
        ids = {name: local(batch[name]) for name in ("image_id", "unreadable") if name in batch}
        return _Step(step, metrics, ids["image_id"], ids.get("unreadable", ()))

    def _settle_pending(self) -> None:
        pending, self._pending = self._pending, None
        self._settle(pending)

    def _settle(self, step: _Step | None) -> None:
        """3. Waits for a step and counts its metrics.

        Raises:
          UserError: a loss that is not finite, or too many gradients that are not. (Such a gradient changes no weight.)
        """
        if step is None:
            return
        with self._naming_lack_of_memory(step.number):
            values = {name: float(value) for name, value in step.metrics.items()}
        for name in (*LOSSES, "loss"):
            if not math.isfinite(values[name]):
                ids = [int(i) for part in step.image_ids for i in part.numpy() if i >= 0]
                early = ", train longer with a low one (train.warmup_steps), start from published weights with --init,"
                raise UserError(
                    f"step {step.number}: the loss {name} is {values[name]} on images {ids}; the weights of the last "
                    f"checkpoint in {self._run.model_dir} are sound: lower --learning_rate"
                    f"{early if step.number < EARLY_STEPS else ''} or look at these images"
                )
        self._stop |= values.pop("stop") > 0
        self._interval.add(values)
        self._loss = f", loss {values['loss']:.3f}"
        self._count_skipped(step.number, values)
        for part in step.unreadable:
            self._source.skipped.see(part.numpy())

    def _count_skipped(self, step: int, values: dict[str, float]) -> None:
        skipped = values["skipped"] > 0
        self._settled += 1
        self._skipped += skipped
        # While a dynamic loss scale is above 1, it is what makes gradients overflow, and each skipped step halves it.
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped and values["loss_scale"] <= 1 else 0
        if self._skipped_in_a_row > MOST_SKIPPED_IN_A_ROW:
            raise UserError(
                f"step {step}: no gradient of the last {self._skipped_in_a_row} steps was finite, so none of them changed a "
                f"weight; {self._ways_out()}; the weights of the last checkpoint in {self._run.model_dir} are sound"
            )

    def _ways_out(self) -> str:
        other = " or train with --precision=float32 or mixed_bfloat16," if self._run.precision == "mixed_float16" else ""
        return f"lower --learning_rate,{other} set train.clip_norm=10, or start from published weights with --init"

    @contextlib.contextmanager
    def _naming_lack_of_memory(self, step: int) -> Iterator[None]:
        try:
            yield
        except tf.errors.ResourceExhaustedError as error:
            replicas = self._learner.strategy.num_replicas_in_sync
            share = self._config.global_batch_size // replicas
            half = " or --precision=mixed_float16" if self._run.precision == "float32" else ""
            raise UserError(
                f"step {step}: out of memory with {share} images per replica on canvases up to "
                f"{max(self._learner.config.data.short_edges)}×{self._learner.config.data.max_edge} ({_allocation(error)}); "
                f"try a smaller --batch_size{half}, smaller data.short_edges and data.max_edge, more GPUs with "
                "--strategy=mirrored, or end other programs on the GPU (nvidia-smi lists them)"
            ) from None

    def _log_if_due(self, step: int) -> None:
        """4. Writes the means of the settled steps. The last step is settled only for a run too short to have others."""
        done, last = step + 1, step + 1 == self._total
        if last and not self._interval.steps:
            self._settle_pending()
        if self._log is None or not (done % self._run.log_every == 0 or last) or not self._interval.steps:
            return
        values = self._interval.means() | {"learning_rate": learning_rate(self._config, step)}
        self._log.train(done, values)
        self._progress.advance(0, notes(values, self._interval))
        self._interval.restart()

    def evaluate(self, done: int) -> None:
        """6. Evaluates the model as it is after `done` steps; only the first worker does."""
        if self._validate is None or self._log is None:
            return

        def hear() -> None:
            if self._interrupt.asked and (self._alone or done == self._total):  # else the others wait for this one
                raise self._interrupt.error(
                    f"stopped in the evaluation of step {done} of {self._total}; the checkpoint of this step is in "
                    f"{self._run.model_dir}: the same command makes the evaluation up and goes on"
                )

        self._validate(self._learner.model, self._log, done, hear)
        self._interval.restart()


def _allocation(error: tf.errors.OpError) -> str:
    """What could not be allocated and where, from an error of 22 lines."""
    found = re.search(r"OOM when allocating tensor with shape\[[\d,]*\] and type (\w+) on (\S+)", error.message)
    return f"{found.group(0).partition(' by ')[0]}" if found else reason_of(error)[:200]
