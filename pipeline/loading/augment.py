"""Augmentation beyond the flip: colours (on the device, in the compiled step) and large-scale jitter (while loading).

Draws are keyed by (seed, image id), where the seed stands for the step (colours) or the epoch (jitter): no worker, replica or
compiler changes them.
"""

from __future__ import annotations

import tensorflow as tf

from pipeline.data_config import DataConfig
from pipeline.image import covered
from pipeline.loading.image_grid import Size
from pipeline.random_draws import uniform

GREY = (0.299, 0.587, 0.114)  # weights of RGB in an image's luma (ITU-R BT.601), as Pillow and torchvision have them

# Other draws use the same (seed, image id) as they are: RoIs in the step, anchors in the loader.
_COLOURS, _JITTER = 0x3C6EF372, 0x5851F42D


def jitter_colours(batch: dict[str, tf.Tensor], config: DataConfig, seed: tf.Tensor) -> dict[str, tf.Tensor]:
    """A batch whose images have other colours, each by its own draw; the batch itself if all strengths are 0.

    torchvision's ColorJitter, but in this order always: brightness, contrast, saturation, hue. The first three draw a factor
    from 1 ± strength (at least 0), hue a shift from 0 ± strength of the whole circle.

    Args:
      batch: `image` [B, H, W, 3] 0…255, `image_size` [B, 2], `image_id` [B]; B is static.
      config: `brightness`, `contrast`, `saturation`, `hue`.
      seed: int32 scalar, of the step.

    Returns:
      the batch with `image` float32, 0…255, zero outside of the images.
    """
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    if not any(strengths):
        return batch
    draws = tf.stack([uniform([4], _key(seed, image_id, _COLOURS)) for image_id in tf.unstack(batch["image_id"])])  # [B, 4]
    changes = (2.0 * draws - 1.0) * tf.constant(strengths)
    factors = tf.maximum(1.0 + changes[:, :3], 0.0)
    brightness, contrast, saturation, hue = (
        value if strength else None
        for value, strength in zip((*tf.unstack(factors, axis=1), changes[:, 3]), strengths, strict=True)
    )
    image = adjust_colours(batch["image"], batch["image_size"], brightness, contrast, saturation, hue)
    return {**batch, "image": image}


def adjust_colours(
    images: tf.Tensor,
    image_size: tf.Tensor,
    brightness: tf.Tensor | None,
    contrast: tf.Tensor | None,
    saturation: tf.Tensor | None,
    hue: tf.Tensor | None,
) -> tf.Tensor:
    """Changes the colours of images by torchvision's formulas, without rounding in between.

    Args:
      images: [B, H, W, 3], RGB, 0…255, of any type.
      image_size: int32 [B, 2], height and width of the images at the top left of their canvases.
      brightness: float32 [B], factors of all values; None: unchanged, as for the next three.
      contrast: [B], factors of the distance from the image's mean grey.
      saturation: [B], factors of the distance from each pixel's own grey.
      hue: [B], shifts of the hue in HSV as parts of the circle.

    Returns:
      float32 [B, H, W, 3], 0…255, zero outside of the images.
    """
    pixels = tf.cast(images, tf.float32)
    _, height, width, _ = tf.unstack(tf.shape(pixels)) if None in pixels.shape else pixels.shape
    inside = covered(image_size, height, width)
    if brightness is not None:
        pixels = _blend(pixels, 0.0, brightness)
    if contrast is not None:
        grey = tf.reduce_sum(tf.where(inside, _grey(pixels), 0.0), axis=(1, 2, 3))  # [B]
        mean = grey / tf.maximum(tf.cast(tf.reduce_prod(image_size, axis=1), tf.float32), 1.0)
        pixels = _blend(pixels, mean[:, None, None, None], contrast)
    if saturation is not None:
        pixels = _blend(pixels, _grey(pixels), saturation)
    if hue is not None:
        hsv = tf.image.rgb_to_hsv(pixels / 255.0)
        turned = tf.math.floormod(hsv[..., :1] + hue[:, None, None, None], 1.0)
        pixels = tf.image.hsv_to_rgb(tf.concat([turned, hsv[..., 1:]], axis=-1)) * 255.0
    return tf.where(inside, pixels, 0.0)


def _grey(pixels: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(pixels * tf.constant(GREY), axis=-1, keepdims=True)


def _blend(pixels: tf.Tensor, other: tf.Tensor | float, factor: tf.Tensor) -> tf.Tensor:
    """Factor · pixels + (1 − factor) · other, within 0…255; factors [B]."""
    factor = factor[:, None, None, None]
    return tf.clip_by_value(factor * pixels + (1.0 - factor) * other, 0.0, 255.0)


def draw_jitter(config: DataConfig, seed: tf.Tensor, image_id: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What an image draws in an epoch for large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste").

    The same as Detectron2's ResizeScale and FixedSizeCrop.

    Args:
      config: `jitter_canvas`, `jitter_scales`.
      seed: int64 scalar, of the epoch.
      image_id: int64 scalar.

    Returns:
      the longer side of the resized image in pixels, float64 scalar: `jitter_canvas` times a scale drawn evenly;
      where the crop lies, float32 [2], 0…1 of the way from the top and from the left.
    """
    draws = uniform([3], _key(seed, image_id, _JITTER))
    low, high = config.jitter_scales
    return tf.cast(low + (high - low) * draws[0], tf.float64) * config.jitter_canvas, draws[1:]


def crop_window(size: Size, canvas: Size, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The part of an image of `size` that a canvas shows: its top left corner and its height and width, int32 [2] each.

    Args:
      size, canvas: height and width in pixels.
      place: float32 [2] from `draw_jitter`.
    """
    sides, canvas_sides = tf.stack(size), tf.stack(canvas)
    spare = tf.maximum(sides - canvas_sides, 0)
    corner = tf.minimum(tf.cast(place * tf.cast(spare + 1, tf.float32), tf.int32), spare)
    return corner, tf.minimum(sides, canvas_sides)


def crop_boxes(boxes: tf.Tensor, corner: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Boxes [N, 4] in pixels of the image → in pixels of the window, clipped to it; some may have no area left."""
    corner, size = tf.cast(corner[::-1], tf.float32), tf.cast(size[::-1], tf.float32)  # x, y
    return tf.clip_by_value(boxes - tf.tile(corner, [2]), 0.0, tf.tile(size, [2]))


def crop_keypoints(keypoints: tf.Tensor, corner: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Keypoints [N, K, 3] in pixels of the window; those outside of it become unlabelled: all zeros."""
    corner, size = tf.cast(corner[::-1], tf.float32), tf.cast(size[::-1], tf.float32)  # x, y
    points = keypoints[..., :2] - corner
    inside = tf.reduce_all((points >= 0) & (points <= size), axis=-1, keepdims=True)
    return tf.where(inside & (keypoints[..., 2:] > 0), tf.concat([points, keypoints[..., 2:]], axis=-1), 0.0)


def _key(seed: tf.Tensor, image_id: tf.Tensor, purpose: int) -> tf.Tensor:
    return tf.stack([tf.bitwise.bitwise_xor(seed, purpose), tf.cast(image_id, seed.dtype)])
