"""Whatever is chosen about loading, batches hold the same: caches, and a tf.data service."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.command import UserError
from pipeline.data_config import DataConfig
from pipeline.loading.batches import training_batches
from pipeline.loading.options import Cache, LoadingOptions, cache_bytes, check_possible
from pipeline.record_folder import INDEX_DTYPE, RecordFolder

CONFIG = DataConfig(
    short_edges=(96, 128), max_edge=192, max_boxes=8, sampled_anchors=16, num_canvases=2, require_keypoints=False
)
EPOCH = 9  # steps, more than one epoch has

Arrays = list[dict[str, Any]]


def batches(record_folder: RecordFolder, **options: Any) -> tf.data.Dataset:
    return training_batches(
        record_folder, "train", CONFIG, **{"global_batch_size": 4, "seed": 1, "num_steps": 2 * EPOCH, **options}
    )


def arrays(dataset: tf.data.Dataset) -> Arrays:
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset]


@pytest.fixture(scope="module")
def plain(small_record_folder: RecordFolder) -> Arrays:
    return arrays(batches(small_record_folder))


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# Caches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["records", "decoded"])
def test_a_cache_changes_nothing_and_spares_the_files(
    small_record_folder: RecordFolder, plain: Arrays, tmp_path: Path, cache: Cache
) -> None:
    folder = tmp_path / "records"
    shutil.copytree(small_record_folder.path, folder)
    copy = dataclasses.replace(small_record_folder, path=folder)
    cached = batches(copy, options=LoadingOptions(cache=cache))
    assert_same(arrays(cached), plain)
    for shard in copy.shards("train"):
        shard.unlink()
    assert_same(arrays(cached), plain)


def test_a_restart_with_a_cache_goes_on_with_the_same_batches(small_record_folder: RecordFolder, plain: Arrays) -> None:
    restarted = batches(small_record_folder, start_step=5, num_steps=2 * EPOCH - 5, options=LoadingOptions(cache="decoded"))
    assert_same(arrays(restarted), plain[5:])


def test_what_caches_cost() -> None:
    images = np.zeros(2, INDEX_DTYPE)
    images["length"], images["height"], images["width"] = [1000, 500], [480, 70_000], [640, 70_000]
    pixels = 3 * (480 * 640 + 70_000 * 70_000)  # more than 32 bits hold
    assert [cache_bytes(images, cache) for cache in ("none", "records", "decoded")] == [0, 1500, 1500 + pixels]


def test_more_than_the_machine_has_is_refused() -> None:
    images = np.zeros(100, INDEX_DTYPE)
    images["height"] = images["width"] = 1_000_000
    check_possible(LoadingOptions(cache="records"), images)
    with pytest.raises(
        UserError, match=r"--cache=decoded: takes 300000\.0 GB for these 100 images, this machine has [\d.]+ GB"
    ):
        check_possible(LoadingOptions(cache="decoded"), images)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cache": "disk"}, "--cache=disk: must be one of none, records, decoded"),
        ({"on_error": "ignore"}, "--on_error=ignore: must be one of fail, skip"),
        ({"data_service": "host:5050"}, "--data_service=host:5050: must be like grpc://host:5050"),
        ({"data_service": "grpc://host:5050", "cache": "records"}, "--cache=records: is kept in this process"),
    ],
)
def test_wrong_choices(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoadingOptions(**wrong)


# tf.data service ----------------------------------------------------------------------------------------------------

WORKERS = """
import sys
import tensorflow as tf
service = tf.data.experimental.service
config = lambda: service.WorkerConfig(dispatcher_address=sys.argv[1], heartbeat_interval_ms=100)
workers = [service.WorkerServer(config()) for _ in range(2)]
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def data_service() -> Iterator[str]:
    """Address of a dispatcher with two workers; they are in another process, which knows nothing of this project."""
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer(service.DispatcherConfig(worker_timeout_ms=20_000, job_gc_check_interval_ms=1000))
    address = dispatcher.target.removeprefix("grpc://")
    workers = subprocess.Popen(
        [sys.executable, "-c", WORKERS, address], cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert workers.stdout is not None and workers.stdout.readline() == "ready\n"
        yield dispatcher.target
    finally:
        workers.kill()
        workers.wait()


def test_a_data_service_makes_the_same_batches_in_some_order(
    small_record_folder: RecordFolder, plain: Arrays, data_service: str, tmp_path: Path
) -> None:
    served = batches(
        small_record_folder, start_step=2, num_steps=2 * EPOCH - 2, options=LoadingOptions(data_service=data_service)
    )
    assert served.element_spec == batches(small_record_folder).element_spec
    found = arrays(served)

    def ordered(several: Arrays) -> Arrays:
        return sorted(several, key=lambda batch: [batch["image_id"].tolist(), batch["anchor_index"].tolist()])

    assert_same(ordered(found), ordered(plain[2:]))
    assert found[0]["image"].shape[1:3] in {batch["image"].shape[1:3] for batch in plain}

    damaged = dataclasses.replace(small_record_folder, path=tmp_path / "damaged")
    shutil.copytree(small_record_folder.path, damaged.path)
    with damaged.shards("train")[1].open("r+b") as file:
        file.seek(1000)
        file.write(bytes(8))
    victim = int(damaged.index("train")["image_id"][damaged.index("train")["shard"] == 1][0])
    skipping = LoadingOptions(on_error="skip", data_service=data_service)
    marked = np.concatenate([batch["unreadable"] for batch in arrays(batches(damaged, num_steps=EPOCH, options=skipping))])
    assert set(marked[marked >= 0].tolist()) == {victim}
    with pytest.raises(tf.errors.OpError):
        arrays(batches(damaged, num_steps=EPOCH, options=LoadingOptions(data_service=data_service)))


def test_a_data_service_that_is_not_there(small_record_folder: RecordFolder) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        address = f"grpc://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"--data_service={address}: does not answer .*start its dispatcher first"):
            batches(small_record_folder, options=LoadingOptions(data_service=address))
