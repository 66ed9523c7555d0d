"""Drawn batches are those of the trainer: every canvas, both flips, people and anchors where the tensors say."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.anchors import AnchorConfig, corners
from pipeline.data_config import CROWD as CROWD_KIND
from pipeline.data_config import PERSON, DataConfig
from pipeline.drawing import BOX, CROWD
from pipeline.inspection import batch_sheet, sheet
from pipeline.inspection.batch_sheet import NEGATIVE, PADDING_COLOURS, chosen_steps, draw_image
from pipeline.inspection.contact_sheet import POSITIVE
from pipeline.loading import augment, epoch_plan
from pipeline.loading.batches import training_batches, training_pool
from pipeline.random_draws import step_seed
from pipeline.record_folder import RecordFolder
from tests.conftest import SKELETON

CONFIG = DataConfig(short_edges=(96, 128), max_edge=192, max_boxes=8, sampled_anchors=32, num_canvases=3)


def test_every_canvas_and_both_flips_are_chosen(small_record_folder: RecordFolder) -> None:
    steps = chosen_steps(small_record_folder, "train", CONFIG, batch_size=2, seed=0, per_canvas=2)
    pool = training_pool(small_record_folder, "train", CONFIG)
    assert {step.canvas for step in steps} == set(pool.canvases.sizes) and len(pool.canvases.sizes) == 3
    assert len(steps) <= 6 and [step.number for step in steps] == sorted({step.number for step in steps})
    assert {variant % 2 for step in steps for variant in step.variants} == {0, 1}
    epoch = epoch_plan.plan_epoch(pool, seed=0, epoch=0, global_batch_size=2)
    for step in steps:
        assert pool.canvases.sizes[epoch.canvas[step.number]] == step.canvas
        assert all(0 <= variant < 4 for variant in step.variants) and 1 <= len(step.variants) <= 2


def test_a_sheet_shows_the_steps_asked_for(small_record_folder: RecordFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = chosen_steps(small_record_folder, "train", CONFIG, batch_size=2, seed=0, per_canvas=1)
    drawn: list[tuple[int, ...]] = []

    def note(image: batch_sheet.Batch, *arguments: object, **rest: object) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(image["image"].shape[:2])
        return image["image"], image["image"]

    monkeypatch.setattr(batch_sheet, "draw_image", note)
    made = batch_sheet.batch_sheet(small_record_folder, "train", CONFIG, steps, batch_size=2, seed=0, width=900)
    assert made.width == 900
    by_area = sorted(steps, key=lambda step: (np.prod(step.canvas), step.canvas, step.number))
    assert drawn == [step.canvas for step in by_area for _ in step.variants]


def test_colours_and_crops_are_those_of_the_step(small_record_folder: RecordFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, anchors="online", jitter_canvas=128, brightness=0.4, hue=0.1)
    steps = chosen_steps(small_record_folder, "train", config, batch_size=2, seed=3, per_canvas=2)
    drawn: list[batch_sheet.Batch] = []
    captions: list[str] = []

    def note(image: batch_sheet.Batch, *arguments: object, **rest: object) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(image)
        return np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128, 3), np.uint8)

    def compose(groups: list[list[sheet.Tile]], *arguments: object, **rest: object) -> Image.Image:
        for tile in (tile for group in groups for tile in group):
            tile.paint(8, 16)
            captions.append(tile.caption[0])
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(batch_sheet, "draw_image", note)
    monkeypatch.setattr(sheet, "compose", compose)
    batch_sheet.batch_sheet(small_record_folder, "train", config, steps, batch_size=2, seed=3, width=900)

    loaded = list(
        training_batches(small_record_folder, "train", config, global_batch_size=2, seed=3, num_steps=1 + steps[-1].number)
    )
    images = iter(zip(drawn, captions, strict=True))
    for step in steps:
        batch = loaded[step.number]
        seen = augment.jitter_colours(batch, config, tf.constant(step_seed(3, step.number)))["image"].numpy()
        assert np.abs(seen - batch["image"].numpy()).max() > 10
        for place in range(len(step.variants)):
            image, caption = next(images)
            np.testing.assert_array_equal(image["image"], seen[place])
            height, width = (batch["original_size"][place].numpy() * batch["scale"][place].numpy()).round().astype(int)
            assert f"scaled to {width} x {height}, " in caption
    assert next(images, None) is None


def test_an_image_of_a_batch() -> None:
    config = AnchorConfig()
    boxes = np.zeros((3, 4), np.float32)
    boxes[0], boxes[1] = (20, 20, 60, 90), (70, 10, 95, 60)
    index = np.array([300, 900, 0], np.int32)
    image: dict[str, Any] = {
        "image": np.full((128, 160, 3), 100, np.uint8),
        "image_size": np.array([100, 130], np.int32),
        "boxes": boxes,
        "box_kind": np.array([PERSON, CROWD_KIND, 0], np.int32),
        "keypoints": np.zeros((3, 5, 3), np.float32),
        "anchor_index": index,
        "anchor_label": np.array([1, 0, -1], np.int32),
    }
    image["image"][100:] = image["image"][:, 130:] = 0
    people, sampled = draw_image(image, SKELETON, config, line=1)
    assert tuple(people[20, 40]) == BOX and tuple(people[10, 80]) == CROWD
    assert {tuple(colour) for colour in people[110:].reshape(-1, 3)} == set(PADDING_COLOURS)
    positive, negative = (np.round(corners(config, index[i : i + 1].astype(np.int64), 128, 160)[0]).astype(int) for i in (0, 1))
    for place, colour in ((positive, POSITIVE), (negative, NEGATIVE)):
        x = int(np.clip((place[0] + place[2]) // 2, 0, 129))
        y = int(place[3]) - 1 if place[3] <= 100 else int(place[1])
        assert np.argmax(sampled[y, x]) == np.argmax(colour), (place, sampled[y, x])
    assert sampled[50, 100].max() < 100  # dimmed where nothing is drawn
    floats = draw_image(image | {"image": image["image"].astype(np.float32) + 0.3}, SKELETON, config, line=1)
    for of_floats, of_bytes in zip(floats, (people, sampled), strict=True):
        np.testing.assert_array_equal(of_floats, of_bytes)


def test_pixels_outside_the_image_would_be_seen() -> None:
    canvas = np.zeros((40, 40, 3), np.uint8)
    canvas[35, 35] = 255
    drawn = batch_sheet._with_stripes(canvas, np.array([30, 30], np.int32))
    assert (drawn[35, 35] == 255).all() and (drawn[:30, :30] == 0).all()
