"""Runs a TFLite file: by its signature `serve_images`, by that of the image's size, or by the two of a file in two stages.

It needs NumPy and nothing of this project, so that it can be copied to where such a file is run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WHOLE = "serve_images"
FIND_PEOPLE, FIND_KEYPOINTS = "find_people", "find_keypoints"
SIZES = ("serve_landscape", "serve_portrait", "serve_square")
LEVELS = ("p2", "p3", "p4", "p5")


def runner(interpreter: Any) -> Any:
    """A function of `images` uint8 [1, H, W, 3], which gives what `serve_images` does; with TFLite's `get_input_details`.

    Args:
      interpreter: of ai-edge-litert or tf.lite.

    Raises:
      ValueError: the file has neither `serve_images`, nor one for each size, nor both stages.
    """
    signatures = set(interpreter.get_signature_list())
    if {FIND_PEOPLE, FIND_KEYPOINTS} <= signatures:
        return TwoStages(interpreter)
    if set(SIZES) <= signatures:
        return BySize(interpreter)
    return interpreter.get_signature_runner(WHOLE)


def sizes_taken(run: Any) -> list[tuple[int, int]]:
    """Height and width of the images that what `runner` gave takes: one size, or several."""
    if isinstance(run, BySize):
        return run.sizes
    _, height, width, _ = run.get_input_details()["images"]["shape"]
    return [(int(height), int(width))]


class BySize:
    """A signature for each size of `images`."""

    def __init__(self, interpreter: Any) -> None:
        runners = [interpreter.get_signature_runner(name) for name in SIZES]
        self._by_size = {sizes_taken(run)[0]: run for run in runners}
        self.sizes = list(self._by_size)

    def __call__(self, images: Any) -> Any:
        _, height, width, _ = images.shape
        if (height, width) not in self._by_size:
            raise ValueError(f"images {list(images.shape)}: must have one of the sizes {self.sizes}")
        return self._by_size[height, width](images=images)


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
