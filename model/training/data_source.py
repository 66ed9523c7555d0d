"""Where a training's batches come from: opening them, and what to say about them if they do not come."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from model.config import Config
from model.training.step import Learner
from model.training.strategies import distribute, num_workers, worker_index
from pipeline.command import UserError, reason_of
from pipeline.loading.batches import training_batches
from pipeline.loading.epoch_plan import Pool, plan_epoch
from pipeline.loading.options import LoadingOptions, why_silent
from pipeline.loading.originals import resizes_on_device
from pipeline.loading.unreadable import Skipped, reading_error
from pipeline.record_folder import RecordFolder

MUCH_PADDING = 0.1  # of the places in batches


@dataclasses.dataclass(frozen=True)
class DataSource:
    """The records of a training.

    Attributes:
      record_folder, split: which.
      config: the model's; says what batches hold.
      options: how they are loaded.
      skipped: counts the images that cannot be read.
      originals: whether batches hold originals, which the step resizes.
    """

    record_folder: RecordFolder
    split: str
    config: Config
    options: LoadingOptions
    skipped: Skipped
    originals: bool = False

    def batches(self, learner: Learner, first: int) -> Iterator[dict[str, Any]]:
        """Batches of the steps from `first` on, this worker's share of each, split over its replicas."""
        batches = training_batches(
            self.record_folder,
            self.split,
            self.config.data,
            global_batch_size=self.config.train.global_batch_size,
            seed=self.config.train.seed,
            start_step=first,
            num_steps=max(0, self.config.train.steps - first),
            input_workers=num_workers(learner.strategy),
            worker_index=worker_index(learner.strategy),
            anchors=self.config.anchors,
            options=self.options,
            originals=self.originals,
        )
        return distribute(batches, learner.strategy)

    def error(self, error: tf.errors.OpError | StopIteration, step: int) -> UserError:
        """What to say of an error met in the batch of `step`: the first image of it that cannot be read, and a way out."""
        service = self.options.data_service
        if isinstance(error, StopIteration):  # workers of a service that were lost took their share with them
            return UserError(f"--data_service={service}: ran out of batches; the same command goes on")
        if service:
            return UserError(f"--data_service={service}: {reason_of(error)}; if it is a record, --on_error=skip names it")
        return reading_error(
            error,
            self.record_folder,
            self.split,
            self.config.data,
            global_batch_size=self.config.train.global_batch_size,
            seed=self.config.train.seed,
            steps=[step],
            way_out="convert the data again, or leave such images out with --on_error=skip",
        )

    def why_waiting(self) -> str:
        """Says where the data that do not come should come from."""
        service = self.options.data_service
        if not service:
            return f"they are read from {self.record_folder.path}"
        silence = why_silent(service)
        if silence is not None:
            return f"{service} does not answer ({silence})"
        return f"{service} answers, its workers send nothing"


def steps_resize(record_folder: RecordFolder, split: str, pool: Pool, config: Config, strategy: tf.distribute.Strategy) -> bool:
    """Whether the training's steps resize its images (`data.resize_on`).

    Raises:
      UserError: they should, and cannot.
    """
    has_gpu = any("GPU" in device for device in strategy.extended.worker_devices)
    return resizes_on_device(record_folder.index(split), pool, config.data, has_gpu=has_gpu)


def advice_on_padding(pool: Pool, config: Config) -> str | None:
    """One line if much of the batches of the first epoch are padding images; None otherwise."""
    batch_size = config.train.global_batch_size
    places = plan_epoch(pool, seed=config.train.seed, epoch=0, global_batch_size=batch_size).rows  # [T, B]
    padding = float((places < 0).mean())
    if padding <= MUCH_PADDING:
        return None
    canvases = len(pool.canvases.sizes)
    fewer = " or --set data.num_canvases=1" if canvases > 1 else ""
    return (
        f"{padding:.0%} of the places in batches are padding images, because {len(pool.rows)} images on "
        f"{canvases} {'canvases' if canvases > 1 else 'canvas'} do not fill batches of {batch_size}; a smaller "
        f"--batch_size{fewer} leaves less"
    )


def advice_on_inference_size(config: Config) -> str | None:
    """One line if images are seen at another size in training than afterwards; None otherwise."""
    data, inference = config.data, config.inference
    if data.jitter_canvas:
        shortest, longest, edge = 1, data.jitter_canvas, data.jitter_canvas
        best = edge
    else:
        shortest, longest, edge = min(data.short_edges), max(data.short_edges), data.max_edge
        best = longest
    if shortest <= inference.short_edge <= longest and inference.max_edge == edge:
        return None
    return (
        f"images are trained with a short edge of {shortest} to {longest} and a long edge up to {edge}, but evaluation and "
        f"exports resize them to {inference.short_edge} and {inference.max_edge}; --set inference.short_edge={best} --set "
        f"inference.max_edge={edge} would fit"
    )
