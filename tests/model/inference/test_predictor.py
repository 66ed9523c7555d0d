"""Batching, thresholds, letterboxing and messages; the three kinds of models are in tests/export."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model import config
from model.inference.image_input import image_size, letterbox
from model.inference.people import Keypoint
from model.inference.predictor import Answer, Predictor, model_predictor, open_model
from model.model_dir import checkpoint_of, prepare_model_dir
from model.network.keypoint_rcnn import KeypointRCNN
from model.weights import families
from pipeline.command import UserError
from pipeline.skeleton import COCO_PERSON
from scripts import api_page


def png(height: int, width: int, value: int = 100) -> bytes:
    return tf.io.encode_png(tf.fill([height, width, 3], tf.cast(value, tf.uint8))).numpy()  # type: ignore[no-any-return]


def fake_answer(images: Sequence[bytes]) -> Answer:
    """Finds in each image two persons: one as wide as the image, with score 0.9, and one with score 0.3."""
    sizes = np.array([image_size(p, "") for p in images], np.float32)
    boxes = np.zeros((len(images), 4, 4), np.float32)
    boxes[:, 0, 2:] = sizes[:, ::-1]
    return {
        "num_detections": np.full(len(images), 2, np.int32),
        "boxes": boxes,
        "scores": np.tile(np.array([0.9, 0.3, 0, 0], np.float32), (len(images), 1)),
        "keypoints": np.zeros((len(images), 4, 17, 2), np.float32),
        "keypoint_scores": np.zeros((len(images), 4, 17), np.float32),
    }


def test_images_are_batched_by_canvas_and_answered_in_order(small_model: KeypointRCNN) -> None:
    batches: list[int] = []

    def answer(images: Sequence[bytes]) -> Answer:
        batches.append(len(images))
        return fake_answer(images)

    def canvas(height: int, width: int) -> tuple[int, int]:
        return (32, 64) if width > height else (64, 32)

    predictor = Predictor(small_model.config, small_model.skeleton, answer, canvas, max_batch=2, score_threshold=0.5)
    sizes = [(20, 40), (40, 20), (21, 41), (22, 42), (41, 21)]
    found = predictor.predict([png(*size) for size in sizes])
    assert batches == [2, 1, 2]
    assert [people.boxes[0, 2:].tolist() for people in found] == [[w, h] for h, w in sizes]
    assert [len(people) for people in found] == [1] * 5  # the other one is below the threshold
    assert found[0].keypoints.shape == (1, 17, 2)
    assert predictor.predict([]) == []


def test_letterbox_fills_one_side_and_keeps_the_rest_black() -> None:
    pixels, inside, own = letterbox(png(50, 200), 96, 128)
    assert (pixels.shape, inside, own) == ((96, 128, 3), (32, 128), (50, 200))
    assert (pixels[:32] == 100).all() and not pixels[32:].any()
    assert letterbox(png(1, 5000), 96, 128)[1] == (1, 128)


def test_letterbox_resizes_as_the_models_family() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (192, 256, 3)).astype(np.uint8)
    encoded = tf.io.encode_png(pixels).numpy()
    pillow = np.asarray(Image.fromarray(pixels).resize((128, 96), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(letterbox(encoded, 96, 128, "detectron2")[0], pillow)
    floats = tf.image.resize(tf.cast(pixels, tf.float32), (96, 128)).numpy()
    for rule in ("torchvision", "standard"):
        assert np.abs(letterbox(encoded, 96, 128, rule)[0] - floats).max() <= 0.5


def test_a_tflite_file_of_detectron2s_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point of the letterbox, taken off half a pixel already, in an image twice as large: only half a pixel is off there."""
    family = families.detectron2()
    sidecar = {"config": config.to_json(family), "skeleton": COCO_PERSON.to_json()}
    (tmp_path / "x.json").write_text(json.dumps(sidecar))
    (tmp_path / "x.tflite").write_bytes(b"")

    class Runner:
        def get_input_details(self) -> dict[str, dict[str, tuple[int, ...]]]:
            return {"images": {"shape": (1, 32, 64, 3)}}

        def __call__(self, images: np.ndarray) -> Answer:
            return {**fake_answer([png(32, 64)]), "keypoints": np.full((1, 4, 17, 2), 10 - 0.5, np.float32)}

    monkeypatch.setattr("model.inference.tflite_file._runner", lambda _: Runner())
    (people,) = open_model(tmp_path / "x.tflite").predict([png(64, 128)])
    assert people.boxes[0].tolist() == [0, 0, 128, 64] and (people.keypoints == 20 - 0.5).all()


def test_what_cannot_be_read_is_named(small_model: KeypointRCNN) -> None:
    predictor = model_predictor(small_model)
    broken = png(64, 64)[:-30]
    with pytest.raises(UserError, match=r"b\.png: cannot be decoded"):
        predictor.predict([png(64, 64), broken], ["a.png", "b.png"])
    with pytest.raises(UserError, match=r"image 1 of 1: not a JPEG or PNG"):
        predictor.predict([b"text"])


@pytest.mark.parametrize("side", [2**13 + 1, 2**15])
def test_a_image_too_large_is_told_by_its_header(side: int) -> None:
    small = png(8, 8)
    header = small[12:16] + side.to_bytes(4, "big") * 2 + small[24:29]
    with pytest.raises(UserError, match="more than 67108864 pixels"):
        image_size(small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:], "x")


@pytest.fixture(scope="module")
def model_dir(small_model: KeypointRCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    prepare_model_dir(path, small_model.config, small_model.skeleton)
    manager = tf.train.CheckpointManager(checkpoint_of(small_model), str(path / "checkpoints"), 1)
    manager.save()
    return path


def test_model_directory_with_sizes_and_threshold_of_ones_own(model_dir: Path, small_model: KeypointRCNN) -> None:
    predictor = open_model(model_dir, score_threshold=0.01, short_edge=64, max_edge=100)
    assert (predictor.config.inference.short_edge, predictor.config.inference.max_edge) == (64, 100)
    assert predictor.config.inference.score_threshold == predictor.score_threshold == 0.01
    assert predictor.canvas(40, 60) == (64, 96)
    assert predictor.canvas(40, 120) == (64, 128)  # the longest edge wins: 33 × 100
    assert open_model(model_dir).score_threshold == small_model.config.inference.score_threshold


def test_a_model_is_called_with_paths_bytes_or_pixels(model_dir: Path, tmp_path: Path) -> None:
    """All say the same; one image gives people, several a list."""
    model = open_model(model_dir, score_threshold=0.0)
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    alone = model(path)
    assert len(alone) > 0
    for people in (
        *model([str(path), path.read_bytes(), pixels]),
        *model(np.stack([pixels, pixels])),
        model(np.dstack([pixels, pixels[..., :1]])),  # with an alpha channel
    ):
        np.testing.assert_allclose(people.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(people.keypoints, alone.keypoints, atol=1e-3)
    grey = pixels[..., :1]
    np.testing.assert_allclose(model(grey[..., 0]).scores, model(np.repeat(grey, 3, axis=-1)).scores, atol=1e-5)
    assert model([]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"image 1 of 1: an array float32 \[4, 4, 3\]; pixels must be uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"an array uint8 \[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), r"an array uint8 \[0, 4, 3\]"),
        ("nowhere.jpg", r"nowhere.jpg: cannot be read \(No such file"),
        ("/dev/null", "/dev/null: cannot be read .*a device"),
        (b"text", "image 1 of 1: not a JPEG or PNG image"),
    ],
)
def test_what_is_no_image_is_refused(small_model: KeypointRCNN, given: Any, message: str) -> None:
    predictor = Predictor(small_model.config, small_model.skeleton, fake_answer, lambda height, width: (64, 64))
    with pytest.raises(UserError, match=message):
        predictor(given)


def test_people_are_objects(small_model: KeypointRCNN) -> None:
    predictor = Predictor(small_model.config, small_model.skeleton, fake_answer, lambda height, width: (64, 64))
    people = predictor(png(20, 40))
    first, second = people
    assert (len(people), first, people[1]) == (2, people[0], second)
    assert first.box == (0, 0, 40, 20) and first.score == pytest.approx(0.9)
    assert tuple(first.keypoints) == small_model.skeleton.keypoints
    assert first.keypoints["nose"] == Keypoint(0, 0, 0)
    (entry, _) = people.to_coco(7, file_name="x.png")
    assert (entry["image_id"], entry["file_name"], entry["category_id"]) == (7, "x.png", 1)
    pixels = np.full((20, 40, 3), 90, np.uint8)
    assert people.draw(pixels).shape == pixels.shape and (pixels == 90).all()
    assert people.at_least(0.5).draw(pixels).shape == pixels.shape
    enlarged = people.scaled(2, 3)
    assert enlarged.boxes[0].tolist() == [0, 0, 80, 60] and enlarged.skeleton is people.skeleton


def test_the_example_of_the_page_for_programs(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(import numpy.*?)```", api_page.PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(model_dir)
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("photograph.jpg")
    found: dict[str, Any] = {}
    exec(block.replace("score_threshold=0.5", "score_threshold=0.0"), found)
    assert len(found["entries"]) == len(found["people"]) > 0
    assert Image.open("drawn.png").size == (128, 96)


def test_the_decoders_of_a_model_directory_agree(model_dir: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)  # not resized: answers in canvas pixels
    image = tf.io.encode_png(pixels).numpy()
    (fast,), (reference,) = (open_model(model_dir, decoder=name).predict([image]) for name in ("fast", "reference"))
    assert len(fast) > 0
    np.testing.assert_array_equal(fast.boxes, reference.boxes)
    difference = np.abs(fast.keypoints - reference.keypoints).max(-1)
    assert np.mean(difference <= 0.501) > 0.95 and difference.max() > 0


def test_paths_that_are_no_model(tmp_path: Path, small_model: KeypointRCNN) -> None:
    with pytest.raises(UserError, match="nothing: does not exist"):
        open_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no config\.json .* no saved_model\.pb .* no \.tflite"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json(small_model.config)))
    (tmp_path / "skeleton.json").write_text(json.dumps(small_model.skeleton.to_json()))
    with pytest.raises(UserError, match="no checkpoint"):
        open_model(tmp_path)
    (tmp_path / "x.tflite").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"x\.json is not beside it"):
        open_model(tmp_path / "x.tflite")
    settings = config.to_json(small_model.config)
    for about, reason in (
        ({}, r"KeyError\('config'\)"),
        ({"config": {"train": 3}}, "config.train: 3 is no JSON object with fields of TrainConfig"),
        ({"config": settings, "skeleton": COCO_PERSON.to_json() | {"sigmas": []}}, "17 keypoints need 17 numbers"),
    ):
        (tmp_path / "x.json").write_text(json.dumps(about))
        with pytest.raises(UserError, match=rf"x\.json: not what export\.export_model writes \(.*{reason}.*\); export"):
            open_model(tmp_path / "x.tflite")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "saved_model.pb").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"2: a SavedModel without assets"):
        open_model(tmp_path)


def test_a_checkpoint_that_is_damaged(model_dir: Path, tmp_path: Path) -> None:
    def damaged(name: str, content: bytes) -> Path:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(model_dir, tmp_path / "model")
        (path,) = (tmp_path / "model").glob(name)
        path.write_bytes(content)
        return tmp_path / "model"

    (weights,) = model_dir.glob("checkpoints/*data*")
    for name, content, message in (
        ("checkpoints/*data*", weights.read_bytes()[:1000], "another model, or damaged"),  # copied in part
        ("checkpoints/*data*", b"", "another model, or damaged"),
        ("checkpoints/*data*", bytes(len(weights.read_bytes())), r"damaged \([^{]*checksum does not match: [^{]*\)"),
        ("checkpoints/*.index", b"x" * 100, r"a damaged checkpoint \(not an sstable"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_model(damaged(name, content))
        assert "\n" not in str(caught.value)


def test_a_short_edge_above_the_max_edge_is_refused(model_dir: Path) -> None:
    with pytest.raises(UserError, match=r"--short_edge=200: is above --max_edge=100, which would decide alone; lower it"):
        open_model(model_dir, short_edge=200, max_edge=100)
    limit = open_model(model_dir).config.inference.max_edge
    with pytest.raises(UserError, match=rf"is above the model's max edge, {limit}, .* or give a larger --max_edge"):
        open_model(model_dir, short_edge=limit + 1)
    smaller = open_model(model_dir, max_edge=32).config.inference  # below the model's short edge: all images become smaller
    assert (smaller.short_edge, smaller.max_edge) == (32, 32)


def test_thresholds_that_cannot_be(model_dir: Path) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        open_model(model_dir, score_threshold=1.5)
