"""What a training would do, with nothing written: configuration, shapes of a batch, time and memory of a step."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable

import tensorflow as tf

from model import config as config_lib
from model.config import Config
from model.training.learning_rate import learning_rate
from model.training.step import Learner
from model.training.strategies import distribute, num_workers, worker_index
from pipeline.command import counted, say
from pipeline.loading.batches import training_batches
from pipeline.loading.epoch_plan import Pool, plan_epoch
from pipeline.random_draws import step_seed
from pipeline.record_folder import RecordFolder

TIMED_STEPS = 2  # after one that traces


def report(learner: Learner, record_folder: RecordFolder, split: str, pool: Pool, first: int, *, originals: bool) -> None:
    """Prints what a training would do from step `first` on. It takes three steps with one batch, in memory alone.

    Args:
      originals: as `DataSource.originals`.

    Raises:
      UserError: a record cannot be read.
    """
    config = learner.config
    for line in json.dumps(config_lib.to_json(config), indent=2).splitlines():
        say(line)
    for line in _plan(config, split, pool, first):
        say(f"train: {line}")
    batch = next(iter(_largest_batch(learner, record_folder, split, pool, originals)))
    for name, value in batch.items():
        say(f"train: batch: {name} {value.dtype.name} {list(value.shape)}")
    for line in _measured(learner, batch, first):
        say(f"train: {line}")
    say("train: a dry run: nothing was written")


def _plan(config: Config, split: str, pool: Pool, first: int) -> list[str]:
    batch_size = config.train.global_batch_size
    an_epoch = len(plan_epoch(pool, seed=config.train.seed, epoch=0, global_batch_size=batch_size).canvas)
    total = config.train.steps
    rates = ", ".join(f"{learning_rate(config.train, step):.3g} at {step}" for step in sorted({first, total // 2, total - 1}))
    return [
        f"{split} has {pool}",
        f"steps {first} to {total - 1} of {batch_size} images: {total / an_epoch:.1f} epochs of {counted(an_epoch, 'step')}",
        f"learning rate: {rates}",
    ]


def _largest_batch(learner: Learner, record_folder: RecordFolder, split: str, pool: Pool, originals: bool) -> tf.data.Dataset:
    """A batch on the largest canvas, this worker's share."""
    config = learner.config
    plan = plan_epoch(pool, seed=config.train.seed, epoch=0, global_batch_size=config.train.global_batch_size)
    sizes = [height * width for height, width in pool.canvases.sizes]
    step = max(range(len(plan.canvas)), key=lambda step: sizes[plan.canvas[step]])
    return training_batches(
        record_folder,
        split,
        config.data,
        global_batch_size=config.train.global_batch_size,
        seed=config.train.seed,
        start_step=step,
        num_steps=1,
        input_workers=num_workers(learner.strategy),
        worker_index=worker_index(learner.strategy),
        anchors=config.anchors,
        originals=originals,
    )


def _measured(learner: Learner, batch: dict[str, tf.Tensor], first: int) -> list[str]:
    """What a step with this batch takes: an estimate from above, as its canvas is the largest."""
    shared = next(distribute(tf.data.Dataset.from_tensors(batch), learner.strategy))
    scalars = tf.constant(0.0), tf.constant(step_seed(0, 0), tf.int32), tf.constant(0.0)

    def step() -> None:
        float(learner.take_step(shared, *scalars)["loss"])

    traced, taken = _seconds(step), min(_seconds(step) for _ in range(TIMED_STEPS))
    left = (learner.config.train.steps - first) * taken
    weights = sum(v.shape.num_elements() * v.dtype.size for v in learner.model.variables_by_path().values())
    return [
        f"memory: {weights / 1e6:.1f} MB of weights; {_memory(learner)} with three steps of the largest canvas",
        f"time: the first step takes {traced:.1f} s, the others about {taken:.3g} s or less, without waiting for data: "
        f"{left / 3600:.2g} h in all",
    ]


def _memory(learner: Learner) -> str:
    gpus = [device for device in learner.strategy.extended.worker_devices if "GPU" in device]
    if gpus:
        peak = max(tf.config.experimental.get_memory_info(f"GPU:{gpu.rpartition(':')[2]}")["peak"] for gpu in gpus)
        return f"{peak / 1e9:.1f} GB of each GPU's memory"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of this process"


def _seconds(act: Callable[[], None]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
