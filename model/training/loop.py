"""The training loop: batches of `pipeline.loading.batches` in, a model directory out.

`stepper.py` takes the steps. Batches and every random draw are functions of (seed, step), so a checkpoint is the weights, the
optimizer and the step.
"""

from __future__ import annotations

import contextlib
import dataclasses

import tensorflow as tf

from model import model_dir as model_dirs
from model.config import Config
from model.interrupt import Interrupt
from model.training import best_checkpoint, dry_run
from model.training.auto_recipe import RECIPE_FILE
from model.training.checkpoints import Origin, find_origin, note_run
from model.training.data_source import DataSource, advice_on_inference_size, advice_on_padding, steps_resize
from model.training.feed import Feed
from model.training.freezing import told
from model.training.metrics_log import MetricsLog
from model.training.profiling import Profiler
from model.training.run import Run as Run
from model.training.run import Validate as Validate
from model.training.saver import Saver
from model.training.starting_point import StartingPoint
from model.training.step import Learner
from model.training.stepper import Stepper
from model.training.strategies import advice_on_missing_gpu, describe, share_of, worker_index
from model.training.throughput import Throughput
from model.training_data import note_training_data
from pipeline.command import Progress, UserError, counted, say
from pipeline.files import only_writer, write_json
from pipeline.loading.batches import check_compatible, training_pool
from pipeline.loading.epoch_plan import NoImagesError, Pool, plan_epoch
from pipeline.loading.unreadable import Skipped
from pipeline.record_folder import RecordFolder


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
      validate: called by every worker every `run.evaluate_every` steps and after the last.
      start: what to start from if there is no checkpoint yet; by default random weights.

    Raises:
      UserError: a directory of another model, a batch size that replicas cannot share, random weights with frozen norms, a loss
        that is not finite, gradients that are not finite again and again.
      InterruptedWorkError: after Ctrl-C, SIGTERM or SIGHUP.
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
    originals = steps_resize(record_folder, split, pool, config, strategy)
    model_dirs.check_is_directory(run.model_dir)
    if run.dry_run:
        origin = find_origin(run.model_dir, config, start, run.on_damaged_checkpoint)
        learner, first = _prepare(config, record_folder, run, strategy, origin)
        dry_run.report(learner, record_folder, split, pool, first, originals=originals)
        return
    with only_writer(run.model_dir, "training") if worker_index(strategy) == 0 else contextlib.nullcontext():
        origin = find_origin(run.model_dir, config, start, run.on_damaged_checkpoint)
        learner, first = _prepare(config, record_folder, run, strategy, origin)
        with Skipped(record_folder, split, lambda line: say(f"train: {line}")) as skipped:
            source = DataSource(record_folder, split, config, run.options, skipped, originals)
            _go_on(learner, source, pool, run, first, validate)


def _prepare(
    config: Config, record_folder: RecordFolder, run: Run, strategy: tf.distribute.Strategy, origin: Origin
) -> tuple[Learner, int]:
    """Makes the model directory, except in a dry run, and the learner, which gets what it goes on from.

    Returns:
      the learner and the number of steps done.
    """
    writes = worker_index(strategy) == 0 and not run.dry_run
    prepare = model_dirs.prepare_model_dir if writes else model_dirs.check_model_dir
    for change in prepare(run.model_dir, config, record_folder.skeleton) if worker_index(strategy) == 0 else ():
        say(f"train: {run.model_dir} was made with other settings; {change}")
    learner = Learner(config, record_folder.skeleton, strategy, precision=run.precision, jit_compile=run.jit_compile)
    if learner.frozen:
        say(f"train: {told(learner.frozen)}")
    return learner, origin.fill(learner, writes=writes)


def _go_on(learner: Learner, source: DataSource, pool: Pool, run: Run, first: int, validate: Validate | None) -> None:
    """Makes up the evaluation of the step before `first` if it was interrupted, then takes the steps from `first` on."""
    config, total = learner.config, learner.config.train.steps
    log = MetricsLog(run.model_dir, first) if worker_index(learner.strategy) == 0 else None
    if log is not None and (figures := log.evaluation_of(first)) is not None:
        best_checkpoint.offer(run.model_dir, first, figures)  # in case that the process was killed before it came to this
    missing = log is not None and _evaluation_is_missing(log, run, first, total)
    if validate is not None and (share := share_of(learner.strategy)) is not None:
        missing = share.any(missing)  # the first worker has the log
    missing &= validate is not None
    if first >= total and not missing:
        say(f"train: {run.model_dir} has been trained for {first} of {total} steps already; nothing to do")
        return
    note_run(run.model_dir, learner, run.precision, first, writes=log is not None)
    if log is not None:
        write_json(run.model_dir / "canvases.json", pool.canvases.to_json())
        if run.recipe is not None:
            write_json(run.model_dir / RECIPE_FILE, dict(run.recipe))
        note_training_data(run.model_dir, source.record_folder, source.split)
        say(f"train: {source.split} has {pool}")
        if source.originals:
            say("train: the steps resize the images (data.resize_on)")
        for advice in filter(None, (advice_on_padding(pool, config), advice_on_inference_size(config))):
            say(f"train: {advice}")
        if run.profile is not None and not first <= run.profile[0] < run.profile[1] <= total:
            say(f"train: --profile={run.profile[0]}:{run.profile[1]}: this run takes the steps {first} to {total - 1}")
        if run.options.data_service:
            say(f"train: {run.options.data_service} promises neither an order of batches nor exact resumption")
    with contextlib.ExitStack() as stack:
        if log is not None:
            stack.callback(log.close)
        stepper = Stepper(
            learner,
            source,
            run,
            validate,
            log,
            first=first,
            saver=stack.enter_context(Saver(learner, run.model_dir, worker_index(learner.strategy), run.keep, run.keep_every)),
            feed=stack.enter_context(Feed(source.batches(learner, first))),
            interrupt=stack.enter_context(Interrupt()),
            progress=stack.enter_context(Progress(total, "train", "step", done=first)),
            profiler=stack.enter_context(Profiler(run.model_dir / "tensorboard", run.profile if log is not None else None)),
            throughput=Throughput(learner, run.precision, run.peak_tflops, _steps_of_an_epoch(pool, config)),
        )
        if missing:
            stepper.evaluate(first)
        done = stepper.take_steps()
    say(f"train: {counted(done, 'step')} done{stepper.result()}; model in {run.model_dir}")


def _steps_of_an_epoch(pool: Pool, config: Config) -> int:
    return len(plan_epoch(pool, seed=config.train.seed, epoch=0, global_batch_size=config.train.global_batch_size).canvas)


def _check_batch_size(config: Config, strategy: tf.distribute.Strategy) -> None:
    parts, replicas = config.train.accumulate, strategy.num_replicas_in_sync
    if config.train.global_batch_size % (replicas * parts):
        in_parts = f" and the {parts} parts of train.accumulate" if parts > 1 else ""
        raise UserError(
            f"--batch_size={config.train.global_batch_size}: must be a multiple of the {replicas} replicas that share "
            f"it{in_parts}"
        )


def _evaluation_is_missing(log: MetricsLog, run: Run, done: int, total: int) -> bool:
    """Whether the newest checkpoint's step was to be evaluated, and the process was stopped before the end of it."""
    due = done >= total or (done > 0 and run.evaluate_every > 0 and done % run.evaluate_every == 0)
    return due and not log.has_evaluation(done)
