"""Sheets of images: rows of equal width, each image with a caption, below a title and a legend of what is drawn."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.command import UserError
from pipeline.drawing import draw_crowds
from pipeline.files import write_file

Colour = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg")
FINENESS = 2  # images are painted so many times larger and then reduced, which makes fine lines smooth
PAPER, INK, SOFT = (20, 23, 27), (236, 239, 242), (150, 160, 170)
MARGIN, GAP, LINE = 24, 10, 18  # pixels: around the sheet, between images, of a line of text
TITLE_SIZE, TEXT_SIZE = 22, 13


@dataclasses.dataclass(frozen=True)
class Tile:
    """An image of the sheet.

    Attributes:
      aspect: width / height.
      paint: makes the image, uint8 [height, width, 3], for a height and a width.
      caption: lines below it.
    """

    aspect: float
    paint: Callable[[int, int], Pixels]
    caption: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sign:
    """An entry of the legend."""

    kind: Literal["line", "dot", "ring", "box", "hatch"]
    colour: Colour
    text: str


def compose(
    groups: Sequence[Sequence[Tile]], title: str, legend: Sequence[Sign], *, width: int = 1600, row_height: int = 300
) -> Image.Image:
    """Paints a sheet.

    Args:
      groups: of images, from left to right and top to bottom; each group begins a row.
      width: of the sheet in pixels.
      row_height: of the images, about: a row's images are as high as makes them fill it.
    """
    tiles = [tile for group in groups for tile in group]
    rows = [row for group in groups for row in justified([tile.aspect for tile in group], width - 2 * MARGIN, row_height)]
    caption = LINE * max((len(tile.caption) for tile in tiles), default=0) + 6
    legend_rows = _legend_rows(legend, width - 2 * MARGIN)
    top = MARGIN + TITLE_SIZE + 12 + (TEXT_SIZE + 10) * len(legend_rows) + 10
    height = top + sum(GAP + caption + row[0][1] for row in rows) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), _fitting(title, _font(TITLE_SIZE), width - 2 * MARGIN), fill=INK, font=_font(TITLE_SIZE))
    _paint_legend(sheet, legend_rows, MARGIN + TITLE_SIZE + 16)
    remaining = iter(tiles)
    for row in rows:
        left = MARGIN
        for tile_width, tile_height in row:
            tile = next(remaining)
            large = Image.fromarray(tile.paint(FINENESS * tile_height, FINENESS * tile_width))
            sheet.paste(large.resize((tile_width, tile_height), Image.Resampling.BOX), (left, top))
            for number, text in enumerate(tile.caption):
                at = (left, top + tile_height + 4 + LINE * number)
                font = _font(TEXT_SIZE)
                pen.text(at, _fitting(text, font, tile_width), fill=SOFT if number else INK, font=font)
            left += tile_width + GAP
        top += row[0][1] + caption + GAP
    return sheet


def justified(aspects: Sequence[float], width: int, row_height: int) -> list[list[tuple[int, int]]]:
    """Breaks images into rows of `width` and about `row_height`; the last row may be shorter.

    Returns:
      the width and height of each image, row by row; one height in a row.
    """
    rows: list[list[tuple[int, int]]] = []
    first = 0
    highest = (1.3 if sum(aspects) * row_height > width else 2.5) * row_height  # a few images may be larger
    while first < len(aspects):
        # As many images as bring the row's height nearest to what is wanted.
        count, best = 1, float("inf")
        for number in range(1, len(aspects) - first + 1):
            height = (width - GAP * (number - 1)) / sum(aspects[first : first + number])
            distance = abs(np.log(max(height, 1) / row_height))
            if distance < best:
                count, best = number, distance
        row = aspects[first : first + count]
        height = int(min((width - GAP * (count - 1)) / sum(row), highest))
        rows.append([(max(1, int(height * aspect)), max(1, height)) for aspect in row])
        first += count
    return rows


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, shortened to what fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _legend_rows(legend: Sequence[Sign], width: int) -> list[list[tuple[int, Sign]]]:
    """The signs with their places from the left, broken into rows."""
    rows: list[list[tuple[int, Sign]]] = []
    left = width
    for sign in legend:
        needed = 26 + int(_font(TEXT_SIZE).getlength(sign.text)) + 24
        if left + needed > width:
            rows.append([])
            left = 0
        rows[-1].append((left, sign))
        left += needed
    return rows


def _paint_legend(page: Image.Image, rows: Sequence[Sequence[tuple[int, Sign]]], top: int) -> None:
    pen = ImageDraw.Draw(page)
    for row in rows:
        middle = top + (TEXT_SIZE + 10) // 2
        for offset, sign in row:
            x = MARGIN + offset
            if sign.kind == "line":
                pen.line((x, middle, x + 18, middle), fill=sign.colour, width=4)
            elif sign.kind == "dot":
                pen.ellipse((x + 4, middle - 5, x + 14, middle + 5), fill=sign.colour)
            elif sign.kind == "ring":
                pen.ellipse((x + 4, middle - 5, x + 14, middle + 5), outline=sign.colour, width=2)
            elif sign.kind == "box":
                pen.rectangle((x, middle - 6, x + 18, middle + 6), outline=sign.colour, width=2)
            else:
                swatch = draw_crowds(np.full((14, 20, 3), PAPER, np.uint8), np.array([[0.0, 0.0, 20.0, 14.0]]))
                page.paste(Image.fromarray(swatch), (x, middle - 7))
            pen.text((x + 26, middle), sign.text, fill=INK, font=_font(TEXT_SIZE), anchor="lm")
        top += TEXT_SIZE + 10


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes a sheet as PNG or JPEG, as the name says, whole or not at all."""
    encoded = io.BytesIO()
    if path.suffix.lower() == ".png":
        sheet.save(encoded, "PNG", optimize=True)
    else:
        sheet.save(encoded, "JPEG", quality=90)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, encoded.getvalue())


def check_suffix(path: Path) -> None:
    """Raises a UserError if a sheet cannot have that name."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a sheet is an image; its name must end in {', '.join(SUFFIXES)}")
