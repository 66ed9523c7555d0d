"""Who was found in one image: arrays for programs, and one object a person for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.inference.coco_format import Result, results_to_coco
from pipeline.drawing import Drawn, draw_people, drawn_people
from pipeline.skeleton import Skeleton

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Keypoint:
    """A point in pixels of the image; `score` is exp(largest) / Σ exp of its heatmap: 0.01 is unsure, 0.2 is good."""

    x: float
    y: float
    score: float


@dataclasses.dataclass(frozen=True)
class Person:
    """One of the people found.

    Attributes:
      box: x0, y0, x1, y1 in pixels of the image.
      score: 0…1.
      keypoints: by the names of the model's keypoint set, in its order.
      category: the name of the class, such as "person".
    """

    box: tuple[float, float, float, float]
    score: float
    keypoints: dict[str, Keypoint]
    category: str = "person"


@dataclasses.dataclass(frozen=True)
class People:
    """Who was found in one image, best score first, in pixels of the image as a viewer shows it, float32.

    Its length is their number, and iterating gives each as a `Person`.

    Attributes:
      boxes: [n, 4], x0, y0, x1, y1.
      scores: [n].
      keypoints: [n, K, 2], x, y.
      keypoint_scores: [n, K].
      skeleton: the keypoint set; a model's answers have it.
      category_id: of the model's people in COCO's terms.
      masks: of each person, in COCO's run lengths; None: nobody looked for masks.
      labels: int32 [n], 1…C, the class of each in the order of `skeleton.classes`; None: the model knows one class.
    """

    boxes: Floats
    scores: Floats
    keypoints: Floats
    keypoint_scores: Floats
    skeleton: Skeleton | None = None
    category_id: int = 1
    masks: tuple[Mapping[str, Any], ...] | None = None
    labels: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Person]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Person:
        """The person at place `i`, from 0. Raises: IndexError."""
        x0, y0, x1, y1 = self.boxes[i].tolist()
        points = [
            Keypoint(x, y, score)
            for (x, y), score in zip(self.keypoints[i].tolist(), self.keypoint_scores[i].tolist(), strict=True)
        ]
        skeleton = self._skeleton()
        category = skeleton.class_name(1 if self.labels is None else int(self.labels[i]))
        return Person((x0, y0, x1, y1), float(self.scores[i]), dict(zip(skeleton.keypoints, points, strict=True)), category)

    def at_least(self, score: float) -> People:
        """Those with that score or a better one."""
        keep = self.scores >= score
        return dataclasses.replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            keypoints=self.keypoints[keep],
            keypoint_scores=self.keypoint_scores[keep],
            labels=None if self.labels is None else self.labels[keep],
            masks=None if self.masks is None else tuple(m for m, kept in zip(self.masks, keep, strict=True) if kept),
        )

    def scaled(self, x: float, y: float) -> People:
        """The same people in an image that is `x` times as wide and `y` times as high."""
        if (x, y) == (1.0, 1.0):
            return self
        corners, point = np.array([x, y, x, y], np.float32), np.array([x, y], np.float32)
        return dataclasses.replace(self, boxes=self.boxes * corners, keypoints=self.keypoints * point)

    def to_coco(self, image_id: int, **more: Any) -> list[Result]:
        """One dict a person in COCO's results format: `bbox` is x, y, width, height, `keypoints` x, y, score of each in turn.

        Args:
          image_id: goes into every entry.
          more: goes into every entry, too, such as `file_name`.
        """
        ids = self.category_id if self.labels is None else [self._skeleton().classes[label - 1][0] for label in self.labels]
        return results_to_coco(image_id, self, ids, **more)

    def draw(
        self,
        pixels: npt.NDArray[np.uint8],
        *,
        line: int | None = None,
        text: int | None = None,
        names: bool = False,
        labels: Sequence[str] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Draws the people on a copy of the image: left limbs orange, right ones blue, unsure points hollow.

        Args:
          pixels: uint8 [h, w, 3], RGB, as a viewer shows the image.
          line, text: thickness of lines and height of letters in pixels; by default what suits the size of the image.
          names: whether each keypoint's name stands beside it.
          labels: of each person, such as a number; they stand before the score, and before the name of the class if the model
            knows several.

        Returns:
          uint8 [h, w, 3].
        """
        return draw_people(pixels, self.drawn(labels), self._skeleton(), line, names=names, text=text)

    def drawn(self, labels: Sequence[str] | None = None) -> Drawn:
        """What `draw` draws of the people; `labels` as there."""
        drawn = drawn_people(self.boxes, self.scores, self.keypoints, self.keypoint_scores)
        if self.labels is not None and (classes := self._skeleton().class_names(self.labels)) is not None:
            labels = classes if labels is None else [f"{label} {name}" for label, name in zip(labels, classes, strict=True)]
        return dataclasses.replace(drawn, labels=labels)

    def _skeleton(self) -> Skeleton:
        if self.skeleton is None:
            raise ValueError("these people have no keypoint set: give People a skeleton")
        return self.skeleton
