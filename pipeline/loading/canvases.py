"""Canvases: the few sizes that batches have.

Images of different sizes share a batch, each at the top left of a canvas, and the model computes in vain what an image leaves
free. Every size of canvas costs a trace (under XLA a compilation), so there are only a few, chosen for the images at hand.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.command import UserError
from pipeline.data_config import CANVAS_MULTIPLE

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Canvases:
    """Sizes (height, width) in pixels, multiples of 32, by area, and the share of their pixels that the images leave free."""

    sizes: tuple[tuple[int, int], ...]
    padding: float

    def to_json(self) -> dict[str, Any]:
        return {"canvases": [{"height": height, "width": width} for height, width in self.sizes], "padding": self.padding}

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}×{width}" for height, width in self.sizes)
        count = "1 canvas" if len(self.sizes) == 1 else f"{len(self.sizes)} canvases"
        return f"{count} {sizes} (height×width), {self.padding:.1%} padding"


def choose(heights: Ints, widths: Ints, count: int) -> Canvases:
    """Chooses at most `count` canvases for images of the given sizes, so as to leave little padding.

    An image goes to the smallest canvas that holds it, as in `assign`. This is a k-median problem over rectangles, and the
    answer is a good local optimum: two starts (joining sizes two by two until `count` are left; adding the best canvas `count`
    times) are improved by exchanging one canvas at a time until no exchange helps, and the better result is taken. It depends
    on the sizes alone, not on their order.

    Args:
      heights, widths: int64 [N] pixels of the resized images, N ≥ 1; each size as often as it will be seen.
      count: at least 1.

    Raises:
      UserError: `count` below 1.
    """
    if count < 1:
        raise UserError(f"--num_canvases={count}: there must be at least 1 canvas")
    # Only the sizes rounded up to the next multiple matter, which are few.
    heights, widths = heights.astype(np.int64), widths.astype(np.int64)
    units, number = np.unique(
        (-(-heights // CANVAS_MULTIPLE) << 32) + -(-widths // CANVAS_MULTIPLE), return_counts=True
    )  # [U], [U]
    sizes = np.stack([units >> 32, units & 0xFFFFFFFF], axis=1) * CANVAS_MULTIPLE  # [U, 2]
    candidates = np.stack(np.meshgrid(np.unique(sizes[:, 0]), np.unique(sizes[:, 1]), indexing="ij"), axis=-1).reshape(-1, 2)
    area = candidates.prod(axis=1).astype(np.float64)  # [C]
    holds = (candidates[:, None] >= sizes).all(axis=2)  # [C, U]
    cost = np.where(holds, area[:, None], np.inf) * number  # [C, U]; pixels that all images of a size take
    useful = np.any(holds, axis=1)
    candidates, cost = candidates[useful], cost[useful]

    merged = _merge(sizes, number, min(count, len(sizes)))
    starts = [
        np.flatnonzero((candidates[:, None] == merged).all(axis=2).any(axis=1)).tolist(),
        _add(cost, [len(candidates) - 1], min(count, len(candidates)) - 1),  # the last one holds everything
    ]
    taken, best = min(_exchange(cost, start) for start in starts)
    chosen = candidates[sorted(set(best), key=lambda c: (candidates[c].prod(), candidates[c][0]))]
    used = np.unique(assign(chosen, heights, widths))
    return Canvases(
        sizes=tuple((int(height), int(width)) for height, width in chosen[used]),
        padding=float(1.0 - (heights * widths).sum() / taken),
    )


def assign(canvases: npt.ArrayLike, heights: Ints, widths: Ints) -> npt.NDArray[np.int32]:
    """The smallest canvas that holds each image.

    Args:
      canvases: [C, 2] height and width, by area.
      heights, widths: int64 [...] pixels.

    Returns:
      int32 [...], index of the canvas; −1 where none is large enough.
    """
    result = np.full(np.shape(heights), -1, np.int32)
    sizes = np.asarray(canvases)
    for index in range(len(sizes) - 1, -1, -1):
        result[(heights <= sizes[index, 0]) & (widths <= sizes[index, 1])] = index
    return result


def square(side: int, scales: tuple[float, ...], heights: Ints, widths: Ints) -> Canvases:
    """One square canvas for images under large-scale jitter, and the padding to expect.

    Args:
      side: pixels.
      scales: smallest and largest scale, the longer side of an image over that of the canvas, all equally frequent.
      heights, widths: int64 [N] pixels of the images.
    """
    low, high = scales
    scale = low + (high - low) * (np.arange(64) + 0.5) / 64  # [64]
    longer = np.maximum(heights, widths)
    shares = [np.minimum(scale * (sides / longer)[:, None], 1.0) for sides in (heights, widths)]  # [N, 64]
    return Canvases(((side, side),), padding=float(1.0 - (shares[0] * shares[1]).mean()))


def _merge(sizes: Ints, number: Ints, count: int) -> Ints:
    """Joins two sizes into the smallest canvas for both, always those that lose fewest pixels, until `count` are left.

    Args:
      sizes: [U, 2]; number: [U] images of each size.

    Returns:
      int64 [count, 2]; together they hold every size.
    """
    sizes, number = sizes.copy(), number.copy()
    alive = np.ones(len(sizes), bool)

    def losses(i: int | np.integer[Any]) -> npt.NDArray[np.float64]:  # of joining i with each of the others
        joined = np.maximum(sizes[i], sizes).prod(axis=1) * (number[i] + number)
        apart = sizes.prod(axis=1) * number
        return np.where(alive & (np.arange(len(sizes)) != i), joined - apart - apart[i], np.inf)

    nearest = np.array([losses(i).argmin() for i in range(len(sizes))])
    loss = np.array([losses(i).min() for i in range(len(sizes))])
    for _ in range(len(sizes) - count):
        i = int(loss.argmin())
        j = int(nearest[i])
        sizes[i], number[i], alive[j], loss[j] = np.maximum(sizes[i], sizes[j]), number[i] + number[j], False, np.inf
        of_i = losses(i)
        closer = of_i < loss
        nearest[closer], loss[closer] = i, of_i[closer]
        for k in np.flatnonzero(alive & ((nearest == i) | (nearest == j) | (np.arange(len(sizes)) == i))):
            nearest[k], loss[k] = losses(k).argmin(), losses(k).min()
    return sizes[alive]


def _add(cost: npt.NDArray[np.float64], rows: list[int], times: int) -> list[int]:
    """Adds the row of `cost` [C, U] that lowers the sum of the columns' minima most, several times."""
    for _ in range(times):
        rows = [*rows, int(np.minimum(cost, cost[rows].min(axis=0)).sum(axis=1).argmin())]
    return rows


def _exchange(cost: npt.NDArray[np.float64], rows: list[int]) -> tuple[float, list[int]]:
    """Replaces one row at a time by the one that helps most, until none does; the sum that is reached, and the rows."""
    total = float(cost[rows].min(axis=0).sum())
    while True:
        options = []
        for place in range(len(rows)):
            others = [*rows[:place], *rows[place + 1 :]]
            taken = cost[others].min(axis=0, initial=np.inf)
            totals = np.minimum(cost, taken).sum(axis=1)
            options.append((float(totals.min()), place, int(totals.argmin())))
        best, place, row = min(options)
        if not best < total:
            return total, rows
        total, rows = best, [*rows[:place], row, *rows[place + 1 :]]
