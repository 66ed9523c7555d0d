"""The page of statistics needs nothing beside it, and says what was counted."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipeline.inspection.statistics import collect
from pipeline.inspection.statistics_page import mirror_pairs, statistics_page
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.skeleton import Skeleton
from tests.conftest import MakeRecordFolder, random_image

VOID = {"meta", "img", "br", "path", "use", "rect", "wbr", "hr", "link"}


class Checked(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(record_folder: RecordFolder, split: str = "train") -> tuple[str, str]:
    """The page, and the words in it."""
    made = statistics_page(record_folder, split, collect(record_folder, split, lambda _: None))
    checked = Checked()
    checked.feed(made)
    assert checked.open == []
    return made, " ".join(" ".join(checked.words).split())


def test_real_photographs(coco_sample_records: RecordFolder) -> None:
    made, words = page_of(coco_sample_records)
    assert made.count("<svg") == 8
    assert not re.search(r'(src|href)="(?!data:|#)', made) and "@import" not in made  # nothing is fetched
    ids = re.findall(r'\bid="([^"]+)"', made)
    assert len(ids) == len(set(ids))
    for name in ("left shoulder", "right ankle", "nose", "128, flipped", "160"):
        assert name in words, name
    assert "1,834" in words  # labelled points, as the conversion counts them
    assert made.count("data:image/jpeg;base64,") == len(collect(coco_sample_records, "train", lambda _: None).worst)


def test_a_split_of_nobody_and_records_without_anchors(make_record_folder: MakeRecordFolder, small_records: Path) -> None:
    made, words = page_of(make_record_folder([], split="empty"), "empty")
    assert "0 images" in words and made.count("<svg") == 8
    record_folder = open_record_folder(small_records)
    without = dataclasses.replace(record_folder, short_edges=())
    statistics = collect(record_folder, "train", lambda _: None)
    made = statistics_page(without, "train", statistics)
    assert made.count("<svg") == 6 and "Anchors" not in made


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    r"$\frac$",
    "left_font: 9px 'x\"",
    "right_font: 9px 'x\"",
    "]]><script>\x1b[31m&amp;\n鼻\u202e" + "x" * 200,
)


def test_names_from_data_are_shown_as_they_are(make_record_folder: MakeRecordFolder) -> None:
    number = len(HOSTILE)
    skeleton = Skeleton("<b>person", HOSTILE, ((0, 1),), (0, 1, 3, 2, 4), (0.1,) * number)
    record_folder = make_record_folder([random_image(i, np.random.default_rng(i), 2) for i in range(1, 5)])
    statistics = collect(record_folder, "train", lambda _: None)
    counts = np.arange(3 * number).reshape(number, 3)
    statistics = dataclasses.replace(
        statistics, visibility=counts, keypoints=np.arange(number + 1), crossed=np.ones((number, 2), np.int64)
    )
    hostile = dataclasses.replace(record_folder, skeleton=skeleton, name="<i onclick=alert(2)>'records\"")
    checked = Checked()
    made = statistics_page(hostile, "train", statistics)
    checked.feed(made)
    assert checked.open == [] and made.count("<svg") == 8
    assert not {name for name in checked.attributes if name.startswith("on")}
    words = " ".join(" ".join(checked.words).split())
    for text in (
        HOSTILE[0],
        HOSTILE[1],
        "<i onclick=alert(2)>'records\"",
        r"]]><script>\x1b[31m&amp;\n",
        "鼻",
        "font: 9px 'x\"",
    ):
        assert text in words, text
    assert "\x1b" not in made and "\u202e" not in made


@pytest.mark.parametrize(
    ("names", "flip", "pairs"),
    [
        (("nose", "right_eye", "left_eye"), (0, 2, 1), [(2, 1)]),
        (("a", "b"), (1, 0), [(0, 1)]),
        (("a", "b"), (0, 1), []),
    ],
)
def test_pairs_begin_with_the_left_one(names: tuple[str, ...], flip: tuple[int, ...], pairs: list[tuple[int, int]]) -> None:
    assert mirror_pairs(Skeleton("x", names, (), flip, (0.1,) * len(names))) == pairs
