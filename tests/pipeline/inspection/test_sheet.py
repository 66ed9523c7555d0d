"""Sheets: rows of one width, every image in its place, captions that fit."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.command import UserError
from pipeline.inspection import sheet


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.3, 4), max_size=30), st.integers(300, 2000), st.integers(50, 500))
def test_rows_fit_the_width_and_keep_proportions(aspects: list[float], width: int, row_height: int) -> None:
    rows = sheet.justified(aspects, width, row_height)
    flat = [size for row in rows for size in row]
    assert len(flat) == len(aspects)
    for row in rows:
        assert len({height for _, height in row}) == 1
        assert sum(w for w, _ in row) + sheet.GAP * (len(row) - 1) <= width
    for (w, h), aspect in zip(flat, aspects, strict=True):
        assert w <= h * aspect < w + 1


def test_images_lie_where_the_layout_says_and_are_reduced() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    asked: list[tuple[int, int]] = []

    def tile(colour: tuple[int, int, int]) -> sheet.Tile:
        def paint(height: int, width: int) -> sheet.Pixels:
            asked.append((height, width))
            return np.full((height, width, 3), colour, np.uint8)

        return sheet.Tile(1.5, paint, ("a caption that is far too long for so narrow an image" * 5, "two"))

    made = np.asarray(
        sheet.compose([[tile(c) for c in colours]], "title", [sheet.Sign("hatch", (1, 2, 3), "x")], width=500, row_height=120)
    )
    rows = sheet.justified([1.5] * 3, 500 - 2 * sheet.MARGIN, 120)
    assert [(sheet.FINENESS * h, sheet.FINENESS * w) for row in rows for w, h in row] == asked
    for colour, (height, width) in zip(colours, asked, strict=True):
        assert (made == colour).all(axis=-1).sum() == height * width // sheet.FINENESS**2
    edges = made[:, : sheet.MARGIN - 2], made[:, 2 - sheet.MARGIN :]  # (letters may reach over by a pixel)
    assert all((edge == sheet.PAPER).all() for edge in edges)  # no caption runs out of the sheet


ALL_SIGNS = [
    sheet.Sign(kind, (200, 40 * number, 0), f"{kind}: what is drawn like this")
    for number, kind in enumerate(get_args(sheet.Kind))
]


@pytest.mark.parametrize("width", [1600, 500, 150])
def test_a_legend_shows_every_sign_and_fits(width: int) -> None:
    legend = sheet._legend(ALL_SIGNS, width)
    assert legend.shape[1] <= width
    for sign in ALL_SIGNS:
        assert (np.abs(legend - np.array(sign.colour, int)).max(axis=-1) < 30).sum() > 10, sign.kind
    assert (legend[:, -1] == sheet.PAPER).all() or width == 150
    assert len(sheet._legend(ALL_SIGNS, 500)) > len(sheet._legend(ALL_SIGNS, 1600))


def test_names_are_drawn_literally() -> None:
    title, signs = "$\\frac$ \x1b[31m\n<img>" * 3, [sheet.Sign("line", (9, 9, 9), r"$\frac$")]
    made = sheet.compose([], title, signs, width=700)
    other = sheet.compose([], title, [sheet.Sign("line", (9, 9, 9), "frac")], width=700)
    assert made.width == 700 and np.asarray(made).std() > 5
    assert (np.asarray(made) != np.asarray(other)).any()  # nothing is dropped of the name


def test_files(tmp_path: Path) -> None:
    made = sheet.compose([], "nothing", [], width=300)
    for name in ("a.png", "new/b.jpg", "c.JPEG"):
        sheet.check_suffix(tmp_path / name)
        sheet.write_sheet(made, tmp_path / name)
        assert Image.open(tmp_path / name).size == made.size
    with pytest.raises(UserError, match=r"d\.gif"):
        sheet.check_suffix(tmp_path / "d.gif")
