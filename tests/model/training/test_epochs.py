"""A length in epochs is the number of steps in which each image comes that often."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from model.config import Config, TrainConfig
from model.training.epochs import in_steps
from model.training.learning_rate import advice_on_warmup
from pipeline.loading.batches import training_pool
from pipeline.loading.epoch_plan import planned_batches
from pipeline.record_folder import RecordFolder


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 2), (3, 5), (7, 16)])
def test_each_image_comes_once_in_each_epoch(
    record_folder: RecordFolder, small_config: Config, epochs: int, batch_size: int
) -> None:
    train = dataclasses.replace(small_config.train, global_batch_size=batch_size, seed=3)
    config, (line,) = in_steps(dataclasses.replace(small_config, train=train), epochs, record_folder, "train")
    pool = training_pool(record_folder, "train", config.data)
    batches = planned_batches(pool, global_batch_size=batch_size, seed=3, start_step=0)
    rows = np.concatenate([batch["rows"] for batch in itertools.islice(batches, config.train.steps)])
    assert collections.Counter(rows[rows >= 0].tolist()) == collections.Counter(dict.fromkeys(pool.rows.tolist(), epochs))
    assert (
        line.startswith(f"--epochs={epochs}: {config.train.steps} step")
        and f"{len(pool.rows)} images for batches of {batch_size}" in line
    )


def test_without_epochs_nothing_changes(record_folder: RecordFolder, small_config: Config) -> None:
    assert in_steps(small_config, None, record_folder, "train") == (small_config, [])


def test_a_warm_up_that_takes_most_of_the_training_is_told() -> None:
    assert advice_on_warmup(TrainConfig(steps=2000, warmup_steps=1000)) is None
    advice = advice_on_warmup(TrainConfig(steps=120, warmup_steps=1000))
    assert advice is not None and "--set train.warmup_steps=12 " in advice
