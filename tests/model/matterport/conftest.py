"""The old network with the weights of its oracle, and the arrays that the original answered with: `oracles/matterport`.

The README there explains every array.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from model.matterport import decoding
from model.matterport.importing import import_model
from model.matterport.network import MaskRCNN
from model.model_dir import load_any
from pipeline import image

IMAGES = ("land", "port")
SIZES = {512: 400, 1024: 800}  # the canvas's side, and the short edge that goes with it
WEIGHTS = "mask_rcnn_reduced_humanpose.h5"


@dataclasses.dataclass(frozen=True)
class Case:
    """One image at one size, what the original made of it, and the network at that size."""

    name: str
    side: int
    arrays: dict[str, NDArray[Any]]
    image: NDArray[np.uint8]
    model: MaskRCNN

    @functools.cached_property
    def canvas(self) -> tf.Tensor:
        """The image as the network sees it, uint8 [1, side, side, 3]."""
        height, width, _ = self.image.shape
        size = tf.stack(image.resized_size_tf(height, width, SIZES[self.side], self.side, "matterport"))
        small = image.place(image.resize(tf.constant(self.image), size[0], size[1], "matterport"), self.side, self.side)
        window = decoding.window_of(size[tf.newaxis], self.side)
        return decoding.in_the_middle(small[tf.newaxis], size[tf.newaxis], window, self.side)

    @functools.cached_property
    def pyramid(self) -> list[tf.Tensor]:
        return self.model.pyramid(self.canvas)

    @property
    def number(self) -> int:
        return int(self.arrays["n_det"])

    @property
    def boxes(self) -> NDArray[np.float32]:
        """The original's detections, normalised."""
        boxes: NDArray[np.float32] = self.arrays["detections"][: self.number, :4]
        return (boxes / self.side).astype(np.float32)


@pytest.fixture(scope="session")
def oracle_folder(oracles: Path) -> Path:
    return oracles / "matterport"


@pytest.fixture(scope="session")
def weight_file(oracle_folder: Path) -> Path:
    """A reduced model in the original's true file format."""
    return oracle_folder / WEIGHTS


@pytest.fixture(scope="session")
def old_model_dir(weight_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with the smaller of the oracle's sizes."""
    model_dir = tmp_path_factory.mktemp("matterport") / "model"
    import_model(weight_file, model_dir, assignments=["inference.short_edge=400", "inference.max_edge=512"])
    return model_dir


@pytest.fixture(scope="session")
def network(old_model_dir: Path) -> MaskRCNN:
    model = load_any(old_model_dir)
    assert isinstance(model, MaskRCNN)
    return model


@pytest.fixture(scope="session", params=[f"{name}{side}" for side in SIZES for name in IMAGES])
def case(request: pytest.FixtureRequest, oracle_folder: Path, network: MaskRCNN) -> Case:
    name, side = request.param[:4], int(request.param[4:])
    with np.load(oracle_folder / f"{request.param}.npz") as file:
        arrays = dict(file)
    with np.load(oracle_folder / f"{name}512.npz") as file:
        pixels = file["image"]
    return Case(name, side, arrays, pixels, network)


@pytest.fixture(scope="session")
def utils(oracle_folder: Path) -> dict[str, NDArray[Any]]:
    """Small vectors for every utility of the original."""
    with np.load(oracle_folder / "utils.npz") as file:
        return dict(file)


def bits(arrays: dict[str, NDArray[Any]], name: str, shape: str) -> NDArray[np.bool_]:
    """An array of truth values that the oracle has packed."""
    sizes = arrays[shape]
    return np.unpackbits(arrays[name])[: np.prod(sizes)].reshape(sizes).astype(bool)
