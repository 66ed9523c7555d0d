"""Left and right in the names of keypoints: one rule for mirror twins, for the colours of drawings and for COCO's own names.

Names are compared word by word, without case, spaces, hyphens and underscores; `eyeL` and `LEye` are two words each. A side is
one of the words `left`, `l`, `right`, `r` (and `lt`, `lft`, `rt`, `rgt`), wherever it stands, or the beginning of a word, as in
`leftshoulder`. Letters that are glued to a word, as in `lsho` and `rsho`, are sides only if both names are in the set.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

Side = Literal["left", "right", "middle"]

_OTHER: dict[str, Side] = {"left": "right", "right": "left"}
_SIDE_WORDS: dict[str, Side] = {
    **dict.fromkeys(("left", "l", "lt", "lft", "左"), "left"),
    **dict.fromkeys(("right", "r", "rt", "rgt", "右"), "right"),
}
_GLUED = (("left", "right"), ("l", "r"), ("左", "右"))  # at the beginning or end of a word, if the twin is there
# Capitals that no small letter follows, a word of small letters with or without a capital before it, digits.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?(?:(?![A-Z\d_])\w)+|\d+")


def named_sides(names: Sequence[str]) -> tuple[Side, ...]:
    """The side that each name tells, "middle" if it tells none."""
    return tuple(_side(words) for words in _words_of(names))


def mirror_twins(names: Sequence[str]) -> tuple[int, ...]:
    """For each name the index of the same name with the other side; its own index if none or several have that name."""
    keys = [" ".join(words) for words in _words_of(names)]
    places = {key: k for k, key in enumerate(keys)}
    times = Counter(keys)
    twins = []
    for k, key in enumerate(keys):
        twin = " ".join(_OTHER.get(word, word) for word in key.split(" "))
        twins.append(places[twin] if times[twin] == times[key] == 1 else k)
    return tuple(twins)


def plain_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names as COCO writes its own: `left_eye` for `Left Eye`, `L_Eye`, `Eye_Left` and `eyeL`."""
    plain = []
    for words in _words_of(names):
        side = _side(words)
        rest = "".join(word for word in words if word != side)
        plain.append(rest if side == "middle" else f"{side}_{rest}")
    return tuple(plain)


def _side(words: Sequence[str]) -> Side:
    return next(("left" if word == "left" else "right" for word in words if word in _OTHER), "middle")


def _words_of(names: Sequence[str]) -> list[list[str]]:
    """The words of each name in small letters; a word that tells a side becomes "left" or "right"."""
    plain = [unicodedata.normalize("NFKC", name) for name in names]
    found = [[_SIDE_WORDS.get(word, word) for word in _split(name)] for name in plain]
    glued = {"".join(words) for words in found if _side(words) == "middle"}
    return [words if _side(words) != "middle" else _unglued("".join(words), glued) or words for words in found]


def _split(name: str) -> list[str]:
    words = []
    for word in _WORDS.findall(name):
        word = word.lower()
        beginning = next((side for side in _OTHER if word.startswith(side)), "")
        words += [beginning, word[len(beginning) :]] if beginning and word != beginning else [word]
    return words


def _unglued(word: str, others: set[str]) -> list[str] | None:
    """`lsho` → left, sho if `rsho` is among the others; None if the word has no twin."""
    for pair in _GLUED:
        for side, (mine, its) in zip(("left", "right"), (pair, pair[::-1]), strict=True):
            rest = word.removeprefix(mine)
            if rest and rest != word and its + rest in others:
                return [side, rest]
            rest = word.removesuffix(mine)
            if rest and rest != word and rest + its in others:
                return [side, rest]
    return None
