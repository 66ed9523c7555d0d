"""A length in epochs, which people think in, as one in steps, which training counts."""

from __future__ import annotations

import dataclasses
import itertools

from model.config import Config
from pipeline.command import counted
from pipeline.loading.batches import training_pool
from pipeline.loading.epoch_plan import NoImagesError, epochs_from
from pipeline.record_folder import RecordFolder


def in_steps(config: Config, epochs: int | None, record_folder: RecordFolder, split: str) -> tuple[Config, list[str]]:
    """The configuration with the steps that these epochs take, and a line on them for the log.

    Args:
      config: the configuration, whose batch size, seed and canvases decide how many batches an epoch has.
      epochs: passes over the images of the split that training uses; None leaves the configuration as it is.
      record_folder, split: the images.
    """
    if epochs is None:
        return config, []
    try:
        pool = training_pool(record_folder, split, config.data)
    except NoImagesError:  # the training says it
        return config, []
    batch_size = config.train.global_batch_size
    plans = epochs_from(pool, seed=config.train.seed, global_batch_size=batch_size, step=0)
    _, steps = next(itertools.islice(plans, epochs, None))  # the step that the epoch after the last begins with
    line = f"--epochs={epochs}: {counted(steps, 'step')}, because {split} has {counted(len(pool.rows), 'image')} for batches of"
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps)), [f"{line} {batch_size}"]
