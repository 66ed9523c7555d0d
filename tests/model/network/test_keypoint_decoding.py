"""Both decoders: other people's answers, the way back from `encode`, and that the fast one gives the reference's answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from model.inference.serving import round_up
from model.network import keypoint_head
from model.network.keypoint_head import Decoder, decode_fast, decode_reference
from model.weights.importing import imported
from pipeline import image

SIZE = 56
DECODERS = [decode_reference, decode_fast]


def bumps(place: np.ndarray) -> np.ndarray:
    """Logits [N, S, S, K] that fall off with the distance from place [N, K], along both axes alike."""
    y, x = np.mgrid[:SIZE, :SIZE]
    rows, columns = place[:, None, None, :] // SIZE, place[:, None, None, :] % SIZE
    distance: np.ndarray = np.abs(y[..., None] - rows) + np.abs(x[..., None] - columns)
    return np.asarray(-4 * distance, np.float32)


def noise(count: int, keypoints: int, seed: int) -> np.ndarray:
    """Logits of a head that has learned nothing: as many peaks as its 28×28 values allow."""
    coarse = np.random.default_rng(seed).normal(0, 5, (count, SIZE // 2, SIZE // 2, keypoints))
    return tf.image.resize(coarse, (SIZE, SIZE)).numpy()  # type: ignore[no-any-return]


def random_boxes(count: int, smallest: float, largest: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner = random.uniform(-50, 200, (count, 2))
    side = np.exp(random.uniform(np.log(smallest), np.log(largest), (count, 2)))
    return np.concatenate([corner, corner + side], -1).astype(np.float32)


@pytest.mark.parametrize("decode", DECODERS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_decoding_what_was_encoded_gives_the_point_within_half_a_place_and_half_a_pixel(decode: Decoder, seed: int) -> None:
    random = np.random.default_rng(seed)
    boxes = random_boxes(4, 1, 400, seed)
    extent = (boxes[:, 2:] - boxes[:, :2])[:, None]
    points = boxes[:, None, :2] + random.uniform(0, 1, (4, 5, 2)) * extent
    keypoints = np.concatenate([points, random.integers(1, 3, (4, 5, 1))], -1).astype(np.float32)
    place, valid = keypoint_head.encode(keypoints, boxes, SIZE)
    decoded, _ = decode(tf.constant(bumps(place.numpy())), tf.constant(boxes))
    cell = np.stack([place % SIZE, place // SIZE], -1)
    # The border is repeated outwards, so there the surface rises on beyond the middle of the place.
    places = np.where((cell == 0) | (cell == SIZE - 1), 1.0, 0.5)
    error = np.abs(decoded - keypoints[..., :2])
    rounding = 1e-3  # of float32 coordinates up to 600
    assert np.all((error <= places * extent / SIZE + 0.5 * extent / np.ceil(extent) + rounding)[valid.numpy()])
    assert valid.numpy().mean() > 0.8  # a point at the very edge may fall outside by rounding


@pytest.mark.parametrize("family", ["torchvision", "detectron2"])
@pytest.mark.parametrize("decode", DECODERS)
def test_answers_of_the_published_packages(family: str, decode: Decoder, oracles: Path) -> None:
    """The files hold the whole heatmaps of the first detection of each image."""
    errors, score_errors = [], []
    for file in sorted((oracles / family).glob("inference_*.npz")):
        oracle = np.load(file)
        logits, expected = oracle["keypoint_logits"].transpose(0, 2, 3, 1), oracle["detection_keypoints"][:1]
        points, scores = decode(tf.constant(logits), tf.constant(oracle["detection_boxes"][:1]))
        largest = expected[..., 2] if family == "detectron2" else oracle["detection_keypoint_scores"][:1]
        logits, largest = logits.astype(np.float64), largest.astype(np.float64)
        expected_scores = np.exp(largest) / np.exp(logits).sum((1, 2))
        if family == "detectron2":
            np.testing.assert_allclose(expected_scores, expected[..., 3], rtol=1e-4)  # that score is its own
        errors.append(np.abs(points - expected[..., :2]).max(-1))
        score_errors.append(np.abs(scores / expected_scores - 1))
    assert len(errors) == 3
    # The same pixel everywhere: no peak of these heatmaps has a rival. The fast decoder moves within it.
    assert np.max(errors) < (1e-3 if decode is decode_reference else 0.501)
    assert np.max(score_errors) < 2e-4  # the saved logits, up to 190, are exact to 1e-5


@pytest.mark.parametrize(("family", "weights"), [("torchvision", "weights.pth"), ("detectron2", "model_final.pkl")])
def test_all_detections_of_the_published_packages(family: str, weights: str, oracles: Path) -> None:
    """Heatmaps of the imported model at the saved boxes: many of these are small, and of people that are none."""
    model, _ = imported(family, oracles / family / weights, report=lambda _: None)
    images, answers = np.load(oracles / "pictures" / "pictures.npz"), json.loads((oracles / family / "meta.json").read_text())
    errors: dict[Decoder, list[np.ndarray]] = {decode: [] for decode in DECODERS}
    for number, about in enumerate(answers["inference"]):
        oracle = np.load(oracles / family / f"inference_{number}.npz")
        height, width = (int(side) for side in oracle["input_size"])
        pixels = image.resize(tf.constant(images[about["file"]]), height, width, model.config.data.resize)
        canvas = image.place(pixels, round_up(height), round_up(width))
        boxes = tf.constant(oracle["detection_boxes"])
        pyramid = model.pyramid(canvas[None], tf.constant([[height, width]]))
        heatmaps = model.heatmaps(pyramid, boxes, tf.zeros([len(boxes)], tf.int32))
        for decode, found in errors.items():
            found.append(np.abs(decode(heatmaps, boxes)[0] - oracle["detection_keypoints"][..., :2]).max(-1).ravel())
    reference, fast = (np.concatenate(errors[decode]) for decode in (decode_reference, decode_fast))
    assert len(reference) == {"torchvision": 17, "detectron2": 28}[family] * 17
    assert np.mean(reference <= 0.01) > 0.99  # float32: another pixel where two are equal to 1e-5
    # Half a pixel within the reference's, and rounding; the rest are points of which the samples took another peak: 0 and 2.
    assert np.mean(fast <= 0.75) >= 0.99


def test_fast_finds_the_references_pixel_in_boxes_with_no_more_pixels_than_it_looks_at() -> None:
    heat, boxes = tf.constant(noise(40, 7, 0)), tf.constant(random_boxes(40, 0.1, 140, 1))
    (fast, fast_scores), (reference, scores) = decode_fast(heat, boxes), decode_reference(heat, boxes)
    np.testing.assert_allclose(fast_scores, scores, rtol=1e-5)
    assert np.max(np.abs(fast - reference)) < 0.501  # it moves by half a pixel at most


def test_fast_says_where_in_the_pixel() -> None:
    """A bell between two places: the reference knows whole pixels, here of two places each."""
    y, x = np.mgrid[:SIZE, :SIZE]
    at = np.array([20.3, 33.9])  # x, y
    heat = -((x - at[0]) ** 2 + (y - at[1]) ** 2).astype(np.float32)[None, :, :, None] / 4
    boxes = tf.constant([[100.0, 200.0, 128.0, 228.0]])
    truth = boxes[:, :2] + (at + 0.5) * 28 / SIZE
    fast, reference = (
        np.abs(decode(tf.constant(heat), boxes)[0][:, 0] - truth).max() for decode in (decode_fast, decode_reference)
    )
    assert fast < 0.02 < reference <= 0.5  # the window cuts the bell's feet off, more on one side


def test_fast_agrees_with_the_reference_in_larger_boxes() -> None:
    heat, boxes = tf.constant(noise(40, 9, 2)), tf.constant(random_boxes(40, 140, 800, 3))
    (fast, fast_scores), (reference, scores) = decode_fast(heat, boxes), decode_reference(heat, boxes)
    close = np.abs(fast - reference).max(-1) <= 0.75
    assert close.mean() > 0.95  # of heatmaps that are nothing but rival peaks; here 0.983
    # Where it takes another peak, that one is nearly as high: it never looks at anything that the reference does not.
    assert np.all(fast_scores <= scores * (1 + 1e-4))
    np.testing.assert_allclose(np.log(fast_scores), np.log(scores), atol=0.3)  # here 0.18, of logits that reach from −20 to 20


@pytest.mark.parametrize("decode", DECODERS)
def test_flat_and_extreme_heatmaps_and_boxes_without_area_give_finite_answers(decode: Decoder) -> None:
    boxes = tf.constant([[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 300.0], [9.0, 9.0, 3.0, 3.0]])
    for value in (0.0, -1e4, 1e4):
        points, scores = decode(tf.fill([3, SIZE, SIZE, 2], value), boxes)
        assert np.isfinite(points).all()
        np.testing.assert_allclose(scores, 1 / SIZE**2, rtol=0.02)  # 1e4 has three digits behind the point
    np.testing.assert_allclose(points[0], 0.5, atol=0.01)  # in the middle of the one pixel that a box has at least


def test_fast_is_the_same_compiled_and_in_tflite() -> None:
    heat, boxes = noise(4, 3, 4), random_boxes(4, 10, 600, 5)
    expected = decode_fast(tf.constant(heat), tf.constant(boxes))
    compiled = tf.function(decode_fast, jit_compile=True, autograph=False)(tf.constant(heat), tf.constant(boxes))

    signature = [tf.TensorSpec(heat.shape, name="heatmaps"), tf.TensorSpec(boxes.shape, name="boxes")]
    function = tf.function(
        lambda heatmaps, boxes: dict(zip(("points", "scores"), decode_fast(heatmaps, boxes), strict=True)), autograph=False
    )
    concrete = function.get_concrete_function(*signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=converter.convert())
    tflite = interpreter.get_signature_runner()(heatmaps=heat, boxes=boxes)
    # float32 in another order: 4e-5 of coordinates up to 750, 1e-5 of a score.
    for other in (compiled, (tflite["points"], tflite["scores"])):
        for got, want in zip(other, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
