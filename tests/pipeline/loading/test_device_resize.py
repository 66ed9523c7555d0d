"""Images that the training step resizes: the loader's own pixels, on every family's rule, and nothing else changes."""

from __future__ import annotations

import dataclasses
import io
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from pipeline.coco import CocoImage
from pipeline.command import UserError
from pipeline.data_config import DataConfig, ResizeRule
from pipeline.loading import originals
from pipeline.loading.batches import training_batches, training_pool
from pipeline.loading.device_resize import resize_originals
from pipeline.loading.options import LoadingOptions
from pipeline.record_folder import RecordFolder

RULES = typing.get_args(ResizeRule)
# Images have sides of 90 to 240 pixels: short edges of 96 and 128 make some larger and some smaller.
CONFIG = DataConfig(
    short_edges=(96, 128),
    max_edge=192,
    anchors="online",
    max_boxes=8,
    sampled_anchors=64,
    num_canvases=3,
    require_keypoints=False,
)
Arrays = dict[str, NDArray[Any]]


def photograph(entry: CocoImage) -> bytes:
    """A JPEG of smooth colours with edges and noise."""
    rng = np.random.default_rng(entry.id)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    pixels = np.asarray(coarse.resize((entry.width, entry.height), Image.Resampling.BICUBIC)).astype(np.float64)
    pixels[entry.height // 3 :, : entry.width // 4] = rng.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.fixture(scope="module")
def photographs(make_record_folder: Callable[..., RecordFolder], entries: dict[int, CocoImage]) -> RecordFolder:
    """(The records call them PNGs; a decoder looks at the files.)"""
    return make_record_folder(list(entries.values()), draw=photograph)


def batches(record_folder: RecordFolder, config: DataConfig, *, on_device: bool, **options: Any) -> list[Arrays]:
    dataset = training_batches(
        record_folder,
        "train",
        config,
        **{"global_batch_size": 4, "seed": 1, "num_steps": 14, "originals": on_device, **options},
    )
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset]


def compiled(loaded: list[Arrays], rule: ResizeRule, *, xla: bool) -> list[Arrays]:
    step = tf.function(lambda batch: resize_originals(batch, rule), jit_compile=xla)
    return [{name: value.numpy() for name, value in step(batch).items()} for batch in loaded]


def assert_same_but_for_rounding(host: list[Arrays], device: list[Arrays]) -> None:
    different = pixels = 0
    for a, b in zip(host, device, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"image"}:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
            assert a[name].dtype == b[name].dtype
        assert a["image"].dtype == b["image"].dtype and a["image"].shape == b["image"].shape
        distance = np.abs(a["image"].astype(np.float64) - b["image"])
        assert distance.max() <= 1
        different += int((distance > 1e-3).sum())
        pixels += distance.size
    assert different <= 0.001 * pixels


@pytest.mark.parametrize(("rule", "xla"), [("standard", False), *((rule, True) for rule in RULES)])
def test_batches_are_those_of_the_host(photographs: RecordFolder, rule: ResizeRule, xla: bool) -> None:
    config = dataclasses.replace(CONFIG, resize=rule)
    if rule == "torchvision":  # at 96, some have more than four times the pixels
        config = dataclasses.replace(config, short_edges=(128,))
    host, shipped = (batches(photographs, config, on_device=on_device) for on_device in (False, True))
    assert_same_but_for_rounding(host, compiled(shipped, rule, xla=xla))
    # Both kinds were there: flipped and not, made larger and smaller, and, if antialiased, resized while loading.
    sources = np.concatenate([batch["source"] for batch in shipped])
    sources = sources[sources[:, 0] > 0]
    assert set(sources[:, 6].tolist()) == {0, 1}
    assert (sources[:, 2] > sources[:, 0]).any()
    smaller = (sources[:, 2] < sources[:, 0]).any()
    assert smaller == (rule in ("standard", "torchvision"))


@pytest.mark.parametrize("rule", ["standard", "detectron2"])
def test_large_scale_jitter_shows_the_same_windows(photographs: RecordFolder, rule: ResizeRule) -> None:
    config = dataclasses.replace(CONFIG, resize=rule, jitter_canvas=128, jitter_scales=(0.3, 2.0))
    host, shipped = (batches(photographs, config, on_device=on_device) for on_device in (False, True))
    sources = np.concatenate([batch["source"] for batch in shipped])
    assert sources[:, 4:6].any() and (sources[:, 0] < sources[:, 2]).any() and (sources[:, 2] <= 128).any()
    assert_same_but_for_rounding(host, compiled(shipped, rule, xla=True))


def test_at_sizes_where_many_pixels_lie_half_way(make_record_folder: Callable[..., RecordFolder]) -> None:
    """From 96 to 160 rows, as from 480 to 800, many values are half way: one rounding too few moves them to the other side."""
    record_folder = make_record_folder([CocoImage(i, "", 96, 128, ()) for i in range(1, 9)], draw=photograph)
    for rule in ("standard", "detectron2"):
        config = dataclasses.replace(CONFIG, short_edges=(160,), max_edge=240, resize=rule)
        host, shipped = (batches(record_folder, config, on_device=on_device, num_steps=2) for on_device in (False, True))
        assert all(batch["source"][:, :4].tolist() == [[96, 128, 160, 213]] * 4 for batch in shipped)
        for a, b in zip(host, compiled(shipped, rule, xla=True), strict=True):
            assert (a["image"] != b["image"]).mean() < 1e-4


def test_a_restart_goes_on_with_the_same_originals(photographs: RecordFolder) -> None:
    whole = batches(photographs, CONFIG, on_device=True)
    for a, b in zip(whole[5:], batches(photographs, CONFIG, on_device=True, start_step=5, num_steps=9), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_workers_share_a_batch_of_originals(photographs: RecordFolder) -> None:
    whole = batches(photographs, CONFIG, on_device=True, num_steps=4)
    halves = [
        batches(photographs, CONFIG, on_device=True, num_steps=4, input_workers=2, worker_index=worker) for worker in (0, 1)
    ]
    for batch, first, second in zip(whole, *halves, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([first[name], second[name]]), err_msg=name)


def test_unreadable_images_and_kept_pixels(photographs: RecordFolder) -> None:
    plain = batches(photographs, CONFIG, on_device=True, num_steps=8)
    for options in (LoadingOptions(cache="decoded"), LoadingOptions(on_error="skip")):
        for a, b in zip(plain, batches(photographs, CONFIG, on_device=True, num_steps=8, options=options), strict=True):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_canvas_of_originals_for_each_canvas(photographs: RecordFolder) -> None:
    pool = training_pool(photographs, "train", CONFIG)
    sources = originals.canvases_of_originals(photographs.index("train"), pool, CONFIG)
    found = {
        (batch["canvas"].shape[1:3], batch["image"].shape[1:3])
        for batch in batches(photographs, CONFIG, on_device=True, num_steps=30)
    }
    assert found == set(zip(pool.canvases.sizes, sources, strict=True)) and len(found) == 3
    small = dataclasses.replace(CONFIG, short_edges=(32,), max_edge=64)  # all have more than twice the pixels
    pool = training_pool(photographs, "train", small)
    sources = originals.canvases_of_originals(photographs.index("train"), pool, small)
    assert (np.array(sources) <= pool.canvases.sizes).all()


def test_what_auto_means(photographs: RecordFolder) -> None:
    index = photographs.index("train")

    def chosen(config: DataConfig, has_gpu: bool) -> bool:
        return originals.resizes_on_device(index, training_pool(photographs, "train", config), config, has_gpu=has_gpu)

    assert chosen(CONFIG, True) and not chosen(CONFIG, False)
    assert not chosen(dataclasses.replace(CONFIG, resize_on="host"), True)
    assert chosen(dataclasses.replace(CONFIG, resize_on="device"), False)
    small = dataclasses.replace(CONFIG, short_edges=(32,), max_edge=64, resize="torchvision")
    assert not chosen(small, True)
    with pytest.raises(UserError, match=r"resize_on=device: 24 of 24 images have more than 4 times .* auto or set it to host"):
        chosen(dataclasses.replace(small, resize_on="device"), False)
    jittered = dataclasses.replace(CONFIG, resize="torchvision", resize_on="device", jitter_canvas=128, jitter_scales=(0.1, 2))
    with pytest.raises(UserError, match="24 of 24 images"):
        chosen(jittered, False)


def test_a_batch_of_the_host_stays_as_it_is(photographs: RecordFolder) -> None:
    (batch,) = batches(photographs, CONFIG, on_device=False, num_steps=1)
    assert resize_originals(batch, "standard") is batch
    assert {"canvas", "source"}.isdisjoint(batch)
