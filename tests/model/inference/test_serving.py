"""Both signatures: own pixels, any company, what cannot be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from model.config import Norm
from model.inference.serving import MAX_PIXELS, ServingModule, header_size, own_pixels, round_up
from model.network.keypoint_head import Decoder
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline import data_config


class FixedAnswer:
    """Stands for a model that sees one person, in the same tenths of every image's canvas content."""

    def __init__(self, model: KeypointRCNN, norm: Norm) -> None:
        backbone = dataclasses.replace(model.config.backbone, norm=norm)
        inference = dataclasses.replace(model.config.inference, max_detections=1)
        self.config = dataclasses.replace(model.config, backbone=backbone, inference=inference)
        self.skeleton = model.skeleton

    def variables_by_path(self) -> dict[str, tf.Variable]:
        return {}

    def detect(self, images: tf.Tensor, image_size: tf.Tensor, _decode: Decoder) -> dict[str, tf.Tensor]:
        size = tf.cast(image_size[:, ::-1], tf.float32)  # [B, 2] x, y
        box = tf.concat([size * 0.1, size * 1.5], axis=-1)[:, None]
        keypoints = tf.tile((size * 0.3)[:, None, None], [1, 1, self.skeleton.num_keypoints, 1])
        ones = tf.ones_like(box[..., 0])
        return {
            "num_detections": tf.ones_like(image_size[:, 0]),
            "boxes": box,
            "scores": ones,
            "keypoints": keypoints,
            "keypoint_scores": tf.ones_like(keypoints[..., 0]),
        }


@pytest.fixture(scope="module")
def module(small_model: KeypointRCNN) -> ServingModule:
    return ServingModule(small_model)


def image(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    rough = np.random.default_rng(seed).integers(0, 255, (1, 6, 8, 3))
    return tf.cast(tf.image.resize(rough, (height, width)), tf.uint8)[0].numpy()  # type: ignore[no-any-return]


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    return tf.io.encode_png(pixels).numpy()  # type: ignore[no-any-return]


def jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    return tf.io.encode_jpeg(pixels, quality=95).numpy()  # type: ignore[no-any-return]


def assert_same(one: Mapping[str, Any], other: Mapping[str, Any], row: int = 0, other_row: int = 0) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_allclose(value[row], other[name][other_row], rtol=1e-3, atol=0.02, err_msg=name)


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_a_image_is_answered_in_its_own_pixels(small_model: KeypointRCNN, norm: Norm) -> None:
    module = ServingModule(FixedAnswer(small_model, norm))  # type: ignore[arg-type]
    sizes = [(50, 80), (300, 200), (96, 96)]
    answer = module.serving_default(tf.constant([jpeg(image(*size)) for size in sizes]))
    for row, (height, width) in enumerate(sizes):
        # The box reaches over the right and the lower edge: it ends there.
        np.testing.assert_allclose(answer["boxes"][row, 0], [0.1 * width, 0.1 * height, width, height], rtol=1e-5)
        np.testing.assert_allclose(answer["keypoints"][row, 0, 0], [0.3 * width, 0.3 * height], rtol=1e-5)


def test_encoded_image_equals_its_pixels_where_nothing_is_resized(module: ServingModule) -> None:
    pixels = image(96, 128)  # the short edge at inference
    encoded = module.serving_default(tf.constant([png(pixels)]))
    plain = module.serve_images(pixels[None])
    assert int(plain["num_detections"][0]) > 0
    assert_same(encoded, plain)


def test_same_answer_alone_or_in_company(module: ServingModule) -> None:
    images = [png(image(90, 118, 1)), jpeg(image(150, 96, 2)), png(image(48, 63, 3)), png(image(20, 300, 3))]
    together = module.serving_default(tf.constant(images))
    for row, encoded in enumerate(images):
        assert_same(module.serving_default(tf.constant([encoded])), together, 0, row)


def test_pixels_that_are_no_multiple_of_32(module: ServingModule) -> None:
    answer = module.serve_images(image(70, 90)[None])
    count = int(answer["num_detections"][0])
    boxes = answer["boxes"][0, :count].numpy()
    assert count > 0
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 90 and boxes[:, 3].max() <= 70
    assert not answer["boxes"][0, count:].numpy().any() and not answer["keypoints"][0, count:].numpy().any()


def test_fixed_size_gives_the_answer_of_any_size(module: ServingModule) -> None:
    pixels = image(96, 128)
    fixed = module.serve_images_of_size(96, 128)
    assert_same(fixed(images=tf.constant(pixels[None])), module.serve_images(pixels[None]))
    assert all(shape.is_fully_defined() for shape in fixed.output_shapes.values())


def test_empty_batches(module: ServingModule, small_model: KeypointRCNN) -> None:
    number, keypoints = small_model.config.inference.max_detections, small_model.skeleton.num_keypoints
    for answer in (
        module.serving_default(tf.zeros([0], tf.string)),
        module.serve_images(tf.zeros([0, 64, 64, 3], tf.uint8)),
        module.serve_images(tf.zeros([0, 0, 0, 3], tf.uint8)),
    ):
        assert answer["boxes"].shape == (0, number, 4)
        assert answer["keypoints"].shape == (0, number, keypoints, 2)


@pytest.mark.parametrize("grey", [False, True])
def test_header_size(grey: bool) -> None:
    pixels = image(33, 77)[..., :1] if grey else image(33, 77)
    for encoded in (png(pixels), jpeg(pixels)):
        assert header_size(tf.constant(encoded)).numpy().tolist() == [33, 77]


def test_too_large_a_image_is_refused_by_its_header() -> None:
    side = (MAX_PIXELS // 1000 + 1).to_bytes(4, "big")
    header = png(image(8, 8))[:16] + (1000).to_bytes(4, "big") + side
    with pytest.raises(tf.errors.InvalidArgumentError, match=str(MAX_PIXELS)):
        header_size(tf.constant(header))
    huge = png(image(8, 8))[:16] + b"\x7f\xff\xff\xff\x7f\xff\xff\xff"  # the product overflows 32 bits
    with pytest.raises(tf.errors.InvalidArgumentError, match=str(MAX_PIXELS)):
        header_size(tf.constant(huge))


@pytest.mark.parametrize("encoded", [b"", b"GIF89a" + bytes(40), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(module: ServingModule, encoded: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        module.serving_default(tf.constant([encoded]))


def test_own_pixels_scales_and_cuts() -> None:
    detections = {
        "num_detections": tf.constant([1]),
        "boxes": tf.constant([[[-4.0, 8.0, 500.0, 16.0], [0.0, 0.0, 0.0, 0.0]]]),
        "scores": tf.constant([[0.5, 0.0]]),
        "keypoints": tf.constant([[[[20.0, 30.0]], [[0.0, 0.0]]]]),
        "keypoint_scores": tf.constant([[[0.1], [0.0]]]),
    }
    answer = own_pixels(detections, tf.constant([[2.0, 4.0]]), tf.constant([[50, 60]]), 0.0)
    assert answer["boxes"].numpy().tolist() == [[[0.0, 4.0, 60.0, 8.0], [0.0, 0.0, 0.0, 0.0]]]
    assert answer["keypoints"].numpy().tolist() == [[[[5.0, 15.0]], [[0.0, 0.0]]]]
    of_detectron2 = own_pixels(detections, tf.constant([[2.0, 4.0]]), tf.constant([[50, 60]]), 0.5)
    assert of_detectron2["keypoints"].numpy().tolist() == [[[[4.5, 14.5]], [[0.0, 0.0]]]]


def test_canvas_is_the_next_multiple() -> None:
    assert [round_up(n) for n in (1, 32, 33, 800)] == [32, 32, 64, 800]
    assert data_config.resized_size(480, 640, 800, 1333) == (800, 1067)
