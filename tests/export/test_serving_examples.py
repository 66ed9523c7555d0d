"""examples/serving: its clients against stand-ins that speak TensorFlow Serving's protocols, and its configuration."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.foreign import ROOT, interpreter

SERVING = ROOT / "examples" / "serving"


@contextlib.contextmanager
def stand_in(python: Path | str, *arguments: object) -> Iterator[int]:
    """The port that a stand-in listens on, until the end of the block."""
    command = [str(python), str(Path(__file__).with_name("serving_stand_in.py")), *map(str, arguments)]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=quiet) as server:  # type: ignore[call-overload]
        port = server.stdout.readline()
        assert port, server.stderr.read()
        try:
            yield int(port)
        finally:
            server.stdin.close()  # it ends by itself


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A JPEG and a PNG of different sizes, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    files = [folder / "wide.jpg", folder / "high.png"]
    for seed, (file, size) in enumerate(zip(files, [(128, 96), (90, 150)], strict=True)):
        rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(rough).resize(size, Image.Resampling.BILINEAR).save(file)
    (folder / "text.jpg").write_text("not an image")
    return [*files, folder / "text.jpg"]


def client(*arguments: object, python: Path | str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [str(python), str(SERVING / "client.py"), *map(str, arguments)]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=quiet)


def lines_of(ended: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def assert_answered(lines: list[dict[str, Any]], exported: Path, images: list[Path]) -> None:
    """Each line holds the people that the SavedModel finds in its file."""
    loaded = tf.saved_model.load(str(exported / "keypoint_rcnn" / "1"))
    found = loaded.signatures["serving_default"](image_bytes=tf.constant([image.read_bytes() for image in images]))
    assert [line["image"] for line in lines] == [str(image) for image in images]
    for i, line in enumerate(lines):
        count = int(found["num_detections"][i])
        assert count > 0 and len(line["people"]) == count
        for d, person in enumerate(line["people"]):
            points = np.concatenate([found["keypoints"][i, d], found["keypoint_scores"][i, d, :, None]], axis=1)
            np.testing.assert_allclose(person["box"], found["boxes"][i, d], atol=0.01)
            np.testing.assert_allclose(person["keypoints"], points, atol=0.01)
            np.testing.assert_allclose(person["score"], found["scores"][i, d], atol=1e-4)


def test_rest(exported: Path, images: list[Path]) -> None:
    with stand_in(sys.executable, "rest", exported / "keypoint_rcnn" / "1") as port:
        server = f"http://127.0.0.1:{port}"
        assert_answered(lines_of(client(f"--rest={server}", "--min_score=0", *images[:2])), exported, images[:2])
        tolerant = lines_of(client(f"--rest={server}", "--min_score=0", "--signature=serving_tolerant", *images))
        assert [line.get("problem") for line in tolerant] == [None, None, "is neither a JPEG nor a PNG file"]
        assert tolerant[0]["people"] and tolerant[2]["people"] == []

        asked = ["bash", str(SERVING / "ask_with_curl.sh"), server]
        said = subprocess.run([*asked, *map(str, images[:2])], capture_output=True, text=True, check=True)
        answers = json.loads(said.stdout)["predictions"]
        wanted = lines_of(client(f"--rest={server}", "--min_score=0", *images[:2]))
        for answer, line in zip(answers, wanted, strict=True):
            assert answer["boxes"][: answer["num_detections"]] == [person["box"] for person in line["people"]]
        refused = subprocess.run([*asked, str(images[2])], capture_output=True, text=True)
        assert refused.returncode != 0 and "image 1 of 1 is neither a JPEG nor a PNG file" in refused.stdout

        said_of = {
            ("--model=other",): r"\(404\): Servable not found for request: Latest\(other\)",
            (): r"\(400\): .*image 1 of 1 is neither a JPEG nor a PNG file",
        }
        for flags, reason in said_of.items():
            assert_one_line(client(f"--rest={server}", *flags, images[2]), reason)
    assert_one_line(client(f"--rest={server}", images[0]), "does not answer")  # (it has ended)
    assert_one_line(client(f"--rest={server}", "nowhere.jpg"), "nowhere.jpg: No such file")


def assert_one_line(ended: subprocess.CompletedProcess[str], reason: str) -> None:
    assert ended.returncode == 1 and not ended.stdout
    assert re.fullmatch(rf"error: .*{reason}.*\n", ended.stderr), ended.stderr


def test_grpc(exported: Path, images: list[Path], tmp_path: Path) -> None:
    """With the PredictionService of tensorflow-serving-api at both ends."""
    python = interpreter("tensorflow_2_17")
    with stand_in(python, "grpc", exported / "keypoint_rcnn" / "1", 4 * 2**20) as port:
        server = f"--grpc=127.0.0.1:{port}"
        asked = client(server, "--min_score=0", *images[:2], python=python)
        assert_answered(lines_of(asked), exported, images[:2])
        bad = client(server, images[2], python=python)
        assert_one_line(bad, r"INVALID_ARGUMENT \(.*image 1 of 1 is neither a JPEG nor a PNG file")
        large = tmp_path / "large.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (1200, 1300, 3)).astype(np.uint8)).save(large)
        assert large.stat().st_size > 4 * 2**20
        assert_one_line(client(server, large, python=python), "RESOURCE_EXHAUSTED")  # a server of gRPC's own limit


def test_the_warm_up_requests_and_the_configuration_are_tensorflow_servings(exported: Path) -> None:
    """Read with the messages of tensorflow-serving-api."""
    script = """
import sys
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2
config = text_format.Parse(open(sys.argv[1]).read(), model_server_config_pb2.ModelServerConfig())
print(*[(one.name, one.base_path, one.model_platform) for one in config.model_config_list.config])
for record in tf.data.TFRecordDataset(sys.argv[2]):
    request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
    image = request.inputs["image_bytes"].string_val[0]
    print(request.model_spec.name, request.model_spec.signature_name, image.startswith(b"\\xff\\xd8\\xff"))
"""
    python = interpreter("tensorflow_2_17")
    requests = exported / "keypoint_rcnn" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), "-c", script, str(SERVING / "models.config"), str(requests)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=quiet, timeout=200).stdout.splitlines()
    assert said == [
        "('keypoint_rcnn', '/models/keypoint_rcnn', 'tensorflow')",
        "keypoint_rcnn serving_default True",
        "keypoint_rcnn serving_tolerant True",
    ]


def test_compose_mounts_what_is_there() -> None:
    text = (SERVING / "docker-compose.yml").read_text()
    for file, target in re.findall(r"- \./(\S+):(\S+):ro", text):
        assert (SERVING / file).is_file() and f"={target}" in text
    (base,) = re.findall(r'base_path: "(.+)"', (SERVING / "models.config").read_text())
    assert f"/keypoint_rcnn:{base}:ro" in text
    assert '"127.0.0.1:8500:8500"' in text and '"127.0.0.1:8501:8501"' in text  # open to this machine alone
