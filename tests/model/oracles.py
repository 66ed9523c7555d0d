"""Answers of torchvision and Detectron2 themselves, for a small model of each family: `oracles/<family>` of KEYPOINT_SHARED.

The README there explains every array. Feature maps are NCHW; the "input frame" is the resized image, which is our canvas.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.network.keypoint_rcnn import KeypointRCNN
from pipeline import image

FAMILIES = ("torchvision", "detectron2")
WEIGHTS = {"torchvision": "weights.pth", "detectron2": "model_final.pkl"}
Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Oracle:
    """One family's answers, and our model with its weights, resizing as its did."""

    family: str
    folder: Path
    model: KeypointRCNN

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        return content

    @functools.cached_property
    def images(self) -> dict[str, NDArray[np.uint8]]:
        """Decoded pixels by file name, uint8 [h, w, 3], RGB."""
        with np.load(self.folder.parent / "pictures" / "pictures.npz") as file:
            return dict(file)

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    def cut(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """The part of a whole array [...] that the files keep, such as `[:, :, ::8, ::8]`."""
        kept = self.meta["slices_kept_in_inference_npz"].get(name, "[:]")
        steps = [part.strip() for part in kept.strip("[]").split(",")]
        return value[tuple(slice(*(int(n) if n else None for n in step.split(":"))) for step in steps)]

    def canvas(self, file: str, size: tuple[int, int], padded: tuple[int, int]) -> tf.Tensor:
        """An image's decoded pixels, resized by the family's rule, at the top left of a canvas: [H, W, 3]."""
        return image.place(image.resize(tf.constant(self.images[file]), *size, self.model.config.data.resize), *padded)


def relative_error(value: Any, reference: NDArray[Any]) -> float:
    """Largest difference over the largest reference value."""
    value = np.asarray(value)
    assert value.shape == reference.shape
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def nchw(features: Any) -> NDArray[Any]:
    return np.transpose(np.asarray(features), (0, 3, 1, 2))
