"""What training shows between steps: AP on a held-out split, and prediction beside truth on the same few images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from model.config import Config
from model.evaluation.consistency import area_notes, check_images, check_keypoints, checksum_notes
from model.evaluation.evaluator import Figures, evaluate
from model.evaluation.ground_truth import ground_truth_of
from model.evaluation.share import Share
from model.inference.predictor import Answer, Predictor, model_predictor
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.metrics_log import MetricsLog
from model.training.validation_loss import ValidationLoss
from pipeline import image
from pipeline.command import say
from pipeline.drawing import Drawn, side_by_side
from pipeline.record_folder import RecordFolder
from pipeline.record_reader import Record, pixel_keypoints, read_records

SHOWN_IMAGES = 6
SHOWN_SCORE = 0.5


class Validation:
    """Evaluates a model in training; call it as `loop.Validate` says.

    Args:
      record_folder, split: the held-out records.
      annotations: COCO JSON of the split, the ground truth.
      loss_of: the configuration of the model that trains, for the losses over the split; None: no losses.
      share: this worker's part, if several train: all of them call the validation then.

    Raises:
      UserError: damaged records, or annotations that are none, or those of other keypoints or images.
    """

    def __init__(
        self,
        record_folder: RecordFolder,
        split: str,
        annotations: str | Path,
        loss_of: Config | None = None,
        share: Share | None = None,
    ) -> None:
        self._record_folder, self._split, self._share = record_folder, split, share
        self._loss = None if loss_of is None else ValidationLoss(record_folder, split, loss_of, share)
        self._truth = ground_truth_of(annotations, record_folder.skeleton)
        check_keypoints(self._truth, record_folder.skeleton)  # now, and not after hours of training
        notes = check_images(self._truth, record_folder, split) + checksum_notes(self._truth, record_folder, split)
        for note in notes + area_notes(self._truth):
            say(f"train: evaluation on {split}: {note}")
        self._predictors: list[Predictor] = []  # one for each device
        self._examples = list(read_records(record_folder, split, record_folder.index(split)[:SHOWN_IMAGES]))

    def __call__(self, model: KeypointRCNN, log: MetricsLog | None, step: int, hear: Callable[[], None]) -> None:
        """Writes AP and images of this step into the log.

        Args:
          log: None on a worker other than the first, which only looks at its share of the images.
          hear: called between two batches; what it raises ends the evaluation.
        """
        if not self._predictors:  # their functions are traced once; they read the model's variables as they are then
            self._predictors = [model_predictor(model).on_device(device) for device in _devices_of(model)]

        def hearing(predictor: Predictor) -> Predictor:
            def answer(images: Sequence[bytes]) -> Answer:
                hear()
                return predictor.answer(images)

            return dataclasses.replace(predictor, answer=answer)

        predictors = [hearing(one) for one in self._predictors]
        figures = evaluate(predictors, self._record_folder, self._split, self._truth, share=self._share)
        losses = {} if self._loss is None else self._loss(model, hear)
        if log is None:
            return
        log.evaluation(step, headline(figures) | losses)
        loss = f", validation loss {losses['validation_loss']:.3f}" if losses else ""
        say(f"train: step {step}, {summary(figures)}{loss}")
        encoded = [example.image_bytes for example in self._examples]
        people = [p.at_least(SHOWN_SCORE) for p in self._predictors[0].predict(encoded, as_stored=True)]
        log.images(
            step,
            [
                side_by_side(
                    image.decode(example.image_bytes).numpy(),
                    self._true_people(example),
                    found.drawn(),
                    model.skeleton,
                )
                for example, found in zip(self._examples, people, strict=True)
            ],
        )

    def _true_people(self, example: Record) -> Drawn:
        """The record's persons, crowds left out, in pixels of the image."""
        height, width, person = example.height, example.width, ~example.is_crowd
        skeleton = self._record_folder.skeleton
        points = pixel_keypoints(example, skeleton, height, width, flipped=False)
        boxes = example.boxes[person] * np.array([width, height, width, height], np.float32)
        return Drawn(boxes, points[person], labels=skeleton.class_names(example.labels[person]))


def _devices_of(model: KeypointRCNN) -> list[str]:
    """The devices of this machine that hold the model's variables: those of its replicas."""
    variable = next(iter(model.variables_by_path().values()))
    return [part.device for part in getattr(variable, "values", [variable])]


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
