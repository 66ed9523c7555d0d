"""The anchor grid, and matching boxes to it.

An anchor's name is its flat index in the order level, row, column, ratio on the grid of one resized image. `match` is computed
once per image and variant when records are made; training only maps names to the canvas at hand (`to_canvas`).
Boxes are x0, y0, x1, y1 in pixels of the resized image. IoU is computed in float32 in one fixed order of operations, so that
the same formula in TensorFlow gives the same bits.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.command import UserError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
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
                f"anchor sizes {list(self.sizes)}: one for each of the levels, whose strides are {list(self.strides)}"
            )
        # Below 2 pixels the rounded corners of an elongated anchor would enclose nothing.
        if not all(stride >= 1 for stride in self.strides) or not all(2 <= size < 1e4 for size in self.sizes):
            raise UserError(f"anchor strides {list(self.strides)}, sizes {list(self.sizes)}: sizes must lie in 2…10000 pixels")
        if not self.aspect_ratios or not all(0.1 <= ratio <= 10 for ratio in self.aspect_ratios):
            raise UserError(f"anchor aspect ratios {list(self.aspect_ratios)}: at least one, each height/width in 0.1…10")
        if not 0 < self.negative_iou <= self.positive_iou <= 1:
            raise UserError(f"anchor IoU thresholds {self.negative_iou}, {self.positive_iou}: 0 < negative ≤ positive ≤ 1")

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


def num_anchors(config: AnchorConfig, height: int, width: int) -> int:
    return config.anchors_per_cell * sum(rows * columns for rows, columns in level_shapes(config, height, width))


def grid(config: AnchorConfig, height: int, width: int, canvas_hw: tuple[int, int] | None = None) -> Float32:
    """All anchors of an image, float32 [A, 4], in the order of their names; centres at multiples of the stride."""
    levels = []
    shapes, strides = level_shapes(config, height, width, canvas_hw), level_strides(config, canvas_hw or (height, width))
    for cell, (rows, columns), (down, right) in zip(cell_anchors(config), shapes, strides, strict=True):
        y, x = np.meshgrid(np.arange(rows) * down, np.arange(columns) * right, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1).astype(np.float32)  # [rows, columns, 4]
        levels.append((centres[:, :, None] + cell).reshape(-1, 4))
    return np.concatenate(levels)


def to_canvas(config: AnchorConfig, index: Int64, image_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> Int64:
    """Names of anchors on an image's grid → positions of the same anchors on the grid of the canvas that holds it top left."""
    ratios = config.anchors_per_cell
    level, row, column, ratio = _locate(config, index, image_hw, canvas_hw)
    canvas, start = _levels(config, canvas_hw, canvas_hw)
    return np.asarray(start[level] + (row * canvas[level, 1] + column) * ratios + ratio, np.int64)


def corners(config: AnchorConfig, names: Int64, height: int, width: int) -> Float32:
    """Names of anchors [N] on the grid of an image of that size → their boxes, float32 [N, 4]: rows of `grid`."""
    level, row, column, ratio = _locate(config, names, (height, width), (height, width))
    strides = np.array(level_strides(config, (height, width)), np.int64)[level, ::-1]  # [N, 2] as x, y
    centre = np.stack([column, row], axis=1) * strides
    return np.asarray(np.tile(centre, 2).astype(np.float32) + cell_anchors(config)[level, ratio])


def _levels(config: AnchorConfig, size: tuple[int, int], canvas_hw: tuple[int, int]) -> tuple[Int64, Int64]:
    """Rows and columns of each level [L, 2], and the name of its first anchor [L]."""
    shapes = np.array(level_shapes(config, *size, canvas_hw), np.int64)
    return shapes, np.cumsum([0, *(config.anchors_per_cell * shapes.prod(axis=1))])[:-1]


def _locate(
    config: AnchorConfig, names: Int64, size: tuple[int, int], canvas_hw: tuple[int, int]
) -> tuple[Int64, Int64, Int64, Int64]:
    """Level, row, column and ratio of anchors [N]."""
    shapes, start = _levels(config, size, canvas_hw)
    level = np.searchsorted(start, names, side="right") - 1
    cell, ratio = np.divmod(names - start[level], config.anchors_per_cell)
    row, column = np.divmod(cell, shapes[level, 1])
    return level, row, column, ratio


# The smallest float32 with all its digits. Below it equal overlaps may differ, and devices take it for 0.
LEAST_IOU = np.finfo(np.float32).tiny


def iou(boxes: Float32, others: Float32) -> Float32:
    """Intersection over union, float32 [..., 4] with [..., 4] (broadcast) → [...]. The order of operations is fixed."""
    overlap = np.maximum(
        np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2]), np.float32(0)
    )
    return _iou(overlap[..., 0], overlap[..., 1], _area(boxes), _area(others))


def _area(boxes: Float32) -> Float32:
    return np.asarray((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def _iou(overlap_x: Float32, overlap_y: Float32, area: Float32, other_area: Float32) -> Float32:
    intersection = overlap_x * overlap_y
    return np.asarray(intersection / ((area + other_area) - intersection))


def match_dense(
    config: AnchorConfig, boxes: Float32, height: int, width: int, canvas_hw: tuple[int, int] | None = None
) -> Matching:
    """The definition of the matching: every anchor against every box. Same arguments and result as `match`."""
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


def match(config: AnchorConfig, boxes: Float32, height: int, width: int) -> Matching:
    """Matches the anchors of one image as torchvision and Detectron2 do.

    Positive: IoU ≥ `positive_iou` with some box, or no smaller IoU with a box than any other anchor (ties included;
    if not 0, or so small that float32 loses its digits).
    Ignored: the others whose IoU with some box is ≥ `negative_iou`. All else is negative.

    Args:
      boxes: float32 [P, 4], in pixels of the resized image.
      height, width: of the resized image.
    """
    return match_variants(config, boxes[None], np.array([[height, width]]))[0]


def match_variants(config: AnchorConfig, boxes: Float32, sizes: Int64 | Sequence[tuple[int, int]]) -> list[Matching]:
    """`match` for V variants of one image at once, since small arrays cost as much as no arrays.

    Only anchors that can reach an IoU of min(negative_iou, the box's best) are looked at:

    - The overlap of a box with anchors of one shape (level, ratio) falls off on both sides of the box's centre, in x and in y,
      and the IoU grows with the product of the two. So the best IoU of a box with a shape needs only the two columns and the
      two rows nearest to its centre.
    - An IoU of t needs an intersection of t/(1+t) · (sum of both areas). That bounds the rows; then, row by row, the columns.

    Args:
      boxes: float32 [V, P, 4], in pixels of each variant.
      sizes: int [V, 2], height and width of each variant.

    Returns:
      V matchings, equal to `match_dense` of each.
    """
    sizes = np.asarray(sizes, np.int64)
    empty = np.zeros(0, np.int64)
    if boxes.shape[1] == 0:
        return [Matching(empty, empty, empty)] * len(boxes)
    if not config.rounded or config.canvas_strides:
        # Equal overlaps differ in the last bit from cell to cell then, so the nearest two do not tell the best IoU.
        return [match_dense(config, of_one, int(h), int(w)) for of_one, (h, w) in zip(boxes, sizes, strict=True)]
    shapes = _Shapes.of(config, sizes)
    variant, box, name, value, is_best = _candidates(config, shapes, boxes)
    if len(name) == 0:
        return [Matching(empty, empty, empty)] * len(boxes)

    # Group the candidates by anchor. They come ordered by box, and sorting (name, position) keeps that order within a group.
    position = np.sort((shapes.variant_start[variant] + name) << 32 | np.arange(len(name)))
    name_of_all = position >> 32
    position &= 0xFFFFFFFF
    starts = np.flatnonzero(np.concatenate([[True], name_of_all[1:] != name_of_all[:-1]]))
    value = value[position]
    largest = np.maximum.reduceat(value, starts)  # [anchors]
    positive = (largest >= np.float32(config.positive_iou)) | np.logical_or.reduceat(is_best[position], starts)

    # The first candidate of each group that has the largest IoU.
    group = np.repeat(np.arange(len(starts)), np.diff(np.concatenate([starts, [len(value)]])))
    tops = np.flatnonzero(value == largest[group])
    tops = tops[np.concatenate([[True], group[tops][1:] != group[tops][:-1]])]
    anchor_box = box[position[tops]]
    anchor_variant = variant[position[tops]]
    anchor_name = name[position[tops]]
    # An anchor that is best for a tiny box may overlap another box more, by less than negative_iou: not among the candidates.
    low = np.flatnonzero(largest < np.float32(config.negative_iou))
    corners = shapes.corners(anchor_variant[low], anchor_name[low])
    anchor_box[low] = iou(corners[:, None], boxes[anchor_variant[low]]).argmax(axis=1)

    results = []
    ends = np.searchsorted(anchor_variant, np.arange(len(boxes) + 1))
    for begin, end in itertools.pairwise(ends):
        chosen, names = positive[begin:end], anchor_name[begin:end]
        results.append(Matching(names[chosen], anchor_box[begin:end][chosen], names[~chosen]))
    return results


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """The S = levels × ratios shapes of anchors and where they lie in V variants."""

    ratios: int
    cells: Float32  # [S, 4] around the origin
    areas: Float32  # [S]
    strides: Int64  # [S]
    counts: Int64  # [2, V, S] columns, rows
    starts: Int64  # [V, S] name of a shape's first anchor
    variant_start: Int64  # [V] added to names to tell variants apart

    @staticmethod
    def of(config: AnchorConfig, sizes: Int64) -> _Shapes:
        ratios = config.anchors_per_cell
        cells = cell_anchors(config).reshape(-1, 4)
        strides = np.repeat(np.array(config.strides, np.int64), ratios)
        counts = -(-sizes.T[::-1, :, None] // strides)
        level_sizes = ratios * (counts[0] * counts[1])[:, ::ratios]  # [V, L]
        ends = np.cumsum(level_sizes, axis=1)
        starts = np.repeat(ends - level_sizes, ratios, axis=1) + np.tile(np.arange(ratios), len(config.strides))
        totals = np.cumsum(ends[:, -1])
        return _Shapes(ratios, cells, _area(cells), strides, counts, starts, totals - ends[:, -1])

    def corners(self, variant: Int64, name: Int64) -> Float32:
        """Variants [N] and names of anchors [N] → float32 [N, 4]."""
        first = (self.starts[variant, :: self.ratios] <= name[:, None]).sum(axis=1) * self.ratios - self.ratios
        cell, ratio = np.divmod(name - self.starts[variant, first], self.ratios)
        shape = first + ratio
        row, column = np.divmod(cell, self.counts[0, variant, shape])
        centre = (np.stack([column, row, column, row], axis=1) * self.strides[shape][:, None]).astype(np.float32)
        return np.asarray(centre + self.cells[shape])


def _overlap(index: Int64, strides: Int64, cell_low: Float32, cell_high: Float32, low: Float32, high: Float32) -> Float32:
    """Length of the overlap, along one axis, of boxes low…high with the anchors of cells `index`."""
    centre = (index * strides).astype(np.float32)
    return np.asarray(np.maximum(np.minimum(centre + cell_high, high) - np.maximum(centre + cell_low, low), np.float32(0)))


def _expand(first: Int64, last: Int64) -> tuple[Int64, Int64]:
    """Ranges first…last (inclusive, perhaps empty) → for each element the number of its range, and the element."""
    lengths = np.maximum(last - first + 1, 0)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.cumsum(lengths) - lengths
    return owner, np.arange(len(owner)) + (first - begins)[owner]


def _cells_overlapping(
    needed: Float64, low: Float32, high: Float32, cell_low: Float32, cell_high: Float32, strides: Int64, counts: Int64
) -> tuple[Int64, Int64]:
    """First and last cell along one axis whose anchors overlap low…high by `needed` (or, after rounding, almost)."""
    first = np.ceil((low + needed - cell_high) / strides - 1e-5).astype(np.int64)
    last = np.floor((high - needed - cell_low) / strides + 1e-5).astype(np.int64)
    return np.maximum(first, 0), np.minimum(last, counts - 1)


def _candidates(
    config: AnchorConfig, shapes: _Shapes, boxes: Float32
) -> tuple[Int64, Int64, Int64, Float32, NDArray[np.bool_]]:
    """Pairs of box and anchor with IoU ≥ negative_iou or the box's best: variant, box, anchor, IoU, whether it is the best."""
    negative = np.float32(config.negative_iou)
    low = np.moveaxis(boxes[..., :2], -1, 0)[..., None]  # [2, V, P, 1] as x, y
    high = np.moveaxis(boxes[..., 2:], -1, 0)[..., None]
    cell_low = shapes.cells.T[:2, None, None]  # [2, 1, 1, S]
    cell_high = shapes.cells.T[2:, None, None]
    counts = shapes.counts[:, :, None]  # [2, V, 1, S]
    areas = _area(boxes)  # [V, P]

    near = np.floor((low.astype(np.float64) + high) / 2 / shapes.strides).astype(np.int64)  # [2, V, P, S]
    best_overlap = np.maximum(
        *(_overlap(np.clip(at, 0, counts - 1), shapes.strides, cell_low, cell_high, low, high) for at in (near, near + 1))
    )
    best_of_shape = _iou(best_overlap[0], best_overlap[1], shapes.areas, areas[..., None])  # [V, P, S]
    best = best_of_shape.max(axis=-1)  # [V, P]
    wanted = np.minimum(best, negative)

    variant, box, shape = np.nonzero((best_of_shape >= wanted[..., None]) & (best >= LEAST_IOU)[..., None])  # [N]
    threshold = wanted[variant, box].astype(np.float64)
    area = areas[variant, box]
    # A little less than what an IoU of `threshold` needs, against rounding.
    needed = threshold / (1 + threshold) * (area.astype(np.float64) + shapes.areas[shape]) * (1 - 1e-5)
    x0, y0, x1, y1 = boxes[variant, box].T
    cell_x0, cell_y0, cell_x1, cell_y1 = shapes.cells[shape].T
    strides = shapes.strides[shape]
    columns, rows = shapes.counts[:, variant, shape]

    needed_y = needed / best_overlap[0][variant, box, shape]
    owner, row = _expand(*_cells_overlapping(needed_y, y0, y1, cell_y0, cell_y1, strides, rows))
    overlap_y = _overlap(row, strides[owner], cell_y0[owner], cell_y1[owner], y0[owner], y1[owner])
    needed_x = needed[owner] / np.maximum(overlap_y, np.float32(1e-6))
    segment, column = _expand(
        *_cells_overlapping(needed_x, x0[owner], x1[owner], cell_x0[owner], cell_x1[owner], strides[owner], columns[owner])
    )
    first_name = shapes.starts[variant, shape][owner] + row * columns[owner] * shapes.ratios  # of each row's segment
    name = first_name[segment] + column * shapes.ratios
    pair = owner[segment]
    overlap_x = _overlap(column, strides[pair], cell_x0[pair], cell_x1[pair], x0[pair], x1[pair])
    value = _iou(overlap_x, overlap_y[segment], shapes.areas[shape][pair], area[pair])
    is_best = value == best[variant, box][pair]
    kept = (value >= negative) | is_best
    pair = pair[kept]
    return variant[pair], box[pair], name[kept], value[kept], is_best[kept]
