"""Draws people on images: boxes, limbs and keypoints, left and right in different colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.sides import Side, named_sides
from pipeline.skeleton import Skeleton

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]

LEFT, RIGHT, MIDDLE, BOX, CROWD = (255, 140, 0), (30, 144, 255), (60, 220, 90), (255, 255, 80), (255, 90, 200)
_COLOURS = {"left": LEFT, "right": RIGHT, "middle": MIDDLE}
_HATCH = 14  # lines of a crowd's box along the image's shorter side


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What is to be drawn, in pixels of the image."""

    boxes: Floats  # [n, 4]: x0, y0, x1, y1
    keypoints: Floats  # [n, K, 3]: x, y and 0 not drawn, 1 hollow (hidden, unsure), 2 filled
    scores: Floats | None = None  # [n]
    labels: Sequence[str] | None = None  # of each person, before the score


def draw_people(
    image: Pixels, people: Drawn, skeleton: Skeleton, line: int | None = None, *, names: bool = False, text: int | None = None
) -> Pixels:
    """Draws people on a copy of an image.

    Args:
      image: uint8 [h, w, 3].
      people: in pixels of `image`; a person whose box has no area is padding, and skipped.
      skeleton: tells left (orange) from right (blue).
      line: thickness in pixels; by default what suits the size of the image.
      names: whether each keypoint's name stands beside it.
      text: height of letters in pixels; by default what suits the size of the image.

    Returns:
      uint8 [h, w, 3].
    """
    canvas = Image.fromarray(np.ascontiguousarray(image))
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=text or max(9, min(canvas.size) // 40))
    thin = line or _line(canvas)
    colours = [_COLOURS[side] for side in sides(skeleton)]
    for i, (box, points) in enumerate(zip(people.boxes, people.keypoints, strict=True)):
        x0, y0, x1, y1 = (float(value) for value in box)
        if not (x1 > x0 and y1 > y0):
            continue
        # Points and limbs grow with the person, within limits.
        size = min(max(thin // 2, 1, int(np.sqrt((x1 - x0) * (y1 - y0)) / 40)), 3 * thin)
        pen.rectangle((x0, y0, x1 - 1 if x1 - 1 > x0 else x1, y1 - 1 if y1 - 1 > y0 else y1), outline=BOX, width=thin)
        for a, b in skeleton.limbs:
            if points[a, 2] > 0 and points[b, 2] > 0:
                ends = (*map(float, points[a, :2]), *map(float, points[b, :2]))
                pen.line(ends, fill=_limb_colour(colours[a], colours[b]), width=size)
        for k, (colour, (x, y, shown)) in enumerate(zip(colours, points.tolist(), strict=True)):
            if shown > 0:
                circle = (x - size - 1, y - size - 1, x + size + 1, y + size + 1)
                if shown >= 2:
                    pen.ellipse(circle, fill=colour, outline=(0, 0, 0))
                else:
                    pen.ellipse(circle, fill=(0, 0, 0), outline=colour, width=max(1, size // 2))
                if names:
                    pen.text(
                        (x + size + 3, y), skeleton.keypoints[k], colour, font, "lm", stroke_width=1, stroke_fill=(0, 0, 0)
                    )
        score = "" if people.scores is None else f"{people.scores[i]:.2f}"
        label = f"{'' if people.labels is None else people.labels[i]} {score}".strip()
        if label:
            pen.text((x0 + thin + 1, y0 + thin), label, BOX, font, stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(canvas)


def draw_crowds(image: Pixels, boxes: Floats, line: int | None = None) -> Pixels:
    """Hatches the boxes of crowds on a copy of an image: uint8 [h, w, 3] and x0, y0, x1, y1 [n, 4] in its pixels."""
    canvas = Image.fromarray(np.ascontiguousarray(image))
    thin = line or _line(canvas)
    for x0, y0, x1, y1 in boxes.astype(float).tolist():
        if not (x1 > x0 and y1 > y0):
            continue
        inside = Image.new("L", canvas.size)
        ImageDraw.Draw(inside).rectangle((x0, y0, x1 - 1, y1 - 1), fill=255)
        lines = Image.new("L", canvas.size)
        pen = ImageDraw.Draw(lines)
        step = max(6, min(canvas.size) // _HATCH)
        for start in range(-canvas.height, canvas.width, step):
            pen.line((start, canvas.height, start + canvas.height, 0), fill=150, width=thin)
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=255, width=thin)
        canvas.paste(CROWD, mask=Image.composite(lines, Image.new("L", canvas.size), inside))
    return np.asarray(canvas)


def draw_boxes(image: Pixels, boxes: Floats, colour: tuple[int, int, int], opacity: float, line: int = 1) -> Pixels:
    """Outlines boxes on a copy of an image; many boxes of little opacity show as a cloud.

    Args:
      image: uint8 [h, w, 3].
      boxes: [n, 4], x0, y0, x1, y1 in its pixels.
      opacity: of each line, 0…1.
      line: thickness in pixels.
    """
    canvas = Image.fromarray(np.ascontiguousarray(image))
    pen = ImageDraw.Draw(canvas, "RGBA")  # (blends, unlike a pen of the image's own mode)
    for x0, y0, x1, y1 in boxes.astype(float).tolist():
        pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=(*colour, round(255 * opacity)), width=line)
    return np.asarray(canvas)


def _line(canvas: Image.Image) -> int:
    return max(1, min(canvas.size) // 300)


def sides(skeleton: Skeleton) -> tuple[Side, ...]:
    """The side of each keypoint, as its name tells (`pipeline.sides`); of twins without a side, the first is the left one."""
    named = named_sides(skeleton.keypoints)
    result: list[Side] = []
    for k, twin in enumerate(skeleton.flip):
        if named[k] == "middle" and twin != k:
            result.append("left" if named[twin] == "right" or (named[twin] == "middle" and k < twin) else "right")
        else:
            result.append(named[k])
    return tuple(result)


def _limb_colour(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour of a limb's ends if they agree; a limb between the sides, such as that of the hips, has the middle's."""
    ends = {a, b} - {MIDDLE}
    return ends.pop() if len(ends) == 1 else MIDDLE


# A keypoint's score is its share of 56×56 places: an even spread would give 0.0003, a clear point has some hundredths and more.
UNSURE = 0.01


def drawn_people(boxes: Floats, scores: Floats, keypoints: Floats, keypoint_scores: Floats) -> Drawn:
    """What is drawn of a model's answer about one image ([n, 4], [n], [n, K, 2], [n, K]): unsure points become hollow ones."""
    shown = np.where(keypoint_scores < UNSURE, 1, 2)[..., None]
    return Drawn(boxes, np.concatenate([keypoints, shown], axis=-1), scores)


def side_by_side(image: Pixels, truth: Drawn, found: Drawn, skeleton: Skeleton) -> Pixels:
    """Ground truth on the left, prediction on the right: uint8 [h, w, 3] → [h, 2w + gap, 3]."""
    gap = np.full((image.shape[0], max(2, image.shape[1] // 80), 3), 255, np.uint8)
    return np.concatenate([draw_people(image, truth, skeleton), gap, draw_people(image, found, skeleton)], axis=1)
