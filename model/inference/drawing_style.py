"""How people are drawn, as the flags of `model.predict` say it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.inference.people import People


@dataclasses.dataclass(frozen=True)
class DrawingStyle:
    """How people are drawn.

    Attributes:
      line, text: thickness of lines and height of letters in pixels; None: what suits the size of the image.
      names: whether each keypoint's name stands beside it.
    """

    line: int | None = None
    text: int | None = None
    names: bool = False

    def draw(self, pixels: npt.NDArray[np.uint8], people: People, labels: Sequence[str] | None = None) -> npt.NDArray[np.uint8]:
        """Draws people on a copy of an image, uint8 [h, w, 3]; `labels` stand before the scores."""
        return people.draw(pixels, line=self.line, text=self.text, names=self.names, labels=labels)
