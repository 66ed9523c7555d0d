"""Draws people on pictures: boxes, limbs and keypoints, left and right in different colours."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.skeleton import Skeleton

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]

LEFT, RIGHT, MIDDLE, BOX = (255, 140, 0), (30, 144, 255), (60, 220, 90), (255, 255, 80)
# A keypoint's score is its share of 56×56 places: an even spread would give 0.0003, a clear point has some hundredths and more.
UNSURE = 0.01


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What is to be drawn, in pixels of the picture: ground truth as it is, people by `drawn_people`."""

    boxes: Floats  # [n, 4]: x0, y0, x1, y1
    keypoints: Floats  # [n, K, 3]: x, y and 0 not drawn, 1 hollow (hidden, unsure), 2 filled
    scores: Floats | None = None  # [n]


def drawn_people(boxes: Floats, scores: Floats, keypoints: Floats, keypoint_scores: Floats) -> Drawn:
    """A model's answer about one picture ([n, 4], [n], [n, K, 2], [n, K]): unsure points become hollow ones."""
    shown = np.where(keypoint_scores < UNSURE, 1, 2)[..., None]
    return Drawn(boxes, np.concatenate([keypoints, shown], axis=-1), scores)


def draw_people(image: Pixels, people: Drawn, skeleton: Skeleton) -> Pixels:
    """Draws people on a copy of a picture.

    Args:
      image: uint8 [h, w, 3].
      people: in pixels of `image`; who has a box without area is skipped (padding).
      skeleton: names tell left (orange) from right (blue).

    Returns:
      uint8 [h, w, 3].
    """
    canvas = Image.fromarray(np.ascontiguousarray(image))
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(9, min(canvas.size) // 40))
    thin = max(1, min(canvas.size) // 300)
    for i, (box, points) in enumerate(zip(people.boxes, people.keypoints, strict=True)):
        x0, y0, x1, y1 = (float(value) for value in box)
        if not (x1 > x0 and y1 > y0):
            continue
        # Points and limbs grow with the person, within limits.
        size = min(max(thin, int(np.sqrt((x1 - x0) * (y1 - y0)) / 40)), 3 * thin)
        pen.rectangle((x0, y0, x1 - 1 if x1 - 1 > x0 else x1, y1 - 1 if y1 - 1 > y0 else y1), outline=BOX, width=thin)
        for a, b in skeleton.limbs:
            if points[a, 2] > 0 and points[b, 2] > 0:
                pen.line(
                    (*map(float, points[a, :2]), *map(float, points[b, :2])), fill=_limb_colour(skeleton, a, b), width=size
                )
        for name, (x, y, shown) in zip(skeleton.keypoints, points.tolist(), strict=True):
            if shown > 0:
                circle = (x - size - 1, y - size - 1, x + size + 1, y + size + 1)
                colour = _colour(name)
                if shown >= 2:
                    pen.ellipse(circle, fill=colour, outline=(0, 0, 0))
                else:
                    pen.ellipse(circle, outline=colour, width=max(1, size // 2))
        if people.scores is not None:
            pen.text(
                (x0 + thin + 1, y0 + thin),
                f"{people.scores[i]:.2f}",
                fill=BOX,
                font=font,
                stroke_width=1,
                stroke_fill=(0, 0, 0),
            )
    return np.asarray(canvas)


def side_by_side(image: Pixels, truth: Drawn, found: Drawn, skeleton: Skeleton) -> Pixels:
    """Ground truth on the left, prediction on the right: uint8 [h, w, 3] → [h, 2w + gap, 3]."""
    gap = np.full((image.shape[0], max(2, image.shape[1] // 80), 3), 255, np.uint8)
    return np.concatenate([draw_people(image, truth, skeleton), gap, draw_people(image, found, skeleton)], axis=1)


def _colour(name: str) -> tuple[int, int, int]:
    return LEFT if name.startswith("left_") else RIGHT if name.startswith("right_") else MIDDLE


def _limb_colour(skeleton: Skeleton, a: int, b: int) -> tuple[int, int, int]:
    """That of its ends where they agree; a limb between the sides, such as the one that joins the hips, is of the middle."""
    ends = _colour(skeleton.keypoints[a]), _colour(skeleton.keypoints[b])
    sides = {end for end in ends if end != MIDDLE}
    return sides.pop() if len(sides) == 1 else MIDDLE
