"""Signatures that go a part of the way: with the rest done elsewhere, they give the answer of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from examples.finish_raw import finish
from export.tflite import random_images
from model.inference import parts
from model.inference.serving import ServingModule
from model.inference.two_stages import LEVELS
from model.network.keypoint_rcnn import KeypointRCNN

Arrays = dict[str, npt.NDArray[Any]]
SIZES = ((96, 128), (70, 90))  # the second is no multiple of 32


def arrays(answer: dict[str, tf.Tensor]) -> Arrays:
    return {name: value.numpy() for name, value in answer.items()}


def pixels(height: int, width: int) -> npt.NDArray[np.uint8]:
    (one,) = random_images(height, width, 1)
    return one[None]


@pytest.fixture(scope="module")
def whole(small_model: KeypointRCNN) -> ServingModule:
    return ServingModule(small_model)


@pytest.fixture(scope="module")
def raw(small_model: KeypointRCNN) -> Callable[..., dict[str, tf.Tensor]]:
    return parts.raw(small_model)  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", SIZES)
def test_nms_and_decoding_in_numpy_finish_raw(
    small_model: KeypointRCNN, whole: ServingModule, raw: Callable[..., dict[str, tf.Tensor]], size: tuple[int, int]
) -> None:
    expected = arrays(whole.serve_one_image(pixels(*size)))
    inference = small_model.config.inference
    found = arrays(raw(images=tf.constant(pixels(*size))))
    number = small_model.config.rpn.proposals_test
    assert found["boxes"].shape == (1, number, 4) and found["logits"].shape == (1, number, 2)
    assert found["heatmaps"].shape[2:] == (56, 56, small_model.skeleton.num_keypoints)
    people = finish(
        found,
        score_threshold=inference.score_threshold,
        nms_threshold=inference.nms_threshold,
        most=inference.max_detections,
        keypoint_offset=0.0,
    )
    count = int(expected["num_detections"][0])
    assert len(people["scores"]) == count > 1
    for name, value in people.items():
        close = np.abs(value - expected[name][0, :count]) < (0.02 if name in ("boxes", "keypoints") else 1e-4)
        assert close.mean() > (0.97 if name.startswith("keypoint") else 0.999), name  # random weights: peaks may be equal


def test_raw_is_sorted_and_has_the_heatmaps_of_all_who_count(
    small_model: KeypointRCNN, raw: Callable[..., dict[str, tf.Tensor]]
) -> None:
    found = arrays(raw(images=tf.constant(pixels(96, 128))))
    scores = tf.nn.softmax(found["logits"][0]).numpy()[:, 1]
    exists = (found["boxes"][0] != 0).any(axis=1)
    assert (np.diff(scores[exists]) <= 1e-6).all() and not found["logits"][0][~exists].any()
    assert not exists[exists.sum() :].any()
    looked_at = found["heatmaps"].shape[1]
    above = int((exists & (scores >= small_model.config.inference.score_threshold)).sum())
    assert above <= looked_at <= above + 7


def test_the_two_stages_give_the_answer_of_the_whole(small_model: KeypointRCNN, whole: ServingModule) -> None:
    expected = arrays(whole.serve_one_image(pixels(96, 128)))
    first = parts.find_people(small_model, 96, 128)
    second = parts.find_keypoints(small_model, 96, 128, 2)
    for function in (first, second):
        assert all(shape.is_fully_defined() for shape in function.output_shapes.values())
    found = arrays(first(images=tf.constant(pixels(96, 128))))
    for name in ("num_detections", "boxes", "scores"):
        np.testing.assert_allclose(found[name], expected[name], atol=0.01)
    levels = {name: tf.constant(found[name]) for name in LEVELS}
    answer = arrays(second(boxes=tf.constant(found["boxes"][0, :2]), **levels))
    np.testing.assert_allclose(answer["keypoint_scores"], expected["keypoint_scores"][0, :2], atol=1e-4)
    assert (np.abs(answer["keypoints"] - expected["keypoints"][0, :2]) < 0.02).mean() > 0.97
