"""The optimizer: what surrounds a rule of update (`update_rules.py`), right under data parallelism and mixed precision.

Keras's optimizers sum gradients over replicas, clip each replica's before the sum, and with a loss scale lose the weights when
one replica alone overflows. Here the order is: all-reduce, undo the loss scale, one finite check, clip the global norm, update,
moving average; without branches, as a `tf.cond` may not contain a synchronisation point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import tensorflow as tf

from model.config import TrainConfig
from model.model_dir import AVERAGE, key_of
from model.training.update_rules import AdamW, Rule, Sgd, decays

FIRST_LOSS_SCALE = 2.0**15
GROWTH_INTERVAL = 2000  # finite steps after which the loss scale doubles
NOT_DYNAMIC = -1.0  # the count of finite steps that a checkpoint holds if its loss was not scaled


def optimizer_of(config: TrainConfig, variables: Mapping[str, tf.Variable], *, dynamic_loss_scale: bool) -> Optimizer:
    """The optimizer that a configuration asks for; call it under the strategy's scope."""
    rule: Rule
    if config.optimizer == "adamw":
        rule = AdamW(variables, beta1=config.momentum, beta2=config.adam_beta2, epsilon=config.adam_epsilon)
    else:
        rule = Sgd(variables, momentum=config.momentum)
    return Optimizer(
        variables,
        rule,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        dynamic_loss_scale=dynamic_loss_scale,
        average_decay=config.ema_decay,
    )


class Optimizer(tf.Module):
    """Applies a rule to gradients that replicas share.

    Args:
      variables: by path, those that are trained; made under the strategy's scope.
      rule: how a gradient changes a variable.
      weight_decay: as the rule has it, for kernels.
      clip_norm: of the whole gradient; 0: no clipping.
      dynamic_loss_scale: for mixed_float16, whose small gradients would otherwise vanish.
      average_decay: d of a moving average of the variables, a ← d·a + (1 − d)·w after every update; 0: none. In update n, d is
        at most n / (9 + n), so that the first weights, which may be random ones, are soon forgotten.
    """

    def __init__(
        self,
        variables: Mapping[str, tf.Variable],
        rule: Rule,
        *,
        weight_decay: float,
        clip_norm: float,
        dynamic_loss_scale: bool,
        average_decay: float = 0.0,
    ) -> None:
        super().__init__(name="optimizer")
        self._targets, self._rule = dict(variables), rule
        self._weight_decay, self._clip_norm = weight_decay, clip_norm
        self._dynamic, self._average_decay = dynamic_loss_scale, average_decay

        def scalar(value: float) -> tf.Variable:
            return tf.Variable(value, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

        self._loss_scale = scalar(FIRST_LOSS_SCALE if dynamic_loss_scale else 1.0)
        self._finite_steps = scalar(0.0 if dynamic_loss_scale else NOT_DYNAMIC)
        averaged = variables if average_decay else {}
        self._averages = {path: tf.Variable(tf.zeros(v.shape), trainable=False) for path, v in averaged.items()}
        # Updates that were made. (SGD alone needs no count.)
        self._updates = scalar(0.0) if average_decay or isinstance(rule, AdamW) else None
        self.start_averages()

    def variables_by_path(self) -> dict[str, tf.Variable]:
        """What a checkpoint holds of the optimizer."""
        return (
            self._rule.variables_by_path()
            | {f"{AVERAGE}{path}": average for path, average in self._averages.items()}
            | {"loss_scale": self._loss_scale, "finite_steps": self._finite_steps}
            | ({} if self._updates is None else {"updates": self._updates})
        )

    def start_averages(self, kept: Collection[str] = ()) -> None:
        """Lets the moving averages begin with the variables as they are, except those whose keys in a checkpoint are given."""
        for path, average in self._averages.items():
            if key_of(AVERAGE + path) not in kept:
                average.assign(tf.convert_to_tensor(self._targets[path]))

    @contextlib.contextmanager
    def averages_in_place(self) -> Iterator[None]:
        """Within it, the variables have the values of their moving averages; without averages, their own."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for path, average in self._averages.items():
            own = tf.identity(self._targets[path])
            self._targets[path].assign(tf.identity(average))
            average.assign(own)

    def adopt_restored_scale(self) -> None:
        """Makes the loss scale that a checkpoint brought fit this precision; call it after every restoration.

        The scale is 1 if it is not dynamic. It starts as in a new training if it begins to be dynamic: if the checkpoint's was
        not (the count of finite steps says so; checkpoints of earlier versions have a scale of 1 and a count of 0).
        """
        scale, finite_steps = float(self._loss_scale.numpy()), float(self._finite_steps.numpy())
        if not self._dynamic:
            self._loss_scale.assign(1.0)
            self._finite_steps.assign(NOT_DYNAMIC)
        elif finite_steps < 0 or (scale == 1.0 and finite_steps == 0):
            self._loss_scale.assign(FIRST_LOSS_SCALE)
            self._finite_steps.assign(0.0)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        return loss * self._loss_scale if self._dynamic else loss

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> dict[str, tf.Tensor]:
        """Updates the variables; called in replica context with this replica's share of the scaled loss's gradients.

        A step whose gradient is not finite on any replica changes nothing on all of them, and halves the loss scale.

        Returns:
          `gradient_norm` before clipping, `loss_scale`, `skipped` (1 for such a step): float32 scalars.
        """
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, [tf.cast(g, tf.float32) for g in gradients])
        scale = tf.convert_to_tensor(self._loss_scale)
        count = tf.constant(1.0) if self._updates is None else tf.convert_to_tensor(self._updates) + 1.0
        norm = tf.linalg.global_norm(gradients) / scale
        finite = tf.math.is_finite(norm)
        factor = 1.0 / scale
        if self._clip_norm > 0:
            factor *= tf.minimum(1.0, self._clip_norm / tf.maximum(norm, 1e-12))
        average_decay = tf.minimum(self._average_decay, count / (9.0 + count))
        average_share = tf.where(finite, 1.0 - average_decay, 0.0)

        def update(
            strategy: tf.distribute.Strategy,
            gradients: Sequence[tf.Tensor],
            factor: tf.Tensor,
            finite: tf.Tensor,
            rate: tf.Tensor,
            count: tf.Tensor,
            average_share: tf.Tensor,
        ) -> None:
            for (path, variable), gradient in zip(self._targets.items(), gradients, strict=True):
                decay = self._weight_decay if decays(path) else 0.0
                arguments = (gradient, factor, finite, rate, count, decay, *self._rule.state(path))
                strategy.extended.update(variable, self._update_one, args=arguments, group=False)
                if path in self._averages:
                    strategy.extended.update(self._averages[path], _update_average, args=(variable, average_share), group=False)
            if self._updates is not None:
                strategy.extended.update(self._updates, _count_update, args=(finite,), group=False)
            if self._dynamic:
                strategy.extended.update(self._loss_scale, self._update_scale, args=(self._finite_steps, finite), group=False)

        strategy = tf.distribute.get_strategy()
        arguments = (gradients, factor, finite, learning_rate, count, average_share)
        tf.__internal__.distribute.interim.maybe_merge_call(update, strategy, *arguments)
        return {"gradient_norm": norm, "loss_scale": scale, "skipped": 1.0 - tf.cast(finite, tf.float32)}

    def _update_one(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        factor: tf.Tensor,
        finite: tf.Tensor,
        rate: tf.Tensor,
        count: tf.Tensor,
        decay: float,
        *state: tf.Variable,
    ) -> None:
        gradient = tf.math.multiply_no_nan(gradient, tf.where(finite, factor, 0.0))  # 0 · NaN = 0
        self._rule.update(variable, gradient, finite, rate, count, decay, *state)

    def _update_scale(self, scale: tf.Variable, finite_steps: tf.Variable, finite: tf.Tensor) -> None:
        steps = tf.where(finite, finite_steps + 1.0, 0.0)
        grow = steps >= GROWTH_INTERVAL
        scale.assign(tf.where(finite, tf.where(grow, scale * 2.0, scale), tf.maximum(scale * 0.5, 1.0)))
        finite_steps.assign(tf.where(grow, 0.0, steps))


def _update_average(average: tf.Variable, variable: tf.Variable, share: tf.Tensor) -> None:
    average.assign_add(share * (variable - average))


def _count_update(updates: tf.Variable, finite: tf.Tensor) -> None:
    updates.assign_add(tf.cast(finite, tf.float32))
