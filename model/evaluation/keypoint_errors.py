"""What goes wrong with keypoints: each joint's error, and joints taken for their mirror twins.

A person counts if a result's box finds it, even if all of that result's keypoints are wrong: matching by keypoints would leave
out the very persons whose left and right are confused. Errors are distances over the root of the person's area, as in OKS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.evaluation.ground_truth import Person
from model.inference.coco_format import Result
from pipeline.skeleton import Skeleton

Floats = npt.NDArray[np.float64]
MATCHED_IOU = 0.5
HIT_SIMILARITY = 0.5  # a joint's own term of OKS, exp(−d² / (2 area (2 σ)²))


def match_boxes(boxes: Floats, scores: Floats, true_boxes: Floats) -> npt.NDArray[np.intp]:
    """For each result [n, 4] (x, y, w, h) the person [m, 4] that it finds, −1 for none.

    The best score chooses first; each takes the free person of the largest IoU, from `MATCHED_IOU` on.
    """
    low = np.maximum(boxes[:, None, :2], true_boxes[None, :, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], true_boxes[None, :, :2] + true_boxes[None, :, 2:])
    overlap = np.prod(np.maximum(high - low, 0), axis=-1)  # [n, m]
    union = np.prod(boxes[:, None, 2:], axis=-1) + np.prod(true_boxes[None, :, 2:], axis=-1) - overlap
    iou = overlap / np.maximum(union, np.finfo(np.float64).tiny)
    match = np.full(len(boxes), -1, np.intp)
    if len(true_boxes):
        for result in np.argsort(-scores, kind="stable"):
            best = int(np.argmax(iou[result]))
            if iou[result, best] >= MATCHED_IOU:
                match[result] = best
                iou[:, best] = -1
    return match


class KeypointErrors:
    """Collects, image by image, how far the joints of found persons are from the truth and from their twins' truth."""

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._scale = 2.0 * np.asarray(skeleton.sigmas)  # a joint's standard deviation over the root of the area
        self._pairs = [(joint, twin) for joint, twin in enumerate(skeleton.flip) if joint < twin]
        self._labelled = np.zeros(skeleton.num_keypoints, np.int64)
        # Of each found person: [K], NaN where the joint is not labelled. There are no more than persons in the annotations.
        self._errors: list[npt.NDArray[np.float32]] = []
        # Of each pair: both labelled in a found person; its first, its second joint nearer the other's truth; swapped back.
        self._confusions = np.zeros((len(self._pairs), 4), np.int64)

    def add(self, persons: Sequence[Person], results: Sequence[Result]) -> list[Result]:
        """Looks at one image.

        Args:
          persons: all of the image, in COCO's terms; crowds and persons without area do not count.
          results: in COCO's results format.

        Returns:
          The results, where pairs of twins are swapped back if one of them lies nearer the other's truth and the exchange
          brings the two nearer to their own, as OKS sees it.
        """
        persons = [person for person in persons if not person["iscrowd"] and person["area"] > 0]
        truth = np.array([person["keypoints"] for person in persons]).reshape(len(persons), self._skeleton.num_keypoints, 3)
        self._labelled += (truth[..., 2] > 0).sum(0)
        corrected = list(results)
        if not persons or not results:
            return corrected
        match = match_boxes(
            np.array([result["bbox"] for result in results]),
            np.array([result["score"] for result in results]),
            np.array([person["bbox"] for person in persons]),
        )
        for place, found in enumerate(match):
            if found >= 0 and (truth[found, :, 2] > 0).any():
                points = np.reshape(results[place]["keypoints"], (-1, 3))
                order = self._compare(points[:, :2], truth[found], float(np.sqrt(persons[found]["area"])))
                if order != list(range(len(order))):
                    corrected[place] = {**results[place], "keypoints": points[order].ravel().tolist()}
        return corrected

    def _compare(self, points: Floats, truth: Floats, root_area: float) -> list[int]:
        """Counts one found person; returns the joints in the order that swaps confused twins back."""
        labelled = truth[:, 2] > 0
        distance = np.linalg.norm(points[:, None] - truth[None, :, :2], axis=-1) / root_area  # [K predicted, K true]
        self._errors.append(np.where(labelled, np.diagonal(distance), np.nan).astype(np.float32))
        similarity = np.exp(-(distance**2) / (2 * self._scale**2))
        order = list(range(len(points)))
        for counts, (joint, twin) in zip(self._confusions, self._pairs, strict=True):
            if not (labelled[joint] and labelled[twin]):
                continue
            confused = (distance[joint, twin] < distance[joint, joint], distance[twin, joint] < distance[twin, twin])
            exchanged = similarity[twin, joint] + similarity[joint, twin]
            swap = any(confused) and exchanged > similarity[joint, joint] + similarity[twin, twin]
            counts += (1, *confused, swap)
            if swap:
                order[joint], order[twin] = twin, joint
        return order

    def joints(self) -> dict[str, dict[str, Any]]:
        """The figures of each joint by its name: how many are `labelled`, and how many of these belong to persons that were
        `found`; of the latter `mean_error`, `median_error`, and the share `hit`, whose own similarity is `HIT_SIMILARITY` or
        more. The last three are None if nothing was found.
        """
        errors = np.array(self._errors, np.float64).reshape(-1, self._skeleton.num_keypoints)
        table: dict[str, dict[str, Any]] = {}
        for joint, name in enumerate(self._skeleton.keypoints):
            own = errors[~np.isnan(errors[:, joint]), joint]
            row: dict[str, Any] = {"labelled": int(self._labelled[joint]), "found": len(own)}
            row |= dict.fromkeys(("mean_error", "median_error", "hit"))
            if len(own):
                hit = np.exp(-(own**2) / (2 * self._scale[joint] ** 2)) >= HIT_SIMILARITY
                row |= {"mean_error": float(own.mean()), "median_error": float(np.median(own)), "hit": float(hit.mean())}
            table[name] = row
        return table

    def twins(self) -> list[dict[str, Any]]:
        """The figures of each pair of mirror twins `joints`: in how many found persons both are labelled (`compared`); in how
        many of those the first, and the second, lies nearer the other's truth (`confused`, [2]); their `share`; and how many
        were `swapped_back`.
        """
        names = self._skeleton.keypoints
        return [
            {
                "joints": [names[joint], names[twin]],
                "compared": compared,
                "confused": [first, second],
                "share": (first + second) / (2 * compared) if compared else None,
                "swapped_back": swapped,
            }
            for (joint, twin), (compared, first, second, swapped) in zip(self._pairs, self._confusions.tolist(), strict=True)
        ]
