"""Records → batches: decoding, resizing, flipping, sampling anchors, on canvases of a few sizes.

The batch of a step is a function of (seed, step, global batch size). See `plan.py` for which images it holds; here each of them
is read by its offset, prepared by itself in a parallel map, and stacked with its neighbours. A batch is one dict:

| key | dtype, shape | meaning |
| --- | --- | --- |
| `image` | uint8 [B, H, W, 3] | RGB, top left in the canvas, zero outside |
| `image_size` | int32 [B, 2] | height, width of the picture inside the canvas |
| `scale` | float32 [B, 2] | canvas / original as (y, x) |
| `original_size` | int32 [B, 2] | height, width of the file |
| `image_id` | int64 [B] | −1 for a padding image, which is all zeros |
| `boxes` | float32 [B, G, 4] | x0, y0, x1, y1 in canvas pixels, zero where there is none |
| `keypoints` | float32 [B, G, K, 3] | x, y in canvas pixels, visibility 0, 1, 2; all zero where not labelled |
| `box_kind` | int32 [B, G] | `PADDING`, `PERSON` or `CROWD` |
| `anchor_index` | int32 [B, A] | sampled anchors: positions on the canvas's grid (training only, as the next two) |
| `anchor_label` | int32 [B, A] | 1, 0, or −1 for unused |
| `anchor_box` | int32 [B, A] | index into `boxes` of a positive anchor's box |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import image, plan, records, sampling
from pipeline.anchors import AnchorConfig
from pipeline.command import UserError
from pipeline.data_set import DataSet
from pipeline.skeleton import Skeleton

PADDING, PERSON, CROWD = 0, 1, 2  # values of `box_kind`

Batch = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What training batches are made of.

    Attributes:
      short_edges: pixels; each image draws one of them in each epoch. They must be among those of the records.
      max_edge: pixels that the longer side has at most; the records' own.
      flip: whether half of the images are mirrored.
      max_boxes: G; of more boxes in an image the largest stay.
      sampled_anchors: A, anchors per image for the loss of the RPN.
      positive_fraction: largest share of positives among them.
      num_canvases: sizes of batches. Each costs a trace and, under XLA, a compilation. On COCO, at six short edges between 640
        and 800, four leave 19 % padding, six 14 %, eight 11 %, twelve 8 %; at 800 alone six leave 4 %.
      require_keypoints: whether training leaves out images without a labelled keypoint.
    """

    short_edges: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_edge: int = 1333
    flip: bool = True
    max_boxes: int = 100
    sampled_anchors: int = 256
    positive_fraction: float = 0.5
    num_canvases: int = 6
    require_keypoints: bool = True

    def __post_init__(self) -> None:
        if not self.short_edges or len(set(self.short_edges)) != len(self.short_edges) or min(self.short_edges) < 1:
            raise UserError(f"data.short_edges={list(self.short_edges)}: at least one number of pixels, each once")
        if self.max_edge < max(self.short_edges):
            raise UserError(f"data.max_edge={self.max_edge}: at least the largest short edge, {max(self.short_edges)}")
        if self.num_canvases < 1 or self.max_boxes < 1 or self.sampled_anchors < 1:
            raise UserError(
                f"data.num_canvases={self.num_canvases}, data.max_boxes={self.max_boxes}, "
                f"data.sampled_anchors={self.sampled_anchors}: at least 1 each"
            )
        if not 0 <= self.positive_fraction <= 1:
            raise UserError(f"data.positive_fraction={self.positive_fraction}: a share between 0 and 1")


def check_compatible(data_set: DataSet, anchors: AnchorConfig, config: DataConfig, skeleton: Skeleton) -> None:
    """Refuses records whose precomputed matching or keypoints are not those that training is asked for.

    Raises:
      UserError: names what the records have and what is asked for.
    """
    way_out = "convert the data again, or train with the records' own"
    missing = sorted(set(config.short_edges) - set(data_set.short_edges))
    for name, recorded, asked, same in (
        ("anchors", data_set.anchors.to_json(), anchors.to_json(), data_set.anchors == anchors),
        ("keypoints", data_set.skeleton.to_json(), skeleton.to_json(), data_set.skeleton == skeleton),
        ("short edges", list(data_set.short_edges), list(config.short_edges), not missing),
        ("max_edge", data_set.max_edge, config.max_edge, data_set.max_edge == config.max_edge),
    ):
        if not same:
            if isinstance(recorded, dict) and isinstance(asked, dict):
                differing = [key for key in recorded if recorded[key] != asked[key]]
                recorded, asked = ({key: value[key] for key in differing} for value in (recorded, asked))
            raise UserError(f"{data_set.folder}: its records have {name} {recorded}, training asks for {asked}; {way_out}")


def training_pool(data_set: DataSet, split: str, config: DataConfig) -> plan.Pool:
    """The images and canvases that `training_batches` uses; `str` of it is a line for the log."""
    return plan.make_pool(
        data_set.index(split),
        short_edges=config.short_edges,
        max_edge=config.max_edge,
        num_canvases=config.num_canvases,
        max_boxes=config.max_boxes,
        flip=config.flip,
        require_keypoints=config.require_keypoints,
        split=split,
    )


def training_batches(
    data_set: DataSet,
    split: str,
    config: DataConfig,
    *,
    global_batch_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int | None = None,
    input_workers: int = 1,
    input_worker: int = 0,
) -> tf.data.Dataset:
    """Batches from `start_step` on; each worker gets its slice of the global batch.

    Args:
      seed: of the order, the draws and the sampled anchors.
      start_step: the first batch's step, 0 at the beginning of training. Starting late costs nothing.
      num_steps: number of batches; None: without end.
      input_workers, input_worker: number of workers that share a global batch, and which of them this is.

    Returns:
      dicts with leading dimension global_batch_size / input_workers; all dimensions static but the canvas's H and W, which
      all workers have alike at each step.

    Raises:
      UserError: no image to train on, short edges that the records lack, or a batch that the workers cannot share.
    """
    if global_batch_size < 1 or global_batch_size % input_workers:
        raise UserError(f"global batch of {global_batch_size} images: must be a multiple of the {input_workers} input workers")
    check_compatible(data_set, data_set.anchors, config, data_set.skeleton)
    index = data_set.index(split)
    pool = training_pool(data_set, split, config)
    size = global_batch_size // input_workers
    mine = slice(input_worker * size, (input_worker + 1) * size)

    def rows() -> Iterator[dict[str, Any]]:
        step = start_step
        for epoch, first in plan.epochs_from(pool, seed=seed, global_batch_size=global_batch_size, step=step):
            batches = plan.plan_epoch(pool, seed=seed, epoch=epoch, global_batch_size=global_batch_size)
            key = plan.epoch_key(seed, epoch).view(np.int64)
            for t in range(step - first, len(batches.canvas)):
                if num_steps is not None and step >= start_step + num_steps:
                    return
                canvas = pool.canvases.sizes[batches.canvas[t]]
                yield _rows(index, batches.rows[t, mine], batches.variants[t, mine], config.short_edges, canvas, key)
                step += 1

    prepare = _Preparation.of(data_set, split, config.max_edge, config.max_boxes, training=config)
    return _batches(rows, prepare, size)


def evaluation_batches(
    data_set: DataSet,
    split: str,
    config: DataConfig,
    *,
    batch_size: int,
    short_edge: int,
    max_edge: int,
    input_workers: int = 1,
    input_worker: int = 0,
) -> tf.data.Dataset:
    """Every image of a split exactly once, unflipped, without sampled anchors; the last batch of a canvas is filled up.

    Args:
      batch_size: of all workers together.
      short_edge, max_edge: need not be among those of the records.

    Raises:
      UserError: as `training_batches`.
    """
    if batch_size < 1 or batch_size % input_workers:
        raise UserError(f"batch of {batch_size} images: must be a multiple of the {input_workers} input workers")
    index = data_set.index(split)
    pool = plan.make_pool(
        index,
        short_edges=[short_edge],
        max_edge=max_edge,
        num_canvases=config.num_canvases,
        max_boxes=config.max_boxes,
        flip=False,
        require_keypoints=False,
        split=split,
    )
    size = batch_size // input_workers
    mine = slice(input_worker * size, (input_worker + 1) * size)

    def rows() -> Iterator[dict[str, Any]]:
        batches = plan.plan_evaluation(pool, batch_size=batch_size)
        for canvas, images, variants in zip(batches.canvas, batches.rows, batches.variants, strict=True):
            yield _rows(index, images[mine], variants[mine], [short_edge], pool.canvases.sizes[canvas], np.int64(0))

    return _batches(rows, _Preparation.of(data_set, split, max_edge, config.max_boxes, training=None), size)


# What the parallel map is told about an image. Small, so that Python's part in the pipeline is small.
_ROW = {
    "image_id": tf.int64,  # −1: a padding image
    "shard": tf.int64,
    "offset": tf.int64,  # of the record in its shard's file
    "length": tf.int64,  # of the record's payload
    "short_edge": tf.int64,
    "flipped": tf.bool,
    "canvas_height": tf.int32,
    "canvas_width": tf.int32,
    "key": tf.int64,  # of the epoch's draws
}


def _rows(
    index: Any, rows: plan.Ints, variants: Any, short_edges: Any, canvas: tuple[int, int], key: np.int64
) -> dict[str, Any]:
    """The columns of `_ROW` for the images of one batch, [B] each."""
    images = index[rows]  # (row −1 is overwritten below)
    return {
        "image_id": np.where(rows >= 0, images["image_id"], -1),
        "shard": images["shard"],
        "offset": images["offset"],
        "length": images["length"],
        "short_edge": np.array(short_edges)[variants // 2],
        "flipped": variants % 2 == 1,
        "canvas_height": np.full(len(rows), canvas[0]),
        "canvas_width": np.full(len(rows), canvas[1]),
        "key": np.full(len(rows), key),
    }


def _batches(rows: Callable[[], Iterator[dict[str, Any]]], prepare: _Preparation, batch_size: int) -> tf.data.Dataset:
    """Reads and prepares images in parallel, and stacks each `batch_size` of them, which share a canvas."""
    spec = {name: tf.TensorSpec([batch_size], dtype) for name, dtype in _ROW.items()}
    dataset = tf.data.Dataset.from_generator(rows, output_signature=spec).unbatch()
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF  # slices are cut above
    return dataset.with_options(options)


@dataclasses.dataclass(frozen=True)
class _Preparation:
    """One image's way from its row to its part of a batch; everything that is the same for all images."""

    shards: tuple[str, ...]
    skeleton: Skeleton
    max_edge: int
    max_boxes: int
    anchors: AnchorConfig
    recorded_short_edges: tuple[int, ...]
    training: DataConfig | None  # None: without sampled anchors

    @staticmethod
    def of(data_set: DataSet, split: str, max_edge: int, max_boxes: int, training: DataConfig | None) -> _Preparation:
        return _Preparation(
            shards=tuple(str(path) for path in data_set.shards(split)),
            skeleton=data_set.skeleton,
            max_edge=max_edge,
            max_boxes=max_boxes,
            anchors=data_set.anchors,
            recorded_short_edges=data_set.short_edges,
            training=training,
        )

    def __call__(self, row: dict[str, tf.Tensor]) -> Batch:
        batch: Batch = tf.cond(row["image_id"] >= 0, lambda: self._image(row), lambda: self._padding(row))
        return batch

    def _image(self, row: dict[str, tf.Tensor]) -> Batch:
        record = records.parse(self._read(row))
        original = tuple(tf.cast(record[f"image/{side}"], tf.int32) for side in ("height", "width"))
        size = image.resized_size_tf(original[0], original[1], row["short_edge"], self.max_edge)
        canvas = (row["canvas_height"], row["canvas_width"])

        pixels = image.decode(record["image/encoded"])
        pixels = tf.cond(row["flipped"], lambda: image.flip(pixels), lambda: pixels)
        boxes = self._boxes(record, size, row["flipped"])  # [P, 4]
        crowd = record["image/object/is_crowd"] > 0  # [P]
        kept = _largest(boxes, self.max_boxes)  # [at most G]

        def slots(values: tf.Tensor) -> tf.Tensor:  # [P, …] → [G, …]
            chosen = tf.gather(values, kept)
            padding = [[0, self.max_boxes - tf.size(kept)]] + [[0, 0]] * (values.shape.rank - 1)
            return tf.ensure_shape(tf.pad(chosen, padding), [self.max_boxes, *values.shape[1:]])

        batch = {
            "image": image.place(image.resize(pixels, *size), *canvas),
            "image_size": tf.stack(size),
            "scale": tf.stack([tf.cast(r, tf.float32) / tf.cast(o, tf.float32) for r, o in zip(size, original, strict=True)]),
            "original_size": tf.stack(original),
            "image_id": row["image_id"],
            "boxes": slots(boxes),
            "keypoints": slots(self._keypoints(record, size, row["flipped"])),
            "box_kind": slots(tf.where(crowd, CROWD, PERSON)),
        }
        if self.training is not None:
            batch |= self._anchors(record, row, boxes, crowd, kept, size, canvas)
        return batch

    def _padding(self, row: dict[str, tf.Tensor]) -> Batch:
        boxes, keypoints = self.max_boxes, self.skeleton.num_keypoints
        batch = {
            "image": tf.zeros([row["canvas_height"], row["canvas_width"], 3], tf.uint8),
            "image_size": tf.zeros([2], tf.int32),
            "scale": tf.zeros([2], tf.float32),
            "original_size": tf.zeros([2], tf.int32),
            "image_id": tf.constant(-1, tf.int64),
            "boxes": tf.zeros([boxes, 4], tf.float32),
            "keypoints": tf.zeros([boxes, keypoints, 3], tf.float32),
            "box_kind": tf.fill([boxes], PADDING),
        }
        if self.training is not None:
            none = tf.zeros([self.training.sampled_anchors], tf.int32)
            batch |= {"anchor_index": none, "anchor_label": none - 1, "anchor_box": none}
        return batch

    def _read(self, row: dict[str, tf.Tensor]) -> tf.Tensor:
        """The record's bytes, read by its offset: scalar string."""
        one = tf.raw_ops.TFRecordDatasetV2(
            filenames=tf.gather(tf.constant(self.shards), row["shard"])[None],
            compression_type="",
            buffer_size=row["length"] + 16,  # the record and its frame: one read from the file
            byte_offsets=row["offset"][None],
        )
        return tf.data.experimental.from_variant(one, tf.TensorSpec([], tf.string)).take(1).get_single_element()

    def _boxes(self, record: dict[str, tf.Tensor], size: tuple[tf.Tensor, tf.Tensor], flipped: tf.Tensor) -> tf.Tensor:
        """float32 [P, 4] pixels: `anchors.variant_boxes` in TensorFlow, the same bits."""
        height, width = (tf.cast(side, tf.float32) for side in size)
        x0, y0, x1, y1 = (record[f"image/object/bbox/{corner}"] for corner in ("xmin", "ymin", "xmax", "ymax"))
        x0, x1 = x0 * width, x1 * width
        x0, x1 = tf.where(flipped, width - x1, x0), tf.where(flipped, width - x0, x1)
        return tf.stack([x0, y0 * height, x1, y1 * height], axis=1)

    def _keypoints(self, record: dict[str, tf.Tensor], size: tuple[tf.Tensor, tf.Tensor], flipped: tf.Tensor) -> tf.Tensor:
        """float32 [P, K, 3] pixels and visibility; left and right are exchanged where flipped."""
        height, width = (tf.cast(side, tf.float32) for side in size)
        visibility = tf.cast(record["image/object/keypoint/visibility"], tf.float32)
        x = record["image/object/keypoint/x"] * width
        x = tf.where(flipped, width - x, x)
        points = tf.stack([x, record["image/object/keypoint/y"] * height, visibility], axis=1)  # [P·K, 3]
        points = tf.reshape(tf.where(visibility[:, None] > 0, points, 0.0), [-1, self.skeleton.num_keypoints, 3])
        return tf.where(flipped, tf.gather(points, self.skeleton.flip, axis=1), points)

    def _anchors(
        self,
        record: dict[str, tf.Tensor],
        row: dict[str, tf.Tensor],
        boxes: tf.Tensor,
        crowd: tf.Tensor,
        kept: tf.Tensor,
        size: tuple[tf.Tensor, tf.Tensor],
        canvas: tuple[tf.Tensor, tf.Tensor],
    ) -> Batch:
        assert self.training is not None
        short_edge = tf.argmax(tf.constant(self.recorded_short_edges, tf.int64) == row["short_edge"])
        variant = 2 * short_edge + tf.cast(row["flipped"], tf.int64)
        positive, ignored = (
            tf.cast(records.names_from_differences(record[f"anchors/{name}"][variant]), tf.int32)
            for name in ("positive", "ignored")
        )
        slot = tf.scatter_nd(kept[:, None], 1 + tf.range(tf.size(kept)), [tf.shape(boxes)[0]]) - 1  # [P]; −1: not kept
        sampled = sampling.sample(
            self.anchors,
            (positive, tf.gather(slot, record["anchors/positive_box"][variant]), ignored),
            tf.boolean_mask(boxes, crowd),
            size,
            count=self.training.sampled_anchors,
            positive_fraction=self.training.positive_fraction,
            seed=tf.stack([row["key"], row["image_id"]]),
        )
        index = tf.where(sampled.label >= 0, sampling.to_canvas(self.anchors, sampled.index, size, canvas), 0)
        return {"anchor_index": index, "anchor_label": sampled.label, "anchor_box": sampled.box}


def _largest(boxes: tf.Tensor, count: int) -> tf.Tensor:
    """Which of the boxes [P, 4] are the `count` largest: int32 in ascending order."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return tf.sort(tf.math.top_k(area, tf.minimum(tf.size(area), count), sorted=False).indices)
