"""RoIAlign (He et al. 2017) over a feature pyramid, as gathers with bilinear weights.

Of the three ways to write it (gathers, dense products, crop_and_resize) this is the one that XLA compiles, that TFLite and ONNX
take with built-in operators, and whose cost does not depend on the size of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from model.config import RoiAlignConfig
from model.network import boxes as box_ops
from model.network.backbone import level_shapes

CANONICAL_SIZE, CANONICAL_LEVEL = 224.0, 2  # a RoI of 224 pixels is pooled from P4, the third of P2…P5 (FPN, equation 1)
BINS_AT_ONCE = 128 * 7 * 7  # that are sampled together where the numbers of samples differ


def assign_levels(boxes: tf.Tensor, num_levels: int, tolerance: float = 0.0) -> tf.Tensor:
    """The level, 0 for P2, from which each box [..., 4] is pooled: floor(4 + log2(side / 224)) − 2, kept within the pyramid."""
    side = tf.sqrt(tf.nn.relu(box_ops.area(boxes)))
    level = tf.floor(CANONICAL_LEVEL + tf.math.log(side / CANONICAL_SIZE + 1e-8) / tf.math.log(2.0) + tolerance)
    return tf.cast(tf.clip_by_value(level, 0.0, num_levels - 1.0), tf.int32)


def roi_align(
    config: RoiAlignConfig,
    pyramid: Sequence[tf.Tensor],
    strides: Sequence[int],
    boxes: tf.Tensor,
    image_index: tf.Tensor,
    resolution: int,
    sampling_ratio: int,
) -> tf.Tensor:
    """Pools the features of boxes, each from the level that fits its size.

    Args:
      pyramid: L levels [B, H_l, W_l, C].
      strides: canvas pixels per place, of each level.
      boxes: float32 [N, 4], canvas pixels.
      image_index: int32 [N], the image of the batch that each box lies in.
      resolution: bins per side.
      sampling_ratio: samples per bin and axis, averaged; 0: as many as a bin has places, rounded up, for each box and axis.

    Returns:
      [N, resolution, resolution, C] in the pyramid's dtype. Places are centred if `config.aligned`: feature (i, j) lies at
      pixel ((j + 0.5) · stride, (i + 0.5) · stride), else at (j · stride, i · stride). Samples up to one place outside take
      the border's value, those further out 0, as torchvision/csrc/ops/roi_align has it. No gradient flows to the boxes where
      `sampling_ratio` is 0 (it must not anyway: neither family has one).
    """
    # Boxes of a model that diverges may be NaN: their gathers must stay in range, so that the check of the losses is reached.
    boxes = tf.where(tf.abs(boxes) < 1e6, boxes, 0.0)
    channels = pyramid[0].shape[-1]
    shapes = level_shapes(pyramid)
    rows = tf.stack([shape[0] for shape in shapes])  # [L]
    columns = tf.stack([shape[1] for shape in shapes])  # [L]
    offsets = tf.cumsum(rows * columns, exclusive=True)  # [L]: where each level begins in the flat list of places
    places = tf.reduce_sum(rows * columns)
    flat = tf.concat([tf.reshape(p, [tf.shape(p)[0], -1, channels]) for p in pyramid], axis=1)  # [B, places, C]
    flat = tf.reshape(flat, [-1, channels])  # [B · places, C]

    level = assign_levels(boxes, len(pyramid), config.level_tolerance)  # [N]
    scale = tf.expand_dims(tf.gather(tf.constant([1.0 / stride for stride in strides]), level), 1)  # [N, 1]
    corners = boxes * scale - (0.5 if config.aligned else 0.0)  # [N, 4], places
    size = corners[:, 2:] - corners[:, :2]
    rois = _Rois(
        first=image_index * places + tf.gather(offsets, level),
        rows=tf.gather(rows, level),
        columns=tf.gather(columns, level),
        corner=corners[:, :2],
        bin=(size if config.aligned else tf.maximum(size, 1.0)) / resolution,
    )
    if sampling_ratio == 0:
        return _average_adaptively(flat, rois, resolution)

    # All samples of a box at once, on a grid of resolution × ratio; then the average over each bin.
    samples = resolution * sampling_ratio
    fraction = (tf.range(samples, dtype=tf.float32) + 0.5) / sampling_ratio  # [S], bins
    pooled = tf.add_n([_take(flat, index, weight) for index, weight in rois.neighbours(fraction, fraction)])
    if sampling_ratio == 1:
        return pooled
    return tf.nn.avg_pool2d(pooled, sampling_ratio, sampling_ratio, "VALID")  # [N, resolution, resolution, C]


def _take(flat: tf.Tensor, index: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    return tf.gather(flat, index) * tf.expand_dims(tf.cast(weight, flat.dtype), -1)  # [N, S, S, C]


@dataclasses.dataclass(frozen=True)
class _Rois:
    """N RoIs on the flat list of all places of all images and levels."""

    first: tf.Tensor  # int32 [N]: where the level of its image begins
    rows: tf.Tensor  # int32 [N], of that level
    columns: tf.Tensor  # int32 [N]
    corner: tf.Tensor  # float32 [N, 2], x, y of the top left corner, places
    bin: tf.Tensor  # float32 [N, 2], width and height of a bin, places

    def map(self, function: Callable[[tf.Tensor], tf.Tensor]) -> _Rois:
        return _Rois(*(function(getattr(self, field.name)) for field in dataclasses.fields(self)))

    def neighbours(self, x: tf.Tensor, y: tf.Tensor) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """The four places around each sample, [N, S, S] each, and their weights in its value.

        Args:
          x, y: where the samples lie, in bins from the top left corner, float32 [S] or [N, S].
        """
        sides = []
        for axis, count, bins in ((1, self.rows, y), (0, self.columns, x)):
            position = tf.expand_dims(self.corner[:, axis], 1) + bins * tf.expand_dims(self.bin[:, axis], 1)  # [N, S]
            size = tf.expand_dims(tf.cast(count, tf.float32), 1)
            inside = tf.cast((position >= -1.0) & (position <= size), tf.float32)
            position = tf.clip_by_value(position, 0.0, size - 1.0)
            before = tf.floor(position)
            after = tf.minimum(before + 1.0, size - 1.0)
            weight = position - before
            sides.append([(tf.cast(before, tf.int32), (1.0 - weight) * inside), (tf.cast(after, tf.int32), weight * inside)])
        for row, row_weight in sides[0]:
            for column, column_weight in sides[1]:
                start = tf.expand_dims(self.first, 1) + row * tf.expand_dims(self.columns, 1)
                yield (
                    tf.expand_dims(start, 2) + tf.expand_dims(column, 1),
                    tf.expand_dims(row_weight, 2) * tf.expand_dims(column_weight, 1),
                )


def _average_adaptively(flat: tf.Tensor, rois: _Rois, resolution: int) -> tf.Tensor:
    """The average of ceil(bin) samples per bin and axis; [N, resolution, resolution, C].

    Levels are chosen by size, so a box covers some 56 × 56 places at most, however long it is, and the product of both numbers
    of samples stays near (56 / resolution)². Boxes are sorted by it and sampled in chunks, one sample of every bin at a time,
    until the chunk's largest number is reached: the cost is close to that of the samples that there are. Backwards the same
    loops run again, so that nothing has to be kept of them. (1000 boxes of mixed sizes at 800×1344, 10 samples a bin on
    average: 3 times the time of a fixed ratio of 2 forwards, 5 times with the gradient, 3 times either way under XLA.)
    """
    number, channels = tf.shape(rois.first)[0], flat.shape[-1]
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

    rois = rois.map(in_chunks)
    samples = in_chunks(samples)  # [chunks, Q, 2]
    counts = tf.reduce_prod(samples, -1)  # [chunks, Q]
    most = tf.reduce_max(counts, -1)  # [chunks]
    bins = tf.range(resolution, dtype=tf.float32)  # [S]

    def neighbours(chunk: tf.Tensor, sample: tf.Tensor) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Of one sample of each bin: places, and weights in the average; [Q, S, S] each."""
        along_x, along_y = (tf.maximum(samples[chunk, :, axis], 1) for axis in (0, 1))  # [Q]
        x, y = (
            bins + tf.expand_dims((tf.cast(which, tf.float32) + 0.5) / tf.cast(count, tf.float32), 1)
            for which, count in ((sample % along_x, along_x), (sample // along_x, along_y))
        )
        share = tf.where(sample < counts[chunk], 1.0 / tf.cast(tf.maximum(counts[chunk], 1), tf.float32), 0.0)  # [Q]
        for index, weight in rois.map(lambda values: values[chunk]).neighbours(x, y):
            yield index, weight * tf.reshape(share, [-1, 1, 1])

    @tf.custom_gradient
    def average(flat: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def of_chunk(chunk: tf.Tensor, pooled: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            def add(sample: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                taken = [tf.cast(_take(flat, *neighbour), tf.float32) for neighbour in neighbours(chunk, sample)]
                return sample + 1, total + tf.add_n(taken)

            total = tf.while_loop(lambda sample, _: sample < most[chunk], add, (0, pooled[chunk]))[1]
            return chunk + 1, tf.tensor_scatter_nd_update(pooled, [[chunk]], tf.expand_dims(total, 0))

        # A zero that is not known beforehand: a constant of this size would be stored in every TFLite file.
        zero = tf.cast(tf.minimum(most[0], 0), tf.float32)
        pooled = tf.fill([chunks, length, resolution, resolution, channels], zero)
        pooled = tf.while_loop(lambda chunk, _: chunk < chunks, of_chunk, (0, pooled))[1]

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            upstream = tf.cast(upstream, tf.float32)

            def of_chunk(chunk: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                def add(sample: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                    index, weight = (tf.stack(parts)[..., tf.newaxis] for parts in zip(*neighbours(chunk, sample), strict=True))
                    # All four neighbours at once: on a CPU each addition copies the whole of `total`.
                    return sample + 1, tf.tensor_scatter_nd_add(total, index, upstream[chunk] * weight)

                return chunk + 1, tf.while_loop(lambda sample, _: sample < most[chunk], add, (0, total))[1]

            start = (0, tf.zeros(tf.shape(flat)))
            return tf.cast(tf.while_loop(lambda chunk, _: chunk < chunks, of_chunk, start)[1], flat.dtype)

        return tf.cast(pooled, flat.dtype), gradient

    pooled = tf.reshape(average(flat), [-1, resolution, resolution, channels])
    return tf.gather(pooled, tf.argsort(order))
