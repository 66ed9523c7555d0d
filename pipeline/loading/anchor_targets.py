"""Sampling anchors for the RPN's loss: a few hundred names of one image, not labels for its two hundred thousand anchors."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from pipeline.data_config import CROWD_SHARE
from pipeline.loading.image_grid import ImageGrid

DRAWS_PER_ANCHOR = 4  # draws of names for each anchor wanted; most names of a grid are negatives, so few draws are in vain


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sampled anchors, int32 [A] each.

    Attributes:
      index: their names on the image's own grid; 0 where unused.
      label: 1 positive, 0 negative, −1 unused.
      box: the matched box of a positive, else 0.
    """

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

    Negatives are drawn evenly from the image's own grid, without repetition. None of them is positive or ignored, has
    `CROWD_SHARE` of its area in a crowd, or belongs to a cell in the padding of the canvas. If the image has too few, the rest
    of the sample stays unused.

    Args:
      grid: the anchors of the image.
      matching: int32 names of the positive anchors [M], their boxes [M] and names of the ignored anchors [N], both
        kinds of names sorted. A positive whose box is −1 counts as ignored.
      crowds: float32 [C, 4] boxes of crowds in the image's pixels.
      count: A, the number of anchors.
      positive_fraction: largest share of positives.
      seed: integer [2]; the same seed draws the same anchors.
    """
    # 1. Positives: the usable ones in random order, as many as their share allows.
    positive, positive_box, ignored = matching
    usable = tf.where(positive_box >= 0)[:, 0]
    keys = tf.random.stateless_uniform(tf.shape(usable), seed, alg="philox")
    _, chosen = tf.math.top_k(keys, tf.minimum(tf.size(usable), int(count * positive_fraction)))
    chosen = tf.gather(usable, chosen)
    candidates, boxes = tf.gather(positive, chosen), tf.gather(positive_box, chosen)

    # 2. Negatives, by rejection: names are drawn from the whole grid, and those that are no negatives are dropped.
    draws = tf.random.stateless_uniform(
        [DRAWS_PER_ANCHOR * count], seed + tf.constant([1, 0], seed.dtype), 0, grid.size, tf.int32, alg="philox"
    )
    names = tf.unique(draws).y
    in_crowd = tf.cond(tf.size(crowds) > 0, lambda: _in_crowd(grid, names, crowds), lambda: tf.zeros_like(names, tf.bool))
    negative = ~(_among(positive, names) | _among(ignored, names) | in_crowd)
    names = tf.gather(names, tf.where(negative)[: count - tf.size(candidates), 0])

    # 3. Positives, negatives, unused places.
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
