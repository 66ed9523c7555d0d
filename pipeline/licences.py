"""Who made a data set, and under which licences its images are, as its COCO JSON states it (`info`, `licenses`).

It goes into `pipeline.json` with each split, from there with a training into the model directory, and into the model card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

INFO_KEYS = ("description", "url", "version", "year", "contributor", "date_created")
LONGEST_TEXT = 300  # characters
MOST_LICENCES = 100


def stated_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the content of a COCO JSON states.

    Returns:
      `info`: text by key; `licences`: a list of `name`, `url` and the number of `images` that have it; `unlicensed_images`: the
      number of images without any. What is no text there is left out; nothing is returned if nothing is stated.
    """
    images: Counter[int] = Counter()
    for entry in content["images"]:
        number = entry.get("license")
        images.update([number] if isinstance(number, int) else [])
    given = content.get("licenses")
    licences: list[dict[str, Any]] = [
        {"name": entry.get("name"), "url": entry.get("url"), "images": images[entry["id"]]}
        for entry in (given if isinstance(given, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("id"), int)
    ]
    used = [licence for licence in licences if licence["images"]] or licences  # (a file may name one, and no image's)
    licensed = sum(licence["images"] for licence in used)
    found = {"info": content.get("info"), "licences": used, "unlicensed_images": len(content["images"]) - licensed}
    stated = cleaned(found)
    return stated if stated["licences"] or stated["info"] else {}


def cleaned(stated: object) -> dict[str, Any]:
    """What of a note like that of `stated_in`, which may come from strangers, is as it should be; sorted."""
    stated = stated if isinstance(stated, Mapping) else {}
    info, given = stated.get("info"), stated.get("licences")
    licences = [
        {"name": _text(entry.get("name")), "url": _text(entry.get("url")), "images": _count(entry.get("images"))}
        for entry in (given if isinstance(given, list) else ())[:MOST_LICENCES]
        if isinstance(entry, Mapping)
    ]
    return {
        "info": {key: _text(info[key]) for key in INFO_KEYS if _text(info.get(key))} if isinstance(info, Mapping) else {},
        "licences": sorted(licences, key=lambda licence: (licence["name"], licence["url"], licence["images"])),
        "unlicensed_images": _count(stated.get("unlicensed_images")),
    }


def _text(value: object) -> str:
    """A value in one printable line; "" if it is neither text nor a number."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return ""
    return "".join(c if c.isprintable() else " " for c in str(value)).strip()[:LONGEST_TEXT]


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0
