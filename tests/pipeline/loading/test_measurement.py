from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from pipeline.anchors import AnchorConfig
from pipeline.data_config import DataConfig
from pipeline.loading import measurement
from pipeline.loading.batches import training_batches
from pipeline.loading.options import LoadingOptions, cache_bytes
from pipeline.record_folder import RecordFolder

CONFIG = DataConfig(short_edges=(96, 128), max_edge=192, num_canvases=2, require_keypoints=False)
BATCH = 4


def test_what_is_said_of_a_split(small_record_folder: RecordFolder) -> None:
    canvases, epoch, caches = measurement.describe(small_record_folder, "train", CONFIG, batch_size=BATCH)
    assert canvases.startswith("train has 24 images, ") and "2 canvases " in canvases and "% padding" in canvases
    batches = int(epoch.split()[3])
    assert epoch == f"an epoch has {batches} batches of 4, filled up with {1 - 24 / (4 * batches):.1%} padding images"
    index = small_record_folder.index("train")
    records, decoded = (f"{cache_bytes(index, cache) / 1e6:,.1f} MB" for cache in ("records", "decoded"))
    assert caches == f"--cache=records takes {records} of memory, --cache=decoded {decoded}"


def test_large_scale_jitter_and_colours_are_measured(small_record_folder: RecordFolder) -> None:
    config = dataclasses.replace(CONFIG, anchors="online", jitter_canvas=96, jitter_scales=(0.5, 2.0), brightness=0.4)
    measured = measurement.measure(
        small_record_folder,
        "train",
        config,
        batch_size=BATCH,
        num_images=12,
        options=LoadingOptions(),
        anchors=AnchorConfig(rounded=False),
    )
    batches = training_batches(
        small_record_folder, "train", config, global_batch_size=BATCH, seed=measurement.SEED, num_steps=3
    )
    covered = sum(int(batch["image_size"].numpy().prod(axis=1).sum()) for batch in batches)
    assert measured.padding == pytest.approx(1 - covered / (12 * 96**2))
    assert measured.colour_seconds is not None and 0 < measured.colour_seconds < 1
    assert measured.lines()[-1].endswith("for the colours, in the training step: not in the figures above")


def test_what_is_measured(small_record_folder: RecordFolder, capsys: pytest.CaptureFixture[str]) -> None:
    measured = measurement.measure(
        small_record_folder,
        "train",
        CONFIG,
        batch_size=BATCH,
        num_images=15,
        options=LoadingOptions(on_error="skip", cache="decoded"),
    )
    batches = list(
        training_batches(small_record_folder, "train", CONFIG, global_batch_size=BATCH, seed=measurement.SEED, num_steps=4)
    )
    covered = sum(int(batch["image_size"].numpy().prod(axis=1).sum()) for batch in batches)
    canvases = sum(int(np.prod(batch["image"].shape[:3])) for batch in batches)
    assert measured.padding == pytest.approx(1 - covered / canvases)
    marks = 8 * BATCH  # bytes of `unreadable`, which only batches that may skip have
    sizes = [sum(value.numpy().nbytes for value in batch.values()) + marks for batch in batches]
    assert measured.bytes_per_batch == pytest.approx(np.mean(sizes))

    assert measured.colour_seconds is None
    assert list(measured.cpu_seconds) == [*measurement.STAGES, "batch"]
    total = sum(measured.cpu_seconds.values())
    assert 0 < total < 1 and 0 < measured.images_per_second <= 1.5 * (os.cpu_count() or 1) / total
    lines = "\n".join(measured.lines())
    assert f"{100 * total:.2f}   cores needed per 100 images per second" in lines
    assert f"{measured.cpu_seconds['targets'] / total:.1%}   of the time: targets" in lines


def test_the_device_s_resize_is_measured_apart(small_record_folder: RecordFolder) -> None:
    measured = measurement.measure(
        small_record_folder,
        "train",
        dataclasses.replace(CONFIG, resize_on="device"),
        batch_size=BATCH,
        num_images=4,
        options=LoadingOptions(),
    )
    assert measured.resize_seconds is not None and measured.resize_seconds > 0
    assert 0 <= measured.padding < 1
    assert measured.lines()[-1].endswith("for the resize, in the training step: not in the figures above")
