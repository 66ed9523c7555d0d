from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import data_config
from pipeline.command import UserError
from pipeline.data_config import resized_size
from pipeline.loading import canvases

Sizes = NDArray[np.int64]


def coco_sizes(shared_data: Path, short_edges: tuple[int, ...]) -> Sizes:
    """Heights and widths [2, N] at all short edges of the images of a part of COCO."""
    seen = [
        [resized_size(height, width, edge, 1333)] * count
        for width, height, count in json.loads((shared_data / "coco_stats.json").read_text())["sizes"]
        for edge in short_edges
    ]
    return np.array(list(itertools.chain(*seen))).T


def random_sizes(seed: int, count: int, largest: int) -> Sizes:
    return np.random.default_rng(seed).integers(20, largest, (2, count))


@pytest.mark.parametrize(("count", "most"), [(2, 0.17), (4, 0.09), (6, 0.045)])
def test_padding_on_coco_at_one_short_edge(shared_data: Path, count: int, most: float) -> None:
    heights, widths = coco_sizes(shared_data, (800,))
    chosen = canvases.choose(heights, widths, count)
    assert len(chosen.sizes) == count
    assert chosen.padding <= most


@pytest.mark.parametrize(("count", "most"), [(6, 0.15), (8, 0.12)])
def test_padding_on_coco_at_six_short_edges(shared_data: Path, count: int, most: float) -> None:
    heights, widths = coco_sizes(shared_data, (640, 672, 704, 736, 768, 800))
    assert canvases.choose(heights, widths, count).padding <= most


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_image_fits_into_the_smallest_canvas_that_holds_it(count: int) -> None:
    heights, widths = random_sizes(count, 500, 700)
    chosen = canvases.choose(heights, widths, count)
    assert 1 <= len(chosen.sizes) <= count
    assert all(side % data_config.CANVAS_MULTIPLE == 0 for size in chosen.sizes for side in size)
    areas = [height * width for height, width in chosen.sizes]
    assert areas == sorted(areas)

    mine = canvases.assign(chosen.sizes, heights, widths)
    assert mine.min() >= 0
    for index, (height, width) in enumerate(chosen.sizes):
        fits = (heights <= height) & (widths <= width)
        assert fits[mine == index].all()
        assert not (fits & (mine > index)).any()
    assert chosen.padding == pytest.approx(1 - (heights * widths).sum() / np.array(areas)[mine].sum())


def test_too_large_for_every_canvas() -> None:
    assert canvases.assign([(32, 64), (64, 64)], np.array([33, 10, 65]), np.array([64, 64, 10])).tolist() == [1, 0, -1]


@pytest.mark.parametrize("seed", range(6))
def test_close_to_the_optimum_of_all_choices(seed: int) -> None:
    heights, widths = random_sizes(seed, 40, 200)
    grid = [(h, w) for h in range(32, 225, 32) for w in range(32, 225, 32)]
    holds = np.array([[(h >= y) & (w >= x) for y, x in zip(heights, widths, strict=True)] for h, w in grid])
    cost = np.where(holds, np.array([[h * w] for h, w in grid]), np.inf)
    best = min(cost[list(rows)].min(axis=0).sum() for rows in itertools.combinations(range(len(grid)), 3))
    chosen = canvases.choose(heights, widths, 3)
    assert (heights * widths).sum() / (1 - chosen.padding) <= 1.02 * best


def test_order_of_images_does_not_matter() -> None:
    heights, widths = random_sizes(3, 300, 500)
    order = np.random.default_rng(0).permutation(300)
    assert canvases.choose(heights, widths, 4) == canvases.choose(heights[order], widths[order], 4)


def test_no_more_canvases_than_sizes() -> None:
    chosen = canvases.choose(np.array([64, 33, 50]), np.array([32, 30, 32]), 5)
    assert chosen.sizes == ((64, 32),)


def test_a_canvas_is_needed() -> None:
    with pytest.raises(UserError, match="num_canvases=0"):
        canvases.choose(np.array([1]), np.array([1]), 0)
