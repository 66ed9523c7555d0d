"""The anchor grid of one image on its canvas, in TensorFlow: the grid of `anchors.py` for sizes that only the graph knows.

An anchor's name is its flat index, in the order level, row, column, ratio, on the grid of the image's own size. Its position is
its index on the canvas's grid. Cells that lie only in the padding of the canvas have no name.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from pipeline.anchors import AnchorConfig, cell_anchors

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
        """Where the same anchors lie on the canvas's grid: names [N] → int32 [N], rows of `anchors.grid` for the canvas."""
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
    """The name after the last anchor of each level, int32 [L]."""
    return tf.cumsum(shape[:, 0] * shape[:, 1] * config.anchors_per_cell)


def _starts(ends: tf.Tensor) -> tf.Tensor:
    return tf.concat([[0], ends[:-1]], axis=0)
