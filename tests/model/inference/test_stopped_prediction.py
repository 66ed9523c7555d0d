"""Ctrl-C in `model.predict`: one line, status 130, and the same command goes on and ends as if nothing had been."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model.model_dir import checkpoint_of, prepare_model_dir
from model.network.keypoint_rcnn import KeypointRCNN

ROOT = Path(__file__).parents[3]
IMAGES = 400


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_ctrl_c_in_a_prediction_is_one_line_and_the_same_command_goes_on(small_model: KeypointRCNN, tmp_path: Path) -> None:
    model_dir, images, out = tmp_path / "model", tmp_path / "images", tmp_path / "out"
    prepare_model_dir(model_dir, small_model.config, small_model.skeleton)
    tf.train.CheckpointManager(checkpoint_of(small_model), str(model_dir / "checkpoints"), 1).save()
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (8, 10, 3)).astype(np.uint8)
    for number in range(IMAGES):
        if number < 16:
            Image.fromarray(np.roll(pixels, number)).resize((120, 96)).save(images / f"{number}.png")
        else:
            (images / f"{number}.png").symlink_to(f"{number % 16}.png")
    command = [sys.executable, "-m", "model.predict", f"--model={model_dir}", f"--input={images}", "--score_threshold=0"]
    command += [f"--output_dir={out}", "--nodraw"]
    unfinished = out / "predictions.unfinished.jsonl"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        while not unfinished.exists() or unfinished.stat().st_size < 20_000:
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        first.send_signal(signal.SIGINT)
        output, errors = first.communicate(timeout=60)
    assert first.returncode == 130, output + errors
    assert errors == "error: stopped by Ctrl-C; the same command goes on from what is finished\n"
    assert not (out / "predictions.json").exists() and unfinished.exists() and not list(out.glob(".*"))
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "images done by an earlier run" in second.stdout and not unfinished.exists()
    people = json.loads((out / "predictions.json").read_text())
    by_image = [[{**one, "image_id": 0, "file_name": ""} for one in people if one["image_id"] == k] for k in range(IMAGES)]
    assert len(by_image[0]) > 0
    for k in range(IMAGES):  # other batches are rounded otherwise
        assert [one["score"] for one in by_image[k]] == pytest.approx([one["score"] for one in by_image[k % 16]], abs=1e-4)
        for one, other in zip(by_image[k], by_image[k % 16], strict=True):
            assert one["bbox"] == pytest.approx(other["bbox"], abs=0.05)
