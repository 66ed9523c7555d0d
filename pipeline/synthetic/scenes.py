"""Backgrounds, limb-like clutter and objects that stand in the way, for rendered images.

Clutter is made of what people are made of — rods in the colours of skin and clothes, balls like heads, branches, posts —
so that a detector has to look at how the pieces hang together.

Everything is drawn at `SUPERSAMPLING` times the image's size and reduced once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.synthetic.looks import HAIR, SKIN, Color, limb_color, random_color, shade
from pipeline.synthetic.people import capsules
from pipeline.synthetic.poses import Floats

SUPERSAMPLING = 2


def fill(draw: ImageDraw.ImageDraw, polygon: Floats, color: Color | int) -> None:
    """Fills a polygon [N,2] given in continuous pixels of the image.

    Pillow cuts coordinates to whole pixels, and a pixel i of its grid covers i…i+1: the floor is the right one.
    """
    draw.polygon(np.floor(polygon * SUPERSAMPLING).astype(np.int64).ravel().tolist(), fill=color)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Floats:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _ellipse(x: float, y: float, rx: float, ry: float) -> Floats:
    angle = np.linspace(0, 2 * math.pi, 20, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], -1)


def _rod(
    draw: ImageDraw.ImageDraw, start: Floats, end: Floats, radius: float, end_radius: float, color: Color, outline: float = 0.0
) -> None:
    radii = np.array([radius, end_radius])
    if outline:
        outer = capsules(start[None], end[None], radii[:1] + outline, radii[1:] + outline)[0]
        fill(draw, outer, shade(color, 0.55))
    fill(draw, capsules(start[None], end[None], radii[:1], radii[1:])[0], color)


def _noise(
    rng: np.random.Generator, width: int, height: int, cell: float, amplitude: float, channels: int
) -> NDArray[np.float32]:
    """Smooth noise of about ±amplitude with blobs of `cell` pixels: float32 [height,width,channels]."""
    rows, columns = max(2, round(height / cell)), max(2, round(width / cell))
    small = rng.integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    image = Image.fromarray(small if channels == 3 else small[:, :, 0])
    large = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    return (large.reshape(height, width, channels) - 127.5) * np.float32(amplitude / 128)


def _base(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Colour gradient, stripes or tiles, with noise of one or two sizes over it."""
    first, second = (np.array(random_color(rng, (0.0, 0.6), (0.15, 0.95)), dtype=np.float32) for _ in range(2))
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(0, width / height, width, dtype=np.float32)[None, :, None]
    angle = rng.uniform(0, 2 * math.pi)
    ramp = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
    match int(rng.integers(5)):
        case 0:  # sky
            mix = np.broadcast_to(y, (height, width, 1))
        case 1:  # slanted gradient
            mix = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
        case 2:  # plain
            mix = np.zeros((height, width, 1), np.float32) + np.float32(rng.uniform(0, 1))
        case 3:  # stripes of any direction
            mix = np.float32(rng.uniform(0.15, 0.8)) * (
                (ramp * np.float32(rng.uniform(4, 26))) % 1 > rng.uniform(0.3, 0.7)
            ).astype(np.float32)
        case _:  # tiles
            size = np.float32(rng.uniform(3, 14))
            mix = np.float32(rng.uniform(0.1, 0.6)) * ((np.floor(x * size) + np.floor(y * size)) % 2).astype(np.float32)
    pixels = first + (second - first) * mix
    pixels = pixels + _noise(rng, width, height, rng.uniform(12, 90), rng.uniform(5, 60), 3)
    if rng.random() < 0.6:
        pixels = pixels + _noise(rng, width, height, rng.uniform(2, 8), rng.uniform(4, 30), 1)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.resize((width * SUPERSAMPLING, height * SUPERSAMPLING), Image.Resampling.NEAREST)


def _ground(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    """A floor, perhaps with lines that run together at the horizon."""
    horizon, color = height * rng.uniform(0.35, 0.85), random_color(rng, (0.05, 0.6), (0.2, 0.85))
    fill(draw, _rectangle(0, horizon, width, height), color)
    if rng.random() < 0.5:
        vanishing = rng.uniform(0, width)
        for x in np.linspace(-width, 2 * width, int(rng.integers(6, 18))):
            w = rng.uniform(1, 4)
            fill(draw, np.array([[vanishing, horizon], [x - w, height], [x + w, height]]), shade(color, 0.8))


def _buildings(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    bottom, x = height * rng.uniform(0.5, 0.9), -10.0
    while x < width:
        wide, top, color = (
            rng.uniform(20, 90),
            bottom - height * rng.uniform(0.15, 0.6),
            random_color(rng, (0.0, 0.5), (0.2, 0.9)),
        )
        fill(draw, _rectangle(x, top, x + wide, bottom), color)
        pane, window = rng.uniform(5, 14), shade(color, rng.choice([0.55, 1.4]))
        for left in np.arange(x + 3, x + wide - pane * 0.7, pane * 1.6)[:7]:
            for above in np.arange(top + 3, bottom - pane, pane * 1.9)[:6]:
                fill(draw, _rectangle(left, above, left + pane * 0.7, above + pane), window)
        x += wide + max(0.0, rng.normal(0, 15))


def _hills(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    for _ in range(int(rng.integers(1, 4))):
        x = np.linspace(0, width, 14)
        y = height * rng.uniform(0.3, 0.75) + np.cumsum(rng.normal(0, height * 0.05, 14))
        outline = np.concatenate([np.stack([x, y], -1), [[width, height], [0, height]]])
        fill(draw, outline, random_color(rng, (0.1, 0.6), (0.2, 0.8)))


def _panels(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    """Doors, images, boxes."""
    for _ in range(int(rng.integers(2, 9))):
        x, y, w, h = rng.uniform(-20, width), rng.uniform(-20, height), rng.uniform(10, 110), rng.uniform(10, 110)
        color = random_color(rng, (0.0, 0.8), (0.1, 0.95))
        fill(draw, _rectangle(x, y, x + w, y + h), color)
        if rng.random() < 0.5:
            fill(draw, _rectangle(x + w * 0.1, y + h * 0.1, x + w * 0.9, y + h * 0.9), shade(color, rng.uniform(0.6, 1.4)))


def _fence(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    gap, bar, color = rng.uniform(9, 30), rng.uniform(1, 4), random_color(rng, (0.0, 0.6), (0.1, 0.9))
    top = height * rng.uniform(0.1, 0.6)
    bottom = top + height * rng.uniform(0.2, 0.6)
    for x in np.arange(rng.uniform(0, gap), width, gap):
        fill(draw, _rectangle(x, top, x + bar, bottom), color)
    for y in (top, bottom - bar):
        fill(draw, _rectangle(0, y, width, y + bar), shade(color, 0.85))


def _books(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    x, y, tall = rng.uniform(-20, width * 0.6), rng.uniform(0, height * 0.7), rng.uniform(15, 50)
    for _ in range(int(rng.integers(6, 22))):
        w = rng.uniform(3, 10)
        fill(draw, _rectangle(x, y + rng.uniform(0, tall * 0.3), x + w, y + tall), random_color(rng))
        x += w


def _body_color(rng: np.random.Generator) -> Color:
    kind = rng.random()
    if kind < 0.35:
        return shade(SKIN[rng.integers(len(SKIN))], rng.uniform(0.85, 1.05))
    return limb_color(rng, str(rng.choice(["left", "right"])), dark=kind < 0.55) if kind < 0.75 else random_color(rng)


def _loose_rods(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    """Chains of one to three rods with the proportions and colours of limbs."""
    for _ in range(int(rng.integers(1, 6))):
        at = rng.uniform([0, 0], [width, height])
        length = height * rng.uniform(0.05, 0.24)
        radius, angle, color = length * rng.uniform(0.1, 0.28), rng.uniform(0, 2 * math.pi), _body_color(rng)
        for _ in range(int(rng.integers(1, 4))):
            end = at + length * np.array([math.cos(angle), math.sin(angle)])
            _rod(draw, at, end, radius, radius * 0.8, color, outline=rng.choice([0.0, 0.8]))
            at, radius, angle = end, radius * 0.85, angle + rng.normal(0, 1.0)
            color = _body_color(rng) if rng.random() < 0.4 else color


def _balls(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    """Balls, balloons and lamps: as round as heads, some with a cap of hair colour, none with a face."""
    for _ in range(int(rng.integers(1, 5))):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), height * rng.uniform(0.015, 0.08)
        color = _body_color(rng)
        fill(draw, _ellipse(x, y, radius * 1.08, radius * 1.25), shade(color, 0.55))
        fill(draw, _ellipse(x, y, radius, radius * 1.17), color)
        if rng.random() < 0.4:
            fill(draw, _ellipse(x, y - radius * 0.5, radius * 0.95, radius * 0.6), HAIR[rng.integers(len(HAIR))])
        if rng.random() < 0.4:
            _rod(
                draw,
                np.array([x, y + radius]),
                np.array([x + rng.normal(0, 5), y + radius * rng.uniform(2, 7)]),
                0.8,
                0.8,
                shade(color, 0.5),
            )


def _posts(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    for _ in range(int(rng.integers(1, 5))):
        x, lean, radius = rng.uniform(0, width), rng.normal(0, 12), rng.uniform(1, 7)
        top, bottom = height * rng.uniform(-0.1, 0.5), height * rng.uniform(0.6, 1.1)
        color = random_color(rng, (0.0, 0.6), (0.1, 0.9)) if rng.random() < 0.7 else _body_color(rng)
        _rod(draw, np.array([x + lean, top]), np.array([x, bottom]), radius, radius, color)
        if rng.random() < 0.4:  # a sign or a lamp
            w = rng.uniform(5, 22)
            fill(draw, _rectangle(x + lean - w, top, x + lean + w, top + w * rng.uniform(0.8, 2)), random_color(rng))


def _tree(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    """Branches that fork, bare or with leaves."""
    color = shade((96, 68, 44), rng.uniform(0.5, 1.6))
    foot = np.array([rng.uniform(0, width), height * rng.uniform(0.6, 1.05)])
    branches = [(foot, -math.pi / 2 + rng.normal(0, 0.15), height * rng.uniform(0.15, 0.3), rng.uniform(2.5, 8))]
    tips = []
    for _ in range(int(rng.integers(5, 13))):
        start, angle, length, radius = branches.pop(0)
        end = start + length * np.array([math.cos(angle), math.sin(angle)])
        _rod(draw, start, end, radius, radius * 0.65, color)
        tips.append(end)
        branches += [
            (end, angle + turn * rng.uniform(0.25, 0.8), length * rng.uniform(0.6, 0.85), radius * 0.62) for turn in (-1, 1)
        ]
    if rng.random() < 0.6:
        leaves = random_color(rng, (0.3, 0.8), (0.2, 0.7))
        for tip in tips[1:]:
            radius = height * rng.uniform(0.03, 0.1)
            fill(draw, _ellipse(tip[0], tip[1], radius, radius * rng.uniform(0.7, 1.1)), shade(leaves, rng.uniform(0.75, 1.2)))


_Painter = Callable[[ImageDraw.ImageDraw, np.random.Generator, int, int], None]
_SETTINGS: tuple[tuple[_Painter, float], ...] = (
    (_hills, 0.2),
    (_ground, 0.5),
    (_buildings, 0.25),
    (_panels, 0.35),
    (_fence, 0.18),
    (_books, 0.2),
)
_CLUTTER: tuple[tuple[_Painter, float], ...] = ((_tree, 0.3), (_posts, 0.35), (_loose_rods, 0.65), (_balls, 0.45))


def random_background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """An RGB image of SUPERSAMPLING times the given size, with clutter but with nobody in it."""
    image = _base(rng, width, height)
    draw = ImageDraw.Draw(image)
    for painter, share in (*_SETTINGS, *_CLUTTER):
        if rng.random() < share:
            painter(draw, rng, width, height)
    return image


def random_obstacle(rng: np.random.Generator, box: tuple[float, float, float, float]) -> list[tuple[Floats, Color]]:
    """Something that hides a part of a person.

    Args:
      box: x0, y0, x1, y1 of the person in the image.

    Returns: polygons [N,2] in pixels of the image, with their colours, in the order of drawing.
    """
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    color = random_color(rng, (0.05, 0.8), (0.15, 0.9))
    match int(rng.integers(4)):
        case 0:  # a wall or a table before the legs
            top, left = y1 - h * rng.uniform(0.15, 0.42), x0 - w * rng.uniform(0, 0.5)
            right, bottom = x1 + w * rng.uniform(0, 0.5), y1 + h * rng.uniform(0.02, 0.2)
            edge = max(1.0, h * 0.03)
            return [
                (_rectangle(left, top, right, bottom), color),
                (_rectangle(left, top, right, top + edge), shade(color, 1.3)),
            ]
        case 1:  # a post
            x, radius = x0 + w * rng.uniform(0.1, 0.9), max(1.5, h * rng.uniform(0.015, 0.04))
            return [(_rectangle(x - radius, y0 - h * rng.uniform(0, 0.6), x + radius, y1 + h * 0.1), color)]
        case 2:  # a bush
            middle = np.array([x0 + w * rng.uniform(0, 1), y1 - h * rng.uniform(0, 0.2)])
            blobs = middle + rng.normal(0, 0.1, (6, 2)) * h
            sizes = h * rng.uniform(0.07, 0.14, 6)
            return [
                (_ellipse(at[0], at[1], r, r * 0.8), shade(color, f))
                for at, r, f in zip(blobs, sizes, rng.uniform(0.8, 1.2, 6), strict=True)
            ]
        case _:  # a box or a bag
            size = h * rng.uniform(0.12, 0.3)
            x, y = x0 + w * rng.uniform(0.1, 0.9), y0 + h * rng.uniform(0.35, 0.95)
            bag = _rectangle(x - size / 2, y - size / 2, x + size / 2, y + size / 2)
            return [(bag, color), (bag * 0.7 + 0.3 * np.array([x, y]), shade(color, 1.2))]
