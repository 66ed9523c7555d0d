"""How a gradient changes a variable: SGD with momentum, and AdamW.

Each rule is branch-free. `where(finite, …)` keeps variable and state as they are if a step's gradient is not finite, because a
`tf.cond` may not contain the synchronisation point that the update is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import tensorflow as tf


class Rule(Protocol):
    """The state of a rule, and its update of one variable."""

    def variables_by_path(self) -> dict[str, tf.Variable]:
        """What a checkpoint holds of the rule."""

    def state(self, path: str) -> tuple[tf.Variable, ...]:
        """The state of the variable of that path."""

    def update(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        finite: tf.Tensor,
        rate: tf.Tensor,
        count: tf.Tensor,
        decay: float,
        *state: tf.Variable,
    ) -> None:
        """Updates a variable and its state.

        Args:
          gradient: zero if it is not finite.
          finite: bool scalar; False: nothing changes.
          rate: the learning rate, float32 scalar.
          count: the number of this update, from 1, float32 scalar.
          decay: of the weight; 0 for biases and norms.
        """


class Sgd(tf.Module):
    """Classic momentum (v ← m·v + g; w ← w − r·v), L2 (g ← g + d·w), as PyTorch's SGD."""

    def __init__(self, variables: Mapping[str, tf.Variable], *, momentum: float) -> None:
        super().__init__(name="sgd")
        self._momentum = momentum
        self._velocity = _zeros(variables)

    def variables_by_path(self) -> dict[str, tf.Variable]:
        return {f"velocity/{path}": v for path, v in self._velocity.items()}

    def state(self, path: str) -> tuple[tf.Variable, ...]:
        return (self._velocity[path],)

    def update(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        finite: tf.Tensor,
        rate: tf.Tensor,
        count: tf.Tensor,
        decay: float,
        *state: tf.Variable,
    ) -> None:
        """One fused pass over variable and velocity; if the step is not finite, v ← 1·v + 0 and w ← w − 0·v."""
        (velocity,) = state
        if decay:
            gradient += tf.where(finite, decay, 0.0) * variable
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.where(finite, rate, 0.0),
            grad=gradient,
            momentum=tf.where(finite, self._momentum, 1.0),
        )


class AdamW(tf.Module):
    """Adam (Kingma & Ba 2014) with decoupled decay (Loshchilov & Hutter 2017), as PyTorch's AdamW.

    m ← b₁·m + (1 − b₁)·g; v ← b₂·v + (1 − b₂)·g²; w ← w − r·(m / (1 − b₁ⁿ) / (√(v / (1 − b₂ⁿ)) + ε) + d·w) in update n.
    """

    def __init__(self, variables: Mapping[str, tf.Variable], *, beta1: float, beta2: float, epsilon: float) -> None:
        super().__init__(name="adamw")
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self._mean, self._square = _zeros(variables), _zeros(variables)

    def variables_by_path(self) -> dict[str, tf.Variable]:
        return {f"mean/{path}": v for path, v in self._mean.items()} | {f"square/{path}": v for path, v in self._square.items()}

    def state(self, path: str) -> tuple[tf.Variable, ...]:
        return self._mean[path], self._square[path]

    def update(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        finite: tf.Tensor,
        rate: tf.Tensor,
        count: tf.Tensor,
        decay: float,
        *state: tf.Variable,
    ) -> None:
        mean, square = state
        share1, share2 = (tf.where(finite, 1.0 - beta, 0.0) for beta in (self._beta1, self._beta2))
        new_mean = mean.assign_add(share1 * (gradient - mean))
        new_square = square.assign_add(share2 * (tf.square(gradient) - square))
        unbiased_mean = new_mean / (1.0 - tf.pow(self._beta1, count))
        unbiased_square = new_square / (1.0 - tf.pow(self._beta2, count))
        step = unbiased_mean / (tf.sqrt(unbiased_square) + self._epsilon) + decay * variable
        variable.assign_sub(tf.where(finite, rate, 0.0) * step)


def decays(path: str) -> bool:
    """Whether weight decay is for the variable of that path: for kernels, not for biases and norms."""
    return path.endswith("kernel")


def _zeros(variables: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    return {path: tf.Variable(tf.zeros(variable.shape), trainable=False) for path, variable in variables.items()}
