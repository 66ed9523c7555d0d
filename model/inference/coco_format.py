"""People in COCO's results format: image_id, category_id, bbox (x, y, w, h), score, keypoints (x, y, score), segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Result = dict[str, Any]
SCORE_DIGITS = 8  # behind the point: enough to tell a float32 of 1/8 or more from its neighbours


class Found(Protocol):
    """People in arrays, as `model.inference.people.People` has them."""

    @property
    def boxes(self) -> npt.NDArray[np.float32]: ...
    @property
    def scores(self) -> npt.NDArray[np.float32]: ...
    @property
    def keypoints(self) -> npt.NDArray[np.float32]: ...
    @property
    def keypoint_scores(self) -> npt.NDArray[np.float32]: ...
    @property
    def masks(self) -> tuple[Mapping[str, Any], ...] | None: ...


def results_to_coco(image_id: int, people: Found, category_id: int | Sequence[int], **more: Any) -> list[Result]:
    """One image's people in COCO's results format, keypoints as x, y, score. `more` is added to every entry.

    Args:
      category_id: of all people, or of each.
    """
    results: list[Result] = []
    columns = (people.boxes, people.scores, people.keypoints, people.keypoint_scores)
    ids = [category_id] * len(people.scores) if isinstance(category_id, int) else category_id
    for box, score, points, point_scores, own_id in zip(*(column.tolist() for column in columns), ids, strict=True):
        x0, y0, x1, y1 = box
        flat = [
            v
            for (x, y), s in zip(points, point_scores, strict=True)
            for v in (round(x, 3), round(y, 3), round(s, SCORE_DIGITS))
        ]
        results.append(
            {
                "image_id": image_id,
                **more,
                "category_id": own_id,
                "bbox": [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(score, SCORE_DIGITS),
                "keypoints": flat,
            }
        )
    for result, mask in zip(results, people.masks or (), strict=people.masks is not None):
        result["segmentation"] = dict(mask)
    return results
