"""The learning rate as a function of the step, and what it should be for another batch size."""

from __future__ import annotations

import math

from model.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate with which step `step` (from 0) is taken: linear warm-up, then steps down or a half cosine to zero."""
    rate = config.peak_learning_rate
    if config.schedule == "cosine":
        rate *= 0.5 * (1.0 + math.cos(math.pi * step / config.steps))
    else:
        rate *= 0.1 ** sum(step >= share * config.steps for share in config.decay_at)
    if step < config.warmup_steps:
        progress = step / config.warmup_steps
        rate *= config.warmup_factor * (1.0 - progress) + progress
    return rate


def advice_on_batch_size(before: TrainConfig, after: TrainConfig) -> str | None:
    """One line on a batch size that changes: how the learning rate is scaled, or that it stays; None otherwise.

    The linear rule (Goyal et al. 2017): the rate grows with the batch, and the number of steps shrinks with it.
    """
    if after.scale_learning_rate:
        return (
            f"learning rate {after.peak_learning_rate:g}: {after.learning_rate:g} for batches of {after.reference_batch_size}, "
            f"scaled to batches of {after.global_batch_size}"
        )
    old, new = before.global_batch_size, after.global_batch_size
    if old == new or before.learning_rate != after.learning_rate:
        return None
    rate, steps = f"{before.learning_rate * new / old:.3g}", max(1, round(before.steps * old / new))
    same_epochs = "" if before.steps != after.steps else f" --steps={steps}"
    return (
        f"--batch_size={new} leaves the learning rate of {after.learning_rate:g}, which is meant for batches of {old}; "
        f"the linear rule (--scale_learning_rate) gives --learning_rate={rate}{same_epochs}"
    )


def advice_on_warmup(config: TrainConfig) -> str | None:
    """One line if the warm-up takes most of the training; None otherwise."""
    if config.warmup_steps * 2 <= config.steps:
        return None
    return (
        f"the warm-up of {config.warmup_steps} steps leaves the learning rate low in most of the {config.steps} steps; "
        f"--set train.warmup_steps={max(1, config.steps // 10)} warms up in a tenth of them"
    )
