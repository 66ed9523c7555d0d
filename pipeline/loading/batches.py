"""Records → batches: each image is decoded, resized, flipped and given its anchors, on canvases of a few sizes.

The batch of a step is a function of (seed, step, global batch size). `epoch_plan.py` says which images it holds. Here each
image is read by its offset, prepared in a parallel map (`example.py`), and stacked with its neighbours. A batch is one dict:

| key | dtype, shape | meaning |
| --- | --- | --- |
| `image` | uint8 [B, H, W, 3] | RGB, top left in the canvas, zero outside (float32 under torchvision's resize rule) |
| `image_size` | int32 [B, 2] | height, width of the image inside the canvas |
| `scale` | float32 [B, 2] | canvas / original as (y, x) |
| `original_size` | int32 [B, 2] | height, width of the file |
| `image_id` | int64 [B] | −1 for a padding image, which is all zeros |
| `boxes` | float32 [B, G, 4] | x0, y0, x1, y1 in canvas pixels, zero in places without a box |
| `keypoints` | float32 [B, G, K, 3] | x, y in canvas pixels, visibility 0, 1, 2; all zero where not labelled |
| `box_kind` | int32 [B, G] | `PADDING`, `PERSON` or `CROWD` |
| `box_class` | int32 [B, G] | 1…C, the class of each box (only of records of several classes) |
| `anchor_index` | int32 [B, A] | sampled anchors: positions on the canvas's grid |
| `anchor_label` | int32 [B, A] | 1, 0, or −1 for unused |
| `anchor_box` | int32 [B, A] | index into `boxes` of a positive anchor's box |
| `canvas` | uint8 [B, H, W, 0] | nothing but the canvas's size (only with originals, as the next) |
| `source` | int32 [B, 7] | how `device_resize.resize_originals` makes `image` of the original that is in its place |
| `unreadable` | int64 [B] | id of the image that this padding image replaces, else −1 (only with on_error = "skip") |
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import tensorflow as tf

from pipeline.anchors import AnchorConfig
from pipeline.command import UserError
from pipeline.data_config import DataConfig
from pipeline.loading import canvases, epoch_plan
from pipeline.loading.epoch_plan import PlannedBatch, image_rows, planned_batches
from pipeline.loading.example import Batch, Preparation, Row
from pipeline.loading.options import PLAIN, LoadingOptions, check_possible
from pipeline.loading.originals import canvases_of_originals
from pipeline.record_folder import RecordFolder
from pipeline.skeleton import Skeleton


def check_compatible(record_folder: RecordFolder, anchors: AnchorConfig, config: DataConfig, skeleton: Skeleton) -> None:
    """Refuses records whose keypoints are not those of the model, or whose precomputed matching is of other anchors and sizes.

    Raises:
      UserError: names what the records have and what is asked for.
    """
    online = config.anchors == "online"
    missing = sorted(set(config.short_edges) - set(record_folder.short_edges))
    for name, recorded, asked, same in (
        ("keypoints", record_folder.skeleton.to_json(), skeleton.to_json(), record_folder.skeleton == skeleton),
        ("anchors", record_folder.anchors.to_json(), anchors.to_json(), online or record_folder.anchors == anchors),
        ("short edges", list(record_folder.short_edges), list(config.short_edges), online or not missing),
        ("max_edge", record_folder.max_edge, config.max_edge, online or record_folder.max_edge == config.max_edge),
        ("resize rule", "standard", config.resize, online or config.resize == "standard"),
    ):
        if not same:
            if isinstance(recorded, dict) and isinstance(asked, dict):
                differing = [key for key in {**recorded, **asked} if recorded.get(key) != asked.get(key)]
                recorded, asked = ({key: value.get(key) for key in differing} for value in (recorded, asked))
            other = "" if name == "keypoints" else ", or match while loading: --set data.anchors=online"
            raise UserError(
                f"{record_folder.path}: its records have {name} {recorded}, training asks for {asked}; convert the data again, "
                f"or train with the records' own{other}"
            )


def training_pool(record_folder: RecordFolder, split: str, config: DataConfig) -> epoch_plan.Pool:
    """The images and canvases that `training_batches` uses. `str` of the pool is a line for the log."""
    index = record_folder.index(split)
    side = config.jitter_canvas
    pool = epoch_plan.make_pool(
        index,
        short_edges=(side,) if side else config.short_edges,
        max_edge=side or config.max_edge,
        resize=config.resize,
        num_canvases=1 if side else config.num_canvases,
        max_boxes=config.max_boxes,
        flip=config.flip,
        require_keypoints=config.require_keypoints,
        split=split,
    )
    if not side:
        return pool
    images = index[pool.rows]
    return dataclasses.replace(pool, canvases=canvases.square(side, config.jitter_scales, images["height"], images["width"]))


def training_batches(
    record_folder: RecordFolder,
    split: str,
    config: DataConfig,
    *,
    global_batch_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int | None = None,
    input_workers: int = 1,
    worker_index: int = 0,
    anchors: AnchorConfig | None = None,
    options: LoadingOptions = PLAIN,
    originals: bool = False,
) -> tf.data.Dataset:
    """Batches from `start_step` on; each worker gets its slice of the global batch.

    Args:
      seed: the seed of the order, the draws and the sampled anchors.
      start_step: the first batch's step, 0 at the beginning of training. Starting late costs nothing.
      num_steps: the number of batches; None: without end.
      input_workers, worker_index: number of workers that share a global batch, and which of them this is.
      anchors: the model's; None: the records' own. Others need `config.anchors` = "online".
      options: how the batches are loaded. It changes nothing in them.
      originals: whether `image` holds the files' own pixels, of which the training step makes what comes otherwise
        (`device_resize.resize_originals`). `originals.resizes_on_device` says what `config.resize_on` means; this function does
        not look at it.

    Returns:
      dicts with leading dimension global_batch_size / input_workers. All dimensions are static except the canvas's H and W,
      which are the same for all workers at each step.

    Raises:
      UserError: no image to train on, short edges that the records lack, a batch that the workers cannot share, or originals
        that the device cannot resize (`originals.why_not`).
    """
    if global_batch_size < 1 or global_batch_size % input_workers:
        raise UserError(f"--batch_size={global_batch_size}: must be a multiple of the {input_workers} input workers")
    anchors = anchors or record_folder.anchors
    check_compatible(record_folder, anchors, config, record_folder.skeleton)
    index = record_folder.index(split)
    pool = training_pool(record_folder, split, config)
    check_possible(options, index[pool.rows])
    size = global_batch_size // input_workers
    mine = slice(worker_index * size, (worker_index + 1) * size)

    # 1. The plan says which images each global batch holds; this worker takes its slice.
    def batches() -> Iterator[PlannedBatch]:
        planned = planned_batches(pool, global_batch_size=global_batch_size, seed=seed, start_step=start_step)
        for batch in itertools.islice(planned, num_steps):
            yield batch | {"rows": batch["rows"][mine], "variants": batch["variants"][mine]}

    # 2. A row for each image: where its record lies, and how it is seen.
    sources = canvases_of_originals(index, pool, config) if originals else ()
    rows = image_rows(batches, index, pool, config.short_edges, size, whole=bool(options.data_service), originals=sources)
    # 3. Each row goes through the stages of `Preparation.image`, in parallel; images that share a canvas are stacked.
    prepare = Preparation.of(record_folder, split, config, anchors, cache=options.cache, originals=originals)
    return _prepared(rows, prepare, size, options)


def _prepared(rows: tf.data.Dataset, prepare: Preparation, batch_size: int, options: LoadingOptions) -> tf.data.Dataset:
    """Prepares the images of rows in parallel, in order, and stacks `batch_size` of them at a time."""
    # AutoGraph would take seconds to convert the stages, which hold no Python `if` or `for` over tensors.
    unconverted = tf.autograph.experimental.do_not_convert
    if options.on_error == "skip":
        image_or_padding = unconverted(functools.partial(_image_or_padding, unconverted(prepare)))
        dataset = rows.interleave(image_or_padding, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    else:
        dataset = rows.map(unconverted(prepare), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if options.data_service:
        dataset = dataset.apply(
            tf.data.experimental.service.distribute(
                tf.data.experimental.service.ShardingPolicy.DYNAMIC,
                options.data_service,
                compression=None,  # images hardly shrink
            )
        )
    dataset_options = tf.data.Options()
    dataset_options.deterministic = True
    dataset_options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF  # slices are cut above
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(dataset_options)


def _image_or_padding(prepare: Callable[[Row], Batch], row: dict[str, tf.Tensor]) -> tf.data.Dataset:
    """One element: the image of a row, or a padding image if preparing it fails."""
    attempts = {name: tf.stack([value, value]) for name, value in row.items()}
    attempts["image_id"] = tf.stack([row["image_id"], -1])
    unreadable_id = tf.stack([-1, row["image_id"]])
    dataset = tf.data.Dataset.from_tensor_slices((attempts, unreadable_id))
    return dataset.map(lambda row, unreadable: prepare(row) | {"unreadable": unreadable}).ignore_errors().take(1)
