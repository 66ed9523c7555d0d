"""How TF-TRT divides the graph into engines, where TensorFlow 2.17 is; TensorRT itself and the GPU are stood in for.

No engine is built or run: that needs a GPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from model import config as config_lib
from model.inference.serving import ServingModule
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline.skeleton import COCO_SIGMAS, Skeleton
from tests import foreign


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library that stands for TensorRT 8.6.1."""
    foreign.interpreter("tensorflow_2_17")
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing, which compiles the stand-in for TensorRT")
    folder = tmp_path_factory.mktemp("tensorrt")
    library = folder / "libnvinfer.so.8.6.1"
    source = Path(__file__).with_name("tensorrt_stand_in.cpp")
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    for name in ("libnvinfer.so.8", "libnvinfer_plugin.so.8.6.1", "libnvinfer_plugin.so.8"):
        (folder / name).symlink_to(library)
    return folder


def engines(config: config_lib.Config, signatures: Sequence[str], tensorrt: Path, folder: Path) -> list[dict[str, Any]]:
    """Of each signature of a model with random weights, the convolutions of each engine and those left in TensorFlow."""
    skeleton = Skeleton.from_category({"name": "person", "keypoints": list(COCO_SIGMAS), "skeleton": []})
    module = ServingModule(KeypointRCNN(config, skeleton))
    tf.saved_model.save(module, str(folder), signatures={name: getattr(module, name) for name in signatures})
    python = foreign.interpreter("tensorflow_2_17")
    said = foreign.run(python, "segment_with_tf_trt.py", folder, 20, *signatures, LD_LIBRARY_PATH=str(tensorrt))
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def test_one_engine_holds_nine_tenths_of_the_convolutions(tensorrt: Path, tmp_path: Path) -> None:
    """Of the demo's model, which has group norm; around `serving_default`, which decodes a batch of files, three hold them."""
    one_image, files = engines(config_lib.TINY, ["serve_one_image", "serving_default"], tensorrt, tmp_path)
    for found in (one_image, files):
        assert found["left"] == 1, found  # the transposed convolution of the keypoint head
        assert sum(found["engines"]) == 51 and sum(found["engines"][:3]) >= 46, found
    assert one_image["engines"][0] >= 0.9 * 51, one_image


@pytest.mark.slow
def test_one_engine_holds_nine_tenths_of_the_convolutions_of_r50_fpn(tensorrt: Path, tmp_path: Path) -> None:
    """No weights are asked: the division is the graph's."""
    (found,) = engines(config_lib.R50_FPN, ["serve_one_image"], tensorrt, tmp_path)
    assert found["left"] == 1, found  # the transposed convolution of the keypoint head
    assert sum(found["engines"]) == 84 and found["engines"][0] >= 0.9 * 84, found
    assert len(found["engines"]) <= 13, found
