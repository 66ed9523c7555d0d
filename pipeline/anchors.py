"""The anchor grid: which anchors an image has, what they are called, and which boxes they match.

An anchor is a box of a fixed size around the centre of a cell. Its name is its flat index in the order level, row, column,
ratio on the grid of one resized image, so that one record serves every canvas that the image may lie on. `match` defines which
anchors are positive, ignored and negative; it is computed for each variant of an image when records are written.
Boxes are float32 x0, y0, x1, y1 in pixels of the resized image. IoU is computed in float32 in one fixed order of operations, so
that the same formula in TensorFlow gives the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.command import UserError

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """The grid P2…P6 and the thresholds of the matching.

    Attributes:
      strides: pixels between centres, one a level, finest first.
      sizes: square root of the anchors' area in pixels, one a level.
      aspect_ratios: height / width.
      positive_iou: an anchor whose largest IoU with a box reaches this is positive.
      negative_iou: below this it is negative, and between the two ignored.
      rounded: corners around the centre are whole pixels, so that ties are exact in any arithmetic.
      canvas_strides: the centres' distance is (canvas side) // (cells along it) instead of `strides`, as torchvision has it:
        on P6 that is less than 64 where P5 has an odd number of cells. Anchors then belong to a canvas, not to an image.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    rounded: bool = True
    canvas_strides: bool = False

    def __post_init__(self) -> None:
        if not self.strides or len(self.strides) != len(self.sizes):
            raise UserError(
                f"--anchor_sizes, anchors.sizes={list(self.sizes)}: must be one for each level, whose strides are "
                f"{list(self.strides)}"
            )
        # Below 2 pixels the rounded corners of an elongated anchor would enclose nothing.
        if not all(stride >= 1 for stride in self.strides) or not all(2 <= size < 1e4 for size in self.sizes):
            raise UserError(
                f"--anchor_sizes, anchors.sizes={list(self.sizes)}: must be from 2 to 10000 pixels "
                f"(and anchors.strides={list(self.strides)} 1 or more)"
            )
        if not self.aspect_ratios or not all(0.1 <= ratio <= 10 for ratio in self.aspect_ratios):
            raise UserError(
                f"anchors.aspect_ratios={list(self.aspect_ratios)}: must be one or more, each height/width from 0.1 to 10"
            )
        if not 0 < self.negative_iou <= self.positive_iou <= 1:
            raise UserError(
                f"anchors.negative_iou={self.negative_iou}, anchors.positive_iou={self.positive_iou}: must be "
                "0 < negative ≤ positive ≤ 1"
            )

    @property
    def anchors_per_cell(self) -> int:
        return len(self.aspect_ratios)

    def to_json(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> AnchorConfig:
        return AnchorConfig(
            strides=tuple(int(v) for v in value["strides"]),
            sizes=tuple(float(v) for v in value["sizes"]),
            aspect_ratios=tuple(float(v) for v in value["aspect_ratios"]),
            positive_iou=float(value["positive_iou"]),
            negative_iou=float(value["negative_iou"]),
            rounded=bool(value.get("rounded", True)),  # records written before these were options have neither
            canvas_strides=bool(value.get("canvas_strides", False)),
        )


@dataclasses.dataclass(frozen=True)
class Matching:
    """Anchors of one variant that are not plain negatives.

    Attributes:
      positive: int64 [M], sorted names of the positive anchors.
      positive_box: int64 [M], for each the box with which its IoU is largest (the first of equals).
      ignored: int64 [N], sorted names of the anchors that are neither positive nor negative.
    """

    positive: Int64
    positive_box: Int64
    ignored: Int64


def variant_boxes(boxes: Float32, height: int, width: int, *, flipped: bool) -> Float32:
    """Boxes of a record in pixels of one variant of its image.

    Args:
      boxes: float32 [P, 4], x0, y0, x1, y1 as fractions of the image's width and height.
      height, width: of the resized image.
      flipped: mirrors the boxes, x → width − x.
    """
    pixels = boxes * np.array([width, height, width, height], np.float32)  # [P, 4]
    if flipped:
        pixels = np.stack(
            [np.float32(width) - pixels[:, 2], pixels[:, 1], np.float32(width) - pixels[:, 0], pixels[:, 3]], axis=1
        )
    return pixels


def cell_anchors(config: AnchorConfig) -> Float32:
    """Anchors around the origin, float32 [levels, ratios, 4]; corners are whole pixels (half to even) if `rounded`."""
    sizes = np.array(config.sizes)[:, None]  # [L, 1]
    root = np.sqrt(np.array(config.aspect_ratios))  # [R]
    half = np.stack([sizes / root, sizes * root], axis=-1) / 2  # [L, R, 2] as x, y
    corners = np.concatenate([-half, half], axis=-1)
    # (0.0 is added so that no corner is −0.)
    return ((np.round(corners) if config.rounded else corners) + 0.0).astype(np.float32)


def level_strides(config: AnchorConfig, canvas_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Pixels between centres of each level on a canvas, along y and x."""
    if not config.canvas_strides:
        return tuple((stride, stride) for stride in config.strides)
    height, width = canvas_hw
    return tuple((height // -(-height // stride), width // -(-width // stride)) for stride in config.strides)


def level_shapes(
    config: AnchorConfig, height: int, width: int, canvas_hw: tuple[int, int] | None = None
) -> tuple[tuple[int, int], ...]:
    """Rows and columns of cells of each level, for an image at the top left of a canvas (by default of its own size)."""
    canvas_height, canvas_width = canvas_hw = canvas_hw or (height, width)
    return tuple(
        (min(-(-height // down), -(-canvas_height // stride)), min(-(-width // right), -(-canvas_width // stride)))
        for stride, (down, right) in zip(config.strides, level_strides(config, canvas_hw), strict=True)
    )


def grid(config: AnchorConfig, height: int, width: int, canvas_hw: tuple[int, int] | None = None) -> Float32:
    """All anchors of an image, float32 [A, 4], in the order of their names; centres at multiples of the stride."""
    levels = []
    shapes, strides = level_shapes(config, height, width, canvas_hw), level_strides(config, canvas_hw or (height, width))
    for cell, (rows, columns), (down, right) in zip(cell_anchors(config), shapes, strides, strict=True):
        y, x = np.meshgrid(np.arange(rows) * down, np.arange(columns) * right, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1).astype(np.float32)  # [rows, columns, 4]
        levels.append((centres[:, :, None] + cell).reshape(-1, 4))
    return np.concatenate(levels)


def corners(config: AnchorConfig, names: Int64, height: int, width: int) -> Float32:
    """The boxes of anchors by their names [N] on the grid of an image of that size: float32 [N, 4], rows of `grid`."""
    shapes = np.array(level_shapes(config, height, width), np.int64)  # [L, 2]
    first = np.cumsum([0, *(config.anchors_per_cell * shapes.prod(axis=1))])[:-1]  # [L]: the name of a level's first anchor
    level = np.searchsorted(first, names, side="right") - 1  # [N]
    cell, ratio = np.divmod(names - first[level], config.anchors_per_cell)
    row, column = np.divmod(cell, shapes[level, 1])
    strides = np.array(level_strides(config, (height, width)), np.int64)[level, ::-1]  # [N, 2] as x, y
    centre = np.stack([column, row], axis=1) * strides
    return np.asarray(np.tile(centre, 2).astype(np.float32) + cell_anchors(config)[level, ratio])


# The smallest float32 with all its digits. Below it equal overlaps may differ, and devices take it for 0.
LEAST_IOU = np.finfo(np.float32).tiny


def iou(boxes: Float32, others: Float32) -> Float32:
    """Intersection over union, float32 [..., 4] with [..., 4] (broadcast) → [...]. The order of operations is fixed."""
    overlap = np.maximum(
        np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2]), np.float32(0)
    )
    return iou_of_overlap(overlap[..., 0], overlap[..., 1], box_areas(boxes), box_areas(others))


def iou_of_overlap(overlap_x: Float32, overlap_y: Float32, areas: Float32, other_areas: Float32) -> Float32:
    """The IoU of two boxes that share `overlap_x` by `overlap_y` pixels; all arguments broadcast."""
    intersection = overlap_x * overlap_y
    return np.asarray(intersection / ((areas + other_areas) - intersection))


def box_areas(boxes: Float32) -> Float32:
    """Float32 [..., 4] → [...], square pixels."""
    return np.asarray((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def match(config: AnchorConfig, boxes: Float32, height: int, width: int, canvas_hw: tuple[int, int] | None = None) -> Matching:
    """The definition of the matching, as torchvision and Detectron2 have it: the IoU of every anchor with every box.

    Positive: IoU ≥ `positive_iou` with some box, or no smaller IoU with a box than any other anchor has (ties included; a best
    IoU below `LEAST_IOU` makes no anchor positive). Ignored: the others whose IoU with some box is ≥ `negative_iou`. All other
    anchors are negative.

    This takes some 20 ms an image. `anchor_matching.match_variants` (for conversion) and `loading.online_matching.match` (for
    training) give the same answer in a fraction of that; tests hold both to this function.

    Args:
      boxes: float32 [P, 4], in pixels of the resized image.
      height, width: of the resized image.
      canvas_hw: of the canvas that holds the image top left; by default the image itself.
    """
    empty = np.zeros(0, np.int64)
    if len(boxes) == 0:
        return Matching(empty, empty, empty)
    table = iou(grid(config, height, width, canvas_hw)[:, None], boxes[None])  # [A, P]
    largest = table.max(axis=1)  # [A]
    best = table.max(axis=0)  # [P]
    positive = (largest >= np.float32(config.positive_iou)) | ((table == best) & (best >= LEAST_IOU)).any(axis=1)
    ignored = (largest >= np.float32(config.negative_iou)) & ~positive
    names = np.flatnonzero(positive)
    return Matching(names, table[names].argmax(axis=1), np.flatnonzero(ignored))
