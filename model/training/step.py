"""The compiled training step: a model and its optimizer under a strategy of tf.distribute.

`Learner` holds them; `loop.py` calls its step again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from model import model_dir
from model.config import Config
from model.network.keypoint_rcnn import KeypointRCNN, Loss
from model.training.freezing import frozen
from model.training.metrics_log import LOSSES
from model.training.optimizer import optimizer_of
from pipeline.command import UserError
from pipeline.loading import augment, device_resize
from pipeline.skeleton import Skeleton

WATCHED = ("positive_rois", "keypoint_rois", "keypoint_overflow", "images")  # and "unreadable", if batches have it


class Learner:
    """A model and its optimizer under a strategy, and the compiled step.

    Args:
      config: the model and its schedule.
      skeleton: the keypoint set.
      strategy: any of tf.distribute's synchronous ones.
      precision: Keras policy of the layers.
      jit_compile: whether XLA compiles each replica's step (not on several logical CPU devices, where it cannot).

    Attributes:
      frozen: paths of the variables that `train.freeze` leaves as they are. They have no gradient and no optimizer's state.

    Raises:
      UserError: a pattern of `train.freeze` that matches nothing, or patterns that leave nothing to train.
    """

    def __init__(
        self, config: Config, skeleton: Skeleton, strategy: tf.distribute.Strategy, *, precision: str, jit_compile: bool
    ) -> None:
        self.config, self.strategy = config, strategy
        with strategy.scope():
            seed = config.train.seed % 2**32  # Keras takes 32 bits
            self.model = KeypointRCNN(config, skeleton, precision=precision, seed=seed)
            self.frozen = frozen(self.model.variables_by_path(), config.train.freeze)
            self.model.freeze_statistics(self.frozen)
            trainable = self.model.variables_by_path(trainable_only=True)
            self._trainable = {path: variable for path, variable in trainable.items() if path not in self.frozen}
            if not self._trainable:
                raise UserError(f"train.freeze={','.join(config.train.freeze)}: leaves nothing to train; freeze less")
            self.optimizer = optimizer_of(config.train, self._trainable, dynamic_loss_scale=precision == "mixed_float16")
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        self.checkpoint = model_dir.checkpoint_of(self.model, self.optimizer.variables_by_path(), self.step)
        replica_step = tf.function(self._replica_step, jit_compile=True, autograph=False) if jit_compile else self._replica_step
        self.replica_step: Any = replica_step  # in replica context, with the arguments of `take_step`

        # Each canvas has a trace of its own. One for all canvases but the first would be another program, which rounds
        # otherwise: numbers would depend on the canvas that a run happens to begin with, and resuming would not be exact.
        @tf.function(autograph=False)
        def take_step(batch: dict[str, tf.Tensor], rate: tf.Tensor, seed: tf.Tensor, stop: tf.Tensor) -> dict[str, tf.Tensor]:
            per_replica = strategy.run(replica_step, args=(batch, rate, seed, stop))
            # Every value has been reduced over the replicas already, so all replicas hold the same.
            return {name: strategy.experimental_local_results(value)[0] for name, value in per_replica.items()}

        @tf.function(autograph=False)
        def take_steps(
            batches: Sequence[dict[str, tf.Tensor]], rates: tf.Tensor, seeds: tf.Tensor, stop: tf.Tensor
        ) -> list[dict[str, tf.Tensor]]:
            return [take_step(batch, rates[n], seeds[n], stop) for n, batch in enumerate(batches)]

        self.take_step: Any = take_step  # a tf.function; its methods are used, too
        self.take_steps: Any = take_steps  # steps one after the other in one call, of batches on one canvas; rates, seeds: [N]

    def gradients(self, batch: dict[str, tf.Tensor], seed: tf.Tensor) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """In replica context: the replica's share of the gradient of the global batch's scaled loss, and the reduced metrics.

        Each loss is Σ sum / Σ count with both sums over the *global* batch, so the gradients of all replicas add up to those of
        one replica that sees everything. So do those of the parts of a batch (`train.accumulate`), but to rounding, while no
        keypoint buffer overflows: a buffer has room for `keypoint_head.rois` × the images that are computed together.
        """
        context = tf.distribute.get_replica_context()
        batch = device_resize.resize_originals(batch, self.config.data.resize)
        batch = augment.jitter_colours(batch, self.config.data, seed)
        if self.config.train.accumulate == 1:
            gradients, values = self._part(batch, seed, None)
        else:
            gradients, values = self._parts(batch, seed)
        reduced = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.SUM, values))
        # A loss that is not finite on any replica makes the gradient so on all, and such a step changes nothing.
        gradients[0] += tf.where(tf.math.is_finite(reduced[len(LOSSES)]), 0.0, math.nan)
        watched = [*WATCHED, *(["unreadable"] if "unreadable" in batch else [])]
        return gradients, dict(zip([*LOSSES, "loss", *watched], reduced, strict=True))

    def _part(
        self, batch: dict[str, tf.Tensor], seed: tf.Tensor, counts: tf.Tensor | None
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Gradients and metrics of images that are computed together.

        Args:
          counts: of each loss over the global batch, float32 [5]; None: those of these images, on all replicas.

        Returns:
          the gradients; the losses' shares, their weighted sum and what is watched, float32 [N].
        """
        with tf.GradientTape() as tape:
            losses, watched = self._losses(batch, seed)
            if counts is None:
                counts = _over_replicas([count for _, count in losses.values()])
            shares = tf.stack([total for total, _ in losses.values()]) / tf.maximum(counts, 1.0)
            weights = [self.config.train.keypoint_loss_weight if name == "keypoint" else 1.0 for name in losses]
            loss = tf.reduce_sum(shares * tf.constant(weights))
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, list(self._trainable.values()), unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return gradients, tf.concat([shares, [loss], tf.stack(list(watched.values()))], axis=0)

    def _parts(self, batch: dict[str, tf.Tensor], seed: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """As `_part`, in `train.accumulate` parts, one after the other.

        A gradient needs the counts of the whole batch. They depend on the RoIs, so that the first stage is computed twice: once
        for the counts alone. (Nothing behind the RoIs has part in them, and TensorFlow leaves it out.)
        """
        number = self.config.train.accumulate
        stacked = {name: tf.stack(tf.split(value, number)) for name, value in batch.items()}  # [N, B / N, ...]

        def part(index: tf.Tensor) -> dict[str, tf.Tensor]:
            return {name: tf.gather(value, index) for name, value in stacked.items()}

        def count(index: tf.Tensor, counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            losses, _ = self._losses(part(index), seed)
            return index + 1, counts + tf.stack([count for _, count in losses.values()])

        def add(index: tf.Tensor, values: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            gradients, own = self._part(part(index), seed, counts)
            return index + 1, values + own, *(a + tf.convert_to_tensor(b) for a, b in zip(sums, gradients, strict=True))

        def one_after_the_other(body: Callable[..., tuple[tf.Tensor, ...]], *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            found = tf.while_loop(
                lambda index, *_: index < number,
                body,
                (tf.constant(0), *sums),
                parallel_iterations=1,
                maximum_iterations=number,
            )
            return tuple(found[1:])

        (own,) = one_after_the_other(count, tf.zeros([len(LOSSES)]))
        counts = _over_replicas(tf.unstack(own))
        watched = len(WATCHED) + ("unreadable" in batch)
        zeros = [tf.zeros(variable.shape) for variable in self._trainable.values()]
        values, *gradients = one_after_the_other(add, tf.zeros([len(LOSSES) + 1 + watched]), *zeros)
        return gradients, values

    def _losses(self, batch: dict[str, tf.Tensor], seed: tf.Tensor) -> tuple[dict[str, Loss], dict[str, tf.Tensor]]:
        """The losses in the order of `LOSSES`, and sums worth watching in that of `WATCHED`."""
        losses, watched = self.model.losses(batch, seed)
        watched["images"] = tf.reduce_sum(tf.cast(batch["image_id"] >= 0, tf.float32))  # the others are padding images
        if "unreadable" in batch:
            watched["unreadable"] = tf.reduce_sum(tf.cast(batch["unreadable"] >= 0, tf.float32))
        return {name: losses[name] for name in LOSSES}, watched

    def _replica_step(
        self, batch: dict[str, tf.Tensor], rate: tf.Tensor, seed: tf.Tensor, stop: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        gradients, metrics = self.gradients(batch, seed)
        metrics |= self.optimizer.apply(gradients, rate)
        # Workers must stop after the same step, or those that go on wait forever: each learns here whether any was asked to.
        context = tf.distribute.get_replica_context()
        own = tf.identity(stop)  # one on each device, to be added up
        metrics["stop"] = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
        return metrics


def _over_replicas(counts: Sequence[tf.Tensor]) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack(counts))
