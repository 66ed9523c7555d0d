"""Rendered people who walk about: the frames of a clip with known keypoints, boxes and identities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from pipeline.synthetic.looks import Look, random_look
from pipeline.synthetic.people import draw_figure
from pipeline.synthetic.poses import SIDES, Floats, Pose, random_pose
from pipeline.synthetic.rendering import Layer, annotate, paint
from pipeline.synthetic.scenes import SUPERSAMPLING, random_background

_HEIGHT = (0.4, 0.75)  # of a person, as a share of the image's height
_SPEED = (0.1, 0.35)  # image widths a second
_STEPS = (0.8, 1.6)  # a second
# Limb by limb: the joint that a limb hangs on, and the points that move with it.
_LIMBS = tuple(
    (f"{side}_{root}", tuple(f"{side}_{name}" for name in names))
    for side, _ in SIDES
    for root, names in (("shoulder", ("elbow", "wrist", "hand")), ("hip", ("knee", "ankle", "toe")))
)


@dataclasses.dataclass(frozen=True)
class ClipFrame:
    """One frame: `pixels` uint8 [h, w, 3], and COCO's annotations with a `track_id` from 1 that a person keeps."""

    pixels: NDArray[np.uint8]
    annotations: tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class _Walker:
    """Somebody who swings between two poses and goes to and fro."""

    poses: tuple[Pose, Pose]
    look: Look
    scale: float  # standing height in pixels
    start: Floats  # x, y of the hips as shares of the image
    speed: float  # image widths a second, to the right if above 0
    steps: float  # a second
    phase: float

    def pose(self, time: float) -> Pose:
        share = 0.5 + 0.5 * math.sin(2 * math.pi * (self.steps * time + self.phase))
        first, second = self.poses
        points = dict(first.points)
        for root, names in _LIMBS:
            for name in names:
                ends = (first.points[name] - first.points[root], second.points[name] - second.points[root])
                points[name] = first.points[root] + (1 - share) * ends[0] + share * ends[1]
        return dataclasses.replace(first, points=points)

    def place(self, time: float, width: int, height: int) -> Floats:
        way = (self.start[0] + self.speed * time) % 2  # there and back again
        return np.array([(0.1 + 0.8 * (way if way < 1 else 2 - way)) * width, self.start[1] * height])


def render_clip(seed: int, frames: int, width: int, height: int, *, people: int = 3, rate: float = 25.0) -> Iterator[ClipFrame]:
    """Renders the frames of a clip; the same arguments give the same pixels.

    Args:
      seed: of everything.
      frames: their number.
      width, height: of the frames in pixels.
      people: who walk about; somebody hardly visible behind another one is not annotated in that frame.
      rate: frames a second.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0xC119])))
    walkers = [_random_walker(rng, number, people, height) for number in range(people)]
    background = random_background(rng, width, height)
    for index in range(frames):
        time = index / rate
        order = sorted(range(people), key=lambda number: walkers[number].scale)  # the nearest last
        layers = [_layer(walkers[number], time, width, height) for number in order]
        kept, annotations = annotate(layers, width, height)
        numbers = [number for number, layer in zip(order, layers, strict=True) if any(layer is other for other in kept)]
        image = background.copy()
        pen = ImageDraw.Draw(image)
        for layer in kept:
            paint(pen, layer)
        yield ClipFrame(
            np.asarray(image.reduce(SUPERSAMPLING)),
            tuple({**entry, "track_id": number + 1} for number, entry in zip(numbers, annotations, strict=True)),
        )


def _random_walker(rng: np.random.Generator, number: int, people: int, height: int) -> _Walker:
    yaw = float(rng.normal(0, 15))
    return _Walker(
        poses=(random_pose(rng, calm=True, yaw=yaw), random_pose(rng, calm=True, yaw=yaw)),
        look=random_look(rng),
        scale=float(rng.uniform(*_HEIGHT)) * height,
        start=np.array([(number + rng.uniform(0, 1)) / people, rng.uniform(0.45, 0.6)]),
        speed=float(rng.choice([-1, 1]) * rng.uniform(*_SPEED)),
        steps=float(rng.uniform(*_STEPS)),
        phase=float(rng.uniform(0, 1)),
    )


def _layer(walker: _Walker, time: float, width: int, height: int) -> Layer:
    figure = draw_figure(walker.pose(time), walker.look, walker.scale)
    return Layer(((figure, walker.place(time, width, height)),), "person")
