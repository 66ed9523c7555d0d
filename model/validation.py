"""What training shows between steps: AP on a held-out split, and prediction beside truth on the same few pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from model.draw import drawn_people, side_by_side
from model.evaluation import Figures, evaluate
from model.ground_truth import read_ground_truth
from model.keypoint_rcnn import KeypointRCNN
from model.metrics_log import MetricsLog
from model.predictor import Predictor, model_predictor
from pipeline import image, records
from pipeline.data_set import DataSet
from pipeline.draw import Drawn

SHOWN_PICTURES = 6
SHOWN_SCORE = 0.5


class Validation:
    """Evaluates a model in training; call it with the model, the log and the step.

    Args:
      data_set, split: the held-out records.
      annotations: COCO JSON of the split, the ground truth.
    """

    def __init__(self, data_set: DataSet, split: str, annotations: str | Path) -> None:
        self._data_set, self._split = data_set, split
        self._truth = read_ground_truth(annotations, data_set.skeleton.category)
        self._predictor: Predictor | None = None
        self._examples = [records.parse(r) for r in tf.data.TFRecordDataset(data_set.shards(split)).take(SHOWN_PICTURES)]

    def __call__(self, model: KeypointRCNN, log: MetricsLog, step: int) -> None:
        """Writes AP and pictures of this step into the log."""
        if self._predictor is None:  # its functions are traced once; they read the model's variables as they are then
            self._predictor = model_predictor(model)
        figures = evaluate(self._predictor, self._data_set, self._split, self._truth, progress=False)
        log.evaluation(step, headline(figures))
        print(f"train: step {step}, {summary(figures)}", flush=True)
        encoded = [example["image/encoded"].numpy() for example in self._examples]
        people = [p.at_least(SHOWN_SCORE) for p in self._predictor.predict(encoded)]
        log.pictures(
            step,
            [
                side_by_side(
                    image.decode(example["image/encoded"]).numpy(),
                    self._true_people(example),
                    drawn_people(found.boxes, found.scores, found.keypoints, found.keypoint_scores),
                    model.skeleton,
                )
                for example, found in zip(self._examples, people, strict=True)
            ],
        )

    def _true_people(self, example: dict[str, tf.Tensor]) -> Drawn:
        """The record's persons, crowds left out, in pixels of the picture."""
        height, width = int(example["image/height"]), int(example["image/width"])
        person = example["image/object/is_crowd"].numpy() == 0
        boxes = np.stack([example[f"image/object/bbox/{side}"].numpy() for side in ("xmin", "ymin", "xmax", "ymax")], -1)
        points = np.stack(
            [
                example["image/object/keypoint/x"].numpy() * width,
                example["image/object/keypoint/y"].numpy() * height,
                example["image/object/keypoint/visibility"].numpy(),
            ],
            -1,
        ).reshape(-1, self._data_set.skeleton.num_keypoints, 3)
        return Drawn(boxes[person] * np.array([width, height, width, height], np.float32), points[person])


def headline(figures: Figures) -> dict[str, float]:
    """The figures that a curve is drawn of."""
    return {
        "keypoint_ap": figures["keypoints"]["AP"],
        "keypoint_ap50": figures["keypoints"]["AP50"],
        "box_ap": figures["bbox"]["AP"],
        "box_ap50": figures["bbox"]["AP50"],
    }


def summary(figures: Figures) -> str:
    return f"keypoint AP {figures['keypoints']['AP']:.3f}, box AP {figures['bbox']['AP']:.3f}"
