"""Both signatures: own pixels, any company, what cannot be read."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from model.config import Norm
from model.inference import predictor as predictor_lib
from model.inference.encoded_images import DAMAGED, NOT_AN_IMAGE, READ, TOO_LARGE, stored_orientation
from model.inference.serving import ServingModule, own_pixels, round_up
from model.network.keypoint_head import Decoder
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline import data_config
from pipeline import image as pipeline_image
from pipeline.data_config import MAX_PIXELS


class FixedAnswer:
    """Stands for a model that sees one person, in the same tenths of every image's canvas content."""

    def __init__(self, model: KeypointRCNN, norm: Norm) -> None:
        backbone = dataclasses.replace(model.config.backbone, norm=norm)
        inference = dataclasses.replace(model.config.inference, max_detections=1)
        self.config = dataclasses.replace(model.config, backbone=backbone, inference=inference)
        self.skeleton = model.skeleton

    def variables_by_path(self) -> dict[str, tf.Variable]:
        return {}

    def detect(
        self, images: tf.Tensor, image_size: tf.Tensor, _decode: Decoder, *, own_canvas: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        tf.debugging.assert_equal(own_canvas, round_up(image_size))
        size = tf.cast(image_size[:, ::-1], tf.float32)  # [B, 2] x, y
        box = tf.concat([size * 0.1, size * 1.5], axis=-1)[:, None]
        keypoints = tf.tile((size * 0.3)[:, None, None], [1, 1, self.skeleton.num_keypoints, 1])
        ones = tf.ones_like(box[..., 0])
        return {
            "num_detections": tf.ones_like(image_size[:, 0]),
            "boxes": box,
            "scores": ones,
            "keypoints": keypoints,
            "keypoint_scores": tf.ones_like(keypoints[..., 0]),
        }


@pytest.fixture(scope="module")
def module(small_model: KeypointRCNN) -> ServingModule:
    return ServingModule(small_model)


def image(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    rough = np.random.default_rng(seed).integers(0, 255, (1, 6, 8, 3))
    return tf.cast(tf.image.resize(rough, (height, width)), tf.uint8)[0].numpy()  # type: ignore[no-any-return]


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    return tf.io.encode_png(pixels).numpy()  # type: ignore[no-any-return]


def jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    return tf.io.encode_jpeg(pixels, quality=95).numpy()  # type: ignore[no-any-return]


def assert_same(one: Mapping[str, Any], other: Mapping[str, Any], row: int = 0, other_row: int = 0) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_allclose(value[row], other[name][other_row], rtol=1e-3, atol=0.02, err_msg=name)


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_a_image_is_answered_in_its_own_pixels(small_model: KeypointRCNN, norm: Norm) -> None:
    module = ServingModule(FixedAnswer(small_model, norm))  # type: ignore[arg-type]
    sizes = [(50, 80), (300, 200), (96, 96)]
    answer = module.serving_default(tf.constant([jpeg(image(*size)) for size in sizes]))
    for row, (height, width) in enumerate(sizes):
        # The box reaches over the right and the lower edge: it ends there.
        np.testing.assert_allclose(answer["boxes"][row, 0], [0.1 * width, 0.1 * height, width, height], rtol=1e-5)
        np.testing.assert_allclose(answer["keypoints"][row, 0, 0], [0.3 * width, 0.3 * height], rtol=1e-5)


def test_encoded_image_equals_its_pixels_where_nothing_is_resized(module: ServingModule) -> None:
    pixels = image(96, 128)  # the short edge at inference
    encoded = module.serving_default(tf.constant([png(pixels)]))
    plain = module.serve_images(pixels[None])
    assert int(plain["num_detections"][0]) > 0
    assert_same(encoded, plain)


def test_same_answer_alone_or_in_company(module: ServingModule) -> None:
    """(tests/model/network/test_own_canvas.py asks the networks of all families.)"""
    images = [png(image(90, 118, 1)), jpeg(image(150, 96, 2)), png(image(48, 63, 3)), png(image(20, 300, 3))]
    together = module.serving_default(tf.constant(images))
    for row, encoded in enumerate(images):
        assert_same(module.serving_default(tf.constant([encoded])), together, 0, row)


def test_files_whose_headers_are_known_are_answered_alike(module: ServingModule, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(90, 118), (150, 96), (20, 300)]
    images = [(png, jpeg, png)[seed](image(*size, seed)) for seed, size in enumerate(sizes)]
    expected = module.serving_default(tf.constant(images))
    known = module.checked_files()(tf.constant(images), tf.constant(sizes))
    assert set(known) == set(expected) and int(known["num_detections"][0]) > 0
    for name, value in expected.items():
        np.testing.assert_array_equal(known[name], value, err_msg=name)
    # Images that are large together are left to the signature, which decodes them one after the other.
    asked: list[int] = []

    def serving_default(_: ServingModule, files: tf.Tensor) -> Mapping[str, tf.Tensor]:
        asked.append(len(files))
        return expected  # type: ignore[no-any-return]

    monkeypatch.setattr(ServingModule, "serving_default", serving_default)
    predictor = predictor_lib._of_module(module, None)
    assert len(predictor.answer(images)["scores"]) == 3 and not asked
    monkeypatch.setattr(predictor_lib, "PIXELS_AT_ONCE", 20_000)
    predictor.answer(images)
    predictor.answer(images[1:2])
    assert asked == [3]


def test_no_convolution_lies_in_a_loop(module: ServingModule) -> None:
    """TF-TRT takes none out of one, and a batch is slower without need."""
    for signature in (module.serving_default, module.serving_tolerant, module.serve_images, module.serve_one_image):
        graph = signature.get_concrete_function().graph.as_graph_def()
        inside = [function.signature.name for function in graph.library.function if any_convolution(function.node_def)]
        assert any_convolution(graph.node) and not inside


def any_convolution(nodes: Iterable[Any]) -> bool:
    return any(node.op == "Conv2D" for node in nodes)


def test_pixels_that_are_no_multiple_of_32(module: ServingModule) -> None:
    answer = module.serve_images(image(70, 90)[None])
    count = int(answer["num_detections"][0])
    boxes = answer["boxes"][0, :count].numpy()
    assert count > 0
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 90 and boxes[:, 3].max() <= 70
    assert not answer["boxes"][0, count:].numpy().any() and not answer["keypoints"][0, count:].numpy().any()


def test_fixed_size_gives_the_answer_of_any_size(module: ServingModule) -> None:
    pixels = image(96, 128)
    fixed = module.serve_images_of_size(96, 128)
    assert_same(fixed(images=tf.constant(pixels[None])), module.serve_images(pixels[None]))
    assert all(shape.is_fully_defined() for shape in fixed.output_shapes.values())


def test_empty_batches(module: ServingModule, small_model: KeypointRCNN) -> None:
    number, keypoints = small_model.config.inference.max_detections, small_model.skeleton.num_keypoints
    for answer in (
        module.serving_default(tf.zeros([0], tf.string)),
        module.serve_images(tf.zeros([0, 64, 64, 3], tf.uint8)),
        module.serve_images(tf.zeros([0, 0, 0, 3], tf.uint8)),
    ):
        assert answer["boxes"].shape == (0, number, 4)
        assert answer["keypoints"].shape == (0, number, keypoints, 2)


def claiming(height: int, width: int) -> bytes:
    """A PNG whose header claims a size; little follows."""
    return png(image(8, 8))[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big")


@pytest.mark.parametrize("size", [(1000, MAX_PIXELS // 1000 + 1), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_too_large_a_image_is_refused_by_its_header(module: ServingModule, size: tuple[int, int]) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"image 1 of 1 must have between 1 and {MAX_PIXELS} pixels"):
        module.serving_default(tf.constant([claiming(*size)]))


def test_the_places_of_bad_images_are_named(module: ServingModule) -> None:
    good, text = png(image(40, 50)), b"GIF89a" + bytes(40)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        module.serving_default(tf.constant([good, text, good, claiming(9000, 9000)]))
    assert "image 2 of 4 is neither a JPEG nor a PNG file; no other format is read. image 4 of 4 must" in str(caught.value)
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 3 of 3 is a damaged JPEG or PNG file"):
        module.serving_default(tf.constant([good, good, good[:-30]]))


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_the_tolerant_signature_answers_the_others(small_model: KeypointRCNN, norm: Norm) -> None:
    module = ServingModule(FixedAnswer(small_model, norm))  # type: ignore[arg-type]
    good, cut = jpeg(image(50, 80)), jpeg(image(50, 80))[:-400]
    files = [good, b"text", claiming(9000, 9000), cut, png(image(33, 40)), png(image(30, 40))[:-30], b""]
    answer = module.serving_tolerant(tf.constant(files))
    assert answer["status"].numpy().tolist() == [READ, NOT_AN_IMAGE, TOO_LARGE, DAMAGED, READ, DAMAGED, NOT_AN_IMAGE]
    for row, status in enumerate(answer.pop("status").numpy()):
        if status == READ:
            assert_same(module.serving_default(tf.constant([files[row]])), answer, 0, row)
            assert answer["num_detections"][row] == 1
        else:
            assert not any(value[row].numpy().any() for value in answer.values())
    only_bad = module.serving_tolerant(tf.constant([b"text"]))
    assert only_bad["num_detections"].numpy().tolist() == [0] and only_bad["status"].numpy().tolist() == [NOT_AN_IMAGE]
    assert module.serving_tolerant(tf.zeros([0], tf.string))["status"].shape == (0,)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_stored_rotation_is_applied(module: ServingModule, form: str, orientation: int) -> None:
    stored, exif, turned = io.BytesIO(), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    pixels = Image.fromarray(image(60, 90))
    pixels.save(stored, form, exif=exif, quality=95)
    shown = ImageOps.exif_transpose(Image.open(stored)).convert("RGB")
    shown.save(turned, "PNG")
    assert shown.size == ((90, 60) if orientation < 5 else (60, 90))
    assert_same(
        module.serving_default(tf.constant([stored.getvalue()])), module.serving_default(tf.constant([turned.getvalue()]))
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_malformed_orientations_are_read_as_the_pipeline_reads_them(form: str) -> None:
    """Random bytes in EXIF blocks, blocks that end anywhere, blocks beyond the bytes that are searched: equal, and no error."""
    find = tf.function(stored_orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    random, seen = np.random.default_rng(0), set()
    for orientation, endian in ((6, "<"), (8, ">")):
        stored, exif = io.BytesIO(), Image.Exif()
        exif[0x010E], exif[0x0112] = "a description", orientation
        exif.endian = endian
        Image.new("RGB", (8, 8)).save(stored, form, exif=exif)
        content = stored.getvalue()
        assert int(find(content)) == pipeline_image.stored_orientation(content) == orientation
        block = content.index(b"Exif" if form == "JPEG" else b"eXIf")
        files = [content[:end] for end in range(0, block + 80, 5)]
        for _ in range(200):
            changed = bytearray(content)
            for place in random.integers(block - 8, block + 60, random.integers(1, 4)):
                changed[place] = random.choice([0, 1, 2, 3, 4, 6, 255, int(random.integers(256))])
            files.append(bytes(changed))
        comment = b"\xff\xfe\xff\xff" + bytes(65533)
        files += [
            content[:2] + comment + content[2:],
            content[:2] + comment[:104].replace(b"\xff\xff", b"\0\x66") + content[2:],
        ]
        for file in files:
            found = int(find(file))
            assert found == pipeline_image.stored_orientation(file), file
            seen.add(found)
    assert {1, 6, 8} <= seen


MEMORY = """
import sys
import tensorflow as tf
from tests.memory import peak_kib
module = tf.saved_model.load(sys.argv[1])
def ask(*files):
    images = tf.constant([open(file, "rb").read() for file in files])
    try:
        return module.serving_default(images)["num_detections"].shape[0]
    except tf.errors.InvalidArgumentError as error:
        return str(error)
ask(sys.argv[2])
before = peak_kib()
said = ask(*sys.argv[3:])
print((peak_kib() - before) // 1024, said)
"""


@pytest.fixture(scope="module")
def saved(module: ServingModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serving_default})
    return path


def peak_of(saved: Path, folder: Path, files: Sequence[bytes]) -> tuple[int, str]:
    """MiB that a process of its own needs for these images together, more than for one small one; and what it answers."""
    names = [folder / f"{i}.png" for i in range(len(files) + 1)]
    for name, content in zip(names, (png(image(40, 50)), *files), strict=True):
        name.write_bytes(content)
    arguments = [sys.executable, "-c", MEMORY, str(saved), *map(str, names)]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
    number, said = ended.stdout.strip().split(" ", 1)
    return int(number), said


def grey_png(height: int, width: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (width, height)).save(content, "PNG")
    return content.getvalue()


def test_nothing_is_decoded_if_a_header_is_refused(saved: Path, tmp_path: Path) -> None:
    refused, large = grey_png(12000, 12000), grey_png(8000, 8000)  # 412 MB of pixels, and 183 MB
    needed, said = peak_of(saved, tmp_path, [refused, large])
    assert "image 1 of 2 must have" in said
    assert needed < 60  # MiB


def test_images_that_are_large_together_are_decoded_one_after_the_other(saved: Path, tmp_path: Path) -> None:
    needed, said = peak_of(saved, tmp_path, [grey_png(2500, 2500)] * 8)  # decoded and resized, each needs some 160 MB
    assert said == "8"
    assert needed < 450  # MiB


@pytest.mark.parametrize("encoded", [b"", b"GIF89a" + bytes(40), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(module: ServingModule, encoded: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        module.serving_default(tf.constant([encoded]))


def test_own_pixels_scales_and_cuts() -> None:
    detections = {
        "num_detections": tf.constant([1]),
        "boxes": tf.constant([[[-4.0, 8.0, 500.0, 16.0], [0.0, 0.0, 0.0, 0.0]]]),
        "scores": tf.constant([[0.5, 0.0]]),
        "keypoints": tf.constant([[[[20.0, 30.0]], [[0.0, 0.0]]]]),
        "keypoint_scores": tf.constant([[[0.1], [0.0]]]),
    }
    answer = own_pixels(detections, tf.constant([[2.0, 4.0]]), tf.constant([[50, 60]]), 0.0)
    assert answer["boxes"].numpy().tolist() == [[[0.0, 4.0, 60.0, 8.0], [0.0, 0.0, 0.0, 0.0]]]
    assert answer["keypoints"].numpy().tolist() == [[[[5.0, 15.0]], [[0.0, 0.0]]]]
    of_detectron2 = own_pixels(detections, tf.constant([[2.0, 4.0]]), tf.constant([[50, 60]]), 0.5)
    assert of_detectron2["keypoints"].numpy().tolist() == [[[[4.5, 14.5]], [[0.0, 0.0]]]]


def test_canvas_is_the_next_multiple() -> None:
    assert [round_up(n) for n in (1, 32, 33, 800)] == [32, 32, 64, 800]
    assert data_config.resized_size(480, 640, 800, 1333) == (800, 1067)
