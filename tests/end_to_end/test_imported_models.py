"""The two commands that a user of published weights gives: predictions.json holds the answers of the packages themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.test_commands import run
from tests.model.network.test_parity_inference import BOX, KEYPOINT, KEYPOINT_SCORE, KEYPOINT_SHARE, NUMBERS, SCORE
from tests.model.oracles import FAMILIES, WEIGHTS

ROUNDING = 1e-3  # pixels of the image, twice the half of the last digit written


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_people_of_a_folder(family: str, oracles: Path, tmp_path: Path) -> None:
    imported = run(
        "model.import_weights",
        f"--source={family}",
        f"--weights={oracles / family / WEIGHTS[family]}",
        "--model_dir=model",
        cwd=tmp_path,
    )
    assert imported.status == 0 and "model in model" in imported.output, imported
    predicted = run(
        "model.predict",
        *("--model=model", f"--input={oracles / 'pictures'}", "--output_dir=out", "--score_threshold=0.05"),
        *("--short_edge=256", "--max_edge=448", "--decoder=reference"),
        cwd=tmp_path,
    )
    assert predicted.status == 0, predicted
    assert sorted(p.name for p in (tmp_path / "out" / "pictures").iterdir()) == sorted(
        p.name for p in (oracles / "pictures").glob("*.jpg")
    )
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    meta = json.loads((oracles / family / "meta.json").read_text())
    close = []
    for number in NUMBERS:
        about, reference = meta["inference"][number], np.load(oracles / family / f"inference_{number}.npz")
        found = [entry for entry in entries if entry["image_id"] == int(Path(about["file"]).stem)]
        assert {(entry["file_name"], entry["category_id"]) for entry in found} == {(about["file"], 1)}
        scores = reference["final_scores" if family == "detectron2" else "detection_scores"]
        np.testing.assert_allclose([entry["score"] for entry in found], scores, atol=SCORE)
        scale = (np.array(about["input_size"]) / np.array(about["original_size"]))[::-1]  # x, y
        boxes = np.array([entry["bbox"] for entry in found])
        boxes[:, 2:] += boxes[:, :2]
        assert np.max((np.abs(boxes - reference["final_boxes"]) - ROUNDING) * np.tile(scale, 2)) <= BOX
        # Detectron2's keypoints are half a pixel from COCO's until its evaluator writes them.
        points = reference["final_keypoints"][..., :2] - (0.5 if family == "detectron2" else 0.0)
        keypoints = np.array([entry["keypoints"] for entry in found]).reshape(len(found), 17, 3)
        close.append(np.max((np.abs(keypoints[..., :2] - points) - ROUNDING) * scale, axis=-1) <= KEYPOINT)
        if family == "detectron2":
            np.testing.assert_allclose(keypoints[..., 2], reference["final_keypoints"][..., 2], atol=KEYPOINT_SCORE)
    assert np.mean(np.concatenate(close)) >= KEYPOINT_SHARE
