"""One preprocessing: training, evaluation and exported models see the same pixels, and those of the other implementations."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from model.config import TINY
from model.inference.serving import ServingModule
from model.network.keypoint_head import Decoder
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline import image
from pipeline.data_config import DataConfig, ResizeRule, resized_size
from pipeline.loading.batches import training_batches
from pipeline.record_folder import RecordFolder
from pipeline.skeleton import Skeleton

RULES = typing.get_args(ResizeRule)
SHORT_EDGE, MAX_EDGE = 128, 1333
Pixels = NDArray[np.uint8] | NDArray[np.float32]


class EchoesPixels:
    """Stands for a model: its answer holds the canvas that it was given, as scores of keypoints [1, 1, H · W · 3]."""

    def __init__(self, rule: ResizeRule) -> None:
        self.config = dataclasses.replace(
            TINY,
            data=dataclasses.replace(TINY.data, resize=rule),
            backbone=dataclasses.replace(TINY.backbone, norm="frozen_batch"),
            inference=dataclasses.replace(TINY.inference, short_edge=SHORT_EDGE, max_edge=MAX_EDGE, max_detections=1),
        )
        self.skeleton = Skeleton("person", ("nose",), limbs=(), flip=(0,), sigmas=(0.05,))

    def variables_by_path(self) -> dict[str, tf.Variable]:
        return {}

    def detect(
        self,
        images: tf.Tensor,
        image_size: tf.Tensor,
        decode: Decoder,
        *,
        own_canvas: tf.Tensor | None = None,
        static_shapes: bool = False,
    ) -> dict[str, tf.Tensor]:
        return {
            "num_detections": image_size[:, 0],
            "boxes": tf.zeros([1, 1, 4]),
            "scores": tf.zeros([1, 1]),
            "keypoints": tf.zeros([1, 1, 1, 2]),
            "keypoint_scores": tf.reshape(tf.cast(images, tf.float32), [1, 1, -1]),
        }


def served(saved_model: typing.Any, encoded: bytes, size: tuple[int, int]) -> Pixels:
    """What the network of a SavedModel would see of a file, without the padding."""
    answer = saved_model.signatures["serving_default"](image_bytes=tf.constant([encoded]))
    height, width = size
    assert int(answer["num_detections"][0]) == height
    canvas = answer["keypoint_scores"].numpy().reshape(-(-height // 32) * 32, -(-width // 32) * 32, 3)
    assert not canvas[height:].any() and not canvas[:, width:].any()
    return typing.cast(Pixels, canvas[:height, :width])


def images_of(batches: tf.data.Dataset) -> dict[int, Pixels]:
    found: dict[int, Pixels] = {}
    for batch in batches:
        for image_id, (height, width), canvas in zip(
            batch["image_id"].numpy().tolist(), batch["image_size"].numpy(), batch["image"].numpy(), strict=True
        ):
            if image_id >= 0 and image_id not in found:
                found[image_id] = canvas[:height, :width]
    return found


@pytest.mark.parametrize("rule", RULES)
def test_training_and_saved_model_see_the_same_pixels(
    coco_sample: Path, coco_sample_records: RecordFolder, tmp_path: Path, rule: ResizeRule
) -> None:
    config = DataConfig(short_edges=(SHORT_EDGE,), flip=False, num_canvases=2, resize=rule, anchors="online")
    trained = images_of(training_batches(coco_sample_records, "val", config, global_batch_size=4, seed=0, num_steps=2))
    module = ServingModule(typing.cast(KeypointRCNN, EchoesPixels(rule)))
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.serving_default})
    saved_model = tf.saved_model.load(str(tmp_path))
    assert len(trained) >= 4
    for image_id, pixels in trained.items():
        assert pixels.dtype == image.pixel_dtype(rule).as_numpy_dtype
        encoded = (coco_sample / "val2017" / f"{image_id:012d}.jpg").read_bytes()
        np.testing.assert_array_equal(pixels, served(saved_model, encoded, pixels.shape[:2]))


# Other people's answers ---------------------------------------------------------------------------------------------

IMAGES = ("000000434204.jpg", "000000549055.jpg", "000000536038.jpg")


def resized(pixels: NDArray[np.uint8], rule: ResizeRule) -> Pixels:
    height, width, _ = pixels.shape
    size = resized_size(height, width, 256, 448, rule)
    return typing.cast(Pixels, image.resize(tf.constant(pixels), *size, rule).numpy())


def originals(oracles: Path, name: str) -> list[NDArray[np.uint8]]:
    """The image as the oracle decoded it, and as we do."""
    decoded = image.decode(tf.constant((oracles / "pictures" / name).read_bytes())).numpy()
    return [np.load(oracles / "pictures" / "pictures.npz")[name], decoded]


@pytest.mark.parametrize("number", range(3))
def test_detectron2s_pixels_to_the_bit(oracles: Path, number: int) -> None:
    oracle = np.load(oracles / "detectron2" / f"inference_{number}.npz")
    for pixels in originals(oracles, IMAGES[number]):
        np.testing.assert_array_equal(resized(pixels, "detectron2")[..., ::-1], oracle["resized"])  # BGR there


@pytest.mark.parametrize("number", range(3))
def test_torchvisions_input(oracles: Path, number: int) -> None:
    oracle = np.load(oracles / "torchvision" / f"inference_{number}.npz")
    every = 1 if "input" in oracle else 2
    expected = oracle["input" if every == 1 else "input_stride2"][0].transpose(1, 2, 0)
    height, width = oracle["input_size"]
    for pixels in originals(oracles, IMAGES[number]):
        ours = resized(pixels, "torchvision")
        assert ours.shape[:2] == (height, width)
        normalised = (ours / 255 - TINY.backbone.pixel_mean) / TINY.backbone.pixel_std
        inside = expected[: -(-height // every), : -(-width // every)]
        # Its own float32 differs from float64 by 1e-4.
        np.testing.assert_allclose(normalised[::every, ::every], inside, atol=2e-4)


def test_sizes_of_the_families() -> None:
    assert resized_size(579, 640, 240, 448, "torchvision") == (239, 265)
    assert resized_size(304, 640, 256, 448, "torchvision") == (212, 448)
    assert resized_size(304, 640, 256, 448, "detectron2") == (213, 448)
    assert resized_size(640, 358, 256, 448, "torchvision") == (448, 250)
    assert resized_size(640, 358, 256, 448, "detectron2") == (448, 251)
