"""Every tensor of a published file arrives in its place; files of other networks are told in a line, and leave nothing."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from model.model_dir import NOTE_FILE, load_model
from model.network.keypoint_rcnn import KeypointRCNN
from model.weights import layout, published
from model.weights.importing import import_model, imported, read_skeleton
from model.weights.names import TORCHVISION, renamed
from model.weights.pickle_reader import RefusedError
from model.weights.published import Digests, published_as
from model.weights.weight_files import read_weights
from pipeline.command import UserError
from pipeline.skeleton import COCO_PERSON
from tests.conftest import SKELETON
from tests.model.weights.torch_format import save_legacy, save_zip, tensor
from tests.model.weights.torch_weights import (
    BLOCKS,
    BOX,
    CONVOLUTIONS,
    KEYPOINT,
    PYRAMID,
    STEM,
    WIDTH,
    State,
    detectron2_state,
    random_state,
    torchvision_resnet,
    torchvision_state,
)

FEATURE_TOLERANCE = 1e-4  # largest difference over the largest value; float32 against float64: 1e-6 (the oracles' float64.json)


def save(path: Path, state: State, save_file: Callable[..., None] = save_zip) -> Path:
    save_file(path, {name: tensor(value) for name, value in state.items()})
    return path


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def torchvision_model(tmp_path_factory: pytest.TempPathFactory) -> KeypointRCNN:
    return imported("torchvision", save(tmp_path_factory.mktemp("file") / "w.pth", torchvision_state()), report=quiet)[0]


def test_sizes_are_read_off_the_tensors(torchvision_model: KeypointRCNN) -> None:
    config = torchvision_model.config
    assert (config.backbone.blocks, config.backbone.stem_width, config.backbone.width) == (BLOCKS, STEM, WIDTH)
    assert (config.backbone.expansion, config.backbone.fpn_channels) == (4, PYRAMID)
    assert (config.box_head.channels, config.keypoint_head.convolutions, config.keypoint_head.channels) == (
        BOX,
        CONVOLUTIONS,
        KEYPOINT,
    )
    assert config.backbone.norm_epsilon == 1e-5
    assert torchvision_model.skeleton == COCO_PERSON


def test_every_number_of_the_file_arrives_once(torchvision_model: KeypointRCNN) -> None:
    """The values as sorted numbers, without the deltas of the background."""
    state = torchvision_state()
    for name in ("weight", "bias"):
        key = f"roi_heads.box_predictor.bbox_pred.{name}"
        state[key] = state[key][4:]
    arrived = [variable.numpy().ravel() for variable in torchvision_model.variables_by_path().values()]
    np.testing.assert_array_equal(
        np.sort(np.concatenate(arrived)), np.sort(np.concatenate([v.ravel() for v in state.values()]))
    )


def test_the_box_head_answers_as_pytorch_would(torchvision_model: KeypointRCNN) -> None:
    state = {name.removeprefix("roi_heads."): value for name, value in torchvision_state().items()}
    pooled = np.random.default_rng(1).normal(size=(3, PYRAMID, 7, 7)).astype(np.float32)  # N, C, H, W
    x = pooled.reshape(3, -1)
    for layer in ("box_head.fc6", "box_head.fc7"):
        x = np.maximum(x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"], 0)
    logits, deltas = (
        x @ state[f"box_predictor.{name}.weight"].T + state[f"box_predictor.{name}.bias"] for name in ("cls_score", "bbox_pred")
    )
    ours = torchvision_model.box_head(pooled.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(ours[0], logits, rtol=1e-4, atol=1e-3)  # background, person: as torchvision
    np.testing.assert_allclose(ours[1], deltas[:, 4:], rtol=1e-4, atol=1e-3)  # those of the person


def conv(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
    """A 3×3 convolution as PyTorch defines it: x [C, H, W], weight [out, in, 3, 3], padded by 1."""
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    shifted = np.stack([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)])
    answer: NDArray[Any] = np.einsum("kchw,ock->ohw", shifted, weight.reshape(*weight.shape[:2], 9)) + bias[:, None, None]
    return answer


def deconv(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
    """PyTorch's ConvTranspose2d(kernel 4, stride 2, padding 1): x [C, H, W], weight [in, out, 4, 4]."""
    height, width = x.shape[1:]
    full: NDArray[Any] = np.zeros((weight.shape[1], 2 * height + 2, 2 * width + 2))
    for i in range(height):
        for j in range(width):
            full[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("c,cokl->okl", x[:, i, j], weight)
    answer: NDArray[Any] = full[:, 1:-1, 1:-1] + bias[:, None, None]
    return answer


def test_the_keypoint_head_answers_as_pytorch_would(torchvision_model: KeypointRCNN) -> None:
    state = torchvision_state()
    pooled = np.random.default_rng(1).normal(size=(PYRAMID, 14, 14)).astype(np.float32)
    x = pooled
    for layer in range(CONVOLUTIONS):
        name = f"roi_heads.keypoint_head.{2 * layer}"
        x = np.maximum(conv(x, state[f"{name}.weight"], state[f"{name}.bias"]), 0)
    name = "roi_heads.keypoint_predictor.kps_score_lowres"
    expected = deconv(x, state[f"{name}.weight"], state[f"{name}.bias"])
    before_enlargement = torchvision_model.keypoint_head.get_layer("keypoint.deconv").output
    head = keras.Model(torchvision_model.keypoint_head.input, before_enlargement)
    ours = head(pooled.transpose(1, 2, 0)[None])[0]
    np.testing.assert_allclose(np.transpose(ours, (2, 0, 1)), expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


def test_detectron2s_names_and_classes_mean_the_same(torchvision_model: KeypointRCNN, tmp_path: Path) -> None:
    state = detectron2_state(torchvision_state())
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    model, _ = imported("detectron2", tmp_path / "model_final.pkl", report=quiet)
    assert model.config.backbone.stride_in_1x1 and model.config.backbone.pixel_order == "BGR"
    for path, variable in torchvision_model.variables_by_path().items():
        np.testing.assert_array_equal(model.variables_by_path()[path], variable, path)


@pytest.mark.parametrize("form", ["old names", "DataParallel", "checkpoint"])
def test_other_forms_of_the_same_file(form: str, tmp_path: Path) -> None:
    state = torchvision_state()
    expected, _, _ = renamed(state, TORCHVISION)
    path = tmp_path / "w.pth"
    if form == "old names":
        before = {re.sub(r"(_blocks\.\d)\.0\.|(head\.conv)\.0\.0\.", r"\1\2.", name): value for name, value in state.items()}
        assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.3.weight"} <= set(before)
        save(path, before, save_legacy)
    elif form == "DataParallel":
        save(path, {f"module.{name}": value for name, value in state.items()})
    else:
        save_zip(path, {"model": {name: tensor(value) for name, value in state.items()}, "epoch": 3})
    found, _, left_over = renamed(read_weights(path), TORCHVISION)
    assert found.keys() == expected.keys() and not left_over
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_directory_says_where_its_weights_come_from(tmp_path: Path) -> None:
    state = torchvision_state() | {
        "backbone.body.bn1.num_batches_tracked": np.array(5),
        "extra\x1b[31m": np.zeros(3, np.float32),
    }
    lines: list[str] = []
    import_model("torchvision", save(tmp_path / "w.pth", state), tmp_path / "model", report=lines.append)
    assert r"left over: 1 × num_batches_tracked, extra\x1b[31m" in lines[-1]
    restored = load_model(tmp_path / "model").variables_by_path()
    np.testing.assert_array_equal(restored["backbone.bn1/gamma"], state["backbone.body.bn1.weight"])
    note = json.loads((tmp_path / "model" / NOTE_FILE).read_text())
    assert note["file"] == "w.pth" and note["source"] == "torchvision" and note["licence"] is None
    assert note["sha256"] == published.digests(tmp_path / "w.pth").sha256
    assert note["left_over"] == ["backbone.body.bn1.num_batches_tracked", "extra\x1b[31m"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "w.pth"]


def test_the_published_file_has_no_epsilon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Digests("fc266e95" + "0" * 56, "0" * 32)
    monkeypatch.setattr("model.weights.importing.digests", lambda _: found)
    file = save(tmp_path / "renamed.pth", torchvision_state())
    model, origin = imported("torchvision", file, report=quiet)
    assert model.config.backbone.norm_epsilon == 0.0
    assert origin["url"].endswith("/keypointrcnn_resnet50_fpn_coco-fc266e95.pth")
    assert imported("torchvision", file, norm_epsilon=1e-3, report=quiet)[0].config.backbone.norm_epsilon == 1e-3


def test_a_namesake_of_the_published_file_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    file = save(tmp_path / "keypointrcnn_resnet50_fpn_coco-fc266e95.pth", torchvision_state())
    model, origin = imported("torchvision", file, report=lines.append)
    assert "is not the published file of that name" in lines[0]
    assert model.config.backbone.norm_epsilon == 1e-5 and origin["url"] is None


def test_published_files_are_known_by_their_digests() -> None:
    nothing = "f" * 64
    licence = published_as(Digests(nothing, "a6e10b" + "0" * 26))
    assert licence is not None and licence.licence == "CC BY-SA 3.0"
    assert published_as(Digests(nothing, nothing)) is None


def test_the_page_of_weights_names_them_all() -> None:
    page = (Path(__file__).parents[3] / "docs" / "WEIGHTS.md").read_text()
    for file in (*published.KEYPOINT_RCNN, *published.BACKBONES):
        assert f"]({file.url})" in page, file.url
        assert file.sha256[:8] in page and file.md5[:6] in page, file.url


def test_keypoints_of_ones_own(tmp_path: Path) -> None:
    file = save(tmp_path / "w.pth", torchvision_state(keypoints=5))
    with pytest.raises(UserError, match="has 5 keypoints; name them with --skeleton"):
        imported("torchvision", file, report=quiet)
    for name, content in (("skeleton.json", SKELETON.to_json()), ("pipeline.json", {"skeleton": SKELETON.to_json()})):
        (tmp_path / name).write_text(json.dumps(content))
        assert read_skeleton(tmp_path / name) == SKELETON
    assert imported("torchvision", file, skeleton_file=tmp_path / "skeleton.json", report=quiet)[0].skeleton == SKELETON
    save(file, torchvision_state())
    with pytest.raises(UserError, match="has 5 keypoints, the weights have 17"):
        imported("torchvision", file, skeleton_file=tmp_path / "skeleton.json", report=quiet)
    (tmp_path / "skeleton.json").write_text("[]")
    with pytest.raises(UserError, match=r"skeleton\.json: no keypoint set \(\[\] is no JSON object\); --skeleton takes"):
        read_skeleton(tmp_path / "skeleton.json")


def without(*parts: str) -> State:
    return {name: value for name, value in torchvision_state().items() if not any(part in name for part in parts)}


def changed(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> State:
    state = torchvision_state()
    return state | {name: change(state[name])}


WRONG: dict[str, tuple[Callable[[], State], str]] = {
    "part of a file": (lambda: without("layer3.0.conv2"), r"has no tensor for backbone\.layer3\.0\.conv2/kernel:"),
    "no norms": (lambda: without("running_var"), r"has no tensor for backbone\.bn1/variance and \d+ more"),
    "no pyramid": (lambda: without("fpn"), r"has no tensor for fpn\.inner\.0/kernel"),
    "no keypoints": (lambda: without("keypoint"), "has no keypoint head"),
    "one stage less": (lambda: without("layer4"), r"stages C2…C5 have \(1, 2, 1, 0\) blocks"),
    "ResNet-18": (lambda: without("conv3"), "two convolutions"),
    "groups in one layer": (
        lambda: changed("backbone.body.layer1.0.conv2.weight", lambda w: w[:, :2]),
        r"layer2\.0\.conv2\.weight has the shape \(8, 8, 3, 3\)",
    ),
    "no whole groups": (
        lambda: changed("backbone.body.layer1.0.conv2.weight", lambda w: w[:, :3]),
        "turns 3 channels into 4, which makes no whole groups",
    ),
    "grey images": (lambda: changed("backbone.body.conv1.weight", lambda w: w[:, :1]), "takes 1 channels"),
    "80 classes": (lambda: torchvision_state(classes=81), "tells 81 classes apart"),
    "five anchors": (
        lambda: changed("rpn.head.cls_logits.weight", lambda w: np.concatenate([w, w])),
        r"rpn\.objectness/kernel has",
    ),
    "larger RoIs": (
        lambda: changed("roi_heads.box_head.fc6.weight", lambda w: np.ones((BOX, 64 * PYRAMID), np.float32)),
        "fc6.weight has the shape",
    ),
    "many blocks": (
        lambda: (
            torchvision_state()
            | {f"backbone.body.layer2.{n}.conv1.weight": np.zeros((8, 8, 1, 1), np.float32) for n in range(1, 300)}
        ),
        "200 are the most",
    ),
    "nan": (lambda: changed("backbone.body.bn1.bias", lambda w: w * np.nan), "not finite"),
    "odd dimensions": (lambda: changed("roi_heads.box_head.fc6.weight", lambda w: w[0]), "2 sizes were expected"),
    "nothing in it": (lambda: changed("backbone.body.conv1.weight", lambda w: w[:0]), "4 sizes were expected"),
    "twice the same": (
        lambda: torchvision_state() | {"rpn.head.conv.weight": np.zeros(1, np.float32)},
        "both stand for rpn.conv/kernel",
    ),
    "another family": (lambda: detectron2_state(torchvision_state()), "give --source=detectron2"),
    "a backbone": (lambda: random_state(torchvision_resnet()), "a backbone alone.*--init"),
    "something else": (lambda: {"a.weight": np.zeros(3, np.float32)}, "not those of torchvision's"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    file = save(tmp_path / "w.pth", make())
    with pytest.raises(UserError, match=message) as caught:
        import_model("torchvision", file, tmp_path / "model", report=quiet)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("pixel_mean", [123.675, 116.28, 103.53]), ("proposal_generator.anchor_generator.cell_anchors.0", [[-1, -1, 1, 1]] * 3)],
)
def test_what_a_file_says_beside_its_weights_must_hold(name: str, value: Any, tmp_path: Path) -> None:
    state = detectron2_state(torchvision_state()) | {name: np.array(value, np.float32)}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": state}))
    with pytest.raises(UserError, match=f"says {name} = .*--set"):
        imported("detectron2", tmp_path / "w.pkl", report=quiet)
    if name == "pixel_mean":
        wished = ["backbone.pixel_mean=[123.675,116.28,103.53]", "backbone.pixel_order=RGB"]
        model, _ = imported("detectron2", tmp_path / "w.pkl", assignments=wished, report=quiet)
        assert model.config.backbone.pixel_order == "RGB"


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        import_model("torchvision", tmp_path / "missing.pth", tmp_path / "model", report=quiet)
    assert (tmp_path / "model" / "mine").read_text() == "precious"
    with pytest.raises(UserError, match="exists already"):
        import_model("torchvision", tmp_path / "missing.pth", ".", report=quiet)  # has no name to be given at the end


def test_an_import_that_is_stopped_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.train.CheckpointManager, "save", stop)
    file = save(tmp_path / "w.pth", torchvision_state())
    with pytest.raises(KeyboardInterrupt):
        import_model("torchvision", file, tmp_path / "model", report=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


ORACLES = {
    "torchvision": ("torchvision", "weights.pth"),
    "torchvision, old names": ("torchvision", "weights_old_names.pth"),
    "detectron2": ("detectron2", "model_final.pkl"),
}


@pytest.fixture(scope="module", params=ORACLES)
def oracle(
    request: pytest.FixtureRequest, oracles: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, KeypointRCNN]:
    """The folder of an oracle, and its model."""
    source, file = ORACLES[request.param]
    folder = oracles / source
    return folder, imported(source, folder / file, report=quiet)[0]


def input_of(arrays: Any, model: KeypointRCNN) -> NDArray[Any]:
    """What the network of an oracle sees, [1, H, W, 3]."""
    if "input" in arrays:
        pixels: NDArray[Any] = arrays["input"].transpose(0, 2, 3, 1)
        return pixels
    pixels = arrays["resized"][None].astype(np.float32) - np.array(model.config.backbone.pixel_mean, np.float32)
    height, width = pixels.shape[1:3]
    return np.pad(pixels, ((0, 0), (0, -height % 32), (0, -width % 32), (0, 0)))


def test_oracles_features_and_proposal_head(oracle: tuple[Path, KeypointRCNN]) -> None:
    folder, model = oracle
    arrays = np.load(folder / "inference_0.npz")
    kept = json.loads((folder / "meta.json").read_text())["slices_kept_in_inference_npz"]
    stages = model.backbone(input_of(arrays, model))
    pyramid = model.fpn(stages)
    named = {f"C{level}": stage for level, stage in enumerate(stages, 2)}
    named |= {f"P{level}": features for level, features in enumerate(pyramid, 2)}
    for level, features in enumerate(pyramid, 2):
        objectness, deltas = model.rpn_head(features)
        named |= {f"rpn_objectness_P{level}": objectness, f"rpn_deltas_P{level}": deltas}
    for name, value in named.items():
        ours = np.transpose(value, (0, 3, 1, 2))
        if name in kept:
            step = int(kept[name].removeprefix("[:, :, ::")[0])
            ours = ours[:, :, ::step, ::step]
        assert ours.shape == arrays[name].shape, name
        assert np.abs(ours - arrays[name]).max() <= FEATURE_TOLERANCE * np.abs(arrays[name]).max(), name


IMPORT = """
import sys
import tensorflow as tf
from model.weights.importing import imported
from pipeline.command import UserError
from tests.memory import peak_kib
before = peak_kib()
try:
    imported(sys.argv[1], sys.argv[2], report=lambda line: None)
except UserError as error:
    print(error)
print(peak_kib() - before)
"""


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("roi_heads.box_head.fc6.weight", (60_000, 1), " has the shape "),
        ("roi_heads.box_head.fc6.weight", (10**6, 1), "box_head.channels=1000000: must be 65536 or less"),
        ("backbone.fpn.inner_blocks.0.0.weight", (16_000, 1, 1, 1), " has the shape "),
        ("backbone.fpn.inner_blocks.0.0.weight", (10**6, 1, 1, 1), "backbone.fpn_channels=1000000: must be 16384 or less"),
    ],
)
def test_shapes_are_compared_before_a_model_is_made(name: str, shape: tuple[int, ...], reason: str, tmp_path: Path) -> None:
    """4 MB, of which one tensor says that a layer has a million channels."""
    file = tmp_path / "w.pkl"
    file.write_bytes(pickle.dumps(torchvision_state() | {name: np.ones(shape, np.float32)}))
    assert file.stat().st_size < 8 * 2**20
    command = [sys.executable, "-c", IMPORT, "torchvision", str(file)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert child.returncode == 0, child.stderr
    said, peak = child.stdout.splitlines()
    assert said.startswith(f"{file}: ") and reason in said
    assert int(peak) < 200_000  # kB; the layer alone would take 48 GB


def test_one_tensor_for_many_layers_is_refused() -> None:
    tensors = {f"backbone.layer1.{block}.conv1/kernel": np.ones((300, 300, 3, 3), np.float32) for block in range(2)}
    shapes = dict.fromkeys(tensors, (3, 3, 300, 300))
    assert len(layout.values(tensors, TORCHVISION, shapes, {})) == 2
    same = dict.fromkeys((f"backbone.layer1.{block}.conv1/kernel" for block in range(9)), next(iter(tensors.values())))
    with pytest.raises(RefusedError, match="stand for many layers"):
        layout.values(same, TORCHVISION, dict.fromkeys(same, (3, 3, 300, 300)), {})
