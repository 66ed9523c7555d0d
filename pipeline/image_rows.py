"""From an epoch's plan to what there is to know about each image before it is read, in TensorFlow.

Python only says which images a batch holds, in a few numbers; where they lie is looked up in the graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import plan

# One batch of a plan: index of the canvas; int64 rows of the split's index [B], −1 for padding; int32 variants [B]; key of the
# epoch's draws.
PlannedBatch = dict[str, Any]

BATCHES_AT_ONCE = 64  # that Python is asked for: each question costs some 0.2 ms


def planned_batches(pool: plan.Pool, *, global_batch_size: int, seed: int, start_step: int) -> Iterator[PlannedBatch]:
    """The global batches of training from a step on, without end."""
    step = start_step
    for epoch, first in plan.epochs_from(pool, seed=seed, global_batch_size=global_batch_size, step=step):
        batches = plan.plan_epoch(pool, seed=seed, epoch=epoch, global_batch_size=global_batch_size)
        key = plan.epoch_key(seed, epoch).view(np.int64)
        for t in range(step - first, len(batches.canvas)):
            yield {"canvas": batches.canvas[t], "rows": batches.rows[t], "variants": batches.variants[t], "key": key}
            step += 1


def image_rows(
    planned: Callable[[], Iterator[PlannedBatch]],
    index: npt.NDArray[Any],
    pool: plan.Pool,
    short_edges: Sequence[int],
    batch_size: int,
    *,
    whole: bool,
) -> tf.data.Dataset:
    """What `Preparation` takes, one image after the other.

    Args:
      planned: makes the batches, of `batch_size` images each.
      index: of the split.
      short_edges: that the variants count.
      whole: whether to take all batches at once, so that the data set holds no Python and can be sent to others.
    """
    place = {name: tf.constant(index[name].astype(np.int64)) for name in ("image_id", "shard", "offset", "length")}  # [N] each
    edges, canvases = tf.constant(short_edges, tf.int64), tf.constant(pool.canvases.sizes, tf.int32)

    def chunks() -> Iterator[PlannedBatch]:
        batches = planned()
        while chunk := list(itertools.islice(batches, None if whole else BATCHES_AT_ONCE)):
            yield {name: np.stack([batch[name] for batch in chunk]) for name in spec}

    def images(chunk: dict[str, tf.Tensor]) -> tf.data.Dataset:
        rows, variants = tf.reshape(chunk["rows"], [-1]), tf.reshape(chunk["variants"], [-1])  # [n · B] each
        canvas = tf.repeat(tf.gather(canvases, chunk["canvas"]), batch_size, axis=0)  # [n · B, 2]
        columns = {name: tf.gather(values, tf.maximum(rows, 0)) for name, values in place.items()}  # [n · B] each
        return tf.data.Dataset.from_tensor_slices(
            columns
            | {
                "image_id": tf.where(rows >= 0, columns["image_id"], -1),
                "short_edge": tf.gather(edges, variants // 2),
                "flipped": variants % 2 == 1,
                "canvas_height": canvas[:, 0],
                "canvas_width": canvas[:, 1],
                "key": tf.repeat(chunk["key"], batch_size),
            }
        )

    spec = {
        "canvas": tf.TensorSpec([None], tf.int32),
        "rows": tf.TensorSpec([None, batch_size], tf.int64),
        "variants": tf.TensorSpec([None, batch_size], tf.int32),
        "key": tf.TensorSpec([None], tf.int64),
    }
    if whole:
        return tf.data.Dataset.from_tensors(next(chunks())).flat_map(images)
    return tf.data.Dataset.from_generator(chunks, output_signature=spec).flat_map(images)
