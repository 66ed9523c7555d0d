"""Records → batches: decoding, resizing, flipping, sampling anchors, on canvases of a few sizes.

The batch of a step is a function of (seed, step, global batch size). See `plan.py` for which images it holds; here each of them
is read by its offset, prepared by itself in a parallel map, and stacked with its neighbours. A batch is one dict:

| key | dtype, shape | meaning |
| --- | --- | --- |
| `image` | uint8 [B, H, W, 3] | RGB, top left in the canvas, zero outside (float32 under torchvision's resize rule) |
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

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import plan
from pipeline.anchors import AnchorConfig
from pipeline.command import UserError
from pipeline.data_config import DataConfig
from pipeline.data_set import DataSet
from pipeline.preparation import ROW, Preparation
from pipeline.skeleton import Skeleton


def check_compatible(data_set: DataSet, anchors: AnchorConfig, config: DataConfig, skeleton: Skeleton) -> None:
    """Refuses records whose keypoints, or precomputed matching if it is to be used, are not those that training is asked for.

    Raises:
      UserError: names what the records have and what is asked for.
    """
    online = config.anchors == "online"
    missing = sorted(set(config.short_edges) - set(data_set.short_edges))
    for name, recorded, asked, same in (
        ("keypoints", data_set.skeleton.to_json(), skeleton.to_json(), data_set.skeleton == skeleton),
        ("anchors", data_set.anchors.to_json(), anchors.to_json(), online or data_set.anchors == anchors),
        ("short edges", list(data_set.short_edges), list(config.short_edges), online or not missing),
        ("max_edge", data_set.max_edge, config.max_edge, online or data_set.max_edge == config.max_edge),
        ("resize rule", "standard", config.resize, online or config.resize == "standard"),
    ):
        if not same:
            if isinstance(recorded, dict) and isinstance(asked, dict):
                differing = [key for key in recorded if recorded[key] != asked[key]]
                recorded, asked = ({key: value[key] for key in differing} for value in (recorded, asked))
            other = "" if name == "keypoints" else ", or match while loading: --set data.anchors=online"
            raise UserError(
                f"{data_set.folder}: its records have {name} {recorded}, training asks for {asked}; convert the data again, "
                f"or train with the records' own{other}"
            )


def training_pool(data_set: DataSet, split: str, config: DataConfig) -> plan.Pool:
    """The images and canvases that `training_batches` uses; `str` of it is a line for the log."""
    return plan.make_pool(
        data_set.index(split),
        short_edges=config.short_edges,
        max_edge=config.max_edge,
        resize=config.resize,
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
    anchors: AnchorConfig | None = None,
) -> tf.data.Dataset:
    """Batches from `start_step` on; each worker gets its slice of the global batch.

    Args:
      seed: of the order, the draws and the sampled anchors.
      start_step: the first batch's step, 0 at the beginning of training. Starting late costs nothing.
      num_steps: number of batches; None: without end.
      input_workers, input_worker: number of workers that share a global batch, and which of them this is.
      anchors: the model's; None: the records' own. Others need `config.anchors` = "online".

    Returns:
      dicts with leading dimension global_batch_size / input_workers; all dimensions static but the canvas's H and W, which
      all workers have alike at each step.

    Raises:
      UserError: no image to train on, short edges that the records lack, or a batch that the workers cannot share.
    """
    if global_batch_size < 1 or global_batch_size % input_workers:
        raise UserError(f"global batch of {global_batch_size} images: must be a multiple of the {input_workers} input workers")
    anchors = anchors or data_set.anchors
    check_compatible(data_set, anchors, config, data_set.skeleton)
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

    prepare = Preparation.of(data_set, split, config, anchors, max_edge=config.max_edge, training=True)
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
        resize=config.resize,
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

    prepare = Preparation.of(data_set, split, config, data_set.anchors, max_edge=max_edge, training=False)
    return _batches(rows, prepare, size)


def _rows(
    index: Any, rows: plan.Ints, variants: Any, short_edges: Any, canvas: tuple[int, int], key: np.int64
) -> dict[str, Any]:
    """The columns of `ROW` for the images of one batch, [B] each."""
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


def _batches(rows: Callable[[], Iterator[dict[str, Any]]], prepare: Preparation, batch_size: int) -> tf.data.Dataset:
    """Reads and prepares images in parallel, and stacks each `batch_size` of them, which share a canvas."""
    spec = {name: tf.TensorSpec([batch_size], dtype) for name, dtype in ROW.items()}
    dataset = tf.data.Dataset.from_generator(rows, output_signature=spec).unbatch()
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF  # slices are cut above
    return dataset.with_options(options)
