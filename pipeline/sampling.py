"""Sampling anchors for the loss of the RPN: a few hundred names instead of labels for two hundred thousand anchors.

All in TensorFlow, on one image. Names and positions of anchors are those of `anchors.py`.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from pipeline import anchors

CROWD_SHARE = 0.7  # an anchor that lies in a crowd with this share of its area is not a negative
DRAWS_PER_ANCHOR = 4  # negatives are found by rejection with a fixed number of draws; few are in vain


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sampled anchors: int32 [A] each. `label` is 1, 0 or −1 for unused; `box` the matched box of a positive, else 0."""

    index: tf.Tensor
    label: tf.Tensor
    box: tf.Tensor


def sample(
    config: anchors.AnchorConfig,
    matching: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    crowds: tf.Tensor,
    image_size: tuple[tf.Tensor, tf.Tensor],
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
      config: the grid.
      matching: int32 names of the positive anchors [M], their boxes [M] and names of the ignored anchors [N], both
        kinds of names sorted. A positive whose box is −1 counts as ignored.
      crowds: float32 [C, 4] boxes of crowds in the image's pixels.
      image_size: int32 height and width.
      count: A, the number of anchors.
      positive_fraction: largest share of positives.
      seed: integer [2]; the same seed draws the same anchors.

    Returns:
      names on the image's own grid.
    """
    positive, positive_box, ignored = matching
    usable = positive_box >= 0
    candidates, boxes = tf.boolean_mask(positive, usable), tf.boolean_mask(positive_box, usable)
    keys = tf.random.stateless_uniform(tf.shape(candidates), seed, alg="philox")
    _, chosen = tf.math.top_k(keys, tf.minimum(tf.size(candidates), int(count * positive_fraction)))
    candidates, boxes = tf.gather(candidates, chosen), tf.gather(boxes, chosen)

    _, ends = _grid(config, image_size)
    draws = tf.random.stateless_uniform(
        [DRAWS_PER_ANCHOR * count], seed + tf.constant([1, 0], seed.dtype), 0, ends[-1], tf.int32, alg="philox"
    )
    names = tf.unique(draws).y
    negative = ~(_among(positive, names) | _among(ignored, names) | _in_crowd(config, names, image_size, crowds))
    names = tf.boolean_mask(names, negative)[: count - tf.size(candidates)]

    unused = [[0, count - tf.size(candidates) - tf.size(names)]]
    label = tf.concat([tf.ones_like(candidates), tf.zeros_like(names)], axis=0)
    return Sample(
        index=tf.ensure_shape(tf.pad(tf.concat([candidates, names], axis=0), unused), [count]),
        label=tf.ensure_shape(tf.pad(label, unused, constant_values=-1), [count]),
        box=tf.ensure_shape(tf.pad(boxes, [[0, count - tf.size(boxes)]]), [count]),
    )


def to_canvas(
    config: anchors.AnchorConfig, index: tf.Tensor, image_size: tuple[tf.Tensor, tf.Tensor], canvas: tuple[tf.Tensor, tf.Tensor]
) -> tf.Tensor:
    """`anchors.to_canvas` in TensorFlow: int32 [N] names on the image's grid → positions on the canvas's grid."""
    level, row, column, ratio = _locate(config, index, image_size)
    columns, ends = _grid(config, canvas)
    starts = tf.concat([[0], ends[:-1]], axis=0)
    cell = row * tf.gather(columns, level) + column
    return tf.gather(starts, level) + cell * config.anchors_per_cell + ratio


def _grid(config: anchors.AnchorConfig, size: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Of each level the number of columns and the name after its last anchor, int32 [L]."""
    strides = tf.constant(config.strides, tf.int32)
    rows, columns = (-(-side // strides) for side in size)
    return columns, tf.cumsum(rows * columns * config.anchors_per_cell)


def _locate(
    config: anchors.AnchorConfig, index: tf.Tensor, size: tuple[tf.Tensor, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Level, row, column and ratio of anchors, int32 [N] each."""
    columns, ends = _grid(config, size)
    level = tf.searchsorted(ends, index, side="right")
    within = index - tf.gather(tf.concat([[0], ends[:-1]], axis=0), level)
    cell, ratio = within // config.anchors_per_cell, within % config.anchors_per_cell
    columns = tf.gather(columns, level)
    return level, cell // columns, cell % columns, ratio


def _among(names: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Whether each value is among the sorted names; bool like `values`."""
    return tf.gather(tf.concat([names, [-1]], axis=0), tf.searchsorted(names, values)) == values


def _in_crowd(
    config: anchors.AnchorConfig, index: tf.Tensor, size: tuple[tf.Tensor, tf.Tensor], crowds: tf.Tensor
) -> tf.Tensor:
    """Whether `CROWD_SHARE` of an anchor's area lies in one of the crowds; bool [N]."""
    level, row, column, ratio = _locate(config, index, size)
    cells = tf.gather_nd(tf.constant(anchors.cell_anchors(config)), tf.stack([level, ratio], axis=1))  # [N, 4]
    centre = tf.cast(
        tf.stack([column, row], axis=1) * tf.gather(tf.constant(config.strides, tf.int32), level)[:, None], tf.float32
    )
    corners = cells + tf.tile(centre, [1, 2])
    low = tf.maximum(corners[:, None, :2], crowds[:, :2])  # [N, C, 2]
    high = tf.minimum(corners[:, None, 2:], crowds[:, 2:])
    inside = tf.reduce_prod(tf.maximum(high - low, 0.0), axis=2)
    area = tf.reduce_prod(cells[:, 2:] - cells[:, :2], axis=1)
    return tf.reduce_any(inside >= CROWD_SHARE * area[:, None], axis=1)
