"""COCO's results format: one entry per person found, with image_id, category_id, bbox (x, y, w, h), score, and keypoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.predictor import People
from pipeline.command import UserError
from pipeline.files import iterate_list

Result = dict[str, Any]
ROWS_AT_ONCE = 4096


def results_to_coco(image_id: int, people: People, category_id: int, **more: Any) -> list[Result]:
    """One picture's people in COCO's results format, keypoints as x, y, score. `more` is added to every entry."""
    results = []
    for box, score, points, point_scores in zip(
        people.boxes.tolist(), people.scores.tolist(), people.keypoints.tolist(), people.keypoint_scores.tolist(), strict=True
    ):
        x0, y0, x1, y1 = box
        flat = [v for (x, y), s in zip(points, point_scores, strict=True) for v in (round(x, 3), round(y, 3), round(s, 6))]
        results.append(
            {
                "image_id": image_id,
                **more,
                "category_id": category_id,
                "bbox": [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(score, 6),
                "keypoints": flat,
            }
        )
    return results


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """Results of one category by picture, as numbers: a Python entry takes ten times the memory.

    Attributes:
      image_ids: int64 [n], ascending; within a picture the order of the file, which decides between equal scores.
      values: float64 [n, 5 + 3 K]: bbox, score, keypoints.
    """

    category_id: int
    image_ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image_ids)

    def of(self, image_id: int) -> list[Result]:
        first, end = np.searchsorted(self.image_ids, [image_id, image_id + 1])
        return [
            {
                "image_id": image_id,
                "category_id": self.category_id,
                "bbox": row[:4],
                "score": row[4],
                "keypoints": row[5:],
            }
            for row in self.values[first:end].tolist()
        ]


def read_results(
    results: str | Path | Iterable[Mapping[str, Any]], known: frozenset[int], category_id: int, num_keypoints: int
) -> ResultTable:
    """Checks results entry by entry, and keeps those of one category.

    Args:
      results: entries, or the JSON file that lists them; there may be none.
      known: the ids of the pictures there are.
      category_id: of the entries to keep.
      num_keypoints: K.

    Raises:
      UserError: no such file, no list, a broken entry, one of an unknown picture, or none of the category among others.
    """
    where = str(results) if isinstance(results, str | Path) else "results"
    entries = iterate_list(results) if isinstance(results, str | Path) else results
    width = 5 + 3 * num_keypoints
    ids: list[int] = []
    parts: list[npt.NDArray[np.float64]] = []
    others: set[str] = set()  # categories that were left out
    for block in _blocks(_rows(entries, where, known, category_id, num_keypoints, others)):
        ids += [image_id for image_id, _ in block]
        parts.append(np.array([row for _, row in block], np.float64))
    if others and not ids:
        raise UserError(f"{where}: its entries are of category {min(others)}, the annotations' persons of {category_id!r}")
    image_ids = np.array(ids, np.int64)
    values = np.concatenate([np.zeros((0, width)), *parts])
    order = np.argsort(image_ids, kind="stable")
    return ResultTable(category_id, image_ids[order], values[order])


def _rows(
    entries: Iterable[Any], where: str, known: frozenset[int], category_id: int, num_keypoints: int, others: set[str]
) -> Iterator[tuple[int, list[float]]]:
    """The image id, and bbox, score and keypoints in one list, of each entry of the category; `others` gets the other ones."""
    size = 3 * num_keypoints
    for place, entry in enumerate(entries):
        try:
            image_id, its_category = entry["image_id"], entry["category_id"]
            box, keypoints = [float(x) for x in entry["bbox"]], [float(x) for x in entry["keypoints"]]
            row = [*box, float(entry["score"]), *keypoints]
            if len(box) != 4 or len(keypoints) != size:
                raise ValueError(f"{len(keypoints)} numbers in keypoints (must be {size}), {len(box)} in bbox (must be 4)")
            if not np.isfinite(row).all():
                raise ValueError("a number that is infinite or none")
            is_known = image_id in known
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(f"{where}: entry {place} is broken ({error!r}); see COCO's results format") from None
        if not is_known:
            raise UserError(f"{where}: entry {place} is of image {image_id!r}, which the annotations do not have")
        if its_category == category_id:
            yield image_id, row
        else:
            others.add(repr(its_category))


def _blocks(rows: Iterator[tuple[int, list[float]]]) -> Iterator[list[tuple[int, list[float]]]]:
    block: list[tuple[int, list[float]]] = []
    for row in rows:
        block.append(row)
        if len(block) == ROWS_AT_ONCE:
            yield block
            block = []
    if block:
        yield block
