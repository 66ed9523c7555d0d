"""What the replicas of this process get, for tests that need more than one process, and as a command for those processes.

Usage: python -m tests.model.training.replica_batches RECORDS STRATEGY FIRST_STEP STEPS OUTPUT

RECORDS is a file with a pickled RecordFolder, OUTPUT becomes a JSON file.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.training.strategies import distribute, make_strategy, num_workers, worker_index
from pipeline.data_config import DataConfig
from pipeline.loading.batches import training_batches
from pipeline.record_folder import RecordFolder

CONFIG = DataConfig(
    short_edges=(96, 128), max_edge=192, max_boxes=8, sampled_anchors=16, num_canvases=3, require_keypoints=False
)
BATCH, SEED = 4, 1  # of all replicas together

Facts = dict[str, Any]


def facts(batch: dict[str, tf.Tensor]) -> Facts:
    """Which images a batch or a part of one holds, on which canvas, and a digest of everything in it."""
    digest = hashlib.sha256()
    for name in sorted(batch):
        digest.update(batch[name].numpy().tobytes())
    return {
        "ids": batch["image_id"].numpy().tolist(),
        "canvas": batch["image"].shape[1:3].as_list(),
        "sha256": digest.hexdigest(),
    }


def of_replicas(batches: tf.data.Dataset, strategy: tf.distribute.Strategy) -> list[list[Facts]]:
    """By step, then by replica of this process."""
    local = strategy.experimental_local_results
    found = []
    for batch in distribute(batches, strategy):
        parts = {name: local(value) for name, value in batch.items()}
        found.append([facts(dict(zip(parts, values, strict=True))) for values in zip(*parts.values(), strict=True)])
    return found


def training_facts(record_folder: RecordFolder, strategy: tf.distribute.Strategy, first: int, steps: int) -> list[list[Facts]]:
    share: dict[str, Any] = {"input_workers": num_workers(strategy), "worker_index": worker_index(strategy)}
    batches = training_batches(
        record_folder, "train", CONFIG, global_batch_size=BATCH, seed=SEED, start_step=first, num_steps=steps, **share
    )
    return of_replicas(batches, strategy)


if __name__ == "__main__":
    chosen = make_strategy(sys.argv[2])
    pickled: RecordFolder = pickle.loads(Path(sys.argv[1]).read_bytes())
    Path(sys.argv[5]).write_text(json.dumps(training_facts(pickled, chosen, int(sys.argv[3]), int(sys.argv[4]))))
