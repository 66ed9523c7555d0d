"""From a mask's 28×28 probabilities to the pixels of an image.

A mask is stretched over its person's box, and a pixel belongs to the person where the probability is 1/2 or more. The original
stretches each mask's own smallest and largest value to 0 and 255 before it compares, so that its threshold is relative: a mask
of values below 1/2 still has pixels, and one of equal values has none. `legacy_mask` does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def person_mask(probabilities: Floats, box: Floats, height: int, width: int) -> Bools:
    """The pixels of a person, bool [height, width].

    Args:
      probabilities: [S, S], rows first; box: [4], x0, y0, x1, y1 in pixels of the image, not necessarily whole.
      height, width: of the image.
    """
    size = probabilities.shape[0]
    x0, y0, x1, y1 = (float(value) for value in box)
    mask = np.zeros((height, width), bool)
    rows = np.arange(max(0, round(y0)), min(height, round(y1)))  # pixels whose middle lies within the box
    columns = np.arange(max(0, round(x0)), min(width, round(x1)))
    if not (len(rows) and len(columns)):
        return mask
    vertical = _weights(((rows + 0.5 - y0) / (y1 - y0)) * size - 0.5, size)  # [h, S]
    horizontal = _weights(((columns + 0.5 - x0) / (x1 - x0)) * size - 0.5, size)  # [w, S]
    mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = vertical @ probabilities @ horizontal.T >= 0.5
    return mask


def _weights(position: npt.NDArray[np.float64], size: int) -> Floats:
    """Bilinear weights [n, S] of S places at positions [n]; the border is repeated."""
    clipped = np.clip(position, 0, size - 1)
    return np.maximum(0.0, 1.0 - np.abs(clipped[:, np.newaxis] - np.arange(size))).astype(np.float32)


def legacy_mask(probabilities: Floats, box: Floats, height: int, width: int) -> Bools:
    """As `person_mask`, with the original's relative threshold; the box is in whole pixels."""
    x0, y0, x1, y1 = (int(value) for value in box)
    low, high = probabilities.min(), probabilities.max()
    stretched = (
        (probabilities - low) * np.float32(255.0 / np.float64(high - low)) if high > low else np.zeros_like(probabilities)
    )
    as_bytes = (np.clip(stretched, 0, 255) + np.float32(0.5)).astype(np.uint8)
    resized = np.asarray(Image.fromarray(as_bytes).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR))
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = resized >= 128
    return mask


def people_masks(answer: Mapping[str, Any], sizes: npt.NDArray[np.int32], *, legacy: bool) -> list[list[Mapping[str, Any]]]:
    """The masks of everybody found, image by image, as `run_lengths`.

    Args:
      answer: arrays of N images: `num_detections`, `boxes`, `mask_probabilities`.
      sizes: [N, 2], height and width of the images.
      legacy: whether `legacy_mask` makes them.
    """
    mask_of = legacy_mask if legacy else person_mask
    rows = zip(sizes.tolist(), answer["num_detections"], answer["boxes"], answer["mask_probabilities"], strict=True)
    return [
        [run_lengths(mask_of(mask, box, *size)) for mask, box in zip(masks[:count], boxes[:count], strict=True)]
        for size, count, boxes, masks in rows
    ]


def run_lengths(mask: Bools) -> Mapping[str, Any]:
    """A mask in COCO's compressed run lengths, as JSON holds them."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
