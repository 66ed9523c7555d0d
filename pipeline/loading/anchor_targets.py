"""The anchor grid of one image on its canvas, in TensorFlow: what `anchors.py` says, for sizes known late.

An anchor's name is its flat index, in the order level, row, column, ratio, on the grid of the image's own size; its position is
the index on the canvas's grid. Cells that exist only in the padding of the canvas have no name.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from pipeline.anchors import LEAST_IOU, AnchorConfig, cell_anchors

Size = tuple[tf.Tensor, tf.Tensor]  # int32 height, width


@dataclasses.dataclass(frozen=True)
class ImageGrid:
    """L levels of cells.

    Attributes:
      config: the grid.
      strides: int32 [L, 2], pixels between centres along y and x.
      shape: int32 [L, 2], rows and columns within the image.
      canvas_shape: int32 [L, 2], rows and columns within the canvas.
    """

    config: AnchorConfig
    strides: tf.Tensor
    shape: tf.Tensor
    canvas_shape: tf.Tensor

    @staticmethod
    def of(config: AnchorConfig, image_size: Size, canvas: Size) -> ImageGrid:
        """The grid of an image of `image_size` at the top left of `canvas`."""
        strides = tf.constant(config.strides, tf.int32)[:, None]  # [L, 1]
        sides, canvas_sides = tf.stack(image_size), tf.stack(canvas)  # [2]
        canvas_shape = -(-canvas_sides // strides)  # [L, 2]
        strides = canvas_sides // canvas_shape if config.canvas_strides else tf.tile(strides, [1, 2])
        return ImageGrid(config, strides, tf.minimum(-(-sides // strides), canvas_shape), canvas_shape)

    @property
    def size(self) -> tf.Tensor:
        """The number of anchors."""
        return _ends(self.shape, self.config)[-1]

    def locate(self, names: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Level, row, column and ratio of anchors, int32 [N] each."""
        ratios = self.config.anchors_per_cell
        ends = _ends(self.shape, self.config)
        level = tf.searchsorted(ends, names, side="right")
        within = names - tf.gather(_starts(ends), level)
        cell, ratio = within // ratios, within % ratios
        columns = tf.gather(self.shape[:, 1], level)
        return level, cell // columns, cell % columns, ratio

    def names(self, level: tf.Tensor, row: tf.Tensor, column: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
        """Inverse of `locate`: int32 [N]."""
        return self._flat(self.shape, level, row, column, ratio)

    def positions(self, names: tf.Tensor) -> tf.Tensor:
        """Positions on the canvas's grid, int32 [N]: `anchors.to_canvas`."""
        return self._flat(self.canvas_shape, *self.locate(names))

    def corners(self, names: tf.Tensor) -> tf.Tensor:
        """The anchors themselves, float32 [N, 4] pixels: rows of `anchors.grid`, the same bits."""
        level, row, column, ratio = self.locate(names)
        cells = tf.gather_nd(tf.constant(cell_anchors(self.config)), tf.stack([level, ratio], axis=1))
        centre = tf.stack([column, row], axis=1) * tf.gather(self.strides[:, ::-1], level)  # [N, 2] as x, y
        return tf.tile(tf.cast(centre, tf.float32), [1, 2]) + cells

    def _flat(self, shape: tf.Tensor, level: tf.Tensor, row: tf.Tensor, column: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
        cell = row * tf.gather(shape[:, 1], level) + column
        return tf.gather(_starts(_ends(shape, self.config)), level) + cell * self.config.anchors_per_cell + ratio


def _ends(shape: tf.Tensor, config: AnchorConfig) -> tf.Tensor:
    """Of each level the name after its last anchor, int32 [L]."""
    return tf.cumsum(shape[:, 0] * shape[:, 1] * config.anchors_per_cell)


def _starts(ends: tf.Tensor) -> tf.Tensor:
    return tf.concat([[0], ends[:-1]], axis=0)


# Matching anchors in TensorFlow, image by image: `anchors.match` for grids, sizes and crops that no record foresaw.
#
# The same anchors, boxes and ignored anchors as `anchors.match_dense` gives, to the bit, at a cost that grows with the answer,
# not with the grid.

# Corners of anchors off the whole pixels are rounded to float32. An overlap may come out larger or smaller for that, by less
# than this many pixels below 4000; candidates are chosen with so much to spare, and only then compared exactly.
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

    # Group what is left by anchor.
    anchor = tf.unique(tf.sort(name)).y
    group, count = tf.searchsorted(anchor, name), tf.size(anchor)
    largest = tf.math.unsorted_segment_max(value, group, count)  # [anchors]
    positive = (largest >= config.positive_iou) | (tf.math.unsorted_segment_max(tf.cast(is_best, tf.int32), group, count) > 0)
    # Of equals the first box.
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
    """Pairs of box and anchor that may have IoU ≥ negative_iou or be the box's best: int32 [C], [C]. See `match_variants`."""
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
    """Overlap of boxes low…high with the anchors of cells `index`, which around the origin begin and end at `cells`; pixels."""
    centre = tf.cast(index, tf.float64) * strides
    return tf.maximum(tf.minimum(centre + cells[1], high) - tf.maximum(centre + cells[0], low), 0.0)


def _expand(first: tf.Tensor, last: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Ranges first…last (inclusive, perhaps empty) → for each element the number of its range, and the element."""
    lengths = tf.maximum(last - first + 1, 0)
    owner = tf.repeat(tf.range(tf.size(lengths)), lengths)
    begins = tf.cumsum(lengths, exclusive=True)
    return owner, tf.range(tf.size(owner)) + tf.gather(first - begins, owner)


# Sampling anchors for the loss of the RPN: a few hundred names instead of labels for two hundred thousand anchors.
#
# All in TensorFlow, on one image.

CROWD_SHARE = 0.7  # an anchor that lies in a crowd with this share of its area is not a negative
DRAWS_PER_ANCHOR = 4  # negatives are found by rejection with a fixed number of draws; few are in vain


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sampled anchors: int32 [A] each. `label` is 1, 0 or −1 for unused; `box` the matched box of a positive, else 0."""

    index: tf.Tensor
    label: tf.Tensor
    box: tf.Tensor


def sample(
    grid: ImageGrid,
    matching: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    crowds: tf.Tensor,
    *,
    count: int,
    positive_fraction: float,
    seed: tf.Tensor,
) -> Sample:
    """Draws anchors at random: positives up to a share, and negatives for the rest.

    Negatives are drawn evenly from the image's own grid, without repetition: never a positive or ignored one, none with
    `CROWD_SHARE` of its area in a crowd, none of the cells that exist only in the padding of a canvas. Where the image has too
    few, the rest stays unused.

    Args:
      grid: the anchors of the image.
      matching: int32 names of the positive anchors [M], their boxes [M] and names of the ignored anchors [N], both
        kinds of names sorted. A positive whose box is −1 counts as ignored.
      crowds: float32 [C, 4] boxes of crowds in the image's pixels.
      count: A, the number of anchors.
      positive_fraction: largest share of positives.
      seed: integer [2]; the same seed draws the same anchors.

    Returns:
      names on the image's own grid.
    """
    positive, positive_box, ignored = matching
    usable = tf.where(positive_box >= 0)[:, 0]
    keys = tf.random.stateless_uniform(tf.shape(usable), seed, alg="philox")
    _, chosen = tf.math.top_k(keys, tf.minimum(tf.size(usable), int(count * positive_fraction)))
    chosen = tf.gather(usable, chosen)
    candidates, boxes = tf.gather(positive, chosen), tf.gather(positive_box, chosen)

    draws = tf.random.stateless_uniform(
        [DRAWS_PER_ANCHOR * count], seed + tf.constant([1, 0], seed.dtype), 0, grid.size, tf.int32, alg="philox"
    )
    names = tf.unique(draws).y
    in_crowd = tf.cond(tf.size(crowds) > 0, lambda: _in_crowd(grid, names, crowds), lambda: tf.zeros_like(names, tf.bool))
    negative = ~(_among(positive, names) | _among(ignored, names) | in_crowd)
    names = tf.gather(names, tf.where(negative)[: count - tf.size(candidates), 0])

    unused = [[0, count - tf.size(candidates) - tf.size(names)]]
    label = tf.concat([tf.ones_like(candidates), tf.zeros_like(names)], axis=0)
    return Sample(
        index=tf.ensure_shape(tf.pad(tf.concat([candidates, names], axis=0), unused), [count]),
        label=tf.ensure_shape(tf.pad(label, unused, constant_values=-1), [count]),
        box=tf.ensure_shape(tf.pad(boxes, [[0, count - tf.size(boxes)]]), [count]),
    )


def _among(names: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Whether each value is among the sorted names; bool like `values`."""
    return tf.gather(tf.concat([names, [-1]], axis=0), tf.searchsorted(names, values)) == values


def _in_crowd(grid: ImageGrid, names: tf.Tensor, crowds: tf.Tensor) -> tf.Tensor:
    """Whether `CROWD_SHARE` of an anchor's area lies in one of the crowds; bool [N]."""
    corners = grid.corners(names)
    low = tf.maximum(corners[:, None, :2], crowds[:, :2])  # [N, C, 2]
    high = tf.minimum(corners[:, None, 2:], crowds[:, 2:])
    inside = tf.reduce_prod(tf.maximum(high - low, 0.0), axis=2)
    area = tf.reduce_prod(corners[:, 2:] - corners[:, :2], axis=1)
    return tf.reduce_any(inside >= CROWD_SHARE * area[:, None], axis=1)
