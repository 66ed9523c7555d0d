"""RoIAlign with as many samples as each bin has places, rounded up: what a sampling ratio of 0 means in Detectron2.

The definition: bin (i, j) of a RoI, whose bins are w places wide and h high, is the average of n_x · n_y bilinear samples,
where n_x = ceil(w) and n_y = ceil(h). Sample (a, b) of the bin lies (j + (a + ½) / n_x) · w to the right of the RoI's left
edge and (i + (b + ½) / n_y) · h below its upper edge. (tests/model/network/test_roi_align.py works it out sample by sample.)

Numbers of samples differ from box to box, and no shape may depend on them. Levels are chosen by size, so a box covers some 56
× 56 places at most, however long it is, and n_x · n_y stays near (56 / resolution)². So boxes are sorted by n_x · n_y and
sampled in chunks, one sample of every bin at a time, until the chunk's largest number is reached: the cost is close to that
of the samples that there are. The gradient runs the same loops again, so that nothing is kept of them. (1000 boxes of mixed
sizes at 800×1344, 10 samples a bin on average: 3 times the time of a fixed ratio of 2 forwards, 5 times with the gradient, 3
times either way under XLA.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import tensorflow as tf

from model.network.roi_samples import Rois, take

BINS_AT_ONCE = 128 * 7 * 7  # bins that are sampled together: a chunk of 128 boxes at a resolution of 7


def average_adaptively(flat: tf.Tensor, rois: Rois, resolution: int) -> tf.Tensor:
    """The features of N RoIs, [N, resolution, resolution, C] in the dtype of `flat`.

    Args:
      flat: the places of all images and levels, [P, C].
      rois: N RoIs on them.
      resolution: bins per side, S.
    """
    chunks = _in_chunks(rois, resolution)

    @tf.custom_gradient
    def average(flat: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return tf.cast(_averages(flat, chunks), flat.dtype), lambda upstream: _gradient(flat, chunks, upstream)

    pooled = tf.reshape(average(flat), [-1, resolution, resolution, flat.shape[-1]])  # [N, S, S, C], sorted
    return tf.gather(pooled, tf.argsort(chunks.order))


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """RoIs sorted by their number of samples, those with the most first, in chunks of Q; the last RoI fills the last chunk up.

    Attributes:
      rois: each value [chunks, Q, ...].
      samples: of each bin along x and y, int32 [chunks, Q, 2]; `counts`: both together, [chunks, Q]; `most`: the largest of a
        chunk, [chunks].
      bins: float32 [S], the numbers of the bins along a side.
      number: of chunks.
      length: Q.
      order: the RoIs' places before they were sorted, [N].
    """

    rois: Rois
    samples: tf.Tensor
    counts: tf.Tensor
    most: tf.Tensor
    bins: tf.Tensor
    number: tf.Tensor
    length: tf.Tensor
    order: tf.Tensor

    def neighbours(self, chunk: tf.Tensor, sample: tf.Tensor) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """The places of one sample of each bin, and their weights in the average; [Q, S, S] each."""
        along_x, along_y = (tf.maximum(self.samples[chunk, :, axis], 1) for axis in (0, 1))  # [Q]
        x, y = (
            self.bins + tf.expand_dims((tf.cast(which, tf.float32) + 0.5) / tf.cast(count, tf.float32), 1)
            for which, count in ((sample % along_x, along_x), (sample // along_x, along_y))
        )
        counts = self.counts[chunk]
        share = tf.where(sample < counts, 1.0 / tf.cast(tf.maximum(counts, 1), tf.float32), 0.0)  # [Q]
        for index, weight in self.rois.map(lambda values: values[chunk]).neighbours(x, y):
            yield index, weight * tf.reshape(share, [-1, 1, 1])


def _in_chunks(rois: Rois, resolution: int) -> _Chunks:
    number = tf.shape(rois.first)[0]
    samples = tf.cast(tf.math.ceil(rois.bin), tf.int32)  # [N, 2]
    order = tf.argsort(tf.reduce_prod(samples, -1), direction="DESCENDING")  # [N]
    length = max(1, BINS_AT_ONCE // resolution**2)  # of a chunk: Q
    known = rois.first.shape[0]
    length = tf.clip_by_value(number, 1, length) if known is None else max(1, min(known, length))
    chunks = (number + length - 1) // length
    filled_up = tf.gather(order, tf.minimum(tf.range(chunks * length), number - 1))  # the last chunk repeats the last box

    def in_chunks(values: tf.Tensor) -> tf.Tensor:
        """[N, ...] → [chunks, Q, ...]"""
        return tf.reshape(tf.gather(values, filled_up), [-1, length, *values.shape[1:]])

    samples = in_chunks(samples)  # [chunks, Q, 2]
    counts = tf.reduce_prod(samples, -1)  # [chunks, Q]
    most = tf.reduce_max(counts, -1)  # [chunks]
    bins = tf.range(resolution, dtype=tf.float32)  # [S]
    return _Chunks(rois.map(in_chunks), samples, counts, most, bins, chunks, length, order)


def _averages(flat: tf.Tensor, chunks: _Chunks) -> tf.Tensor:
    """Adds up the samples of every bin. Returns float32 [chunks, Q, S, S, C]."""

    def of_chunk(chunk: tf.Tensor, pooled: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def add(sample: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            taken = [tf.cast(take(flat, *neighbour), tf.float32) for neighbour in chunks.neighbours(chunk, sample)]
            return sample + 1, total + tf.add_n(taken)

        total = tf.while_loop(lambda sample, _: sample < chunks.most[chunk], add, (0, pooled[chunk]))[1]
        return chunk + 1, tf.tensor_scatter_nd_update(pooled, [[chunk]], tf.expand_dims(total, 0))

    # A zero that is not known beforehand: a constant of this size would be stored in every TFLite file.
    zero = tf.cast(tf.minimum(chunks.most[0], 0), tf.float32)
    bins = chunks.bins.shape[0]
    pooled = tf.fill([chunks.number, chunks.length, bins, bins, flat.shape[-1]], zero)
    return tf.while_loop(lambda chunk, _: chunk < chunks.number, of_chunk, (0, pooled))[1]


def _gradient(flat: tf.Tensor, chunks: _Chunks, upstream: tf.Tensor) -> tf.Tensor:
    """The gradient of `_averages` with respect to `flat`, [P, C], from that of its answer."""
    upstream = tf.cast(upstream, tf.float32)

    def of_chunk(chunk: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def add(sample: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            found = zip(*chunks.neighbours(chunk, sample), strict=True)
            index, weight = (tf.stack(parts)[..., tf.newaxis] for parts in found)
            # All four neighbours at once: on a CPU each addition copies the whole of `total`.
            return sample + 1, tf.tensor_scatter_nd_add(total, index, upstream[chunk] * weight)

        return chunk + 1, tf.while_loop(lambda sample, _: sample < chunks.most[chunk], add, (0, total))[1]

    start = (0, tf.zeros(tf.shape(flat)))
    return tf.cast(tf.while_loop(lambda chunk, _: chunk < chunks.number, of_chunk, start)[1], flat.dtype)
