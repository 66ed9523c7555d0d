"""From an epoch's plan to what there is to know about each image before it is read, in TensorFlow.

Python only says which images a batch holds, in a few numbers; where they lie is looked up in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import plan

# One batch of a plan: index of the canvas; int64 rows of the split's index [B], −1 for padding; int32 variants [B]; key of the
# epoch's draws.
PlannedBatch = dict[str, Any]


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

    def rows(batch: dict[str, tf.Tensor]) -> tf.data.Dataset:
        real = tf.maximum(batch["rows"], 0)
        canvas = tf.gather(canvases, batch["canvas"])
        columns = {name: tf.gather(values, real) for name, values in place.items()}  # [B] each
        return tf.data.Dataset.from_tensor_slices(
            columns
            | {
                "image_id": tf.where(batch["rows"] >= 0, columns["image_id"], -1),
                "short_edge": tf.gather(edges, batch["variants"] // 2),
                "flipped": batch["variants"] % 2 == 1,
                "canvas_height": tf.fill([batch_size], canvas[0]),
                "canvas_width": tf.fill([batch_size], canvas[1]),
                "key": tf.fill([batch_size], batch["key"]),
            }
        )

    spec = {
        "canvas": tf.TensorSpec([], tf.int32),
        "rows": tf.TensorSpec([batch_size], tf.int64),
        "variants": tf.TensorSpec([batch_size], tf.int32),
        "key": tf.TensorSpec([], tf.int64),
    }
    if whole:
        batches = list(planned())
        dataset = tf.data.Dataset.from_tensor_slices({name: np.stack([batch[name] for batch in batches]) for name in spec})
    else:
        dataset = tf.data.Dataset.from_generator(planned, output_signature=spec)
    return dataset.flat_map(rows)
