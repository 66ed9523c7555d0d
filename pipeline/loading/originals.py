"""Original pixels instead of resized ones: which images are shipped so, and on which canvases.

With `data.resize_on` = "device" the loader decodes an image and ships its pixels as the file has them, on a canvas of
originals; `device_resize.py` flips, resizes and places them in the training step. An image that has many more pixels than it is
shown with is still resized while loading, and the result is shipped: its original would be more to ship. `is_shipped` is that
rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.command import UserError
from pipeline.data_config import DataConfig, ResizeRule
from pipeline.loading.epoch_plan import Pool, resized_sizes

# Pixels that an original may have for each pixel of the resized image, on the way to the device. Under torchvision's rule the
# loader's own images are floats of four bytes, so that four bytes for each are no more.
MOST_PIXELS = {"standard": 2, "torchvision": 4}


def is_shipped(height: Any, width: Any, resized_height: Any, resized_width: Any, rule: ResizeRule) -> Any:
    """Whether the device resizes an image.

    Args:
      height, width, resized_height, resized_width: pixels, int64 arrays or tensors of one shape.
      rule: the family's. Under Pillow's rules only images of which no side becomes smaller are resized on the device, since
        antialiasing needs more than the two pixels beside a place.

    Returns:
      bool, of that shape.
    """
    if rule in MOST_PIXELS:
        return height * width <= MOST_PIXELS[rule] * resized_height * resized_width
    return (height <= resized_height) & (width <= resized_width)


def canvases_of_originals(index: npt.NDArray[Any], pool: Pool, config: DataConfig) -> tuple[tuple[int, int], ...]:
    """For each canvas of the pool the canvas of originals: the smallest that holds whatever its images ship.

    There are as many as canvases, so that the device's step is compiled no more often.

    Args:
      index: of the split.

    Returns:
      height and width in pixels, in the order of `pool.canvases`.

    Raises:
      UserError: the family's images cannot be resized on the device (`why_not`).
    """
    reason = why_not(index, pool, config)
    if reason is not None:
        raise UserError(f"data.resize_on=device: {reason}; leave it at auto or set it to host")
    heights, widths = (index[side][pool.rows].astype(np.int64) for side in ("height", "width"))  # [N] each
    side = config.jitter_canvas
    edges, longest = _extremes(config)[1] if side else (config.short_edges, config.max_edge)
    resized = resized_sizes(heights, widths, edges, longest, config.resize)  # [2, N, S]
    shown = np.minimum(resized, side) if side else resized
    original = np.stack([heights, widths])[..., None]  # [2, N, 1]
    shipped = np.where(
        is_shipped(original[0], original[1], resized[0], resized[1], config.resize),
        original,
        np.minimum(shown, original) if side else shown,
    )
    largest = np.ones((2, len(pool.canvases.sizes)), np.int64)
    for axis in range(2):
        np.maximum.at(largest[axis], pool.canvas_of.ravel(), shipped[axis].ravel())
    return tuple((int(height), int(width)) for height, width in largest.T)


def why_not(index: npt.NDArray[Any], pool: Pool, config: DataConfig) -> str | None:
    """Why the images of a pool cannot be resized on the device; None if they can.

    Under torchvision's rule an image that is resized while loading is floats, which do not fit among the bytes of originals.
    """
    if config.resize != "torchvision":
        return None
    heights, widths = (index[side][pool.rows].astype(np.int64) for side in ("height", "width"))
    edges, longest = _extremes(config)[0] if config.jitter_canvas else (config.short_edges, config.max_edge)
    resized = resized_sizes(heights, widths, edges, longest, config.resize)
    too_large = ~is_shipped(heights[:, None], widths[:, None], resized[0], resized[1], config.resize)
    if not too_large.any():
        return None
    return (
        f"{int(too_large.any(axis=1).sum())} of {len(pool.rows)} images have more than {MOST_PIXELS[config.resize]} times the "
        "pixels that they are shown with under data.resize=torchvision, whose floats cannot be shipped among bytes"
    )


def resizes_on_device(index: npt.NDArray[Any], pool: Pool, config: DataConfig, *, has_gpu: bool) -> bool:
    """What `data.resize_on` means here: "auto" is the device if it is a GPU and nothing speaks against it, else the host.

    Raises:
      UserError: as `canvases_of_originals`.
    """
    if config.resize_on == "auto":
        return has_gpu and why_not(index, pool, config) is None
    if config.resize_on == "device":
        canvases_of_originals(index, pool, config)
        return True
    return False


def _extremes(config: DataConfig) -> list[tuple[tuple[int], int]]:
    """Short and long edge of an image under large-scale jitter at its smallest and at its largest."""
    low, high = (max(1, int(config.jitter_canvas * scale)) for scale in config.jitter_scales)
    return [((low,), low), ((high,), high)]
