"""Sheets of images: rows of equal width, each image with a caption, below a title and a legend of what is drawn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont

from pipeline.command import UserError, shown
from pipeline.drawing import BOX, CROWD, LEFT, MIDDLE, RIGHT
from pipeline.files import write_file
from pipeline.image_writer import encode

Colour = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]
Kind = Literal["line", "dot", "ring", "box", "hatch"]

SUFFIXES = (".png", ".jpg", ".jpeg")
FINENESS = 2  # images are painted this many times larger and then reduced, which makes fine lines smooth
DRAWN_LINE = 3  # pixels of an image that is painted so
PAPER, INK, SOFT = (20, 23, 27), (236, 239, 242), (150, 160, 170)
MARGIN, GAP, LINE = 24, 10, 18  # pixels: around the sheet, between images, of a line of text
TITLE_SIZE, TEXT_SIZE = 20, 11
DPI = 100  # of the legend: matplotlib counts in points


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

    kind: Kind
    colour: Colour
    text: str


PEOPLE_SIGNS = (
    Sign("line", LEFT, "left"),
    Sign("line", RIGHT, "right"),
    Sign("line", MIDDLE, "middle"),
    Sign("dot", INK, "visible (v=2)"),
    Sign("ring", INK, "labelled but hidden (v=1)"),
    Sign("box", BOX, "person"),
    Sign("hatch", CROWD, "crowd"),
)


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
    signs = _legend(legend, width - 2 * MARGIN)
    top = MARGIN + TITLE_SIZE + 12 + len(signs) + 16
    height = top + sum(GAP + caption + row[0][1] for row in rows) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    heading = _fitting(shown(title), _font(TITLE_SIZE), width - 2 * MARGIN)
    pen.text((MARGIN, MARGIN), heading, fill=INK, font=_font(TITLE_SIZE))
    if len(signs):
        sheet.paste(Image.fromarray(signs), (MARGIN, MARGIN + TITLE_SIZE + 16))
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
                pen.text(at, _fitting(shown(text), font, tile_width), fill=SOFT if number else INK, font=font)
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


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the legend, which has more alphabets than Pillow's own."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened to what fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _legend(signs: Sequence[Sign], width: int) -> Pixels:
    """What is drawn, uint8 [h, w, 3], in as few rows as fit into `width`."""
    if not signs:
        return np.zeros((0, 0, 3), np.uint8)
    figure = Figure(figsize=(width / DPI, (1 + len(signs)) * 2 * TEXT_SIZE / DPI), dpi=DPI, facecolor=_shares(PAPER))
    canvas = FigureCanvasAgg(figure)
    with matplotlib.rc_context({"text.parse_math": False}):
        for columns in range(len(signs), 0, -1):
            legend = figure.legend(
                handles=[_handle(sign) for sign in signs], ncols=columns, loc="upper left", bbox_to_anchor=(0, 1),
                frameon=False, borderpad=0, borderaxespad=0, handlelength=1.6, columnspacing=1.6, labelcolor=_shares(INK),
                fontsize=72 * TEXT_SIZE / DPI,
            )  # fmt: skip
            extent = legend.get_window_extent(canvas.get_renderer())
            if extent.width <= width or columns == 1:
                break
            legend.remove()
        canvas.draw()
    return np.array(canvas.buffer_rgba())[: int(np.ceil(extent.height)) + 2, :width, :3]


def _handle(sign: Sign) -> Artist:
    colour = _shares(sign.colour)
    match sign.kind:
        case "line":
            return Line2D([], [], color=colour, linewidth=3, label=sign.text)
        case "dot" | "ring":
            inside = colour if sign.kind == "dot" else "none"
            return Line2D([], [], marker="o", linestyle="none", color=colour, markerfacecolor=inside, label=sign.text)
        case "box":
            return Patch(edgecolor=colour, fill=False, linewidth=1.5, label=sign.text)
        case "hatch":
            return Patch(edgecolor=colour, fill=False, linewidth=1.5, hatch="/////", label=sign.text)


def _shares(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = (value / 255 for value in colour)
    return red, green, blue


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes a sheet as PNG or JPEG, as the name says, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, encode(np.asarray(sheet), "png" if path.suffix.lower() == ".png" else "jpeg", quality=90))


def check_suffix(path: Path) -> None:
    """Raises a UserError if a sheet cannot have that name."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a sheet is an image; its name must end in {', '.join(SUFFIXES)}")
