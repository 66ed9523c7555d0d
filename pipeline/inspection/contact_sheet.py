"""Contact sheets of records: people with their keypoints, crowds, and the anchors of one variant.

What is drawn comes from the record alone, as one of its variants shows it: what is wrong here is wrong in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline import anchors, data_config, image
from pipeline.command import UserError, reason_of
from pipeline.drawing import BOX, Drawn, draw_boxes, draw_crowds, draw_people
from pipeline.inspection import sheet
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.record_reader import Record, pixel_keypoints, read_records
from pipeline.skeleton import Skeleton, sides_without_twin

POSITIVE, IGNORED = (80, 255, 120), (255, 255, 255)
POSITIVE_OPACITY, IGNORED_OPACITY = 0.9, 0.13
CLASS_TEXT = sheet.TEXT_SIZE * sheet.FINENESS  # pixels, the height of the names of classes


@dataclasses.dataclass(frozen=True)
class Variant:
    """How images are shown.

    Attributes:
      flipped: mirrored.
      short_edge: for which to show the anchors beside each image, in pixels; None: without anchors.
    """

    flipped: bool = False
    short_edge: int | None = None


def chosen_rows(record_folder: RecordFolder, split: str, count: int) -> list[np.void]:
    """`count` rows of the index, spread evenly over the images with people, or over all images if none has people."""
    index = record_folder.index(split)
    with_people = index[index["persons"] + index["crowds"] > 0]
    rows = with_people if len(with_people) else index
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[place] for place in places]


def rows_of(record_folder: RecordFolder, split: str, image_ids: Sequence[int]) -> list[np.void]:
    """Rows of the index of the given images, in their order.

    Raises:
      UserError: an image that the split does not have.
    """
    index = record_folder.index(split)
    place = {int(image_id): number for number, image_id in enumerate(index["image_id"])}
    for image_id in image_ids:
        if image_id not in place:
            some = ", ".join(map(str, sorted(place)[:3])) or "none"
            raise UserError(f"--image_id={image_id}: not among the {len(place)} images of split {split!r} ({some}, …)")
    return [index[place[image_id]] for image_id in image_ids]


def overview_path(data_dir: str | Path, split: str) -> Path:
    """The path of the small sheet that a conversion ends with."""
    return Path(data_dir) / f"contact-sheet-{split}.png"


def write_overview(data_dir: str | Path, split: str) -> None:
    """Writes the small sheet of a finished conversion: a dozen images with their people, always the same."""
    record_folder = open_record_folder(data_dir)
    rows = chosen_rows(record_folder, split, 12)
    drawn = contact_sheet(record_folder, split, rows, Variant(), width=1280, row_height=240)
    sheet.write_sheet(drawn, overview_path(data_dir, split))


def contact_sheet(
    record_folder: RecordFolder, split: str, rows: Sequence[np.void], variant: Variant, *, width: int, row_height: int
) -> Image.Image:
    """Draws the records of some rows of the split's index.

    Args:
      variant: how they are shown.
      width, row_height: as for `sheet.compose`.

    Raises:
      UserError: a damaged file, or no such variant.
    """
    if variant.short_edge is not None and variant.short_edge not in record_folder.short_edges:
        edges = ", ".join(map(str, record_folder.short_edges)) or "none"
        raise UserError(f"--short_edge={variant.short_edge}: {record_folder.path} has anchors for {edges}")
    tiles = [_tile(record_folder, record, variant) for record in read_records(record_folder, split, rows)]
    shown = f"{len(rows)} of {len(record_folder.index(split)):,} images of split '{split}' of {record_folder.name}"
    legend = list(sheet.PEOPLE_SIGNS)
    shown += ", flipped" if variant.flipped else f"; {_twins(record_folder.skeleton)}"
    if variant.short_edge is not None:
        shown += f", with the anchors at {variant.short_edge}"
        legend += [sheet.Sign("box", POSITIVE, "positive anchor"), sheet.Sign("box", (110, 114, 118), "ignored anchor")]
    return sheet.compose([tiles], shown, legend, width=width, row_height=row_height)


def _twins(skeleton: Skeleton) -> str:
    """The pairs that change places in a mirror, or how many they are, and the sides without a twin."""
    pairs = [f"{skeleton.keypoints[k]} - {skeleton.keypoints[twin]}" for k, twin in enumerate(skeleton.flip) if k < twin]
    alone = sides_without_twin(skeleton.keypoints, skeleton.flip)
    some = ", ".join(pairs[:2]) + (f" and {len(pairs) - 2} more" if len(pairs) > 2 else "")
    return f"mirror twins: {some or 'none'}" + (f"; no twin: {', '.join(alone)}" if alone else "")


def _tile(record_folder: RecordFolder, record: Record, variant: Variant) -> sheet.Tile:
    crowds = int(record.is_crowd.sum())
    labels = record.labels[~record.is_crowd]
    people = number_of_people(record_folder.skeleton, labels) if len(labels) or not crowds else ""
    what = [people, number_of(crowds, "crowd") if crowds else ""]
    lines = [
        f"image {record.image_id}, {record.width} x {record.height}",
        ", ".join([*filter(None, what), f"{int((record.keypoints[..., 2] > 0).sum())} keypoints"]),
    ]
    aspect = record.width / record.height

    def paint_people(height: int, width: int) -> NDArray[np.uint8]:
        pixels = _pixels(record, height, width, flipped=variant.flipped)
        return draw_record(pixels, record, record_folder.skeleton, flipped=variant.flipped)

    if variant.short_edge is None:
        return sheet.Tile(aspect, paint_people, tuple(lines))
    matching = record.matchings[2 * record_folder.short_edges.index(variant.short_edge) + int(variant.flipped)]
    lines[1] += f"; {len(matching.positive)} positive, {len(matching.ignored)} ignored anchors"
    size = data_config.resized_size(record.height, record.width, variant.short_edge, record_folder.max_edge)
    names = (matching.positive, matching.ignored)
    positive, ignored = (anchors.corners(record_folder.anchors, some, *size) for some in names)

    def paint_both(height: int, width: int) -> NDArray[np.uint8]:
        half = width // 2
        pixels = _pixels(record, height, half, flipped=variant.flipped)
        boxes = anchors.variant_boxes(record.boxes, height, half, flipped=variant.flipped)
        scale = np.array([half, height] * 2) / np.array([size[1], size[0]] * 2)
        matched = draw_matching(pixels, boxes[~record.is_crowd], boxes[record.is_crowd], positive * scale, ignored * scale)
        rest = np.zeros((height, width - 2 * half, 3), np.uint8)
        return np.concatenate([paint_people(height, half), matched, rest], axis=1)

    return sheet.Tile(2 * aspect, paint_both, tuple(lines))


def number_of_people(skeleton: Skeleton, labels: NDArray[np.integer[Any]]) -> str:
    """Such as "2 persons"; of several classes "dog 1, cat 2", those that are there. labels: [P], 1…C."""
    if not skeleton.classes or not len(labels):
        return number_of(len(labels), "person")
    return ", ".join(f"{skeleton.class_name(label)} {(labels == label).sum()}" for label in np.unique(labels).tolist())


def number_of(number: int, what: str) -> str:
    """Such as "1 crowd", "2 crowds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def image_of(record: Record) -> Image.Image:
    """The record's image; if it cannot be decoded, a grey one that says so."""
    try:
        return Image.fromarray(image.decode(tf.constant(record.image_bytes)).numpy())
    except tf.errors.OpError as error:
        blank = Image.new("RGB", (record.width, record.height), (60, 60, 60))
        text = f"cannot be decoded:\n{reason_of(error)[:60]}"
        ImageDraw.Draw(blank).text((12, 12), text, fill=sheet.INK, font_size=max(12, record.width // 25))
        return blank


def _pixels(record: Record, height: int, width: int, *, flipped: bool) -> NDArray[np.uint8]:
    """The record's image at some size."""
    resized = image_of(record).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)[:, ::-1] if flipped else np.asarray(resized)


def draw_record(pixels: NDArray[np.uint8], record: Record, skeleton: Skeleton, *, flipped: bool) -> NDArray[np.uint8]:
    """Draws a record's objects on its image, uint8 [h, w, 3] of any size, mirrored already if `flipped`."""
    height, width = pixels.shape[:2]
    boxes = anchors.variant_boxes(record.boxes, height, width, flipped=flipped)
    points = pixel_keypoints(record, skeleton, height, width, flipped=flipped)
    drawn = draw_crowds(pixels, boxes[record.is_crowd], sheet.DRAWN_LINE)
    single = ~record.is_crowd
    people = Drawn(boxes[single], points[single], labels=skeleton.class_names(record.labels[single]))
    return draw_people(drawn, people, skeleton, sheet.DRAWN_LINE, text=CLASS_TEXT)


def draw_matching(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.floating],
    crowds: NDArray[np.floating],
    positive: NDArray[np.floating],
    ignored: NDArray[np.floating],
) -> NDArray[np.uint8]:
    """Draws anchors over a dimmed image, uint8 [h, w, 3]; boxes and anchors are float [n, 4] in its pixels."""
    drawn = draw_boxes(dimmed(pixels), ignored, IGNORED, IGNORED_OPACITY)
    drawn = draw_crowds(drawn, crowds, sheet.DRAWN_LINE)
    drawn = draw_boxes(drawn, positive, POSITIVE, POSITIVE_OPACITY, sheet.DRAWN_LINE - 1)
    return draw_boxes(drawn, boxes, BOX, 1.0, sheet.DRAWN_LINE)


def dimmed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A darker and greyer image, on which thin lines can be seen."""
    grey = pixels.mean(axis=-1, keepdims=True)
    return np.asarray(0.5 * (0.4 * pixels + 0.6 * grey), np.uint8)
