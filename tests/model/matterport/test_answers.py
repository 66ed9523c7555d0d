"""From files to people: `model.predict`'s own function gives the original's boxes, keypoints, scores and masks."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from model.inference.image_folder import look_into, predict_files
from model.inference.image_names import numbered
from model.inference.predictor import Predictor, open_model
from pipeline.command import UserError
from tests.model.matterport.conftest import SIZES, Case, bits


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def opened(old_model_dir: Path) -> Callable[..., Predictor]:
    """`open_model` of the directory, once for all tests that give the same options: a predictor traces its graphs once."""
    return functools.cache(functools.partial(open_model, old_model_dir))


def test_legacy_decoding_gives_the_originals_answers(case: Case, opened: Callable[..., Predictor], tmp_path: Path) -> None:
    """Through the files that `model.predict` writes."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{case.name}_7.png").write_bytes(png(case.image))
    predictor = opened(short_edge=SIZES[case.side], max_edge=case.side, legacy_decoding=True, masks=True)
    images, _ = numbered(look_into(tmp_path / "images")[0])
    predict_files(predictor, images, tmp_path / "out", draw=False)
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())

    arrays = case.arrays
    assert [(result["image_id"], result["category_id"]) for result in results] == [(7, 1)] * case.number
    assert arrays["out_class_ids"].tolist() == [1] * case.number
    y0, x0, y1, x1 = arrays["out_rois"].T
    assert [result["bbox"] for result in results] == np.stack([x0, y0, x1 - x0, y1 - y0], axis=-1).tolist()
    np.testing.assert_allclose([result["score"] for result in results], arrays["out_scores"], rtol=0, atol=1e-5)
    keypoints = np.array([result["keypoints"] for result in results]).reshape(-1, 17, 3)
    np.testing.assert_array_equal(keypoints[..., :2], arrays["out_keypoints"][..., :2])
    np.testing.assert_allclose(keypoints[..., 2], arrays["kp_score"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(keypoints[..., 2] > 0.005, arrays["out_keypoints"][..., 2] > 0)
    masks = np.stack([coco_mask.decode(result["segmentation"]) for result in results], axis=-1)
    np.testing.assert_array_equal(masks, bits(arrays, "out_masks_bits", "out_masks_shape"))


def test_by_default_nothing_is_rounded(case: Case, opened: Callable[..., Predictor]) -> None:
    """The same places, in boxes that are not cut to whole pixels."""
    predictor = opened(short_edge=SIZES[case.side], max_edge=case.side, masks=True)
    (people,) = predictor.predict([png(case.image)])
    y0, x0, y1, x1 = case.arrays["window"].tolist()
    scale = np.array([case.image.shape[1] / (x1 - x0), case.image.shape[0] / (y1 - y0)])
    corners = case.arrays["detections"][: case.number, :4].reshape(-1, 2, 2)[..., ::-1]  # x, y
    corners = (corners - [x0, y0]) * scale
    np.testing.assert_allclose(people.boxes.reshape(-1, 2, 2), corners, rtol=0, atol=1e-3)
    places = np.stack([case.arrays["kp_label"] % 56, case.arrays["kp_label"] // 56], axis=-1)
    keypoints = corners[:, None, 0] + places / 56 * (corners[:, None, 1] - corners[:, None, 0])
    np.testing.assert_allclose(people.keypoints, keypoints, rtol=0, atol=1e-3)
    assert (
        np.abs(people.keypoints - case.arrays["out_keypoints"][..., :2]).max() < 2.5
    )  # two roundings of a box, one of a point
    np.testing.assert_allclose(people.keypoint_scores, case.arrays["kp_score"], rtol=0, atol=1e-6)
    assert people.masks is not None
    original = bits(case.arrays, "out_masks_bits", "out_masks_shape")
    for mask, box, probabilities in zip(people.masks, people.boxes, case.arrays["mrcnn_mask"], strict=False):
        pixels = coco_mask.decode(mask)
        assert pixels.shape == original.shape[:2]
        share = (probabilities[..., 1] >= 0.5).mean()  # of the box, by a threshold that is not relative
        assert abs(pixels.sum() / np.prod(box[2:] - box[:2]) - share) < 0.05


def test_the_originals_threshold_and_company(opened: Callable[..., Predictor], case: Case) -> None:
    """Nobody is below 0.7, and an image's answer does not depend on what else is asked for."""
    if case.side != 512:
        pytest.skip("one size is enough")
    predictor = opened()
    assert predictor.score_threshold == 0.7
    grey = png(np.full((40, 90, 3), 128, np.uint8))
    alone, (_, together) = predictor.predict([png(case.image)])[0], predictor.predict([grey, png(case.image)])
    np.testing.assert_allclose(alone.keypoints, together.keypoints, rtol=0, atol=1e-3)
    lower = opened(score_threshold=0.5).predict([png(case.image)])[0]
    assert len(lower) >= len(alone)
    np.testing.assert_allclose(lower.boxes[: len(alone)], alone.boxes, rtol=0, atol=1e-3)


def test_options_of_another_network_are_refused(old_model_dir: Path) -> None:
    with pytest.raises(UserError, match=r"--decoder=reference: .* the old network"):
        open_model(old_model_dir, decoder="reference")
    with pytest.raises(UserError, match=r"inference.max_edge=500: must be a multiple of 64"):
        open_model(old_model_dir, max_edge=500)
