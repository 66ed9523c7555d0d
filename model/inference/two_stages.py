"""Runs a TFLite file: by its signature `serve_images`, or by the two of a file whose stages are signatures of their own.

It needs NumPy and nothing of this project, so that it can be copied to where such a file is run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WHOLE = "serve_images"
FIND_PEOPLE, FIND_KEYPOINTS = "find_people", "find_keypoints"
LEVELS = ("p2", "p3", "p4", "p5")


def runner(interpreter: Any) -> Any:
    """A function of `images` uint8 [1, H, W, 3], which gives what `serve_images` does; with TFLite's `get_input_details`.

    Args:
      interpreter: of ai-edge-litert or tf.lite.

    Raises:
      ValueError: the file has neither `serve_images` nor both stages.
    """
    if {FIND_PEOPLE, FIND_KEYPOINTS} <= set(interpreter.get_signature_list()):
        return TwoStages(interpreter)
    return interpreter.get_signature_runner(WHOLE)


class TwoStages:
    """`find_people`, and `find_keypoints` for as many of them at once as it takes."""

    def __init__(self, interpreter: Any) -> None:
        self._find_people = interpreter.get_signature_runner(FIND_PEOPLE)
        self._find_keypoints = interpreter.get_signature_runner(FIND_KEYPOINTS)
        self._at_once = int(self._find_keypoints.get_input_details()["boxes"]["shape"][0])

    def get_input_details(self) -> Any:
        return self._find_people.get_input_details()

    def __call__(self, images: Any) -> dict[str, Any]:
        found: dict[str, Any] = dict(self._find_people(images=images))
        levels = {name: found.pop(name) for name in LEVELS}
        number, boxes = int(found["num_detections"][0]), found["boxes"][0]  # [D, 4]
        answers = []
        for first in range(0, number, self._at_once):
            some = np.zeros((self._at_once, 4), np.float32)
            some[: min(self._at_once, len(boxes) - first)] = boxes[first : first + self._at_once]
            answers.append(self._find_keypoints(boxes=some, **levels))
        shapes = {name: one["shape"] for name, one in self._find_keypoints.get_output_details().items()}
        for name in ("keypoints", "keypoint_scores"):
            values = np.zeros((1, len(boxes), *shapes[name][1:]), np.float32)  # zeros behind the last person
            if answers:
                values[0, :number] = np.concatenate([answer[name] for answer in answers])[:number]
            found[name] = values
        return found
