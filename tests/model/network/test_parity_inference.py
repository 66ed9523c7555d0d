"""Published families answer as torchvision and Detectron2 do: stage by stage, and from pixels or files to people.

A stage is fed with our own answer of the stage before; the heads get the reference's proposals and detections, since two of
equal score may come in either order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from model.inference.serving import ServingModule
from model.network import box_head, rpn
from model.network.backbone import level_shapes
from model.network.keypoint_head import decode_reference
from model.network.keypoint_rcnn import KeypointRCNN
from model.network.roi_align import assign_levels
from pipeline import image
from tests.model.oracles import Oracle, nchw, relative_error

FEATURES = 1e-4  # of the largest value. float32 against float64 differ by 1e-6 (the oracles' float64.json)
BOX, SCORE = 0.05, 1e-4  # canvas pixels. From the pixels on, float32 against float64: 0.003 and 2.5e-5
# Canvas pixels; for 99 % of the keypoints. A heatmap is searched on a grid of about one pixel, so that two places of nearly
# equal value may change places: no difference of arithmetic leads to half a pixel, only such a change.
KEYPOINT, KEYPOINT_SHARE = 0.5, 0.99
# Shares, which an error of a logit changes in proportion: float32 against float64 differ by 3e-4 in logits of up to 280.
KEYPOINT_SCORE = 1e-3
NUMBERS = range(3)  # of the images


@dataclasses.dataclass(frozen=True)
class Stages:
    """Ours and the reference's answers for one image."""

    ours: dict[str, NDArray[Any]]
    reference: dict[str, NDArray[Any]]
    canvas: tf.Tensor  # [1, H, W, 3]
    image_size: tf.Tensor  # [1, 2]


@pytest.fixture(scope="module")
def stages(oracle: Oracle) -> list[Stages]:
    """All stages of all images, computed once."""
    compute = stages_function(oracle.model)
    found = []
    for number in NUMBERS:
        about, reference = oracle.meta["inference"][number], oracle.arrays(f"inference_{number}")
        size = tf.constant([about["input_size"]])
        canvas = oracle.canvas(about["file"], about["input_size"], about["padded_size"])[None]
        ours = compute(tf.cast(canvas, tf.float32), size, reference["proposals"][None], reference["detection_boxes"])
        found.append(Stages({name: value.numpy() for name, value in ours.items()}, reference, canvas, size))
    return found


def stages_function(model: KeypointRCNN) -> Any:
    """From a canvas, its image's size, the reference's proposals [1, N, 4] and detections [D, 4] to each stage's answer."""
    representation = keras.Model(model.box_head.input, model.box_head.get_layer("box.fc2").output)

    @tf.function(
        input_signature=[
            tf.TensorSpec([1, None, None, 3]),
            tf.TensorSpec([1, 2], tf.int32),
            tf.TensorSpec([1, None, 4]),
            tf.TensorSpec([None, 4]),
        ],
        autograph=False,
    )
    def compute(canvas: tf.Tensor, size: tf.Tensor, proposals: tf.Tensor, detections: tf.Tensor) -> dict[str, tf.Tensor]:
        config = model.config
        answers = {"input": model.normalised(canvas, size)}
        stages = model.backbone(answers["input"])
        pyramid = model.fpn(stages)
        answers |= {f"C{level}": stage for level, stage in enumerate(stages, 2)}
        answers |= {f"P{level}": features for level, features in enumerate(pyramid, 2)}
        anchors = rpn.anchor_grid(config.anchors, level_shapes(pyramid))
        for level, (features, on_level) in enumerate(zip(pyramid, anchors, strict=True), 2):
            answers[f"rpn_objectness_P{level}"], answers[f"rpn_deltas_P{level}"] = model.rpn_head(features)
            answers[f"anchors_P{level}"] = on_level
        logits, deltas = rpn.rpn_outputs(model.rpn_head, pyramid)
        answers["proposals"] = rpn.proposals(config.rpn, logits, deltas, anchors, size, training=False)[0][0]

        image_index = tf.zeros([tf.shape(proposals)[1]], tf.int32)
        pooled = model.pool(config.box_head, pyramid, proposals[0], image_index)
        class_logits, box_deltas = model.classify(pyramid, tf.ensure_shape(proposals, [1, 1000, 4]))
        exist = tf.ones(tf.shape(proposals)[:2])
        found = box_head.detections(config.inference, class_logits, box_deltas, proposals, exist, size)
        number = found["num_detections"][0]
        answers |= {
            "levels_box": assign_levels(proposals[0], 4, config.roi_align.level_tolerance) + 2,
            "box_pooled": pooled,
            "box_representation": representation(pooled),
            "box_logits": class_logits[0],
            "box_deltas": box_deltas[0],
            "detection_boxes": found["boxes"][0, :number],
            "detection_scores": found["scores"][0, :number],
            "levels_keypoint": assign_levels(detections, 4, config.roi_align.level_tolerance) + 2,
        }
        image_index = tf.zeros([tf.shape(detections)[0]], tf.int32)
        answers["keypoint_pooled"] = model.pool(config.keypoint_head, pyramid, detections, image_index)
        answers["keypoint_logits"] = model.heatmaps(pyramid, detections, image_index)
        return answers

    return compute


FEATURE_MAPS = [
    *(f"C{level}" for level in range(2, 6)),
    *(f"{name}P{level}" for name in ("", "rpn_objectness_", "rpn_deltas_") for level in range(2, 7)),
    "keypoint_pooled",
    "box_pooled",
]


def test_the_network_sees_the_same_pixels(oracle: Oracle, stages: list[Stages]) -> None:
    for stage in stages:
        name = next(name for name in stage.reference if name.startswith("input") and name != "input_size")
        step = int(name.removeprefix("input").removeprefix("_stride") or 1)
        assert relative_error(nchw(stage.ours["input"])[:, :, ::step, ::step], stage.reference[name]) <= FEATURES
        if "resized" in stage.reference:  # to the byte
            height, width = stage.image_size[0].numpy()
            np.testing.assert_array_equal(stage.canvas[0, :height, :width].numpy()[..., ::-1], stage.reference["resized"])


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_feature_maps(oracle: Oracle, stages: list[Stages], name: str) -> None:
    for stage in stages:
        assert relative_error(oracle.cut(name, nchw(stage.ours[name])), stage.reference[name]) <= FEATURES


def test_anchors_and_levels_are_the_same(stages: list[Stages]) -> None:
    for stage in stages:
        for name in (*(f"anchors_P{level}" for level in range(2, 7)), "levels_box", "levels_keypoint"):
            np.testing.assert_array_equal(stage.ours[name], stage.reference[name], err_msg=name)


def test_proposals_are_the_same_set(stages: list[Stages]) -> None:
    """All but a few that stand between two of nearly equal score."""
    for stage in stages:
        ours, reference = stage.ours["proposals"], stage.reference["proposals"]
        assert ours.shape == reference.shape
        distance = np.abs(ours[:, None] - reference).max(-1)
        assert np.mean(distance.min(0) <= BOX) >= 0.999 and np.mean(distance.min(1) <= BOX) >= 0.999


def test_box_head(oracle: Oracle, stages: list[Stages]) -> None:
    for stage in stages:
        reference = dict(stage.reference)
        if oracle.family == "detectron2":
            reference["box_logits"] = reference["box_logits"][:, ::-1]  # its background is the last class
        reference["box_deltas"] = reference["box_deltas"][:, -4:]  # those of the person
        for name in ("box_representation", "box_logits", "box_deltas"):
            assert relative_error(oracle.cut(name, stage.ours[name]), reference[name]) <= FEATURES, name


def test_detections_from_the_same_proposals(stages: list[Stages]) -> None:
    for stage in stages:
        np.testing.assert_allclose(stage.ours["detection_boxes"], stage.reference["detection_boxes"], atol=BOX)
        np.testing.assert_allclose(stage.ours["detection_scores"], stage.reference["detection_scores"], atol=SCORE)


def test_heatmaps_from_the_same_detections(stages: list[Stages]) -> None:
    for stage in stages:
        heatmaps = nchw(stage.ours["keypoint_logits"])
        assert relative_error(heatmaps[:1], stage.reference["keypoint_logits"]) <= FEATURES
        assert relative_error(heatmaps[:8, :, ::4, ::4], stage.reference["keypoint_logits_14"]) <= FEATURES


@pytest.fixture(scope="module")
def people(oracle: Oracle, stages: list[Stages]) -> list[dict[str, NDArray[Any]]]:
    """Boxes, scores, keypoints and their scores of each image, from its decoded pixels."""
    signature = [tf.TensorSpec([1, None, None, 3], stages[0].canvas.dtype), tf.TensorSpec([1, 2], tf.int32)]
    detect = tf.function(
        lambda canvas, size: oracle.model.detect(canvas, size, decode_reference), input_signature=signature, autograph=False
    )
    return [people_of(detect(stage.canvas, stage.image_size)) for stage in stages]


def people_of(answer: dict[str, tf.Tensor]) -> dict[str, NDArray[Any]]:
    """Those found in the only image of a batch, without the padding."""
    number = int(answer["num_detections"][0])
    return {name: value[0, :number].numpy() for name, value in answer.items() if name != "num_detections"}


def test_people_from_pixels(stages: list[Stages], people: list[dict[str, NDArray[Any]]]) -> None:
    for found, stage in zip(people, stages, strict=True):
        assert len(found["boxes"]) == len(stage.reference["detection_boxes"])
        np.testing.assert_allclose(found["boxes"], stage.reference["detection_boxes"], atol=BOX)
        np.testing.assert_allclose(found["scores"], stage.reference["detection_scores"], atol=SCORE)


def test_keypoints_from_pixels(oracle: Oracle, stages: list[Stages], people: list[dict[str, NDArray[Any]]]) -> None:
    close = []
    for found, stage in zip(people, stages, strict=True):
        reference = stage.reference["detection_keypoints"]
        close.append(np.abs(found["keypoints"] - reference[..., :2]).max(-1) <= KEYPOINT)
        if oracle.family == "detectron2":
            np.testing.assert_allclose(found["keypoint_scores"], reference[..., 3], atol=KEYPOINT_SCORE)
        else:
            # torchvision's score is the largest logit; the whole heatmap, of which we take its share, is kept of the first
            # detection. These heatmaps' peaks lie between the places: shares reach 80, and an error of the logit is one of the
            # share in proportion to it.
            logits, largest = (stage.reference[name][0] for name in ("keypoint_logits", "detection_keypoint_scores"))
            shares = 1 / np.exp(logits - largest[:, None, None]).sum((1, 2))
            np.testing.assert_allclose(found["keypoint_scores"][0], shares, rtol=KEYPOINT_SCORE)
    assert np.mean(np.concatenate(close)) >= KEYPOINT_SHARE


def test_people_from_files(oracle: Oracle) -> None:
    """The JPEG's bytes in, people in pixels of the image out; decoding adds nothing, its pixels are those of Pillow."""
    module = ServingModule(oracle.model, decode_reference)
    close = []
    for number in NUMBERS:
        about, reference = oracle.meta["inference"][number], oracle.arrays(f"inference_{number}")
        encoded = (oracle.folder.parent / "pictures" / about["file"]).read_bytes()
        np.testing.assert_array_equal(image.decode(tf.constant(encoded)), oracle.images[about["file"]])
        found = people_of(module.serving_default(tf.constant([encoded])))
        scores = reference["final_scores" if oracle.family == "detectron2" else "detection_scores"]
        assert len(found["scores"]) == len(scores)
        np.testing.assert_allclose(found["scores"], scores, atol=SCORE)
        scale = (np.array(about["input_size"]) / np.array(about["original_size"]))[::-1]  # x, y
        assert np.max(np.abs(found["boxes"] - reference["final_boxes"]) * np.tile(scale, 2)) <= BOX
        # Detectron2's keypoints are half a pixel from COCO's until its evaluator writes them.
        points = reference["final_keypoints"][..., :2] - (0.5 if oracle.family == "detectron2" else 0.0)
        close.append(np.max(np.abs(found["keypoints"] - points) * scale, axis=-1) <= KEYPOINT)
    assert np.mean(np.concatenate(close)) >= KEYPOINT_SHARE
