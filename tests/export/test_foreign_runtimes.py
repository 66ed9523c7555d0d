"""What other runtimes make of the exports: another TensorFlow, an old TFLite, OpenVINO, TensorRT-RTX, TensorFlow for Java.

Each lies in an environment of its own (see tests/foreign.py); where it is missing, its test is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import onnx_model
from export.tflite import SIGNATURE, convert_parts, convert_sizes, random_images
from export.tflite_quantized import Kind, quantize
from model.inference.serving import ServingModule
from model.model_dir import load_model
from model.network.keypoint_head import decode_fast
from model.network.keypoint_rcnn import KeypointRCNN
from model.network.rpn import rpn_outputs
from tests import foreign


# Asked for first, so that nothing is exported for a test that is skipped.
@pytest.fixture(scope="session")
def tensorflow_2_17() -> Path:
    return foreign.interpreter("tensorflow_2_17")


@pytest.fixture(scope="session")
def tflite_runtime() -> Path:
    return foreign.interpreter("tflite_runtime")


@pytest.fixture(scope="session")
def openvino() -> Path:
    return foreign.interpreter("openvino")


@pytest.fixture(scope="session")
def tensorrt_rtx() -> Path:
    return foreign.interpreter("tensorrt_rtx")


@pytest.fixture(scope="session")
def java_libraries() -> Path:
    return foreign.folder("java")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two JPEG files of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    for seed, size in enumerate([(128, 96), (90, 150)]):
        rough = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8))
        rough.resize(size, Image.Resampling.BILINEAR).save(folder / f"{seed}.jpg", quality=95)
    return sorted(folder.iterdir())


def test_an_older_tensorflow_gives_the_same_answers(
    tensorflow_2_17: Path, exported: Path, images: list[Path], tmp_path: Path
) -> None:
    folder = exported / "keypoint_rcnn" / "1"
    version = foreign.run(tensorflow_2_17, "ask_saved_model.py", folder, tmp_path / "old.npz", *images)
    assert version.strip() == "2.17.1"
    foreign.run(Path(sys.executable), "ask_saved_model.py", folder, tmp_path / "new.npz", *images)
    with np.load(tmp_path / "old.npz") as old, np.load(tmp_path / "new.npz") as new:
        assert set(old) == set(new) and new["default/num_detections"].min() > 0
        for key in new:
            np.testing.assert_allclose(old[key], new[key], rtol=1e-5, atol=1e-4, err_msg=key)


def test_a_tflite_interpreter_of_2023_gives_the_same_answers(
    tflite_runtime: Path, exported: Path, model: KeypointRCNN, tmp_path: Path
) -> None:
    """To the float files, of one signature, of two and of three sizes, and to float16; those in int8 find the same people."""
    pixels = list(random_images(96, 128, 3))
    named: dict[str, Any] = {str(number): image[None] for number, image in enumerate(pixels)}
    np.savez(tmp_path / "images.npz", **named)
    content = (exported / "keypoint_rcnn.tflite").read_bytes()
    (tmp_path / "float.tflite").write_bytes(content)
    (tmp_path / "float_parts.tflite").write_bytes(convert_parts(model, 96, 128, tmp_path))
    (tmp_path / "float_sizes.tflite").write_bytes(convert_sizes(model, 96, 128, tmp_path))
    kinds: tuple[Kind, ...] = ("float16", "dynamic", "int8", "int8_all")
    for kind in kinds:
        (tmp_path / f"{kind}.tflite").write_bytes(quantize(content, kind, pixels, SIGNATURE))
    files = sorted(tmp_path.glob("*.tflite"))
    arguments = (tmp_path / "images.npz", tmp_path / "old.npz", *files)
    assert foreign.run(tflite_runtime, "ask_tflite.py", "tflite_runtime", *arguments).strip() == "2.14.0"
    arguments = (tmp_path / "images.npz", tmp_path / "new.npz", *files)
    foreign.run(Path(sys.executable), "ask_tflite.py", "ai_edge_litert", *arguments)
    with np.load(tmp_path / "old.npz") as old, np.load(tmp_path / "new.npz") as new:
        assert set(old) == set(new)
        assert all(new[f"{name}.tflite/0/num_detections"].min() > 0 for name in ("float", "float_parts", "float_sizes"))
        for key in new:
            assert old[key].shape == new[key].shape and np.isfinite(old[key]).all(), key
            # Two of those in int8 find people with floats; rounding decides where the keypoints of random weights lie.
            finds_people = key.startswith(("dynamic.", "int8.")) and key.endswith(("/scores", "/boxes"))
            if key.startswith("float") or finds_people:
                np.testing.assert_allclose(old[key], new[key], rtol=1e-4, atol=1e-3, err_msg=key)


@pytest.fixture(scope="module")
def model(model_dir: Path) -> KeypointRCNN:
    loaded = load_model(model_dir)
    assert isinstance(loaded, KeypointRCNN)
    return loaded


@pytest.fixture(scope="module")
def onnx(model: KeypointRCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "keypoint_rcnn.onnx"
    path.write_bytes(onnx_model.convert(ServingModule(model), {}))
    return path


def test_openvino_reads_the_onnx_file_and_not_the_saved_model(
    openvino: Path, onnx: Path, exported: Path, model: KeypointRCNN, tmp_path: Path
) -> None:
    """Its frontend has no rule for what decodes images."""
    random = np.random.default_rng(0)
    pixels: dict[str, Any] = {}
    for name, size in {"multiple": (96, 128), "other": (70, 90)}.items():
        rough = Image.fromarray(random.integers(0, 255, (6, 8, 3)).astype(np.uint8))
        pixels[name] = np.asarray(rough.resize(size[::-1], Image.Resampling.BILINEAR))[None]
    np.savez(tmp_path / "images.npz", **pixels)
    saved_model = exported / "keypoint_rcnn" / "1"
    said = foreign.run(
        openvino, "ask_onnx_with_openvino.py", onnx, saved_model, tmp_path / "images.npz", tmp_path / "answers.npz"
    )
    assert said.startswith("refused:") and "Decode" in said
    module = ServingModule(model)
    with np.load(tmp_path / "answers.npz") as answers:
        for name, image in pixels.items():
            wanted = module.serve_one_image(image)
            assert int(wanted["num_detections"][0]) > 0
            for key, value in wanted.items():
                off = np.abs(answers[f"{name}/{key}"] - value)
                # Heatmaps of random weights are flat: rounding decides which of two neighbouring pixels is the best.
                assert np.mean(off < 0.02) >= (0.9 if key == "keypoints" else 1.0), (name, key, off.max())
                assert off.max() < 2.0, (name, key, off.max())


def write_onnx(function: Callable[..., Any], shapes: Sequence[Sequence[int]], path: Path) -> Path:
    import tf2onnx

    spec = [tf.TensorSpec(shape, tf.float32, name=f"input_{i}") for i, shape in enumerate(shapes)]
    traced = tf.function(function, input_signature=spec, autograph=False)
    converted, _ = tf2onnx.convert.from_function(traced, input_signature=spec, opset=onnx_model.OPSET)
    path.write_bytes(converted.SerializeToString())
    return path


def test_tensorrt_rtx_parses_the_file_and_builds_the_parts_around_nms(
    tensorrt_rtx: Path, onnx: Path, model: KeypointRCNN, tmp_path: Path
) -> None:
    """Ahead of time, without a GPU: images → P2…P6, logits, deltas; the box head of 100 boxes; keypoints of 8 boxes."""
    height, width = 96, 128
    size = tf.constant([[height, width]])

    def first_stage(images: tf.Tensor) -> dict[str, tf.Tensor]:
        pyramid = model.pyramid(images, size)
        logits, deltas = rpn_outputs(model.rpn_head, pyramid)
        named = {"pyramid": pyramid, "logits": logits, "deltas": deltas}
        return {f"{name}_{i}": level for name, levels in named.items() for i, level in enumerate(levels)}

    def boxes_of(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        logits, deltas = model.classify(inputs[:-1], inputs[-1])
        return {"logits": logits, "deltas": deltas}

    def keypoints_of(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        keypoints, scores = decode_fast(model.heatmaps(inputs[:-1], inputs[-1], tf.zeros([8], tf.int32)), inputs[-1])
        return {"keypoints": keypoints, "keypoint_scores": scores}

    channels = model.config.backbone.fpn_channels
    pyramid = [[1, -(-height // stride), -(-width // stride), channels] for stride in model.config.anchors.strides]
    parts = [
        write_onnx(first_stage, [[1, height, width, 3]], tmp_path / "first_stage.onnx"),
        write_onnx(boxes_of, [*pyramid, [1, 100, 4]], tmp_path / "boxes.onnx"),
        write_onnx(keypoints_of, [*pyramid, [8, 4]], tmp_path / "keypoints.onnx"),
    ]
    said = foreign.run(tensorrt_rtx, "build_with_tensorrt_rtx.py", "parse", onnx, "build", *parts)
    engines = dict(line.rsplit(" ", 1) for line in said.splitlines())
    assert list(engines) == ["keypoint_rcnn.onnx", "first_stage.onnx", "boxes.onnx", "keypoints.onnx"]
    assert all(int(engines[part.name]) > 10_000 for part in parts)


def test_tensorflow_for_java(java_libraries: Path, exported: Path, images: list[Path]) -> None:
    """examples/serving/java gives the digits of Python."""
    program = foreign.ROOT / "examples" / "serving" / "java" / "DetectPeople.java"
    saved_model = exported / "keypoint_rcnn" / "1"
    command = ["java", "-cp", f"{java_libraries}/*", str(program), str(saved_model), *map(str, images)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ | {"SCORE": "0"})
    assert said.returncode == 0, said.stderr[-3000:]
    found = tf.saved_model.load(str(saved_model)).signatures["serving_default"](
        image_bytes=tf.constant([image.read_bytes() for image in images])
    )
    wanted = [(i, d) for i in range(len(images)) for d in range(int(found["num_detections"][i]))]
    lines = [line.split("\t") for line in said.stdout.splitlines()]
    assert wanted and [line[0] for line in lines] == [str(images[i]) for i, _ in wanted]
    for line, (i, d) in zip(lines, wanted, strict=True):
        points = np.concatenate([found["keypoints"][i, d], found["keypoint_scores"][i, d, :, None]], axis=1)
        numbers = [float(found["scores"][i, d]), *found["boxes"][i, d].numpy(), *points.reshape(-1)]
        np.testing.assert_allclose(np.array(line[1:], np.float64), numbers, rtol=1e-4, atol=1e-3)
