"""The ways of `loader.py` that run in the project's own environment; one a process.

Usage: python -m benchmarks.loader_ways WAY DATA_DIR BATCH_SIZE
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from benchmarks.contestant import serve
from model.network.rpn import anchor_grid
from pipeline import records
from pipeline.allocator import keep_freed_memory
from pipeline.anchors import AnchorConfig
from pipeline.data_config import PERSON, AnchorSource, DataConfig, resized_size
from pipeline.loading.batches import training_batches
from pipeline.loading.device_resize import resize_originals
from pipeline.loading.example import Batch
from pipeline.record_folder import RecordFolder, open_record_folder

SPLIT = "train"
HELD = 60  # batches that the device's part goes through again and again
SHORT_EDGE, MAX_EDGE = 800, 1333
CONFIG = DataConfig(short_edges=(SHORT_EDGE,), max_edge=MAX_EDGE)


def bare(record_folder: RecordFolder, batch_size: int, *, cast: bool) -> tf.data.Dataset:
    """Decodes and resizes, and nothing else: files lie in memory, results are dropped."""
    index = record_folder.index(SPLIT)
    raw = tf.data.TFRecordDataset([str(path) for path in record_folder.shards(SPLIT)])
    files = [records.parse(record)["image/encoded"].numpy() for record in raw]
    sizes = [resized_size(int(row["height"]), int(row["width"]), SHORT_EDGE, MAX_EDGE) for row in index]

    def prepare(file: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_jpeg(file, channels=3)
        resized = tf.image.resize(tf.cast(pixels, tf.float32) if cast else pixels, size)
        return resized[0, 0, 0]  # images of several sizes do not stack

    images = tf.data.Dataset.from_tensor_slices((files, np.array(sizes, np.int32))).repeat()
    return images.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)


def ours(record_folder: RecordFolder, batch_size: int, anchors: AnchorSource) -> tf.data.Dataset:
    """What training reads: flips, anchors sampled, on six canvases."""
    config = dataclasses.replace(CONFIG, anchors=anchors)
    return training_batches(record_folder, SPLIT, config, global_batch_size=batch_size, seed=0)


def originals(record_folder: RecordFolder, batch_size: int) -> tf.data.Dataset:
    """The same with `data.resize_on` = "device": original pixels, which the training step resizes."""
    return training_batches(record_folder, SPLIT, CONFIG, global_batch_size=batch_size, seed=0, originals=True)


def device(record_folder: RecordFolder, batch_size: int) -> Iterator[Batch]:
    """What the training step pays for that: resizes batches of originals, which lie in memory, on this processor."""
    resize = tf.function(lambda batch: resize_originals(batch, CONFIG.resize), jit_compile=True)
    return map(resize, itertools.cycle(list(originals(record_folder, batch_size).take(HELD))))


def dense(record_folder: RecordFolder, batch_size: int) -> tf.data.Dataset:
    """The same loader with the matching as torchvision does it: the IoU of every anchor with every box, each time.

    (Without regression targets for every anchor, which torchvision makes too. The loader's own samples are replaced.)
    """
    batches = ours(record_folder, batch_size, "precomputed")

    def with_dense_matching(batch: Batch) -> Batch:
        height, width = tf.shape(batch["image"])[1], tf.shape(batch["image"])[2]
        shapes = [(-(-height // stride), -(-width // stride)) for stride in record_folder.anchors.strides]
        grid = tf.concat(anchor_grid(record_folder.anchors, shapes), axis=0)
        of_each = [
            sampled_densely(record_folder.anchors, grid, tf.boolean_mask(boxes, kind == PERSON))
            for boxes, kind in zip(tf.unstack(batch["boxes"]), tf.unstack(batch["box_kind"]), strict=True)
        ]
        return batch | {name: tf.stack([sample[name] for sample in of_each]) for name in of_each[0]}

    return batches.map(with_dense_matching, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def sampled_densely(config: AnchorConfig, grid: tf.Tensor, boxes: tf.Tensor) -> dict[str, tf.Tensor]:
    """Torchvision's Matcher and BalancedPositiveNegativeSampler: anchors [A, 4], boxes [P, 4] → 256 sampled anchors."""
    boxes = tf.cond(tf.size(boxes) > 0, lambda: boxes, lambda: tf.zeros([1, 4]))  # nobody: a box that nothing overlaps
    x0, y0, x1, y1 = tf.split(boxes, 4, axis=1)  # [P, 1]
    left, top, right, bottom = tf.unstack(grid, axis=1)  # [A]; coordinate by coordinate is several times faster here
    width = tf.maximum(tf.minimum(x1, right) - tf.maximum(x0, left), 0.0)  # [P, A]
    intersection = width * tf.maximum(tf.minimum(y1, bottom) - tf.maximum(y0, top), 0.0)
    iou = intersection / ((x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - intersection)  # [P, A]
    largest, nearest = tf.reduce_max(iou, axis=0), tf.argmax(iou, axis=0, output_type=tf.int32)  # [A]
    best = tf.reduce_max(iou, axis=1, keepdims=True)  # [P, 1]
    is_best = tf.reduce_any((iou == best) & (best > 0), axis=0)  # [A]
    positive = (largest >= config.positive_iou) | is_best
    negative = (largest < config.negative_iou) & ~positive
    count, most = CONFIG.sampled_anchors, int(CONFIG.sampled_anchors * CONFIG.positive_fraction)
    positives, negatives = (tf.cast(tf.random.shuffle(tf.where(mask)[:, 0]), tf.int32) for mask in (positive, negative))
    positives = positives[:most]
    negatives = negatives[: count - tf.size(positives)]
    label = tf.concat([tf.ones_like(positives), tf.zeros_like(negatives)], axis=0)
    index = tf.concat([positives, negatives], axis=0)
    return {"anchor_index": index, "anchor_label": label, "anchor_box": tf.gather(nearest, index)}


def main(way: str, data_dir: str, batch_size: int) -> None:
    ways: dict[str, Callable[[RecordFolder, int], tf.data.Dataset | Iterator[Batch]]] = {
        "bare": lambda record_folder, size: bare(record_folder, size, cast=False),
        "bare_float": lambda record_folder, size: bare(record_folder, size, cast=True),
        "precomputed": lambda record_folder, size: ours(record_folder, size, "precomputed"),
        "online": lambda record_folder, size: ours(record_folder, size, "online"),
        "originals": originals,
        "device": device,
        "dense": dense,
    }
    keep_freed_memory()  # for each way, as the commands do
    batches = iter(ways[way](open_record_folder(data_dir), batch_size))

    def images(count: int) -> int:
        """Takes batches until `count` images have come; those that only fill up a batch do not count."""
        done = 0
        while done < count:
            batch = next(batches)
            done += batch_size if way.startswith("bare") else int(np.count_nonzero(batch["image_id"].numpy() >= 0))
        return done

    images(200)
    serve(images)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
