"""Sheets of training batches: canvases with what lies on them, drawn from the very tensors that the model gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from pipeline import anchors
from pipeline.anchors import AnchorConfig
from pipeline.data_config import CROWD, PERSON, DataConfig
from pipeline.drawing import BOX, Drawn, draw_boxes, draw_crowds, draw_people
from pipeline.inspection import sheet
from pipeline.inspection.contact_sheet import POSITIVE, POSITIVE_OPACITY, dimmed, number_of, number_of_people
from pipeline.loading import augment, epoch_plan
from pipeline.loading.batches import training_batches, training_pool
from pipeline.loading.unreadable import reading_error
from pipeline.random_draws import step_seed
from pipeline.record_folder import RecordFolder
from pipeline.records import READ_ERRORS
from pipeline.skeleton import Skeleton

NEGATIVE, PADDING_COLOURS = (255, 80, 80), ((44, 48, 54), (58, 63, 70))
NEGATIVE_OPACITY = 0.22
STRIPE = 24  # pixels of the canvas

Batch = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of the first epoch whose batch is drawn.

    Attributes:
      number: of the step, from 0.
      canvas: height and width.
      variants: of its images, 2 · (index of the short edge) + flipped; without those of padding images at the end.
    """

    number: int
    canvas: tuple[int, int]
    variants: tuple[int, ...]


def chosen_steps(
    record_folder: RecordFolder, split: str, config: DataConfig, *, batch_size: int, seed: int, per_canvas: int
) -> list[Step]:
    """The first steps of an epoch with each canvas, those with both flips before others, in the order of the steps."""
    pool = training_pool(record_folder, split, config)
    epoch = epoch_plan.plan_epoch(pool, seed=seed, epoch=0, global_batch_size=batch_size)
    real = epoch.rows >= 0  # [T, B]
    flipped = epoch.variants % 2 == 1
    both = (real & flipped).any(axis=1) & (real & ~flipped).any(axis=1)
    steps = []
    for canvas, size in enumerate(pool.canvases.sizes):
        numbers = np.flatnonzero(epoch.canvas == canvas)
        for number in numbers[np.argsort(~both[numbers], kind="stable")][:per_canvas].tolist():
            steps.append(Step(number, size, tuple(epoch.variants[number][real[number]].tolist())))
    return sorted(steps, key=lambda step: step.number)


def batch_sheet(
    record_folder: RecordFolder,
    split: str,
    config: DataConfig,
    steps: Sequence[Step],
    *,
    batch_size: int,
    seed: int,
    width: int,
    anchor_config: AnchorConfig | None = None,
) -> Image.Image:
    """Draws the batches of some steps of the first epoch, each in a row of its own, by area of their canvases.

    Args:
      config, batch_size, seed: of the training.
      steps: as from `chosen_steps`, with the same arguments.
      width: of the sheet in pixels.
      anchor_config: the model's; None: the records' own.

    Raises:
      UserError: as `training_batches`, or an image that cannot be read.
    """
    anchor_config = anchor_config or record_folder.anchors
    wanted = {step.number: step for step in steps}
    rows: dict[int, list[sheet.Tile]] = {}
    batches = training_batches(
        record_folder,
        split,
        config,
        global_batch_size=batch_size,
        seed=seed,
        num_steps=max(wanted, default=-1) + 1,
        anchors=anchor_config,
    )
    try:
        for number, loaded in enumerate(batches):
            if number in wanted:
                step = wanted[number]
                seen = augment.jitter_colours(loaded, config, tf.constant(step_seed(seed, number), tf.int32))
                batch = {name: value.numpy() for name, value in seen.items()}
                rows[number] = [
                    _tile(batch, place, step, variant, config, anchor_config, record_folder.skeleton)
                    for place, variant in enumerate(step.variants)
                ]
    except READ_ERRORS as error:
        raise reading_error(
            error,
            record_folder,
            split,
            config,
            global_batch_size=batch_size,
            seed=seed,
            steps=range(max(wanted) + 1),
            way_out="python -m pipeline.inspect_records --verify lists what else is damaged",
        ) from None
    by_area = sorted(steps, key=lambda step: (step.canvas[0] * step.canvas[1], step.canvas, step.number))
    canvases = len({step.canvas for step in steps})
    batches_drawn = "1 training batch" if len(steps) == 1 else f"{len(steps)} training batches"
    on_canvases = "1 canvas" if canvases == 1 else f"{canvases} canvases"
    title = f"{batches_drawn} of split '{split}' of {record_folder.name}, on {on_canvases}"
    legend = [
        *sheet.PEOPLE_SIGNS,
        sheet.Sign("box", POSITIVE, "sampled positive anchor"),
        sheet.Sign("box", NEGATIVE, "sampled negative anchor"),
    ]
    return sheet.compose([rows[step.number] for step in by_area], title, legend, width=width, row_height=260)


def _tile(
    batch: Batch,
    place: int,
    step: Step,
    variant: int,
    config: DataConfig,
    anchor_config: AnchorConfig,
    skeleton: Skeleton,
) -> sheet.Tile:
    image: Batch = {key: values[place] for key, values in batch.items()}
    height, width = step.canvas
    kinds, labels = image["box_kind"], image["anchor_label"]
    crowds = int((kinds == CROWD).sum())
    people = number_of_people(skeleton, image.get("box_class", kinds)[kinds == PERSON])
    flip = "flipped" if variant % 2 else "not flipped"
    size = f"at {config.short_edges[variant // 2]}"
    if config.jitter_canvas:
        size = "scaled to {1:.0f} x {0:.0f}".format(*(image["original_size"] * image["scale"]))
    lines = (
        f"step {step.number}, image {image['image_id']}, {size}, {flip}",
        f"{width} x {height} canvas, {people}"
        + (f", {number_of(crowds, 'crowd')}" if crowds else "")
        + f"; {(labels == 1).sum()} positive, {(labels == 0).sum()} negative anchors",
    )

    def paint(tile_height: int, tile_width: int) -> NDArray[np.uint8]:
        people, sampled = (
            Image.fromarray(drawn).resize((tile_width // 2, tile_height), Image.Resampling.LANCZOS)
            for drawn in draw_image(image, skeleton, anchor_config, line=max(1, round(sheet.DRAWN_LINE * height / tile_height)))
        )
        both = Image.new("RGB", (tile_width, tile_height))
        both.paste(people, (0, 0))
        both.paste(sampled, (tile_width - tile_width // 2, 0))
        return np.asarray(both)

    return sheet.Tile(2 * width / height, paint, lines)


def draw_image(
    image: Batch, skeleton: Skeleton, config: AnchorConfig, *, line: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws one image of a batch on its canvas, padding in stripes.

    Args:
      image: the batch's entries without their first dimension.
      line: thickness in pixels of the canvas.

    Returns:
      uint8 [H, W, 3] twice: with its people, and with its sampled anchors.
    """
    pixels = image["image"]  # floats if colours were changed, or if the family's resize rule does not round
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    canvas = _with_stripes(pixels, image["image_size"])
    boxes, kinds = image["boxes"], image["box_kind"]
    crowds, persons = boxes[kinds == CROWD], kinds == PERSON
    people = draw_crowds(canvas, crowds, line)
    names = skeleton.class_names(image.get("box_class", kinds)[persons])
    people = draw_people(people, Drawn(boxes[persons], image["keypoints"][persons], labels=names), skeleton, line)
    places = anchors.corners(config, image["anchor_index"].astype(np.int64), *canvas.shape[:2])
    sampled = draw_boxes(dimmed(canvas), places[image["anchor_label"] == 0], NEGATIVE, NEGATIVE_OPACITY, line)
    sampled = draw_crowds(sampled, crowds, line)
    sampled = draw_boxes(sampled, places[image["anchor_label"] == 1], POSITIVE, POSITIVE_OPACITY, line)
    return people, draw_boxes(sampled, boxes[persons], BOX, 1.0, line)


def _with_stripes(canvas: NDArray[np.uint8], size: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Draws stripes on the canvas outside the image, over the pixels there, which are black if the loader is right."""
    height, width = canvas.shape[:2]
    rows, columns = np.ogrid[:height, :width]
    outside = (rows >= size[0]) | (columns >= size[1])
    stripes = np.array(PADDING_COLOURS, np.uint8)[(rows + columns) // STRIPE % 2]  # [H, W, 3]
    return np.where(outside[..., None], np.maximum(stripes, canvas), canvas)
