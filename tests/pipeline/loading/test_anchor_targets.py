from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from pipeline import anchors
from pipeline.loading import anchor_targets
from pipeline.loading.image_grid import ImageGrid

CONFIG = anchors.AnchorConfig()
SIZE = (150, 210)


def scene(seed: int) -> tuple[anchors.Matching, NDArray[np.float32]]:
    """A matching of four boxes, and two crowds."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (6, 2)) * SIZE[::-1]
    boxes = np.concatenate([low, low + rng.uniform(20, 90, (6, 2))], axis=1).astype(np.float32)
    return anchors.match(CONFIG, boxes[:4], *SIZE), boxes[4:]


@functools.cache
def sampler(count: int, positive_fraction: float) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    @tf.function(reduce_retracing=True, autograph=False)
    def draw(*matching: tf.Tensor, crowds: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        grid = ImageGrid.of(CONFIG, SIZE, (160, 224))
        sampled = anchor_targets.sample(grid, matching, crowds, count=count, positive_fraction=positive_fraction, seed=seed)
        return sampled.index, sampled.label, sampled.box

    return draw  # type: ignore[no-any-return]


def draw(
    matching: anchors.Matching, crowds: NDArray[np.float32], *, count: int = 128, positive_fraction: float = 0.5, seed: int = 0
) -> list[NDArray[np.int32]]:
    """Index, label and box of a sample."""
    lists = (tf.constant(names, tf.int32) for names in (matching.positive, matching.positive_box, matching.ignored))
    sampled = sampler(count, positive_fraction)(*lists, crowds=tf.constant(crowds), seed=tf.constant([seed, 3], tf.int64))
    return [values.numpy() for values in sampled]


def in_crowd(crowds: NDArray[np.float32]) -> NDArray[np.int64]:
    """By the definition: names of the anchors with 0.7 of their area in a crowd."""
    grid = anchors.grid(CONFIG, *SIZE)[:, None]
    sides = np.clip(np.minimum(grid[..., 2:], crowds[:, 2:]) - np.maximum(grid[..., :2], crowds[:, :2]), 0, None)
    area = (grid[..., 2:] - grid[..., :2]).prod(axis=2)
    return np.flatnonzero((sides.prod(axis=2) >= 0.7 * area).any(axis=1))


@pytest.mark.parametrize("seed", range(8))
def test_positives_and_negatives_are_what_they_should_be(seed: int) -> None:
    matching, crowds = scene(seed)
    index, label, box = draw(matching, crowds, seed=seed)
    positive, negative = index[label == 1], index[label == 0]
    assert len(positive) == min(64, len(matching.positive))
    assert len(negative) == 128 - len(positive)
    assert len(set(index.tolist())) == 128  # none twice
    box_of = dict(zip(matching.positive.tolist(), matching.positive_box.tolist(), strict=True))
    assert [box_of[i] for i in positive.tolist()] == box[label == 1].tolist()
    assert not np.isin(negative, np.concatenate([matching.positive, matching.ignored, in_crowd(crowds)])).any()
    assert index.min() >= 0 and index.max() < len(anchors.grid(CONFIG, *SIZE))
    assert not box[label != 1].any()


def test_negatives_are_drawn_from_all_of_them_evenly() -> None:
    matching, crowds = scene(1)
    every = np.setdiff1d(
        np.arange(len(anchors.grid(CONFIG, *SIZE))), np.concatenate([matching.positive, matching.ignored, in_crowd(crowds)])
    )
    drawn = [index[label == 0] for index, label, _ in (draw(matching, crowds, seed=seed) for seed in range(100))]
    tenth = np.searchsorted(every, np.concatenate(drawn)) * 10 // len(every)
    share = np.bincount(tenth, minlength=10) / len(tenth)
    assert np.abs(share - 0.1).max() < 4 * np.sqrt(0.09 / len(tenth))


def test_positives_that_are_too_many_are_drawn_evenly() -> None:
    matching, crowds = scene(2)
    times = np.zeros(len(anchors.grid(CONFIG, *SIZE)))
    for seed in range(200):
        index, label, _ = draw(matching, crowds, count=20, positive_fraction=0.3, seed=seed)
        assert (label == 1).sum() == min(6, len(matching.positive))
        times[index[label == 1]] += 1
    expected = 200 * 6 / len(matching.positive)
    assert np.abs(times[matching.positive] - expected).max() < 4.5 * np.sqrt(expected)


def test_same_seed_same_anchors() -> None:
    matching, crowds = scene(3)
    for first, second in zip(draw(matching, crowds, seed=5), draw(matching, crowds, seed=5), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(draw(matching, crowds, seed=5)[0], draw(matching, crowds, seed=6)[0])


def test_positive_without_a_box_counts_as_ignored() -> None:
    matching, crowds = scene(4)
    gone = matching.positive[matching.positive_box == 1]
    without = anchors.Matching(
        matching.positive, np.where(matching.positive_box == 1, -1, matching.positive_box), matching.ignored
    )
    for seed in range(10):
        assert not np.isin(draw(without, crowds, seed=seed)[0], gone).any()


def test_a_crowd_over_everything_leaves_no_negatives() -> None:
    matching, _ = scene(5)
    crowd = np.array([[-1000, -1000, 2000, 2000]], np.float32)
    index, label, _ = draw(matching, crowd)
    assert (label == 0).sum() == 0 and (label == 1).sum() == min(64, len(matching.positive))
    assert not index[label == -1].any()


def test_nobody() -> None:
    empty = np.zeros(0, np.int64)
    _, label, _ = draw(anchors.Matching(empty, empty, empty), np.zeros((0, 4), np.float32))
    assert (label == 0).all()
