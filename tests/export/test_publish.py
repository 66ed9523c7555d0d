"""What an export consists of, that it says what the model says, and that nothing half-written or overwritten is left."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export.compare import Agreement, ConversionError
from export.examination import Bars, examine, questions
from export.formats import Artifact
from export.making import Making, open_source
from export.publish import export_model
from export.sample_images import Fit, Sample
from export.saved_model import choose_version, temporary_folder
from export.tflite import check_file, check_size, default_size, random_images
from model import config
from model.config import PRESETS, TINY
from model.inference.people import People
from model.inference.predictor import open_model
from model.inference.serving import ServingModule
from model.model_dir import load_model
from pipeline.command import UserError
from pipeline.skeleton import Skeleton

ROOT = Path(__file__).parents[2]


def images() -> list[bytes]:
    return [tf.io.encode_png(pixels).numpy() for pixels in random_images(96, 128, 2)]


def assert_same_people(one: People, other: People) -> None:
    assert len(one) == len(other) > 0
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)
    np.testing.assert_allclose(one.keypoint_scores, other.keypoint_scores, atol=1e-3)
    close = np.abs(one.keypoints - other.keypoints).max(axis=-1) < 0.1
    assert close.mean() > 0.97  # random weights: now and then two places are equally good


def test_layout(exported: Path, model_dir: Path) -> None:
    reports = ["export-report.html", "export-report.json"]
    artifacts = ["keypoint_rcnn", "keypoint_rcnn.json", "keypoint_rcnn.tflite", "model-card.md"]
    assert sorted(p.name for p in exported.iterdir()) == reports + artifacts
    version = exported / "keypoint_rcnn" / "1"
    assert (version / "saved_model.pb").is_file()
    model = load_model(model_dir)
    assert config.load(version / "assets" / "config.json") == model.config
    assert Skeleton.from_json(json.loads((version / "assets" / "skeleton.json").read_text())) == model.skeleton
    made_by = json.loads((version / "assets" / "versions.json").read_text())
    assert made_by["packages"]["tensorflow"] == tf.__version__
    begun = {"source": "torchvision", "licence": None}
    assert made_by["weights"] == {"model_dir": model_dir.name, "checkpoint": "step-7", "started_from": begun}
    beside = json.loads((exported / "keypoint_rcnn.json").read_text())
    assert (beside["height"], beside["width"]) == (96, 128)
    assert str(model_dir) not in json.dumps([made_by, beside])


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> list[People]:
    return open_model(model_dir).predict(images())


@pytest.mark.parametrize("path", ["keypoint_rcnn", "keypoint_rcnn.tflite"])
def test_an_export_finds_whom_the_model_finds(exported: Path, expected: list[People], path: str) -> None:
    found = open_model(exported / path).predict(images())
    for one, other in zip(expected, found, strict=True):
        assert_same_people(one, other)


def test_tflite_answers_in_the_images_own_pixels(exported: Path) -> None:
    (small,) = random_images(96, 128, 1)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    predictor = open_model(exported / "keypoint_rcnn.tflite")
    found = predictor.predict([tf.io.encode_png(large).numpy(), tf.io.encode_png(small[:60, :128]).numpy()])
    assert len(found[0]) and found[0].boxes[:, 2].max() > 128
    assert len(found[1]) and found[1].boxes[:, 3].max() <= 60


def test_options_that_an_export_cannot_follow(exported: Path) -> None:
    for path in ("keypoint_rcnn", "keypoint_rcnn.tflite"):
        with pytest.raises(UserError, match="size is fixed"):
            open_model(exported / path, short_edge=64)
        with pytest.raises(UserError, match=r"keeps nobody below 0\.05"):
            open_model(exported / path, score_threshold=0.01)
        with pytest.raises(UserError, match=r"--decoder=reference: .* is an export, which decodes as --decoder=fast"):
            open_model(exported / path, decoder="reference")
        assert open_model(exported / path, score_threshold=0.6).score_threshold == 0.6


@pytest.mark.parametrize("part", ["saved_model.pb", "variables/variables.data-00000-of-00001", "assets/config.json"])
def test_a_saved_model_that_was_copied_in_part_is_told(exported: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(exported / "keypoint_rcnn" / "1", tmp_path / "1")
    file = tmp_path / "1" / part
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be loaded as a SavedModel|not a configuration") as caught:
        open_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_version_is_never_overwritten(exported: Path, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--version=1: .* is there already; .* version 2"):
        export_model(model_dir, exported, version=1)
    assert choose_version(exported / "keypoint_rcnn", None) == 2
    assert choose_version(tmp_path / "nothing", None) == 1
    assert choose_version(exported / "keypoint_rcnn", 20) == 20
    with pytest.raises(UserError, match="must be from 1 to"):
        choose_version(exported / "keypoint_rcnn", 0)


def test_wrong_arguments(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "cut.png").write_bytes(images()[0][:500])
    for arguments, message in (
        ({"formats": ["coreml"]}, "--formats=coreml: must be one or more of saved_model,tflite,.*,onnx,tf_trt,all"),
        ({"formats": []}, "--formats="),
        ({"name": "../x"}, "--name"),
        ({"tflite_height": 100}, "--tflite_height=100: must be a multiple of 32; the next is 128"),
        ({"tflite_height": 0}, "--tflite_height=0: must be a multiple of 32; the next is 32"),
        ({"tflite_width": -32}, "--tflite_width=-32: must be a multiple of 32"),
        ({"tflite_width": 32 * 10**7}, "--tflite_width=320000000: must be at most 8192 pixels"),
        ({"name": "export-report"}, "--name=export-report: is the name of the report"),
        ({"eval_split": "val"}, "--eval_split=val: is a split of --eval_data_dir, which is not given"),
        ({"version": 2**63}, "--version=9223372036854775808: must be from 1 to"),
        ({"check_images": tmp_path / "in"}, "--check_images=.*: no images in it"),
        ({"check_images": tmp_path / "text.jpg"}, r"text\.jpg: not a JPEG or PNG image \(4 bytes\); replace or remove it"),
        ({"check_images": tmp_path / "cut.png"}, r"cut\.png: cannot be decoded \(.+\); replace or remove it"),
    ):
        with pytest.raises(UserError, match=message):
            export_model(model_dir, tmp_path / "out", **arguments)
    with pytest.raises(UserError, match="no config"):
        export_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_stopped_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path, "x") as folder:
        (folder / "half").write_text("")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_the_model_are_refused(exported: Path, model_dir: Path, tmp_path: Path) -> None:
    model, content = load_model(model_dir), (exported / "keypoint_rcnn.tflite").read_bytes()
    with pytest.raises(ConversionError, match="bytes of weights"):
        check_file(content[:5000], model)  # what a converter writes that has lost the variables
    asked = questions(ServingModule(model), list(random_images(96, 128, 2)))
    artifact = Artifact("tflite", exported / "keypoint_rcnn.tflite", exported / "keypoint_rcnn.tflite")
    assert examine(artifact, asked, Bars(), model.skeleton, tmp_path).comparison.equal == Agreement(10, 10)
    elsewhere = [{**answer, "boxes": answer["boxes"] - 50} for answer in asked.expected]
    with pytest.raises(ConversionError, match="gives 0 of the model's 10 detections"):
        examine(artifact, dataclasses.replace(asked, expected=elsewhere), Bars(), model.skeleton, tmp_path)


def test_an_artifact_below_its_bar_fails_the_export_and_the_others_are_written(
    exported: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (exported / "keypoint_rcnn.tflite").read_bytes()
    monkeypatch.setattr("export.making.tflite.convert", lambda *_, **__: content)  # (it takes seconds)
    lines: list[str] = []
    formats, number = (
        ["tflite", "tflite_dynamic"],
        r"TFLite dynamic int8: gives \d+ of the model's \d+ detections with IoU and OKS",
    )
    with pytest.raises(
        ConversionError, match=rf"^--formats=tflite,tflite_dynamic: {number} .*; the others are written$"
    ) as told:
        export_model(model_dir, tmp_path / "out", formats=formats, bars=Bars(alike=1.01), report=lines.append)
    assert "\n" not in str(told.value) and any(line.startswith("refused: TFLite dynamic int8") for line in lines)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "keypoint_rcnn.tflite", "keypoint_rcnn.json", "export-report.html", "export-report.json", "model-card.md"
    }  # fmt: skip
    report = json.loads((tmp_path / "out" / "export-report.json").read_text())
    assert [one["format"] for one in report["artifacts"]] == ["tflite"] and report["not_made"] == []
    (refused,) = report["refused"]
    assert refused["format"] == "tflite_dynamic" and refused["reason"] in str(told.value)
    assert "Refused: made, and below its bar" in (tmp_path / "out" / "export-report.html").read_text()
    with pytest.raises(ConversionError, match=r"must be 1\.01 or more \(--min_equal\); nothing is written$"):
        export_model(model_dir, tmp_path / "none", formats=["tflite"], bars=Bars(equal=1.01), report=lines.append)
    assert not (tmp_path / "none").exists()


def test_default_sizes_suit_four_by_three() -> None:
    assert default_size(TINY) == (192, 256)  # 192 × 256
    assert default_size(PRESETS["r50_fpn"]) == (800, 1088)  # 800 × 1067
    check_size(256, 320)


def test_examples_need_nothing_of_this_project(exported: Path, expected: list[People], tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    image.write_bytes(images()[0])
    for script, model in (
        ("detect_with_saved_model.py", exported / "keypoint_rcnn" / "1"),
        ("detect_with_tflite.py", exported / "keypoint_rcnn.tflite"),
    ):
        command = [sys.executable, "-I", str(ROOT / "examples" / script), f"--model={model}", "--min_score=0.05", str(image)]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        people = json.loads(ended.stdout)["people"]
        np.testing.assert_allclose([person["box"] for person in people], expected[0].boxes, atol=0.05)
        np.testing.assert_allclose([person["score"] for person in people], expected[0].scores, atol=1e-4)


def hard_images(folder: Path) -> list[Path]:
    """What clients get wrong: a turned photograph, 16-bit greys, an image that must be made smaller."""
    random = np.random.default_rng(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = np.kron(random.integers(0, 255, (12, 16, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    Image.fromarray(smooth).save(folder / "turned.png", exif=exif)
    Image.fromarray(np.kron(random.integers(0, 2**16, (12, 16)), np.ones((8, 8))).astype(np.uint16)).save(folder / "grey16.png")
    Image.fromarray(smooth).resize((460, 300)).save(folder / "large.jpg", quality=95)
    return sorted(folder.glob("*.*"))


def made_of(model_dir: Path, folder: Path, fit: Fit) -> Iterator[Path]:
    """A SavedModel and a TFLite file as an export makes them, before it examines them."""
    source = open_source(model_dir, None)
    making = Making(source, folder, "keypoint_rcnn", 1, fit, False, Sample([], ""), folder, lambda _: None)
    for artifact in making.artifacts(["saved_model", "tflite"]):
        yield artifact.path


@pytest.mark.parametrize("family", ["standard", "detectron2"])
def test_examples_answer_as_the_model_does(
    family: str, model_dir: Path, exported: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On images that clients get wrong, for both resize rules and with Detectron2's half pixel."""
    if family == "detectron2":
        other = tmp_path_factory.mktemp("detectron2")
        shutil.copytree(model_dir, other / "model")
        settings = json.loads((other / "model" / "config.json").read_text())
        settings["data"] |= {"resize": "detectron2", "keypoint_offset": 0.5}
        (other / "model" / "config.json").write_text(json.dumps(settings))
        artifacts = list(made_of(other / "model", other, Fit(96, 128, "detectron2")))
    else:
        artifacts = [exported / "keypoint_rcnn" / "1", exported / "keypoint_rcnn.tflite"]
    paths = hard_images(tmp_path)
    scripts = ("detect_with_saved_model.py", "detect_with_tflite.py")
    for script, model in zip(scripts, artifacts, strict=True):
        command = [sys.executable, "-I", str(ROOT / "examples" / script), f"--model={model}", "--min_score=0.05"]
        ended = subprocess.run([*command, *map(str, paths)], cwd=tmp_path, capture_output=True, text=True, check=True)
        for line, people in zip(ended.stdout.splitlines(), open_model(model)(paths), strict=True):
            theirs = json.loads(line)["people"]
            assert len(theirs) == len(people) > 0
            np.testing.assert_allclose([person["box"] for person in theirs], people.boxes, atol=0.5)
            points = np.array([[point[:2] for point in person["keypoints"].values()] for person in theirs])
            assert np.median(np.abs(points - people.keypoints)) < 0.05  # half a pixel would show; random weights have ties
