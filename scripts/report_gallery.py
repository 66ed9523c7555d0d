"""Ground truth beside prediction, image by image, with a count of who was found and who was not."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.drawing import Drawn, draw_people, drawn_people
from pipeline.image_writer import encode
from pipeline.skeleton import Skeleton

Floats = npt.NDArray[np.float64]

FOUND_IOU = 0.5  # a person counts as found, here, from this overlap on
SCALE = 2  # images are enlarged before they are drawn on: finer lines


@dataclasses.dataclass(frozen=True)
class Example:
    """One image of the split, with all that is known and predicted about it. Boxes are x0, y0, x1, y1 in its pixels.

    Attributes:
      path, image_id: of the image.
      truth: boxes [n, 4] and keypoints [n, K, 3], crowds left out.
      crowds: boxes [c, 4].
      found: people predicted, hollow points where unsure.
      hits: how many of `truth` were found.
      extra: how many were predicted where nobody is (those in crowds do not count).
    """

    path: Path
    image_id: int
    truth: Drawn
    crowds: Floats
    found: Drawn
    hits: int
    extra: int

    @property
    def persons(self) -> int:
        return len(self.truth.boxes)

    @property
    def mistakes(self) -> int:
        return self.persons - self.hits + self.extra


def read_examples(annotations: Path, image_folder: Path, predictions: Path) -> tuple[Skeleton, list[Example]]:
    """All images of a split, by id, with the predictions that `model.predict` wrote for them."""
    content = json.loads(annotations.read_text())
    skeleton = Skeleton.from_category(next(c for c in content["categories"] if c.get("keypoints")))
    persons: dict[int, list[Any]] = defaultdict(list)
    for person in content["annotations"]:
        persons[person["image_id"]].append(person)
    results: dict[str, list[Any]] = defaultdict(list)
    for result in json.loads(predictions.read_text()):
        results[result["file_name"]].append(result)
    images = sorted(content["images"], key=lambda image: image["id"])
    return skeleton, [
        _example(image_folder / i["file_name"], i["id"], persons[i["id"]], results[i["file_name"]], skeleton) for i in images
    ]


def _example(path: Path, image_id: int, persons: list[Any], results: list[Any], skeleton: Skeleton) -> Example:
    true_boxes, true_points = _arrays([p for p in persons if not p["iscrowd"]], skeleton)
    crowds, _ = _arrays([p for p in persons if p["iscrowd"]], skeleton)
    boxes, points = _arrays(results, skeleton)
    scores = np.array([r["score"] for r in results])
    hits, extra = _count(true_boxes, crowds, boxes, scores)
    found = drawn_people(boxes, scores, points[..., :2], points[..., 2])
    return Example(path, image_id, Drawn(true_boxes, true_points), crowds, found, hits, extra)


def _arrays(entries: list[Any], skeleton: Skeleton) -> tuple[Floats, Floats]:
    """Boxes [n, 4] by their corners, and keypoints [n, K, 3]."""
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    none = [0] * 3 * skeleton.num_keypoints
    points = np.array([entry.get("keypoints") or none for entry in entries], np.float64)
    return boxes, points.reshape(-1, skeleton.num_keypoints, 3)


def _count(truth: Floats, crowds: Floats, boxes: Floats, scores: Floats) -> tuple[int, int]:
    """Persons found and people invented: best score first, each takes the free person that it overlaps most."""
    free, hits, extra = np.ones(len(truth), bool), 0, 0
    for i in np.argsort(-scores, kind="stable"):
        overlap = np.where(free, _overlap(boxes[i], truth, of_union=True), 0.0)
        if len(truth) and overlap.max() >= FOUND_IOU:
            free[overlap.argmax()] = False
            hits += 1
        elif not (_overlap(boxes[i], crowds, of_union=False) >= FOUND_IOU).any():
            extra += 1
    return hits, extra


def _overlap(box: Floats, others: Floats, *, of_union: bool) -> Floats:
    """Share of the union, or of `box`, that it has in common with each of `others`: [n]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=-1)
    area = np.prod(box[2:] - box[:2])
    whole = area + np.prod(others[:, 2:] - others[:, :2], axis=-1) - common if of_union else area
    return np.asarray(common / np.maximum(whole, 1e-9))


def draw(example: Example, skeleton: Skeleton) -> tuple[bytes, bytes]:
    """Ground truth and prediction as two JPEG files, enlarged."""
    with Image.open(example.path) as opened:
        shown_image = opened.convert("RGB")
    pixels = np.asarray(shown_image.resize((SCALE * shown_image.width, SCALE * shown_image.height), Image.Resampling.BICUBIC))
    crowds = Drawn(SCALE * example.crowds, np.zeros((len(example.crowds), skeleton.num_keypoints, 3)))
    truth = draw_people(draw_people(pixels, crowds, skeleton), _enlarged(example.truth), skeleton)
    return _jpeg(truth), _jpeg(draw_people(pixels, _enlarged(example.found), skeleton))


def write_sheet(path: Path, skeleton: Skeleton, examples: Sequence[Example], *, rows: int = 3, columns: int = 2) -> None:
    """The first images as one PNG of 256 colours, each with truth on the left and prediction on the right."""
    shown = [[Image.open(io.BytesIO(side)) for side in draw(e, skeleton)] for e in examples[: rows * columns]]
    width, height = (max(side.size[axis] for pair in shown for side in pair) // SCALE for axis in (0, 1))
    gap = 6
    sheet = Image.new("RGB", (columns * (2 * width + 1 + gap) - gap, rows * (height + gap) - gap), (255, 255, 255))
    for place, pair in enumerate(shown):
        left, top = place % columns * (2 * width + 1 + gap), place // columns * (height + gap)
        for side, shown_image in enumerate(pair):
            smaller = shown_image.resize((shown_image.width // SCALE, shown_image.height // SCALE), Image.Resampling.LANCZOS)
            sheet.paste(smaller, (left + side * (width + 1), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256).save(path, "PNG", optimize=True)


def _enlarged(people: Drawn) -> Drawn:
    points = people.keypoints * np.array([SCALE, SCALE, 1.0])
    return Drawn(SCALE * people.boxes, points, people.scores)


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    return encode(pixels, "jpeg", quality=82)


def caption(example: Example) -> str:
    """What a person sees at a glance, in words."""
    persons = f"{example.persons} person{'s' if example.persons != 1 else ''}" if example.persons else "nobody"
    parts = [f"{persons} in it" if example.persons != example.hits or not example.persons else f"{persons}, found"]
    if example.persons > example.hits:
        parts.append(f"{example.persons - example.hits} missed")
    if example.extra:
        parts.append(f"{example.extra} found where nobody is")
    if len(example.crowds):
        parts.append(f"{len(example.crowds)} crowd{'s' if len(example.crowds) > 1 else ''}")
    return ", ".join(parts)


def worst(examples: Sequence[Example], count: int) -> list[Example]:
    """Those with most people missed or invented; none without a mistake."""
    ranked = sorted((e for e in examples if e.mistakes), key=lambda e: (-e.mistakes, e.image_id))
    return ranked[:count]
