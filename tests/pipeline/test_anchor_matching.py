from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import anchors, data_config
from pipeline.anchor_matching import match_variants
from pipeline.anchors import AnchorConfig, Matching
from pipeline.coco import read_coco
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
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.campaign)])
def test_match_equals_the_definition_on_real_images(coco_sample: Path, split: str, every: int) -> None:
    """Every variant of every image; outside of campaigns, one variant of every third, for brute force takes 20 ms each."""
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
