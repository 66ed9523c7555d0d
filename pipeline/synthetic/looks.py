"""Colours of rendered people and things: skin, hair, the cut and colours of clothes."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

Color = tuple[int, int, int]

SKIN: tuple[Color, ...] = (
    (255, 224, 196),
    (241, 194, 160),
    (224, 172, 128),
    (198, 134, 90),
    (150, 96, 62),
    (100, 64, 44),
    (72, 46, 34),
)
HAIR: tuple[Color, ...] = (
    (28, 22, 20),
    (60, 40, 26),
    (104, 66, 36),
    (176, 128, 60),
    (222, 190, 120),
    (150, 60, 30),
    (150, 150, 150),
)


@dataclasses.dataclass(frozen=True)
class Look:
    """Colours of a person and the clothes.

    Everybody wears a suit like those of motion capture: the left limbs are of warm colours, the right ones of cold colours, and
    the upper half of a limb differs from the lower in lightness. So an image must not be mirrored for training: left and right
    would change places in the labels, but not in the colours.
    """

    skin: Color
    hair: Color
    shirt: Color
    front: Color  # stripe down the chest
    skirt: Color | None
    shoes: Color
    arms: dict[str, tuple[Color, Color]]  # by side: upper arm, forearm
    legs: dict[str, tuple[Color, Color]]  # by side: thigh, shin
    long_hair: bool


def random_color(
    rng: np.random.Generator, saturation: tuple[float, float] = (0.1, 0.9), value: tuple[float, float] = (0.15, 0.95)
) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return int(red * 255), int(green * 255), int(blue * 255)


def limb_color(rng: np.random.Generator, side: str, *, dark: bool) -> Color:
    """The colour of half a limb of a suit: orange-red to yellow on the left, green-blue to violet on the right."""
    hue = rng.uniform(-0.03, 0.14) if side == "left" else rng.uniform(0.45, 0.72)
    red, green, blue = colorsys.hsv_to_rgb(
        hue % 1.0, rng.uniform(0.55, 1.0), rng.uniform(0.3, 0.55) if dark else rng.uniform(0.7, 1.0)
    )
    return int(red * 255), int(green * 255), int(blue * 255)


def _limb_colors(rng: np.random.Generator, *, dark_above: bool) -> dict[str, tuple[Color, Color]]:
    return {
        side: (limb_color(rng, side, dark=dark_above), limb_color(rng, side, dark=not dark_above)) for side in ("left", "right")
    }


def shade(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, max(0, int(channel * factor))) for channel in color)
    return red, green, blue


def luminance(color: Color) -> float:
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def random_look(rng: np.random.Generator) -> Look:
    shirt = random_color(rng)
    front = random_color(rng, (0.0, 0.8), (0.1, 1.0))
    while abs(luminance(front) - luminance(shirt)) < 75:
        front = random_color(rng, (0.0, 0.8), (0.1, 1.0))
    return Look(
        skin=shade(SKIN[rng.integers(len(SKIN))], rng.uniform(0.92, 1.06)),
        hair=random_color(rng) if rng.random() < 0.15 else shade(HAIR[rng.integers(len(HAIR))], rng.uniform(0.85, 1.15)),
        shirt=shirt,
        front=front,
        skirt=random_color(rng, (0.1, 0.8), (0.12, 0.85)) if rng.random() < 0.08 else None,
        shoes=random_color(rng, (0.0, 0.7), (0.05, 0.95)),
        arms=_limb_colors(rng, dark_above=True),
        legs=_limb_colors(rng, dark_above=False),
        long_hair=bool(rng.random() < 0.3),
    )
