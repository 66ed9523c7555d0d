"""Flips, resizes, crops and places a batch of original images in the training step: the loader's own pixels, from fewer bytes.

Each image has its own sizes, and all shapes are static: for each row and column of the canvas there are two rows and columns of
the original and a weight, and pixels are gathered by them, first along x, then along y, as the loader's resize does it. XLA
compiles it, and rounding is that of the loader's arithmetic: see `_held`.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from pipeline.data_config import ResizeRule
from pipeline.image import covered
from pipeline.pillow_resize import BITS

# What `source` of a batch says of each image, in this order: height and width of what was shipped, height and width that it is
# resized to, where the canvas's part begins in the resized image (y, x), and whether left and right are exchanged.
SOURCE = 7


def resize_originals(batch: dict[str, tf.Tensor], rule: ResizeRule) -> dict[str, tf.Tensor]:
    """A batch of originals → the batch that the loader makes with its own resize; any other batch is returned as it is.

    Args:
      batch: `image` uint8 [B, h, w, 3], originals top left; `canvas` uint8 [B, H, W, 0], which is empty and tells the canvas's
        size by its shape; `source` int32 [B, 7]; `image_size` int32 [B, 2].
      rule: the family's.

    Returns:
      the batch with `image` [B, H, W, 3] of `image.pixel_dtype(rule)`, without `canvas` and `source`.
    """
    if "source" not in batch:
        return batch
    rest = {name: value for name, value in batch.items() if name not in ("canvas", "source")}
    canvas = batch["canvas"]
    _, height, width, _ = tf.unstack(tf.shape(canvas)) if None in canvas.shape else canvas.shape
    sizes = batch["source"]
    zero = tf.minimum(tf.reduce_min(sizes), 0)
    columns = _Places.along(sizes[:, 1], sizes[:, 3], sizes[:, 5], width, rule, zero).mirrored(sizes[:, 6] > 0, sizes[:, 1])
    rows = _Places.along(sizes[:, 0], sizes[:, 2], sizes[:, 4], height, rule, zero)
    if rule in ("detectron2", "matterport"):
        wide = _by_bytes(batch["image"], columns, axis=2)  # [B, h, W, 3]
        resized = _by_bytes(wide, rows, axis=1)  # [B, H, W, 3]
    else:
        half = 0.0 if rule == "torchvision" else 0.5  # as in `image.resize`, which adds it to the source
        wide = _by_floats(batch["image"], columns, 2, half, zero)
        resized = _by_floats(wide, rows, 1, 0.0, zero)
        resized = resized if rule == "torchvision" else tf.cast(resized, tf.uint8)
    shown = tf.where(covered(batch["image_size"], height, width), resized, tf.zeros([], resized.dtype))
    return {**rest, "image": tf.ensure_shape(shown, [*canvas.shape[:3], 3])}


@dataclasses.dataclass(frozen=True)
class _Places:
    """Which places of an axis of the original make up those of the canvas.

    Attributes:
      lower, upper: int32 [B, N], the two pixels beside the place.
      weight: of the upper one, [B, N]: float32, or int32 in units of 2^-BITS under Pillow's rule.
    """

    lower: tf.Tensor
    upper: tf.Tensor
    weight: tf.Tensor

    @staticmethod
    def along(
        before: tf.Tensor, after: tf.Tensor, start: tf.Tensor, number: int | tf.Tensor, rule: ResizeRule, zero: tf.Tensor
    ) -> _Places:
        """The places start, start + 1, … of an axis of `after` pixels, in one of `before` pixels.

        Args:
          before, after, start: int32 [B].
          number: N, of places. Those beyond the end are of no use, and lie somewhere in the image.
        """
        before, after = tf.maximum(before, 1), tf.maximum(after, 1)  # (a padding image has none)
        place = tf.minimum(start[:, None] + tf.range(number), after[:, None] - 1)  # [B, N]
        scale = tf.cast(before, tf.float64) / tf.cast(after, tf.float64)  # some devices divide float32 by approximation
        last = before[:, None] - 1
        if rule in ("detectron2", "matterport"):  # `pillow_resize` of an image that does not shrink
            source = (tf.cast(place, tf.float64) + 0.5) * scale[:, None] - 0.5
            floor = tf.floor(source)
            weight = tf.cast((source - floor) * (1 << BITS) + 0.5, tf.int32)
        else:
            scale32 = tf.cast(scale, tf.float32)
            source = _held((tf.cast(place, tf.float32) + 0.5) * scale32[:, None], zero) - 0.5
            floor = tf.floor(source)
            weight = source - floor
        lower = tf.cast(floor, tf.int32)
        return _Places(tf.clip_by_value(lower, 0, last), tf.clip_by_value(lower + 1, 0, last), weight)

    def mirrored(self, flipped: tf.Tensor, before: tf.Tensor) -> _Places:
        """The same places of images that are read from the right; flipped [B] says which."""
        last = tf.maximum(before, 1)[:, None] - 1

        def mirror(index: tf.Tensor) -> tf.Tensor:
            return tf.where(flipped[:, None], last - index, index)

        return _Places(mirror(self.lower), mirror(self.upper), self.weight)

    def of(self, pixels: tf.Tensor, axis: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The pixels beside each place along an axis, [B, …, N, …] each, and the weights, which fit them."""
        lower, upper = (tf.gather(pixels, index, axis=axis, batch_dims=1) for index in (self.lower, self.upper))
        return lower, upper, self.weight[:, :, None, None] if axis == 1 else self.weight[:, None, :, None]


def _by_floats(pixels: tf.Tensor, places: _Places, axis: int, half: float, zero: tf.Tensor) -> tf.Tensor:
    """TensorFlow's bilinear resize of an axis; float32."""
    lower, upper, weight = places.of(pixels, axis)
    lower, upper = tf.cast(lower, tf.float32) + half, tf.cast(upper, tf.float32) + half
    return lower + _held((upper - lower) * weight, zero)


def _by_bytes(pixels: tf.Tensor, places: _Places, axis: int) -> tf.Tensor:
    """Pillow's bilinear resize of an axis that does not shrink, in whole numbers; uint8 → uint8."""
    lower, upper, weight = places.of(pixels, axis)
    lower, upper = tf.cast(lower, tf.int32), tf.cast(upper, tf.int32)
    total = lower * ((1 << BITS) - weight) + upper * weight + (1 << (BITS - 1))
    return tf.cast(tf.bitwise.right_shift(total, BITS), tf.uint8)


def _held(product: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    """A float32 product, rounded before it is added to.

    Compilers join a product and a sum into one instruction that rounds once. At common scales many pixels lie half way between
    two values, and such a pixel would fall to the other side. They cannot join what goes through a whole number to which
    something unknown is added.

    Args:
      zero: int32 scalar that is 0, which the compiler must not know.
    """
    return tf.bitcast(tf.bitcast(product, tf.int32) + zero, tf.float32)
