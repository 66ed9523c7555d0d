"""The losses of a held-out split, which show whether a model learns its training images by heart."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from model.config import Config
from model.evaluation.share import Share
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.metrics_log import LOSSES
from pipeline.command import UserError
from pipeline.loading.batches import training_batches, training_pool
from pipeline.loading.epoch_plan import NoImagesError, plan_epoch
from pipeline.record_folder import RecordFolder

SEED = 0  # of the anchors and RoIs that are drawn: the same in every evaluation


class ValidationLoss:
    """The losses over the images of a split, in the batches of one epoch.

    Images are seen as evaluation sees them: not flipped, not cropped, at the short edge of training that is nearest to
    inference's. Anchors and RoIs are sampled as in training. Each loss is its sum over all batches, divided by its count over
    all of them, so that the size of a batch changes nothing but rounding. Workers take consecutive parts of the batches. All
    have the losses of one worker to the bit: the sums come together, and are added in the order of the batches.

    Args:
      record_folder, split: the held-out records.
      config: of the model that trains.
      share: this worker's part, if several train: all of them call this then.

    Raises:
      UserError: no image of the split counts in training, or its records lack anchors of that size.
    """

    def __init__(self, record_folder: RecordFolder, split: str, config: Config, share: Share | None = None) -> None:
        data = config.data
        short_edge = min(data.short_edges, key=lambda edge: abs(edge - config.inference.short_edge))
        seen = dataclasses.replace(data, short_edges=(short_edge,), flip=False, jitter_canvas=0)
        size = config.train.global_batch_size
        try:
            pool = training_pool(record_folder, split, seen)
        except NoImagesError as error:
            raise UserError(f"--eval_loss: {error}") from None
        number = len(plan_epoch(pool, seed=SEED, epoch=0, global_batch_size=size).canvas)
        index, workers = (share.index, share.workers) if share is not None else (0, 1)
        first, end = number * index // workers, number * (index + 1) // workers
        self._batches = training_batches(
            record_folder,
            split,
            seen,
            global_batch_size=size,
            seed=SEED,
            start_step=first,
            num_steps=end - first,
            anchors=config.anchors,
        )
        self._share = share
        self._weight = config.train.keypoint_loss_weight
        self._sums: Callable[[dict[str, tf.Tensor]], tf.Tensor] | None = None

    def __call__(self, model: KeypointRCNN, hear: Callable[[], None]) -> dict[str, float]:
        """The loss and its five parts, under the names of the training's with "validation_" before them.

        Args:
          model: the same in every call: what computes its losses is traced once.
          hear: called before each batch; what it raises ends the evaluation.
        """
        if self._sums is None:

            def sums(batch: dict[str, tf.Tensor]) -> tf.Tensor:
                losses, _ = model.losses(batch, tf.constant(SEED), training=False)
                return tf.stack([tf.stack(losses[name]) for name in LOSSES])  # [5, 2]

            self._sums = tf.function(sums, autograph=False)
        found = []  # of each batch [5, 2]
        for batch in self._batches:
            hear()
            found.append(self._sums(batch).numpy().tolist())
        if self._share is not None:
            found = list(itertools.chain.from_iterable(self._share.exchange(found)))
        total = np.sum(found, axis=0)  # [5, 2]
        means = (total[:, 0] / np.maximum(total[:, 1], 1.0)).tolist()
        parts = dict(zip(LOSSES, means, strict=True))
        loss = sum(value * (self._weight if name == "keypoint" else 1.0) for name, value in parts.items())
        return {"validation_loss": loss} | {f"validation_{name}": value for name, value in parts.items()}
