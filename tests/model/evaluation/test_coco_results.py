"""Lists of results, large or broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.evaluation.coco_results import _EntryReader, read_results
from pipeline.command import UserError
from pipeline.files import iterate_list

KNOWN = frozenset(range(100))


def entry(image_id: int, score: float, category_id: int = 1) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [1, 2.5, 3, 4],
        "score": score,
        "keypoints": [7, 8.1, 2] * 2,
    }


def test_results_by_image_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    rng = np.random.default_rng(0)
    entries = [entry(int(rng.integers(0, 100)), float(rng.random()), int(rng.integers(1, 3))) for _ in range(9000)]
    path.write_text(json.dumps(entries))
    table = read_results(path, KNOWN, 1, 2)
    assert len(table) == sum(e["category_id"] == 1 for e in entries)
    for image_id in (0, 57, 99):
        assert table.of(image_id) == [e for e in entries if e["image_id"] == image_id and e["category_id"] == 1]
    assert table.of(100) == []


@pytest.mark.parametrize("text", ["[]", " [\n]\n", "[1]", '[1, [2], {"a": "],"}]', "[\n 1.5,\n null ]"])
def test_lists_are_read_as_json_reads_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    assert list(iterate_list(path)) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it ends within the list"),
        ("[", "it ends within the list"),
        ("[1", "it ends within the list"),
        ("[1, ", "Expecting value"),
        ("[1,]", "Expecting value"),
        ("[1 2]", "unexpected '2]'"),
        ("[1] x", "unexpected"),
        ("[{'a': 1}]", "Expecting property name"),
        ('{"annotations": []}', "must be a JSON list"),
        ("\xff", "must be a JSON list"),
    ],
)
def test_what_is_no_list_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"list.json: .*{message}"):
        list(iterate_list(path))
    path.write_bytes(b"[\xff]")
    with pytest.raises(UserError, match="not JSON"):
        list(iterate_list(path))
    with pytest.raises(UserError, match="no such file"):
        list(iterate_list(tmp_path / "nothing"))
    with pytest.raises(UserError, match="is a folder"):
        list(iterate_list(tmp_path))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (5, "entry 0 is broken (5 is no JSON object); see COCO's results format"),
        ([], "entry 0 is broken ([] is no JSON object); see COCO's results format"),
        ({"image_id": 1, "category_id": 1, "score": 0.5}, "entry 0 is broken ('bbox' is missing); see COCO's results format"),
    ],
)
def test_a_broken_entry_is_told_without_python_s_words(entry: object, message: str) -> None:
    results = _EntryReader("r.json", frozenset([1]), 1, 17, None)
    with pytest.raises(UserError) as refused:
        list(results.rows([entry]))
    assert str(refused.value) == f"r.json: {message}"
