"""Which formats "all" names, and that a TFLite file and its sidecar belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.formats import FORMATS, OF_ALL, chosen, sha256_of
from model.inference.predictor import open_model
from pipeline.command import UserError


def test_all_leaves_out_the_extras_alone() -> None:
    extras = ("tflite_int8_all", "tflite_parts", "tflite_sizes")
    assert chosen(["all"]) == OF_ALL == tuple(name for name in FORMATS if name not in extras)
    assert chosen(["onnx", "saved_model"]) == ("saved_model", "onnx")
    assert chosen([*extras, "all"]) == tuple(FORMATS)


def test_the_sidecar_holds_what_a_client_needs(exported: Path) -> None:
    about = json.loads((exported / "keypoint_rcnn.json").read_text())
    assert about["sha256"] == sha256_of(exported / about["file"])
    assert about["resize"] | {"meaning": ""} == {"rule": "standard", "antialias": False, "meaning": ""}
    assert (about["keypoint_offset"], about["suggested_score"], about["score_threshold"]) == (0.0, 0.5, 0.05)
    assert about["suggested_keypoint_score"] == 0.01 and "0.0003" in about["output"]["keypoint_scores"]
    assert (about["height"], about["width"]) == (96, 128) and "top left" in about["letterbox"]


def test_a_file_that_is_not_its_sidecars_is_refused(exported: Path, tmp_path: Path) -> None:
    content = bytearray((exported / "keypoint_rcnn.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.tflite").write_bytes(content)
    (tmp_path / "x.json").write_bytes((exported / "keypoint_rcnn.json").read_bytes())
    with pytest.raises(UserError, match=r"x\.tflite: is not the file that x\.json belongs to \(its SHA-256 is"):
        open_model(tmp_path / "x.tflite")
