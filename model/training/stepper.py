"""Takes the steps of a training, one after the other: reads metrics, logs, saves, evaluates, stops."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from model.interrupt import Interrupt
from model.training import best_checkpoint
from model.training.data_source import DataSource
from model.training.feed import Feed
from model.training.learning_rate import learning_rate
from model.training.metrics_log import LOSSES, Interval, MetricsLog, notes
from model.training.patience import reason_to_stop
from model.training.profiling import Profiler
from model.training.run import Run, Validate
from model.training.saver import Saver
from model.training.step import Learner
from model.training.strategies import num_workers
from model.training.throughput import Throughput
from pipeline.command import Progress, UserError, reason_of, say
from pipeline.random_draws import step_seed
from pipeline.records import READ_ERRORS

SECONDS_OF_PATIENCE = 60  # between two lines that say that training waits for data
EARLY_STEPS = 100  # a loss that explodes within them does so because of the learning rate or the initial weights
MOST_SKIPPED_IN_A_ROW = 10  # steps whose gradient is not finite though the loss is not scaled up


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step that the device may still be working on."""

    number: int
    metrics: dict[str, tf.Tensor]
    image_ids: Sequence[tf.Tensor]
    unreadable: Sequence[tf.Tensor]
    products: float | None  # floating-point operations; None if they are not known


class Stepper:
    """Takes the steps of a run. One step, or `run.steps_per_call` of them in one call, in this order:

    1. Wait for its batch. Meanwhile the device works on the step before.
    2. Start it. The device takes it over, and Python goes on at once.
    3. Settle the step before, whose metrics are read now because the device has its next work already. A loss that is not
       finite ends the training before anything of it is saved. The metrics also say whether any worker was asked to stop:
       all workers read the same sum, so all stop after the same step.
    4. Log, if it is time: the means of the settled steps.
    5. Save, if it is time or the training shall stop. This step is settled first: nothing is saved after one that went wrong.
    6. Evaluate, if it is time: after the save, so that a kill costs no step, and the next start makes the evaluation up.
    7. Stop, if it is asked to, or if the keypoint AP has not risen for long. The next start reads that off the log again.
    """

    def __init__(
        self,
        learner: Learner,
        source: DataSource,
        run: Run,
        validate: Validate | None,
        log: MetricsLog | None,
        *,
        first: int,
        saver: Saver,
        feed: Feed[dict[str, Any]],
        interrupt: Interrupt,
        progress: Progress,
        profiler: Profiler,
        throughput: Throughput,
    ) -> None:
        self._learner, self._source, self._run, self._validate, self._log = learner, source, run, validate, log
        self._feed, self._interrupt, self._progress = feed, interrupt, progress
        self._config, self._total = learner.config.train, learner.config.train.steps
        self._alone = num_workers(learner.strategy) == 1
        self._saver, self._first = saver, first
        self._profiler, self._throughput = profiler, throughput
        self._interval = Interval(throughput.peak)
        self._pending: list[_Step] = []  # started, and not settled yet
        self._failure: Exception | None = None  # of the next batch, when steps before it are still to be taken
        self._stop = False  # whether some worker was asked to stop
        self._skipped_in_a_row = self._skipped = self._settled = 0
        self._loss = ""

    def take_steps(self) -> int:
        """Takes the steps to the end of training. Returns the number of steps that are done then."""
        step = self._first
        while step < self._total:
            if self._is_out_of_patience(step):  # 7
                return step
            batches = self._wait_for_batches(step)  # 1
            done = step + len(batches)
            last = done == self._total
            before = self._pending
            self._profiler.before(step)
            self._pending = self._start(step, batches)  # 2
            self._settle(before)  # 3
            self._profiler.after(done, self._settle_pending)
            if self._throughput.watch_traces(step, len(batches)) and not last:  # tracing and compilation count in no rate
                self._settle_pending()
                self._interval.restart()
            self._log_if_due(done)  # 4
            self._progress.advance(len(batches))
            evaluation_due = last or (self._run.evaluate_every > 0 and done % self._run.evaluate_every == 0)
            if self._stop or evaluation_due or done % self._run.save_every == 0:
                self._settle_pending()
                if evaluation_due:
                    self._saver.wait()  # so that this step's checkpoint is not left out
                self._saver.save(done, required=self._stop or last)  # 5
            if evaluation_due and (last or not self._stop):
                self.evaluate(done)  # 6
            if self._stop and not last:  # 7
                raise self._interrupt.error(
                    f"stopped at step {done} of {self._total}; its checkpoint is in {self._run.model_dir}: the same command "
                    "goes on"
                )
            step = done
        return self._total

    def _steps_in_a_call(self, step: int) -> int:
        """The number of steps from `step` on that one call takes if their batches share a canvas: all that it may take, or one
        if something is to be done between them.
        """
        number, run = self._run.steps_per_call, self._run
        ends = [self._total, *(run.profile or ())]
        ends += [(step // every + 1) * every for every in (run.log_every, run.save_every, run.evaluate_every) if every]
        room = min(end for end in ends if end > step) - step
        return number if number <= room else 1

    def _is_out_of_patience(self, done: int) -> bool:
        """7. Whether the evaluation after `done` steps is a reason to stop, which is printed then."""
        run = self._run
        due = bool(run.patience and run.evaluate_every) and self._log is not None and done % run.evaluate_every == 0
        reason = reason_to_stop(self._log.evaluations(), run.patience, done) if due and self._log is not None else None
        if reason is not None:
            say(f"train: {reason}")
        return reason is not None

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

    def _wait_for_batches(self, step: int) -> list[dict[str, Any]]:
        """1. The batches of the steps from `step` on that one call takes.

        Raises:
          InterruptedWorkError: training was asked to stop before the batches came.
          UserError: the first of them cannot be made. It names the first image that cannot be read. The steps before are saved.
        """
        batches: list[dict[str, Any]] = []
        failure, self._failure = self._failure, None
        while failure is None and len(batches) < self._steps_in_a_call(step):
            try:
                with self._interval.waiting():
                    batch = self._feed.take(functools.partial(self._is_patient, step + len(batches)))
            except (*READ_ERRORS, StopIteration) as error:
                failure = error
                break
            if batch is None:
                self._save_before_ending(step)
                raise self._interrupt.error(
                    f"stopped at step {step} of {self._total}, waiting for data; the same command goes on in "
                    f"{self._run.model_dir}"
                )
            batches.append(batch)
        if failure is None:
            return batches
        if isinstance(failure, tf.errors.UnavailableError) and not self._alone:
            raise failure  # workers ask each other for batches, too, and one has ended: `strategies.naming_lost_workers`
        if batches and self._alone:  # the steps before it come first; other workers would wait in a call of all of them
            self._failure = failure
            return batches
        self._save_before_ending(step)
        raise self._source.error(failure, step + len(batches)) from None

    def _is_patient(self, step: int, seconds: float) -> bool:
        if self._interrupt.asked and self._alone:  # else the others are in the step already, and wait for this one
            return False
        if seconds % SECONDS_OF_PATIENCE == 0:
            say(f"train: step {step} has been waiting for data for {seconds:.0f} s; {self._source.why_waiting()}")
        return True

    def _save_before_ending(self, step: int) -> None:
        """Saves the steps before `step`, unless they are saved; not among other workers, who take no part in it now."""
        self._settle_pending()
        self._saver.wait()
        if self._alone and step > self._first and self._saver.written != step:
            self._saver.save(step, required=False)
            self._saver.wait()

    def _start(self, first: int, batches: Sequence[dict[str, Any]]) -> list[_Step]:
        """2. Hands the steps from `first` on to the device: in one call, if they are as many as it takes, on one canvas."""
        steps = range(first, first + len(batches))
        rates = [tf.constant(learning_rate(self._config, step), tf.float32) for step in steps]
        seeds = [tf.constant(step_seed(self._config.seed, step), tf.int32) for step in steps]
        stop = tf.constant(float(self._interrupt.asked))
        single = [(batch, rate, seed, stop) for batch, rate, seed in zip(batches, rates, seeds, strict=True)]
        with self._naming_lack_of_memory(first):
            if len(batches) == self._run.steps_per_call > 1 and self._throughput.share_a_canvas(batches):
                metrics = self._learner.take_steps(batches, tf.stack(rates), tf.stack(seeds), stop)
            else:
                metrics = [self._learner.take_step(*arguments) for arguments in single]
        local = self._learner.strategy.experimental_local_results
        started = []
        for step, arguments, values in zip(steps, single, metrics, strict=True):
            ids = {name: local(arguments[0][name]) for name in ("image_id", "unreadable") if name in arguments[0]}
            products = self._throughput.products(arguments)
            started.append(_Step(step, values, ids["image_id"], ids.get("unreadable", ()), products))
        return started

    def _settle_pending(self) -> None:
        pending, self._pending = self._pending, []
        self._settle(pending)

    def _settle(self, steps: Sequence[_Step]) -> None:
        """3. Waits for steps and counts their metrics.

        Raises:
          UserError: a loss that is not finite, unless it is to be skipped; too many gradients in a row that are not. (Such a
            step changes no weight.)
        """
        for step in steps:
            with self._naming_lack_of_memory(step.number):
                values = {name: float(value) for name, value in step.metrics.items()}
            for part in step.unreadable:
                self._source.skipped.see(part.numpy())
            self._count(step.number, values, step.image_ids, step.products)

    def _count(self, step: int, values: dict[str, float], image_ids: Sequence[tf.Tensor], products: float | None) -> None:
        """Counts the metrics of a step; raises as `_settle`."""
        wrong = next((name for name in (*LOSSES, "loss") if not math.isfinite(values[name])), None)
        if wrong is not None:
            ids = [int(i) for part in image_ids for i in part.numpy() if i >= 0]
            told = f"step {step}: the loss {wrong} is {values[wrong]} on images {ids}"
            early = ", train longer with a low one (train.warmup_steps), start from published weights with --init,"
            if self._run.on_nonfinite == "stop":
                raise UserError(
                    f"{told}; the weights of the last checkpoint in {self._run.model_dir} are sound: lower --learning_rate"
                    f"{early if step < EARLY_STEPS else ''} or look at these images"
                )
            say(f"train: {told}; the step changes nothing (--on_nonfinite=skip)")
        self._stop |= values.pop("stop") > 0
        self._interval.add(values, products)
        if wrong is None:
            self._loss = f", loss {values['loss']:.3f}"
        self._count_skipped(step, values, loss_is_finite=wrong is None)

    def _count_skipped(self, step: int, values: dict[str, float], *, loss_is_finite: bool) -> None:
        skipped = values["skipped"] > 0
        self._settled += 1
        self._skipped += skipped
        # While a dynamic loss scale is above 1, it is what makes gradients overflow, and each skipped step halves it.
        counts = skipped and (values["loss_scale"] <= 1 or not loss_is_finite)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if counts else 0
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
            parts = self._learner.strategy.num_replicas_in_sync * self._config.accumulate
            share = self._config.global_batch_size // parts
            half = " or --precision=mixed_float16" if self._run.precision == "float32" else ""
            in_parts = f" --set train.accumulate={2 * self._config.accumulate} (the same numbers)," if share > 1 else ""
            raise UserError(
                f"step {step}: out of memory with {share} images per replica on canvases up to "
                f"{max(self._learner.config.data.short_edges)}×{self._learner.config.data.max_edge} ({_allocation(error)}); "
                f"try a smaller --batch_size{half},{in_parts} smaller data.short_edges and data.max_edge, more GPUs with "
                "--strategy=mirrored, or end other programs on the GPU (nvidia-smi lists them)"
            ) from None

    def _log_if_due(self, done: int) -> None:
        """4. Writes the means of the settled steps. The last step is settled only for a run too short to have others."""
        last = done == self._total
        if last and not self._interval.steps:
            self._settle_pending()
        if self._log is None or not (done % self._run.log_every == 0 or last) or not self._interval.steps:
            return
        values = self._interval.means() | {"learning_rate": learning_rate(self._config, done - 1)}
        values |= self._throughput.device_memory()
        self._log.train(done, values)
        self._progress.advance(0, notes(values, self._interval))
        self._interval.restart()

    def evaluate(self, done: int) -> None:
        """6. Evaluates the model as it is after `done` steps; all workers share the images, and the first has the log."""
        if self._validate is None:
            return

        def hear() -> None:
            if self._interrupt.asked and self._alone:  # else the others wait for this one's answers
                self._saver.wait()
                if done > self._first and self._saver.written != done:
                    self._saver.save(done, required=True)
                raise self._interrupt.error(
                    f"stopped in the evaluation of step {done} of {self._total}; the checkpoint of this step is in "
                    f"{self._run.model_dir}: the same command makes the evaluation up and goes on"
                )

        with self._learner.optimizer.averages_in_place():
            self._validate(self._learner.model, self._log, done, hear)
        self._saver.wait()
        if self._log is not None:
            best_checkpoint.offer(self._run.model_dir, done, self._log.evaluation_of(done) or {})
        self._interval.restart()
        if self._interrupt.asked and done == self._total:  # it came too late for `hear`; whoever pressed Ctrl-C wants an end
            raise self._interrupt.error(
                f"stopped; step {done} of {self._total} was evaluated, so all is done, and the model is in "
                f"{self._run.model_dir}"
            )


def _allocation(error: tf.errors.OpError) -> str:
    """What could not be allocated and where, from an error of 22 lines."""
    found = re.search(r"OOM when allocating tensor with shape\[[\d,]*\] and type (\w+) on (\S+)", error.message)
    return f"{found.group(0).partition(' by ')[0]}" if found else reason_of(error)[:200]
