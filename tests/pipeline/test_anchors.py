from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import anchors, data_config
from pipeline.anchor_matching import match_variants
from pipeline.anchors import AnchorConfig, Matching
from pipeline.coco import read_coco
from pipeline.command import UserError
from pipeline.records import match_image, normalised_boxes

CONFIG = AnchorConfig()
SHORT_EDGES = (640, 672, 704, 736, 768, 800)


def boxes_of(*rows: tuple[float, float, float, float]) -> anchors.Float32:
    return np.array(rows, np.float32).reshape(-1, 4)


def fast_match(config: AnchorConfig, boxes: anchors.Float32, height: int, width: int) -> Matching:
    """What conversion uses, for one variant."""
    return match_variants(config, boxes[None], [(height, width)])[0]


def assert_same(got: Matching, expected: Matching) -> None:
    np.testing.assert_array_equal(got.positive, expected.positive)
    np.testing.assert_array_equal(got.positive_box, expected.positive_box)
    np.testing.assert_array_equal(got.ignored, expected.ignored)


def test_cell_anchors_have_whole_symmetric_corners() -> None:
    cells = anchors.cell_anchors(CONFIG)
    assert cells.shape == (5, 3, 4) and cells.dtype == np.float32
    np.testing.assert_array_equal(cells[0], [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    np.testing.assert_array_equal(cells[4], [[-362, -181, 362, 181], [-256, -256, 256, 256], [-181, -362, 181, 362]])
    # Half to even: 33 / 2 = 16.5 becomes 16, 35 / 2 = 17.5 becomes 18.
    odd = anchors.cell_anchors(AnchorConfig(strides=(4, 8), sizes=(33, 35), aspect_ratios=(1.0,)))
    np.testing.assert_array_equal(odd[:, 0, 2], [16, 18])


def test_grid_is_in_the_order_level_row_column_ratio() -> None:
    assert anchors.level_shapes(CONFIG, 100, 130) == ((25, 33), (13, 17), (7, 9), (4, 5), (2, 3))
    grid = anchors.grid(CONFIG, 100, 130)
    assert grid.shape == (3 * (25 * 33 + 13 * 17 + 7 * 9 + 4 * 5 + 2 * 3), 4) and grid.dtype == np.float32
    cells = anchors.cell_anchors(CONFIG)
    np.testing.assert_array_equal(grid[:3], cells[0])  # row 0, column 0
    np.testing.assert_array_equal(grid[3], cells[0, 0] + [4, 0, 4, 0])  # column 1
    second_level = 3 * 25 * 33
    np.testing.assert_array_equal(grid[second_level + (2 * 17 + 5) * 3 + 1], cells[1, 1] + [40, 16, 40, 16])


def test_resized_size_is_bounded_by_both_edges() -> None:
    assert data_config.resized_size(480, 640, 800, 1333) == (800, 1067)
    assert data_config.resized_size(427, 640, 640, 1333) == (640, 959)
    assert data_config.resized_size(310, 640, 800, 1333) == (646, 1333)
    assert data_config.resized_size(2, 400, 800, 1333) == (7, 1333)
    assert data_config.resized_size(1, 10_000, 800, 1333) == (1, 1333)


def test_a_flipped_variant_mirrors_boxes() -> None:
    boxes = boxes_of((0.1, 0.2, 0.4, 0.9))
    np.testing.assert_allclose(anchors.variant_boxes(boxes, 100, 200, flipped=False), [[20, 20, 80, 90]])
    np.testing.assert_allclose(anchors.variant_boxes(boxes, 100, 200, flipped=True), [[120, 20, 180, 90]])


def test_corners_are_rows_of_the_grid() -> None:
    grid = anchors.grid(CONFIG, 100, 130)
    np.testing.assert_array_equal(anchors.corners(CONFIG, np.arange(len(grid)), 100, 130), grid)


@pytest.mark.parametrize(
    ("positive_iou", "negative_iou", "label"),
    [(0.25, 0.2, "positive"), (0.5, 0.25, "ignored"), (0.5, 0.2500001, "negative")],
)
def test_an_iou_equal_to_a_threshold_reaches_it(positive_iou: float, negative_iou: float, label: str) -> None:
    # The box is the second level's anchor at 64, 64, and a quarter of the first level's.
    config = AnchorConfig((64, 64), (64.0, 32.0), (1.0,), positive_iou, negative_iou)
    box = boxes_of((48, 48, 80, 80))
    matching = fast_match(config, box, 128, 192)
    assert_same(matching, anchors.match(config, box, 128, 192))
    assert 6 + 4 in matching.positive
    assert (4 in matching.positive, 4 in matching.ignored) == (label == "positive", label == "ignored")


@pytest.mark.parametrize(
    "boxes",
    [
        boxes_of(),
        boxes_of((10, 10, 10, 50)),  # no area
        boxes_of((10.25, 10.5, 10.75, 11)),  # tiny: many anchors enclose it and are equally good
        boxes_of((0, 0, 640, 480)),  # all of the image
        boxes_of((16, 16, 48, 48), (16, 16, 48, 48)),  # twice the same: the first is the match
        boxes_of((20, 20, 24, 24), (10, 10, 60, 60)),  # best for the tiny box, but overlaps the other more
        boxes_of((632, 472, 640, 480)),  # in the last corner
        boxes_of((0, 0, 640, 1), (0, 0, 1, 480)),
    ],
)
def test_match_equals_the_definition(boxes: anchors.Float32) -> None:
    assert_same(fast_match(CONFIG, boxes, 480, 640), anchors.match(CONFIG, boxes, 480, 640))


def test_every_box_with_area_has_a_positive_anchor() -> None:
    matching = fast_match(CONFIG, boxes_of((10.25, 10.5, 10.75, 11)), 480, 640)
    assert len(matching.positive) > 1 and not len(matching.ignored)
    assert set(matching.positive_box) == {0}


def test_an_anchor_that_is_best_for_a_tiny_box_keeps_its_own_best_match() -> None:
    boxes = boxes_of((20, 20, 24, 24), (0, 0, 60, 60))
    matching = fast_match(CONFIG, boxes, 480, 640)
    assert_same(matching, anchors.match(CONFIG, boxes, 480, 640))
    of_tiny = anchors.iou(anchors.grid(CONFIG, 480, 640)[matching.positive], boxes[0])
    best = matching.positive_box[of_tiny == of_tiny.max()]
    assert (best == 1).any()


sides = st.integers(20, 400)
unit = st.floats(0, 1, width=32)


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.lists(st.tuples(unit, unit, unit, unit), max_size=8), st.booleans(), st.sampled_from([0, 1, 2]))
@example(64, 64, [(0.25, 0.25, 0.5, 0.5), (0.25, 0.25, 0.5, 0.5)], True, 1)
@example(20, 26, [(0.0, 0.0, 1.4e-45, 1.0)], False, 0)  # an overlap that is no normal number
@example(20, 26, [(0.0, 0.0, 1e-35, 1.0)], False, 0)
def test_match_equals_the_definition_for_any_boxes(
    height: int, width: int, corners: list[tuple[float, float, float, float]], on_whole_pixels: bool, pick: int
) -> None:
    config = (
        CONFIG,
        AnchorConfig(strides=(4, 8), sizes=(16, 40), aspect_ratios=(1.0, 2.0)),
        AnchorConfig(strides=(7, 20), sizes=(21.3, 55.5), aspect_ratios=(0.3, 1.7), positive_iou=0.5, negative_iou=0.4),
    )[pick]
    table = np.array(corners, np.float32).reshape(-1, 2, 2)
    boxes = np.sort(table, axis=1).reshape(-1, 4) * np.array([width, height, width, height], np.float32)
    if on_whole_pixels:  # ties
        boxes = np.round(boxes)
    assert_same(fast_match(config, boxes, height, width), anchors.match(config, boxes, height, width))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_match_equals_the_definition_on_real_images(coco_sample: Path, split: str, every: int) -> None:
    """Every variant of every image; without the slow tests, one variant of every third, for brute force takes 20 ms each."""
    entries = read_coco(coco_sample / "annotations" / f"person_keypoints_{split}2017.json").images
    variants = list(itertools.product(SHORT_EDGES, (False, True)))
    compared = 0
    for number, entry in enumerate(entries[::every]):
        matchings = match_image(entry, CONFIG, SHORT_EDGES, 1333)
        persons = np.array([i for i, person in enumerate(entry.persons) if not person.is_crowd], np.int64)
        for variant in range(len(variants)) if every == 1 else [number % len(variants)]:
            short_edge, flipped = variants[variant]
            size = data_config.resized_size(entry.height, entry.width, short_edge, 1333)
            boxes = anchors.variant_boxes(normalised_boxes(entry)[persons], *size, flipped=flipped)
            expected = anchors.match(CONFIG, boxes, *size)
            assert_same(matchings[variant], Matching(expected.positive, persons[expected.positive_box], expected.ignored))
            compared += 1
    assert compared == (len(entries) * len(variants) if every == 1 else -(-len(entries) // every)) >= 12


def test_tensorflow_computes_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.random((7, 2, 2), np.float32), axis=1).reshape(-1, 4)
    boxes = anchors.variant_boxes(boxes, 333, 417, flipped=True)
    grid = anchors.grid(CONFIG, 333, 417)

    def twin(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        overlap = tf.maximum(tf.minimum(a[:, 2:], b[:, 2:]) - tf.maximum(a[:, :2], b[:, :2]), 0.0)
        intersection = overlap[:, 0] * overlap[:, 1]
        area_a, area_b = ((v[:, 2] - v[:, 0]) * (v[:, 3] - v[:, 1]) for v in (a, b))
        return intersection / ((area_a + area_b) - intersection)

    for box in boxes:
        got = tf.function(twin)(tf.constant(grid), tf.constant(box[None]))
        np.testing.assert_array_equal(got.numpy(), anchors.iou(grid, box))


def test_configuration_travels_through_json_and_is_checked() -> None:
    config = AnchorConfig(strides=(4, 8), sizes=(16, 40), aspect_ratios=(1.0,))
    assert AnchorConfig.from_json(config.to_json()) == config
    with pytest.raises(UserError, match=r"sizes \[32, 64\]"):
        AnchorConfig(sizes=(32, 64))
    with pytest.raises(UserError, match="thresholds"):
        AnchorConfig(negative_iou=0.8)
    with pytest.raises(UserError, match="-3"):
        AnchorConfig(strides=(4,), sizes=(-3.0,))
