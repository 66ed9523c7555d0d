"""What the loader makes of a split, and how fast: images per second, time by stage, cores that an accelerator needs."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable

import tensorflow as tf

from pipeline.anchors import AnchorConfig
from pipeline.command import Progress, counted
from pipeline.data_config import DataConfig
from pipeline.loading import augment, device_resize, epoch_plan
from pipeline.loading.batches import training_batches, training_pool
from pipeline.loading.epoch_plan import image_rows, planned_batches
from pipeline.loading.example import Batch, Preparation, Row
from pipeline.loading.options import LoadingOptions, cache_bytes
from pipeline.loading.originals import canvases_of_originals, resizes_on_device
from pipeline.loading.unreadable import reading_error
from pipeline.random_draws import step_seed
from pipeline.record_folder import RecordFolder
from pipeline.records import READ_ERRORS

SEED = 0
ROUNDS = 3  # of each part; the fastest counts, since other work on the machine only ever slows a part down

STAGES = ("read", "decode", "resize", "place", "people", "targets")  # of `Preparation.image`
BATCH = "batch"  # the last part: whole batches, as training takes them


def describe(record_folder: RecordFolder, split: str, config: DataConfig, *, batch_size: int) -> list[str]:
    """Lines about canvases, padding, and what caches take."""
    pool = training_pool(record_folder, split, config)
    first = epoch_plan.plan_epoch(pool, seed=SEED, epoch=0, global_batch_size=batch_size)
    filled = (first.rows < 0).mean()
    images = record_folder.index(split)[pool.rows]
    records_bytes, decoded_bytes = cache_bytes(images, "records"), cache_bytes(images, "decoded")
    return [
        f"{split} has {pool}",
        f"an epoch has {counted(len(first.canvas), 'batch', 'batches')} of {batch_size}, "
        f"filled up with {filled:.1%} padding images",
        f"--cache=records takes {records_bytes / 1e6:,.1f} MB of memory, --cache=decoded {decoded_bytes / 1e6:,.1f} MB",
    ]


@dataclasses.dataclass(frozen=True)
class Measured:
    """How fast batches are loaded.

    Attributes:
      images_per_second: with all cores.
      cpu_seconds: of one core for one image, by stage (`STAGES`, and `BATCH` for stacking images).
      bytes_per_batch: of a batch as it goes to the device, on average.
      padding: share of the pixels in those batches that no image covers.
      colour_seconds: that the device takes to jitter the colours of one image, in the training step and not counted above;
        None: the configuration has no colour jitter.
      resize_seconds: likewise, of one core, to resize the original of one image; None: the loader resizes.
    """

    images_per_second: float
    cpu_seconds: dict[str, float]
    bytes_per_batch: float
    padding: float
    colour_seconds: float | None = None
    resize_seconds: float | None = None

    def lines(self) -> list[str]:
        total = sum(self.cpu_seconds.values())
        told = [
            f"{self.images_per_second:9.1f}   images per second, with {os.cpu_count()} cores",
            f"{100 * total:9.2f}   cores needed per 100 images per second",
            *(
                f"{seconds / total:9.1%}   of the time: {stage}, {1000 * seconds:.2f} ms an image and core"
                for stage, seconds in self.cpu_seconds.items()
            ),
            f"{self.bytes_per_batch / 1e6:9.1f}   megabytes per batch",
            f"{self.padding:9.1%}   padding, that of padding images included",
        ]
        if self.colour_seconds is not None:
            where = "for the colours, in the training step: not in the figures above"
            told.append(f"{1000 * self.colour_seconds:9.2f}   milliseconds an image {where}")
        if self.resize_seconds is not None:
            where = "for the resize, in the training step: not in the figures above"
            told.append(f"{1000 * self.resize_seconds:9.2f}   milliseconds an image of one core of this machine {where}")
        return told


def measure(
    record_folder: RecordFolder,
    split: str,
    config: DataConfig,
    *,
    batch_size: int,
    num_images: int,
    options: LoadingOptions,
    anchors: AnchorConfig | None = None,
) -> Measured:
    """Loads batches as training does, and the same images up to each stage; the CPU time of a stage is the difference of two.

    Each part runs several times, so that all runs but the first find the records in the system's memory or the cache.

    Args:
      num_images: that each part loads, rounded up to whole batches.
      anchors: the model's; None: the records' own.

    Raises:
      UserError: as `training_batches`, or an image that cannot be read.
    """
    steps = -(-num_images // batch_size)
    anchors = anchors or record_folder.anchors
    pool, index = training_pool(record_folder, split, config), record_folder.index(split)
    originals = resizes_on_device(index, pool, config, has_gpu=bool(tf.config.list_physical_devices("GPU")))
    batches = training_batches(
        record_folder,
        split,
        config,
        global_batch_size=batch_size,
        seed=SEED,
        num_steps=steps,
        options=options,
        anchors=anchors,
        originals=originals,
    )

    def planned() -> itertools.islice[dict[str, object]]:
        return itertools.islice(planned_batches(pool, global_batch_size=batch_size, seed=SEED, start_step=0), steps)

    sources = canvases_of_originals(index, pool, config) if originals else ()
    rows = image_rows(planned, index, pool, config.short_edges, batch_size, whole=False, originals=sources)
    rows = rows.filter(lambda row: row["image_id"] >= 0)
    prepare = Preparation.of(record_folder, split, config, anchors, cache=options.cache, originals=originals)
    parts = {}
    for stage in STAGES:
        staged = rows.map(tf.autograph.experimental.do_not_convert(_until(prepare, stage)), num_parallel_calls=tf.data.AUTOTUNE)
        parts[stage] = (staged.ignore_errors() if options.on_error == "skip" else staged).batch(batch_size)
    parts[BATCH] = batches
    try:
        wall, cpu, loaded = _timed(parts)
    except READ_ERRORS as error:
        raise reading_error(
            error,
            record_folder,
            split,
            config,
            global_batch_size=batch_size,
            seed=SEED,
            steps=range(steps),
            way_out="convert the data again, or leave such images out with --on_error=skip",
        ) from None
    images = sum(contents.images for contents in loaded)
    until = [0.0, *(cpu[name] / images for name in parts)]
    return Measured(
        images_per_second=images / wall[BATCH],
        cpu_seconds={name: max(b - a, 0.0) for name, (a, b) in zip(parts, itertools.pairwise(until), strict=True)},
        bytes_per_batch=sum(contents.nbytes for contents in loaded) / len(loaded),
        padding=1 - sum(contents.image_pixels for contents in loaded) / sum(contents.pixels for contents in loaded),
        colour_seconds=_colour_seconds(batches, config),
        resize_seconds=_resize_seconds(batches, config) if originals else None,
    )


def _timed(parts: dict[str, tf.data.Dataset]) -> tuple[dict[str, float], dict[str, float], list[_Contents]]:
    """Seconds by the clock and of the processor that each part takes, and what the batches of the last one hold."""
    wall, cpu = dict.fromkeys(parts, float("inf")), dict.fromkeys(parts, float("inf"))
    loaded: list[_Contents] = []
    with Progress(ROUNDS * len(parts), "benchmark", "part") as progress:
        for _ in range(ROUNDS):
            for name, part in parts.items():
                began, began_cpu = time.perf_counter(), time.process_time()
                if name == BATCH:
                    loaded = [_Contents.of(batch) for batch in part]
                else:
                    for _ in part:
                        pass
                cpu[name] = min(cpu[name], time.process_time() - began_cpu)
                wall[name] = min(wall[name], time.perf_counter() - began)
                progress.advance(1)
    return wall, cpu, loaded


def _colour_seconds(batches: tf.data.Dataset, config: DataConfig) -> float | None:
    """The seconds by the clock that the colour jitter takes for an image of the first batch; None without jitter."""
    if not any((config.brightness, config.contrast, config.saturation, config.hue)):
        return None
    batch = device_resize.resize_originals(next(iter(batches.take(1))), config.resize)
    seed = tf.constant(step_seed(SEED, 0), tf.int32)

    @tf.function(autograph=False)
    def jitter() -> tf.Tensor:
        return _one_number(augment.jitter_colours(batch, config, seed)["image"])

    seconds = []
    for _ in range(1 + ROUNDS):  # the first one traces
        began = time.perf_counter()
        jitter().numpy()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:]) / len(batch["image"])


def _resize_seconds(batches: tf.data.Dataset, config: DataConfig) -> float:
    """The seconds of one core that the step's resize, compiled by XLA, takes for an image of the first batch."""
    batch = next(iter(batches.take(1)))

    @tf.function(jit_compile=True, autograph=False)
    def resize(batch: Batch) -> tf.Tensor:
        return device_resize.resize_originals(batch, config.resize)["image"]

    seconds = []
    for _ in range(1 + ROUNDS):  # the first one traces and compiles
        began = time.process_time()
        resize(batch).numpy()
        seconds.append(time.process_time() - began)
    return min(seconds[1:]) / len(batch["image"])


def _until(prepare: Preparation, stage: str) -> Callable[[Row], tf.Tensor]:
    """The stages of `Preparation.image` up to `stage`; the answer is one number, so that nothing is copied."""

    def answer(row: Row) -> tf.Tensor:
        record = prepare.read(row)
        if stage == "read":
            return _one_number(record["image/height"])
        pixels = prepare.decode(row, record)
        if stage == "decode":
            return _one_number(pixels)
        view = prepare.view(row, record)
        pixels = prepare.resize(pixels, view)
        if stage == "resize":
            return _one_number(pixels)
        pixels = prepare.place(row, pixels, view)
        if stage == "place":
            return _one_number(pixels)
        people = prepare.people(record, view)
        return _one_number(pixels) + tf.reduce_sum(people.boxes) + tf.reduce_sum(people.keypoints)

    def whole(row: Row) -> tf.Tensor:
        parts = prepare.image(row)
        return tf.add_n([_one_number(values) for name, values in parts.items() if name != "canvas"])  # (which is empty)

    return whole if stage == "targets" else answer


def _one_number(values: tf.Tensor) -> tf.Tensor:
    """The first of the values, which cannot be had without all."""
    return tf.cast(tf.reshape(values, [-1])[0], tf.float32)


@dataclasses.dataclass(frozen=True)
class _Contents:
    """What a batch holds."""

    images: int
    nbytes: int
    pixels: int
    image_pixels: int

    @staticmethod
    def of(batch: Batch) -> _Contents:
        size, shape = batch["image_size"].numpy().astype("int64"), batch.get("canvas", batch["image"]).shape
        return _Contents(
            images=int((batch["image_id"].numpy() >= 0).sum()),
            nbytes=sum(value.numpy().nbytes for value in batch.values()),
            pixels=shape[0] * shape[1] * shape[2],
            image_pixels=int(size.prod(axis=1).sum()),
        )
