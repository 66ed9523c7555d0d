"""Where RoIs take their samples: the four places of a feature map around each sample, and their bilinear weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Rois:
    """N RoIs on the flat list of all places of all images and levels."""

    first: tf.Tensor  # int32 [N]: where the level of its image begins
    row_length: tf.Tensor  # int32 [N]: places from one row of that level to the next
    rows: tf.Tensor  # int32 [N], of that level on the image's canvas, at whose edges values are repeated
    columns: tf.Tensor  # int32 [N]
    corner: tf.Tensor  # float32 [N, 2], x, y of the top left corner, places
    bin: tf.Tensor  # float32 [N, 2], width and height of a bin, places

    def map(self, function: Callable[[tf.Tensor], tf.Tensor]) -> Rois:
        """The RoIs with a function applied to each field, such as a gather of some of them."""
        return Rois(*(function(getattr(self, field.name)) for field in dataclasses.fields(self)))

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
                start = tf.expand_dims(self.first, 1) + row * tf.expand_dims(self.row_length, 1)
                yield (
                    tf.expand_dims(start, 2) + tf.expand_dims(column, 1),
                    tf.expand_dims(row_weight, 2) * tf.expand_dims(column_weight, 1),
                )


def take(flat: tf.Tensor, index: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """The weighted features of places: flat [P, C], index and weight [N, S, S] → [N, S, S, C]."""
    return tf.gather(flat, index) * tf.expand_dims(tf.cast(weight, flat.dtype), -1)
