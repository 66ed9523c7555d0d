"""Replicas and workers share each batch of the plan: nothing twice, nothing lost, the same canvas for all at the same step."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline.coco import CocoImage
from pipeline.loading import epoch_plan
from pipeline.loading.batches import training_batches, training_pool
from pipeline.record_folder import RecordFolder
from tests.model.training.replica_batches import BATCH, CONFIG, SEED, Facts, facts, training_facts

ROOT = Path(__file__).parents[3]
FIRST, STEPS = 5, 14  # starts within the first epoch and ends within the third


def length_of_epoch(record_folder: RecordFolder) -> int:
    pool = training_pool(record_folder, "train", CONFIG)
    return len(epoch_plan.plan_epoch(pool, seed=SEED, epoch=0, global_batch_size=BATCH).canvas)


@pytest.fixture(scope="module")
def halves(small_record_folder: RecordFolder) -> list[list[Facts]]:
    """By step, what two replicas should get: halves of the global batch, as this process makes it from the first step on."""
    batches = training_batches(
        small_record_folder, "train", CONFIG, global_batch_size=BATCH, seed=SEED, num_steps=FIRST + STEPS
    )
    cut = [slice(None, BATCH // 2), slice(BATCH // 2, None)]
    return [[facts({name: value[half] for name, value in batch.items()}) for half in cut] for batch in batches]


def assert_exactly_once(steps: list[list[Facts]], entries: dict[int, CocoImage]) -> None:
    assert all(len({tuple(part["canvas"]) for part in parts}) == 1 for parts in steps)
    ids = itertools.chain.from_iterable(part["ids"] for parts in steps for part in parts)
    assert sorted(i for i in ids if i >= 0) == sorted(entries)


@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas_share_a_batch_in_order(
    small_record_folder: RecordFolder,
    entries: dict[int, CocoImage],
    halves: list[list[Facts]],
    two_replicas: tf.distribute.Strategy,
    replicas: int,
) -> None:
    strategy = two_replicas if replicas == 2 else tf.distribute.OneDeviceStrategy("CPU:0")
    found = training_facts(small_record_folder, strategy, 0, length_of_epoch(small_record_folder))
    assert_exactly_once(found, entries)
    for parts, expected in zip(found, halves, strict=False):
        assert len(parts) == replicas
        if replicas == 2:
            assert parts == expected
        else:
            assert parts[0]["ids"] == expected[0]["ids"] + expected[1]["ids"]


@pytest.mark.slow
def test_two_workers_started_late_share_the_batches_of_this_process(
    small_record_folder: RecordFolder, halves: list[list[Facts]], tmp_path: Path
) -> None:
    """Two new processes that begin in the middle get, bit for bit, what an uninterrupted one got there."""
    (tmp_path / "record_folder").write_bytes(pickle.dumps(small_record_folder))
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (a, b)]
    outputs = [tmp_path / f"{index}.json" for index in range(2)]
    processes = []
    for index, output in enumerate(outputs):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        arguments = [str(tmp_path / "record_folder"), "multi_worker", str(FIRST), str(STEPS), str(output)]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.model.training.replica_batches", *arguments],
                env=os.environ | {"TF_CONFIG": json.dumps(cluster)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        logs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], logs
    of_workers = [json.loads(output.read_text()) for output in outputs]
    joined = [first + second for first, second in zip(*of_workers, strict=True)]
    assert joined == halves[FIRST:]
