"""COCO's average precision and recall, fed some pictures at a time: only what was matched stays in memory.

The matching and the figures are hotcoco's; the tests compare them with pycocotools'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco

from model.coco_results import Result
from model.ground_truth import Person

FIGURES: Mapping[str, tuple[str, ...]] = {
    "keypoints": ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large"),
    "bbox": (
        "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
        "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
    ),
}  # fmt: skip


class CocoFigures:
    """The figures of one kind over all pictures that were added; their order does not matter.

    Args:
      kind: one of `FIGURES`.
      category: what the persons and results are, as in the JSON.
      sigmas: OKS constants of the keypoints.
    """

    def __init__(self, kind: str, category: Mapping[str, Any], sigmas: Sequence[float]) -> None:
        self._kind = kind
        parameters = hotcoco.Params(kind)
        if kind == "keypoints":
            parameters.kpt_oks_sigmas = list(sigmas)
        self._streaming = hotcoco.StreamingEval([dict(category)], kind, params=parameters)

    def add(self, image_ids: Sequence[int], persons: Sequence[Person], results: Sequence[Result]) -> None:
        """Matches the results of some pictures with all of their persons."""
        self._streaming.update(
            [{"id": image_id} for image_id in image_ids], [dict(person) for person in persons], list(results)
        )

    def figures(self) -> dict[str, float]:
        """The figures by name, −1 where no person defines one. Nothing can be added afterwards."""
        evaluation = self._streaming.finalize()
        evaluation.accumulate()
        evaluation.summary_lines()  # computes them; `summarize` would print as well
        return dict(zip(FIGURES[self._kind], (float(value) for value in evaluation.stats), strict=True))
