"""The matching of an image's variants, in the time that the answer needs: `anchors.match` without looking at every anchor.

An image has 200,000 anchors and a few hundred of them are not plain negatives. Only anchors that can reach an IoU of
min(negative_iou, the box's best) are looked at:

- The overlap of a box with anchors of one shape (level, ratio) falls off on both sides of the box's centre, in x and in y, and
  the IoU grows with the product of the two. So the best IoU of a box with a shape needs only the two columns and the two rows
  nearest to its centre.
- An IoU of t needs an intersection of t/(1+t) · (sum of both areas). That bounds the rows; then, row by row, the columns.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.anchors import (
    LEAST_IOU,
    AnchorConfig,
    Float32,
    Int64,
    Matching,
    box_areas,
    cell_anchors,
    iou,
    iou_of_overlap,
    match,
)

Float64 = NDArray[np.float64]


def match_variants(config: AnchorConfig, boxes: Float32, sizes: Int64 | Sequence[tuple[int, int]]) -> list[Matching]:
    """Matches the anchors of V variants of one image at once, since small arrays cost as much as no arrays.

    Args:
      boxes: float32 [V, P, 4], in pixels of each variant.
      sizes: int [V, 2], height and width of each variant.

    Returns:
      V matchings, equal to `anchors.match` of each.
    """
    sizes = np.asarray(sizes, np.int64)
    empty = np.zeros(0, np.int64)
    if boxes.shape[1] == 0:
        return [Matching(empty, empty, empty)] * len(boxes)
    if not config.rounded or config.canvas_strides:
        # Equal overlaps differ in the last bit from cell to cell then, so the nearest two do not tell the best IoU.
        return [match(config, of_one, int(h), int(w)) for of_one, (h, w) in zip(boxes, sizes, strict=True)]
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
        return _Shapes(ratios, cells, box_areas(cells), strides, counts, starts, totals - ends[:, -1])

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
    areas = box_areas(boxes)  # [V, P]

    near = np.floor((low.astype(np.float64) + high) / 2 / shapes.strides).astype(np.int64)  # [2, V, P, S]
    best_overlap = np.maximum(
        *(_overlap(np.clip(at, 0, counts - 1), shapes.strides, cell_low, cell_high, low, high) for at in (near, near + 1))
    )
    best_of_shape = iou_of_overlap(best_overlap[0], best_overlap[1], shapes.areas, areas[..., None])  # [V, P, S]
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
    value = iou_of_overlap(overlap_x, overlap_y[segment], shapes.areas[shape][pair], area[pair])
    is_best = value == best[variant, box][pair]
    kept = (value >= negative) | is_best
    pair = pair[kept]
    return variant[pair], box[pair], name[kept], value[kept], is_best[kept]
