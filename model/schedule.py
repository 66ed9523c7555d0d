"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from model.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate with which step `step` (from 0) is taken: linear warm-up, then steps down or a half cosine to zero."""
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate *= 0.5 * (1.0 + math.cos(math.pi * step / config.steps))
    else:
        rate *= 0.1 ** sum(step >= share * config.steps for share in config.decay_at)
    if step < config.warmup_steps:
        progress = step / config.warmup_steps
        rate *= config.warmup_factor * (1.0 - progress) + progress
    return rate
