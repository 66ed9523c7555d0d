"""What a COCO JSON states of its licences, and that what strangers write there does no harm."""

from __future__ import annotations

from typing import Any

from pipeline.licences import LONGEST_TEXT, cleaned, stated_in


def content(**more: Any) -> dict[str, Any]:
    licences = [
        {"id": 4, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"},
        {"id": 1, "name": "CC0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"},
        {"id": 9, "name": "of no image", "url": ""},
    ]
    images = [{"id": i, "license": licence} for i, licence in enumerate((4, 4, 1, None, 7))]
    return {"info": {"description": "A set", "year": 2017, "pages": [1]}, "licenses": licences, "images": images} | more


def test_licences_are_counted_over_the_images() -> None:
    assert stated_in(content()) == {
        "info": {"description": "A set", "year": "2017"},
        "licences": [
            {"name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/", "images": 2},
            {"name": "CC0", "url": "https://creativecommons.org/publicdomain/zero/1.0/", "images": 1},
        ],
        "unlicensed_images": 2,
    }
    assert stated_in(content()) == stated_in(content(licenses=content()["licenses"][::-1]))


def test_a_licence_that_no_image_refers_to_still_counts() -> None:
    found = stated_in(content(images=[{"id": 1}], info=None))
    assert [licence["name"] for licence in found["licences"]] == ["Attribution License", "CC0", "of no image"]
    assert (found["info"], found["unlicensed_images"]) == ({}, 1)


def test_nothing_stated() -> None:
    assert stated_in({"images": []}) == {}
    assert stated_in({"images": [{"license": [1]}, {"license": "x"}], "licenses": "MIT", "info": ["x"]}) == {}


def test_what_strangers_write_is_cut_to_lines() -> None:
    hostile = {
        "info": {"description": "a\n# b" + "x" * 1000, "url": {"x": 1}},
        "licences": [{"name": None, "url": 3, "images": -1}, 5],
    }
    found = cleaned(hostile)
    assert found["info"]["description"].startswith("a # bxx") and len(found["info"]["description"]) == LONGEST_TEXT
    assert "url" not in found["info"]
    assert found["licences"] == [{"name": "", "url": "3", "images": 0}] and found["unlicensed_images"] == 0
    assert cleaned(found) == found
    others: tuple[Any, ...] = (None, [], {"info": 3, "licences": {}})
    for nothing in others:
        assert cleaned(nothing) == {"info": {}, "licences": [], "unlicensed_images": 0}
