"""SGD with momentum that is right under data parallelism and mixed precision.

Keras's optimizers sum gradients over replicas, clip each replica's before the sum, and with a loss scale lose the weights when
one replica alone overflows. Here the order is: all-reduce, undo the loss scale, one finite check, clip the global norm, weight
decay, momentum, update; without branches, as a `tf.cond` may not contain a synchronisation point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

FIRST_LOSS_SCALE = 2.0**15
GROWTH_INTERVAL = 2000  # finite steps after which the loss scale doubles
NOT_DYNAMIC = -1.0  # the count of finite steps that a checkpoint holds if its loss was not scaled


class Sgd(tf.Module):
    """Classic momentum (v ← m·v + g; w ← w − r·v), L2 on kernels (g ← g + d·w), as PyTorch's SGD.

    Args:
      variables: by path, those that are trained; made under the strategy's scope.
      momentum, weight_decay: as above; `weight_decay` is for variables whose path ends in "kernel".
      clip_norm: of the whole gradient; 0: no clipping.
      dynamic_loss_scale: for mixed_float16, whose small gradients would otherwise vanish.
    """

    def __init__(
        self,
        variables: Mapping[str, tf.Variable],
        *,
        momentum: float,
        weight_decay: float,
        clip_norm: float,
        dynamic_loss_scale: bool,
    ) -> None:
        super().__init__(name="sgd")
        self._targets = dict(variables)
        self._momentum, self._weight_decay, self._clip_norm = momentum, weight_decay, clip_norm
        self._dynamic = dynamic_loss_scale
        self._velocity = {path: tf.Variable(tf.zeros(v.shape), trainable=False) for path, v in variables.items()}

        def scalar(value: float) -> tf.Variable:
            return tf.Variable(value, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

        self._loss_scale = scalar(FIRST_LOSS_SCALE if dynamic_loss_scale else 1.0)
        self._finite_steps = scalar(0.0 if dynamic_loss_scale else NOT_DYNAMIC)

    def variables_by_path(self) -> dict[str, tf.Variable]:
        """What a checkpoint holds of the optimizer."""
        return {f"velocity/{path}": v for path, v in self._velocity.items()} | {
            "loss_scale": self._loss_scale,
            "finite_steps": self._finite_steps,
        }

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
        norm = tf.linalg.global_norm(gradients) / scale
        finite = tf.math.is_finite(norm)
        factor = 1.0 / scale
        if self._clip_norm > 0:
            factor *= tf.minimum(1.0, self._clip_norm / tf.maximum(norm, 1e-12))

        def update(
            strategy: tf.distribute.Strategy,
            gradients: Sequence[tf.Tensor],
            factor: tf.Tensor,
            finite: tf.Tensor,
            rate: tf.Tensor,
        ) -> None:
            for (path, variable), gradient in zip(self._targets.items(), gradients, strict=True):
                decay = self._weight_decay if path.endswith("kernel") else 0.0
                arguments = (self._velocity[path], gradient, factor, finite, rate, decay)
                strategy.extended.update(variable, self._update_one, args=arguments, group=False)
            if self._dynamic:
                strategy.extended.update(self._loss_scale, self._update_scale, args=(self._finite_steps, finite), group=False)

        strategy = tf.distribute.get_strategy()
        tf.__internal__.distribute.interim.maybe_merge_call(update, strategy, gradients, factor, finite, learning_rate)
        return {"gradient_norm": norm, "loss_scale": scale, "skipped": 1.0 - tf.cast(finite, tf.float32)}

    def _update_one(
        self,
        variable: tf.Variable,
        velocity: tf.Variable,
        gradient: tf.Tensor,
        factor: tf.Tensor,
        finite: tf.Tensor,
        rate: tf.Tensor,
        decay: float,
    ) -> None:
        """One fused pass over variable and velocity; where the step is not finite, v ← 1·v + 0 and w ← w − 0·v."""
        gradient = tf.math.multiply_no_nan(gradient, tf.where(finite, factor, 0.0))  # 0 · NaN = 0
        if decay:
            gradient += tf.where(finite, decay, 0.0) * variable
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.where(finite, rate, 0.0),
            grad=gradient,
            momentum=tf.where(finite, self._momentum, 1.0),
        )

    def _update_scale(self, scale: tf.Variable, finite_steps: tf.Variable, finite: tf.Tensor) -> None:
        steps = tf.where(finite, finite_steps + 1.0, 0.0)
        grow = steps >= GROWTH_INTERVAL
        scale.assign(tf.where(finite, tf.where(grow, scale * 2.0, scale), tf.maximum(scale * 0.5, 1.0)))
        finite_steps.assign(tf.where(grow, 0.0, steps))
