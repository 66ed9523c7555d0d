"""Matching anchors while loading, image by image: for grids, sizes and crops that no record foresaw.

It gives the anchors, boxes and ignored anchors of the definition, `anchors.match`, to the bit. Its cost grows with the answer
and not with the grid: it looks only at anchors that can reach the IoU that counts, by the bounds that `anchor_matching`
explains.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from pipeline.anchors import LEAST_IOU, cell_anchors
from pipeline.loading.image_grid import ImageGrid

# Corners that are no whole pixels are rounded to float32, which changes an overlap by less than this many pixels below 4000.
# Candidates are chosen with this margin; their IoU is then compared exactly.
SLACK = 1e-3


def match(grid: ImageGrid, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Matches the anchors of one image.

    Args:
      grid: the anchors.
      boxes: float32 [P, 4], pixels.

    Returns:
      names of the positive anchors [M], sorted; the box of each [M]; names of the ignored anchors [N], sorted: int32.
    """
    config = grid.config
    box, name = _candidates(grid, boxes)
    value = iou(grid.corners(name), tf.gather(boxes, box))  # [C]
    best = tf.math.unsorted_segment_max(value, box, tf.shape(boxes)[0])  # [P]
    is_best = value == tf.gather(best, box)
    kept = (value > 0) & (is_best | (value >= config.negative_iou))
    box, name, value, is_best = (tf.boolean_mask(v, kept) for v in (box, name, value, is_best))

    # Group the pairs that are left by anchor.
    anchor = tf.unique(tf.sort(name)).y
    group, count = tf.searchsorted(anchor, name), tf.size(anchor)
    largest = tf.math.unsorted_segment_max(value, group, count)  # [anchors]
    positive = (largest >= config.positive_iou) | (tf.math.unsorted_segment_max(tf.cast(is_best, tf.int32), group, count) > 0)
    # The box of the largest IoU; of equal ones the first.
    of_largest = tf.where(value == tf.gather(largest, group), box, tf.shape(boxes)[0])
    anchor_box = tf.math.unsorted_segment_min(of_largest, group, count)
    # An anchor that is best for a tiny box may overlap another box more, by less than negative_iou: not among the candidates.
    low = tf.cast(tf.where(largest < config.negative_iou)[:, 0], tf.int32)
    table = iou(grid.corners(tf.gather(anchor, low))[:, None], boxes[None])  # [low, P]
    table = tf.pad(table, [[0, 0], [0, 1]])  # (argmax refuses to look at no boxes)
    anchor_box = tf.tensor_scatter_nd_update(anchor_box, low[:, None], tf.argmax(table, axis=1, output_type=tf.int32))
    return tf.boolean_mask(anchor, positive), tf.boolean_mask(anchor_box, positive), tf.boolean_mask(anchor, ~positive)


def iou(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """`anchors.iou` in TensorFlow, the same bits: [..., 4] with [..., 4] (broadcast) → [...]."""
    sides = tf.maximum(tf.minimum(boxes[..., 2:], others[..., 2:]) - tf.maximum(boxes[..., :2], others[..., :2]), 0.0)
    intersection = sides[..., 0] * sides[..., 1]
    area, other_area = ((v[..., 2] - v[..., 0]) * (v[..., 3] - v[..., 1]) for v in (boxes, others))
    return intersection / ((area + other_area) - intersection)


def _candidates(grid: ImageGrid, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Pairs of box and anchor that may have IoU ≥ negative_iou or be the box's best: int32 [C], [C]."""
    config = grid.config
    ratios = config.anchors_per_cell
    cells = tf.constant(cell_anchors(config).reshape(-1, 4), tf.float64)  # [S, 4], S = levels × ratios shapes of anchors
    strides = tf.repeat(tf.cast(grid.strides[:, ::-1], tf.float64), ratios, axis=0)  # [S, 2] as x, y
    counts = tf.repeat(grid.shape[:, ::-1], ratios, axis=0)  # [S, 2]
    boxes = tf.cast(boxes, tf.float64)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # [P, 1, 2]

    # Overlap falls off on both sides of the box's centre: its largest is that of one of the two nearest columns, and rows.
    near = tf.cast(tf.floor((low + high) / 2 / strides), tf.int32)  # [P, S, 2]
    largest = tf.maximum(
        *(
            _overlap(tf.clip_by_value(at, 0, counts - 1), strides, (cells[:, :2], cells[:, 2:]), low, high)
            for at in (near, near + 1)
        )
    )
    areas = tf.reduce_prod(cells[:, 2:] - cells[:, :2], axis=1) + tf.reduce_prod(high - low, axis=2)  # [P, S], of both
    intersection = tf.reduce_prod(largest, axis=2)
    best = tf.reduce_max(intersection / (areas - intersection), axis=1)  # [P]
    wanted = tf.minimum(best, config.negative_iou) * (1 - 1e-4)
    # An IoU of t needs an intersection of t / (1 + t) · (sum of both areas). This bounds rows, then each row's columns.
    needed = (wanted / (1 + wanted))[:, None] * areas  # [P, S]
    largest += SLACK
    box, shape = tf.unstack(tf.where((tf.reduce_prod(largest, axis=2) >= needed) & (best >= LEAST_IOU)[:, None]), axis=1)  # [N]

    needed, largest = (tf.gather_nd(v, tf.stack([box, shape], axis=1)) for v in (needed, largest))  # [N], [N, 2]
    pairs = _Pairs(*(tf.gather(v, i) for v, i in ((boxes, box), (cells, shape), (strides, shape), (counts, shape))))
    owner, row = _expand(*pairs.overlapping(1, needed / largest[:, 0]))
    pairs = _Pairs(*(tf.gather(v, owner) for v in (pairs.boxes, pairs.cells, pairs.strides, pairs.counts)))
    tall = (
        _overlap(row, pairs.strides[:, 1], (pairs.cells[:, 1], pairs.cells[:, 3]), pairs.boxes[:, 1], pairs.boxes[:, 3]) + SLACK
    )
    segment, column = _expand(*pairs.overlapping(0, tf.gather(needed, owner) / tall))
    pair = tf.gather(owner, segment)
    box, shape = (tf.cast(tf.gather(v, pair), tf.int32) for v in (box, shape))
    return box, grid.names(shape // ratios, tf.gather(row, segment), column, shape % ratios)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """N pairs of a box and a shape of anchors: boxes and cells around the origin [N, 4], strides and counts [N, 2] as x, y."""

    boxes: tf.Tensor
    cells: tf.Tensor
    strides: tf.Tensor
    counts: tf.Tensor

    def overlapping(self, axis: int, needed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """First and last cell along an axis whose anchors overlap the box by `needed` [N] pixels (or almost)."""
        low, high, cell_low, cell_high = (v[:, i] for v in (self.boxes, self.cells) for i in (axis, axis + 2))
        strides, counts = self.strides[:, axis], tf.cast(self.counts[:, axis], tf.float64)
        first = tf.math.ceil((low + needed - cell_high - SLACK) / strides)
        last = tf.floor((high - needed - cell_low + SLACK) / strides)
        return tf.cast(tf.clip_by_value(first, 0, counts), tf.int32), tf.cast(tf.clip_by_value(last, -1, counts - 1), tf.int32)


def _overlap(
    index: tf.Tensor, strides: tf.Tensor, cells: tuple[tf.Tensor, tf.Tensor], low: tf.Tensor, high: tf.Tensor
) -> tf.Tensor:
    """Overlap in pixels, along one axis, of boxes low…high with the anchors of cells `index`.

    Args:
      cells: where those anchors begin and end around the origin.
    """
    centre = tf.cast(index, tf.float64) * strides
    return tf.maximum(tf.minimum(centre + cells[1], high) - tf.maximum(centre + cells[0], low), 0.0)


def _expand(first: tf.Tensor, last: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Ranges first…last (inclusive, perhaps empty) → for each element the number of its range, and the element."""
    lengths = tf.maximum(last - first + 1, 0)
    owner = tf.repeat(tf.range(tf.size(lengths)), lengths)
    begins = tf.cumsum(lengths, exclusive=True)
    return owner, tf.range(tf.size(owner)) + tf.gather(first - begins, owner)
