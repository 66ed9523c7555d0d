from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.command import UserError
from pipeline.data_config import resized_size
from pipeline.loading import epoch_plan
from pipeline.record_folder import INDEX_DTYPE

EDGES = (640, 720, 800)


def make_index(count: int, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    index = np.zeros(count, INDEX_DTYPE)
    index["image_id"] = rng.choice(10 * count + 10, count, replace=False)
    sizes = np.array([[480, 640], [427, 640], [640, 480], [500, 375], [612, 612]])[rng.integers(0, 5, count)]
    index["height"], index["width"] = sizes.T
    index["persons"] = rng.integers(0, 4, count)
    index["labelled_persons"] = index["persons"] // 2
    return index


def make_pool(index: NDArray[Any], **options: Any) -> epoch_plan.Pool:
    defaults: dict[str, Any] = {
        "short_edges": EDGES,
        "max_edge": 1333,
        "resize": "standard",
        "num_canvases": 4,
        "max_boxes": 100,
        "flip": True,
        "require_keypoints": False,
        "split": "train",
    }
    return epoch_plan.make_pool(index, **{**defaults, **options})


def draws(batches: epoch_plan.Plan) -> dict[int, int]:
    """Variant by row of the index."""
    real = batches.rows >= 0
    return dict(zip(batches.rows[real].tolist(), batches.variants[real].tolist(), strict=True))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_every_image_once_and_on_a_canvas_that_holds_it(batch: int) -> None:
    index = make_index(201)
    pool = make_pool(index)
    for epoch in range(3):
        batches = epoch_plan.plan_epoch(pool, seed=1, epoch=epoch, global_batch_size=batch)
        assert sorted(batches.rows[batches.rows >= 0]) == list(range(201))
        for canvas, rows, variants in zip(batches.canvas, batches.rows, batches.variants, strict=True):
            assert rows[0] >= 0  # no batch of nothing but padding
            for row, variant in zip(rows, variants, strict=True):
                if row >= 0:
                    size = resized_size(int(index["height"][row]), int(index["width"][row]), EDGES[variant // 2], 1333)
                    fitting = [h >= size[0] and w >= size[1] for h, w in pool.canvases.sizes]
                    assert fitting.index(True) == canvas
        padded = np.unique(batches.canvas[(batches.rows < 0).any(axis=1)], return_counts=True)[1]
        assert (padded == 1).all()  # at most one batch of each canvas is not full


def test_epochs_and_seeds_differ_and_repeat() -> None:
    pool = make_pool(make_index(100))

    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(epoch_plan.plan_epoch(pool, seed=seed, epoch=epoch, global_batch_size=4).rows.ravel().tolist())

    assert order(1, 0) == order(1, 0)
    assert len({order(seed, epoch) for seed in (0, 1, 2**40) for epoch in (0, 1, 7)}) == 9


def test_draws_are_keyed_by_the_image() -> None:
    index = make_index(100)
    everything = draws(epoch_plan.plan_epoch(make_pool(index), seed=5, epoch=2, global_batch_size=8))
    some = draws(epoch_plan.plan_epoch(make_pool(index[::3]), seed=5, epoch=2, global_batch_size=3))
    assert {3 * row: variant for row, variant in some.items()} == {row: everything[row] for row in range(0, 100, 3)}


def test_draws_are_even_and_independent() -> None:
    pool = make_pool(make_index(12_000))
    epochs = [draws(epoch_plan.plan_epoch(pool, seed=0, epoch=epoch, global_batch_size=16)) for epoch in (0, 1)]
    pairs = np.zeros((6, 6))
    for row in range(12_000):
        pairs[epochs[0][row], epochs[1][row]] += 1
    assert np.abs(pairs / 12_000 - 1 / 36).max() < 0.006  # four standard deviations


def test_no_flip() -> None:
    variants = epoch_plan.plan_epoch(make_pool(make_index(50), flip=False), seed=0, epoch=0, global_batch_size=4).variants
    assert set(variants.ravel()) == {0, 2, 4}


@pytest.mark.parametrize("count", [3, 150])
def test_a_step_is_found_without_the_steps_before(count: int) -> None:
    pool = make_pool(make_index(count))
    epochs = itertools.islice(epoch_plan.epochs_from(pool, seed=3, global_batch_size=4, step=0), 40)
    first = 0
    for number, (epoch, step) in enumerate(epochs):
        assert (epoch, step) == (number, first)
        length = len(epoch_plan.plan_epoch(pool, seed=3, epoch=epoch, global_batch_size=4).canvas)
        for inside in (first, first + length - 1):
            assert next(epoch_plan.epochs_from(pool, seed=3, global_batch_size=4, step=inside)) == (epoch, first)
        first += length


def test_images_without_labelled_persons() -> None:
    index = make_index(90)
    pool = make_pool(index, require_keypoints=True)
    assert pool.rows.tolist() == np.flatnonzero(index["labelled_persons"]).tolist()
    assert pool.left_out == 90 - len(pool.rows)
    assert f"{pool.left_out} without labelled persons" in str(pool)


def test_boxes_that_are_too_many_are_counted() -> None:
    index = make_index(3)
    index["persons"], index["crowds"] = [4, 0, 2], [0, 1, 3]
    assert make_pool(index, max_boxes=3).dropped_boxes == 1 + 0 + 2


def test_nothing_to_train_on() -> None:
    index = make_index(5)
    index["labelled_persons"] = 0
    with pytest.raises(UserError, match=r"split 'minival': none of its 5 images .* labelled keypoint.*require_keypoints"):
        make_pool(index, require_keypoints=True, split="minival")
    with pytest.raises(UserError, match=r"split 'minival' has no images: convert"):
        make_pool(index[:0], split="minival")


def test_an_epoch_of_coco_takes_milliseconds() -> None:
    pool = make_pool(make_index(118_000))
    assert dataclasses.asdict(pool)["canvas_of"].shape == (118_000, 3)
    start = time.perf_counter()
    epoch_plan.plan_epoch(pool, seed=0, epoch=0, global_batch_size=16)
    assert time.perf_counter() - start < 0.5  # 10 ms on an idle machine
