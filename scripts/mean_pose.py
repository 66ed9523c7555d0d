"""What a person's mean pose scores when it is placed in the true boxes: what a keypoint AP is worth depends on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.evaluation.evaluator import evaluate_results
from model.evaluation.ground_truth import GroundTruth, read_ground_truth
from pipeline.command import UserError
from pipeline.skeleton import Skeleton


def mean_pose(truth: GroundTruth) -> npt.NDArray[np.float64]:
    """Mean position of each keypoint in its person's box, over the persons that have it labelled.

    Returns:
      float64 [K, 2], x and y as shares of the box; its centre for a keypoint that nobody has.
    """
    total = np.zeros((len(truth.category["keypoints"]), 3))  # sums of x and y, count
    for person in truth.persons:
        x, y, width, height = person["bbox"]
        points = np.asarray(person["keypoints"], np.float64).reshape(-1, 3)
        labelled = points[:, 2] > 0
        if not person["iscrowd"] and width > 0 and height > 0:
            place = np.stack([(points[:, 0] - x) / width, (points[:, 1] - y) / height, np.ones(len(points))], axis=-1)
            total += np.where(labelled[:, None], place, 0)
    return np.where(total[:, 2:] > 0, total[:, :2] / np.maximum(total[:, 2:], 1), 0.5)


def mean_pose_baseline(
    train_annotations: str | Path | GroundTruth, val_annotations: str | Path | GroundTruth, skeleton: Skeleton
) -> float:
    """Keypoint AP on the val annotations of the train annotations' mean pose, put into every person's true box with score 1."""
    train, val = (
        a if isinstance(a, GroundTruth) else read_ground_truth(a, skeleton.category)
        for a in (train_annotations, val_annotations)
    )
    if train.category["keypoints"] != val.category["keypoints"]:
        raise UserError(f"{train.path} and {val.path}: must have the same keypoints, in the same order")
    pose = mean_pose(train)
    results = []
    for person in val.persons:
        if not person["iscrowd"]:
            x, y, width, height = person["bbox"]
            points = [value for u, v in pose.tolist() for value in (x + u * width, y + v * height, 1.0)]
            results.append(
                {
                    "image_id": person["image_id"],
                    "category_id": person["category_id"],
                    "bbox": person["bbox"],
                    "score": 1.0,
                    "keypoints": points,
                }
            )
    return float(evaluate_results(val, results, skeleton)["keypoints"]["AP"])
