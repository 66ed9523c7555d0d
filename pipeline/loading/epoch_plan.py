"""An epoch's plan: which images make up each batch, at which short edge, flipped or not, on which canvas.

A plan is computed in NumPy from (seed, epoch) in milliseconds, and records are read by their offset: the batch of any step is
known without reading what comes before, and there is no buffer of records that a checkpoint would have to carry. What an
image draws is keyed by (seed, epoch, image id), never by worker, replica or position. `plan_epoch` makes the plan, and
`image_rows` turns it into a dataset of rows: what is known of each image before it is read.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import data_config
from pipeline.command import UserError, counted
from pipeline.data_config import ResizeRule
from pipeline.loading import canvases

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
# One batch of a plan: "canvas", index of the canvas; "rows", int64 [B], rows of the split's index, −1 for a padding image;
# "variants", int32 [B]; "key", int64, of the epoch's draws.
PlannedBatch = dict[str, Any]

BATCHES_AT_ONCE = 64  # that the graph asks Python for at a time: each request costs some 0.2 ms


class NoImagesError(UserError):
    """A split has no image that training may use."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """The images that an epoch goes through, and the canvases that were chosen for them.

    Attributes:
      rows: int64 [N] rows of the split's index.
      image_ids: int64 [N].
      canvas_of: int32 [N, S] index of the image's canvas at each short edge.
      canvases: their sizes, and the share of padding if all short edges are drawn equally often.
      flip: whether images are flipped half of the time.
      left_out: number of images that are left out because they have no labelled person.
      dropped_boxes: number of boxes that are left out because an image has more than `max_boxes`.
    """

    rows: Ints
    image_ids: Ints
    canvas_of: npt.NDArray[np.int32]
    canvases: canvases.Canvases
    flip: bool
    left_out: int
    dropped_boxes: int

    def __str__(self) -> str:
        without = f" ({self.left_out} without labelled persons left out)" if self.left_out else ""
        boxes = counted(self.dropped_boxes, "box", "boxes")
        dropped = f", {boxes} beyond data.max_boxes left out" if self.dropped_boxes else ""
        return f"{counted(len(self.rows), 'image')}{without}{dropped}, {self.canvases}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The batches of one epoch.

    Attributes:
      canvas: int32 [T] index of each batch's canvas.
      rows: int64 [T, B] rows of the split's index; −1 for a padding image.
      variants: int32 [T, B], 2 · (index of the short edge) + flipped; 0 for a padding image.
    """

    canvas: npt.NDArray[np.int32]
    rows: Ints
    variants: npt.NDArray[np.int32]


def make_pool(
    index: npt.NDArray[Any],
    *,
    short_edges: Sequence[int],
    max_edge: int,
    resize: ResizeRule,
    num_canvases: int,
    max_boxes: int,
    flip: bool,
    require_keypoints: bool,
    split: str,
) -> Pool:
    """Chooses images and canvases for them.

    Args:
      index: the split's index, one row per record (`record_folder.INDEX_DTYPE`).
      short_edges, max_edge, resize: how the images will be resized.
      num_canvases, max_boxes, flip, require_keypoints: as in `DataConfig`.
      split: its name, for the error.

    Raises:
      UserError: no image is left.
    """
    keep = index["labelled_persons"] > 0 if require_keypoints else np.ones(len(index), bool)
    rows = np.flatnonzero(keep)
    if not len(rows):
        if not len(index):
            raise NoImagesError(f"split {split!r} has no images: convert some with pipeline.make_tfrecords")
        raise NoImagesError(
            f"split {split!r}: none of its {len(index)} images has a person with a labelled keypoint, and training takes only "
            "such images; check the annotations, or set data.require_keypoints=false"
        )
    sizes = resized_sizes(index["height"][rows], index["width"][rows], short_edges, max_edge, resize)
    chosen = canvases.choose(sizes[0].ravel(), sizes[1].ravel(), num_canvases)
    return Pool(
        rows=rows,
        image_ids=index["image_id"][rows].astype(np.int64),
        canvas_of=canvases.assign(chosen.sizes, sizes[0], sizes[1]),
        canvases=chosen,
        flip=flip,
        left_out=len(index) - len(rows),
        dropped_boxes=int(np.maximum(index["persons"][rows] + index["crowds"][rows] - max_boxes, 0).sum()),
    )


def resized_sizes(heights: Ints, widths: Ints, short_edges: Sequence[int], max_edge: int, rule: ResizeRule) -> Ints:
    """[N], [N] → [2, N, S] heights and widths as images are seen; each distinct size is worked out once."""
    distinct, image = np.unique((heights.astype(np.int64) << 32) + widths, return_inverse=True)  # [D], [N]
    resized = [
        [data_config.resized_size(size >> 32, size & 0xFFFFFFFF, edge, max_edge, rule) for edge in short_edges]
        for size in distinct.tolist()
    ]
    return np.moveaxis(np.array(resized, np.int64), -1, 0)[:, image]


def plan_epoch(pool: Pool, *, seed: int, epoch: int, global_batch_size: int) -> Plan:
    """Plans an epoch: every image once, in batches of one canvas each, in random order.

    The last batch of each canvas is filled up with padding images. Batches are shuffled, so that canvases alternate.
    """
    generator = np.random.Generator(np.random.Philox(key=epoch_key(seed, epoch)))
    order = generator.permutation(len(pool.rows))
    variants = _draw(pool, epoch_key(seed, epoch))[order]
    canvas = pool.canvas_of[order, variants // 2]
    plan = _in_batches(pool.rows[order], variants, canvas, len(pool.canvases.sizes), global_batch_size)
    shuffled = generator.permutation(len(plan.canvas))
    return Plan(plan.canvas[shuffled], plan.rows[shuffled], plan.variants[shuffled])


def epochs_from(pool: Pool, *, seed: int, global_batch_size: int, step: int) -> Iterator[tuple[int, int]]:
    """The epochs from the one that `step` falls into, without end: number of the epoch, and the step that it begins with.

    Epochs differ in length, as their draws leave more or fewer padding images. So the lengths of all earlier epochs are
    computed: about a millisecond each for COCO, twice as many epochs at a time in each round.
    """
    count = len(pool.canvases.sizes)
    epoch, first, at_a_time = 0, 0, 1
    while True:
        keys = _epoch_keys(seed, np.arange(epoch, epoch + at_a_time))
        canvas = pool.canvas_of[np.arange(len(pool.rows)), _draw(pool, keys[:, None]) // 2]  # [E, N]
        number = np.bincount((canvas + count * np.arange(at_a_time)[:, None]).ravel(), minlength=count * at_a_time)
        lengths = -(-number.reshape(at_a_time, count) // global_batch_size).sum(axis=1)
        for length in lengths.tolist():
            if first + length > step:
                yield epoch, first
            epoch, first = epoch + 1, first + length
        at_a_time = max(1, min(2 * at_a_time, 1_000_000 // (len(pool.rows) + count)))


def epoch_key(seed: int, epoch: int) -> np.uint64:
    """The 64 bits that key every draw of an epoch, together with the image's id."""
    return np.uint64(_epoch_keys(seed, np.array([epoch]))[0])


def _epoch_keys(seed: int, epochs: Ints) -> Keys:
    return _mix(_mix(np.array([seed], np.int64).view(np.uint64)) ^ epochs.astype(np.uint64))


def _draw(pool: Pool, key: np.uint64 | Keys) -> npt.NDArray[np.int32]:
    """Variants that the images draw in the epoch(s) of `key`; [N], or [E, N] for keys [E, 1]."""
    bits = _mix(_mix(pool.image_ids.view(np.uint64)) ^ key)
    short_edge = ((bits >> np.uint64(32)) * np.uint64(pool.canvas_of.shape[1])) >> np.uint64(32)
    flipped = bits & np.uint64(1) if pool.flip else np.uint64(0)
    return (np.uint64(2) * short_edge + flipped).astype(np.int32)


def _mix(bits: Keys) -> Keys:
    """One step of SplitMix64 (Steele et al. 2014): a bijection of 64 bits in which every input bit moves every output bit."""
    with np.errstate(over="ignore"):
        bits = bits + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def _in_batches(
    rows: Ints, variants: npt.NDArray[np.int32], canvas: npt.NDArray[np.int32], num_canvases: int, batch_size: int
) -> Plan:
    """Groups images by canvas, keeping their order, into batches; the last one of each canvas is filled up."""
    number = np.bincount(canvas, minlength=num_canvases)
    batches = -(-number // batch_size)
    first_slot = (np.cumsum(batches) - batches) * batch_size  # where each canvas begins
    by_canvas = np.argsort(canvas, kind="stable")
    slot = first_slot[canvas[by_canvas]] + np.arange(len(rows)) - (np.cumsum(number) - number)[canvas[by_canvas]]
    all_rows = np.full(batches.sum() * batch_size, -1, np.int64)
    all_variants = np.zeros(batches.sum() * batch_size, np.int32)
    all_rows[slot], all_variants[slot] = rows[by_canvas], variants[by_canvas]
    return Plan(
        canvas=np.repeat(np.arange(num_canvases, dtype=np.int32), batches),
        rows=all_rows.reshape(-1, batch_size),
        variants=all_variants.reshape(-1, batch_size),
    )


def planned_batches(pool: Pool, *, global_batch_size: int, seed: int, start_step: int) -> Iterator[PlannedBatch]:
    """The global batches of training from a step on, without end."""
    step = start_step
    for epoch, first in epochs_from(pool, seed=seed, global_batch_size=global_batch_size, step=step):
        batches = plan_epoch(pool, seed=seed, epoch=epoch, global_batch_size=global_batch_size)
        key = epoch_key(seed, epoch).view(np.int64)
        for t in range(step - first, len(batches.canvas)):
            yield {"canvas": batches.canvas[t], "rows": batches.rows[t], "variants": batches.variants[t], "key": key}
            step += 1


def image_rows(
    planned: Callable[[], Iterator[PlannedBatch]],
    index: npt.NDArray[Any],
    pool: Pool,
    short_edges: Sequence[int],
    batch_size: int,
    *,
    whole: bool,
    originals: Sequence[tuple[int, int]] = (),
) -> tf.data.Dataset:
    """The rows that `Preparation` takes (`example.Row`), one image after the other.

    Python says which images a batch holds, in a few numbers; the graph looks up where they lie.

    Args:
      planned: makes the batches, of `batch_size` images each.
      index: of the split.
      pool: of the split, for the sizes of its canvases.
      short_edges: the short edges that variants number.
      whole: whether to take all batches at once, so that the dataset holds no Python and can be sent to other machines.
      originals: for each canvas that of originals, if images are shipped as they are (`originals.canvases_of_originals`).
    """
    place = {name: tf.constant(index[name].astype(np.int64)) for name in ("image_id", "shard", "offset", "length")}  # [N] each
    edges, canvases = tf.constant(short_edges, tf.int64), tf.constant(pool.canvases.sizes, tf.int32)
    sources = tf.constant(originals, tf.int32) if originals else canvases

    def chunks() -> Iterator[PlannedBatch]:
        batches = planned()
        while chunk := list(itertools.islice(batches, None if whole else BATCHES_AT_ONCE)):
            yield {name: np.stack([batch[name] for batch in chunk]) for name in spec}

    @tf.autograph.experimental.do_not_convert
    def images(chunk: dict[str, tf.Tensor]) -> tf.data.Dataset:
        rows, variants = tf.reshape(chunk["rows"], [-1]), tf.reshape(chunk["variants"], [-1])  # [n · B] each
        canvas = tf.repeat(tf.gather(canvases, chunk["canvas"]), batch_size, axis=0)  # [n · B, 2]
        columns = {name: tf.gather(values, tf.maximum(rows, 0)) for name, values in place.items()}  # [n · B] each
        if originals:
            source = tf.repeat(tf.gather(sources, chunk["canvas"]), batch_size, axis=0)  # [n · B, 2]
            columns |= {"source_height": source[:, 0], "source_width": source[:, 1]}
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
