"""Answers in COCO's results format, read and scored: COCO's figures, image by image."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import numpy.typing as npt

from model.evaluation.ground_truth import Person
from model.inference.coco_format import Result
from model.inference.image_names import ImageNames
from pipeline.command import UserError, reason_of
from pipeline.files import iterate_list

ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """Results by image, of one category or of several classes, as numbers: a Python entry takes ten times the memory.

    Attributes:
      image_ids: int64 [n], ascending; within an image the order of the file, which decides between equal scores.
      values: float64 [n, 6 + 3 K]: bbox, score, keypoints, category id.
      of_other_categories: how many entries were left out, by their category.
      renumbered: how many entries have an `image_id` that is not the one of their `file_name`, which decides.
    """

    image_ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    of_other_categories: Mapping[str, int] = dataclasses.field(default_factory=dict)
    renumbered: int = 0

    def __len__(self) -> int:
        return len(self.image_ids)

    def of(self, image_id: int) -> list[Result]:
        first, end = np.searchsorted(self.image_ids, [image_id, image_id + 1])
        return [
            {
                "image_id": image_id,
                "category_id": int(row[-1]),
                "bbox": row[:4],
                "score": row[4],
                "keypoints": row[5:-1],
            }
            for row in self.values[first:end].tolist()
        ]


def read_results(
    results: str | Path | Iterable[Mapping[str, Any]],
    known: frozenset[int],
    category_id: int | Collection[int],
    num_keypoints: int,
    names: ImageNames | None = None,
) -> ResultTable:
    """Checks results entry by entry, and keeps those of one category, or of several classes.

    Args:
      results: entries, or the JSON file that lists them; there may be none.
      known: the ids of the images there are.
      category_id: of the entries to keep; several are those of classes.
      num_keypoints: K.
      names: of the annotations' images. The entries' `file_name` finds its image if both have it, else `image_id` does.

    Raises:
      UserError: no such file, no list, a broken entry, one of an unknown image, or none of the category among others.
    """
    where = str(results) if isinstance(results, str | Path) else "results"
    entries = iterate_list(results) if isinstance(results, str | Path) else results
    width = 6 + 3 * num_keypoints
    wanted = _ids(category_id)
    ids: list[int] = []
    parts: list[npt.NDArray[np.float64]] = []
    reader = _EntryReader(where, known, wanted, num_keypoints, names)
    for block in _blocks(reader.rows(entries)):
        ids += [image_id for image_id, _ in block]
        parts.append(np.array([row for _, row in block], np.float64))
    if reader.others and not ids:
        raise UserError(
            f"{where}: its entries are of category {min(reader.others)}, the annotations' persons of "
            f"{', '.join(map(str, wanted))}; give results of that category"
        )
    image_ids = np.array(ids, np.int64)
    values = np.concatenate([np.zeros((0, width)), *parts])
    order = np.argsort(image_ids, kind="stable")
    return ResultTable(image_ids[order], values[order], reader.others, reader.renumbered)


def _ids(category_id: int | Collection[int]) -> tuple[int, ...]:
    return (category_id,) if isinstance(category_id, int) else tuple(category_id)


class _EntryReader:
    """Reads entries one after the other, and counts those that do not count, or go by another number."""

    def __init__(
        self, where: str, known: frozenset[int], wanted: int | Collection[int], num_keypoints: int, names: ImageNames | None
    ) -> None:
        self._where, self._known, self._wanted, self._size = where, known, _ids(wanted), 3 * num_keypoints
        self._names = names or None
        self.others: Counter[str] = Counter()
        self.renumbered = 0

    def rows(self, entries: Iterable[Any]) -> Iterator[tuple[int, list[float]]]:
        """The image id, and bbox, score, keypoints and category in one list, of each entry that is wanted."""
        for place, entry in enumerate(entries):
            try:
                image_id, its_category = entry["image_id"], entry["category_id"]
                box, keypoints = [float(x) for x in entry["bbox"]], [float(x) for x in entry["keypoints"]]
                row = [*box, float(entry["score"]), *keypoints]
                if len(box) != 4 or len(keypoints) != self._size:
                    raise ValueError(
                        f"{len(keypoints)} numbers in keypoints (must be {self._size}), {len(box)} in bbox (must be 4)"
                    )
                if not np.isfinite(row).all():
                    raise ValueError("a number that is infinite or none")
                file_name = entry.get("file_name")
                is_known = image_id in self._known
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                reason = _reason(entry, error)
                raise UserError(f"{self._where}: entry {place} is broken ({reason}); see COCO's results format") from None
            if self._names is not None and isinstance(file_name, str) and file_name:
                named = self._id_of(self._names, file_name, image_id, place)
                self.renumbered += named != image_id
                image_id, is_known = named, named in self._known
            if not is_known:
                raise UserError(
                    f"{self._where}: entry {place} is of image {image_id!r}, which the annotations do not have; "
                    "give the annotations of the images that were looked at"
                )
            if isinstance(its_category, int | float) and its_category in self._wanted:
                yield image_id, [*row, float(its_category)]
            else:
                self.others[repr(its_category)] += 1

    def _id_of(self, names: ImageNames, file_name: str, image_id: Any, place: int) -> int:
        try:
            return names.id_of(file_name)
        except KeyError:
            raise UserError(
                f"{self._where}: entry {place} is of the file {file_name!r}, which the annotations do not have; "
                "give the annotations of the images that were looked at"
            ) from None
        except ValueError as error:
            if image_id in names.ids_called(file_name):
                return int(image_id)
            raise UserError(
                f"{self._where}: entry {place}: {error} in the annotations, and none of them has the id {image_id!r}; "
                "let model.predict number the images with --annotations"
            ) from None


def _blocks(rows: Iterator[tuple[int, list[float]]]) -> Iterator[list[tuple[int, list[float]]]]:
    block: list[tuple[int, list[float]]] = []
    for row in rows:
        block.append(row)
        if len(block) == ROWS_AT_ONCE:
            yield block
            block = []
    if block:
        yield block


# COCO's average precision and recall, fed some images at a time: only what was matched stays in memory.
#
# The matching and the figures are hotcoco's; the tests compare them with pycocotools'.

FIGURES: Mapping[str, tuple[str, ...]] = {
    "keypoints": ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large"),
    "bbox": (
        "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
        "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
    ),
}  # fmt: skip


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Hotcoco refuses a few values that are otherwise sound, such as numbers beyond 64 bits."""
    try:
        yield
    except (OverflowError, TypeError, ValueError) as error:
        raise UserError(f"the annotations or results cannot be evaluated ({reason_of(error)}); correct that value") from None


class CocoFigures:
    """The figures of one kind over all images that were added; their order does not matter.

    Args:
      kind: one of `FIGURES`.
      category: what the persons and results are, as in the JSON.
      sigmas: OKS constants of the keypoints.
      classes: category id and name of several classes with the category's keypoints: persons and results of different classes
        are not matched, and the figures are the means over the classes.
    """

    def __init__(
        self, kind: str, category: Mapping[str, Any], sigmas: Sequence[float], classes: Sequence[tuple[int, str]] = ()
    ) -> None:
        self._kind = kind
        parameters = hotcoco.Params(kind)
        if kind == "keypoints":
            parameters.kpt_oks_sigmas = list(sigmas)
        # (hotcoco prints a line of its own on a category without a name)
        several = classes or [(int(category["id"]), str(category.get("name") or "person"))]
        points = list(category.get("keypoints") or [])
        known = [{"id": number, "name": name, "keypoints": points} for number, name in several]
        with _refusals():
            self._streaming = hotcoco.StreamingEval(known, kind, params=parameters)

    def add(self, image_ids: Sequence[int], persons: Sequence[Person], results: Sequence[Result]) -> None:
        """Matches the results of some images with all of their persons."""
        with _refusals():
            self._streaming.update(
                [{"id": image_id} for image_id in image_ids], [dict(person) for person in persons], list(results)
            )

    def figures(self) -> dict[str, float]:
        """The figures by name, −1 where no person defines one. Nothing can be added afterwards."""
        evaluation = self._streaming.finalize()
        evaluation.accumulate()
        evaluation.summary_lines()  # computes them; `summarize` would print as well
        return dict(zip(FIGURES[self._kind], (float(value) for value in evaluation.stats), strict=True))


def _reason(entry: Any, error: Exception) -> str:
    """Why an entry of results cannot be read, for people."""
    if not isinstance(entry, dict):
        return f"{entry!r:.40} is no JSON object"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
