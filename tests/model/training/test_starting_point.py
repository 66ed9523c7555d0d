"""Backbones of torchvision, Detectron2 and Keras, and whole models, become what training starts from."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format

from model.config import R101_FPN, BackboneConfig, BoxHeadConfig, Config, KeypointHeadConfig, load, to_json
from model.model_dir import NOTE_FILE, load_model, prepare_model_dir
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.loop import Run, train
from model.training.starting_point import BackboneFile, ModelDirectory, configuration, open_starting_point
from model.training.strategies import make_strategy
from model.weights.importing import import_model
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.skeleton import COCO_PERSON
from pipeline.synthetic import dataset
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig
from tests.conftest import SKELETON
from tests.model.weights.torch_format import save_zip, tensor
from tests.model.weights.torch_weights import BLOCKS, STEM, WIDTH, State, random_state, torchvision_resnet, torchvision_state

H5_TOLERANCE = 1e-4  # largest difference over the largest value


@pytest.fixture(scope="module")
def config(small_config: Config) -> Config:
    """With a backbone of the files' size, as a preset would have it."""
    return dataclasses.replace(
        small_config, backbone=BackboneConfig(blocks=BLOCKS, stem_width=STEM, width=WIDTH, fpn_channels=16)
    )


@pytest.fixture(scope="module")
def resnet() -> State:
    """Torchvision's names, with a classifier."""
    return random_state(torchvision_resnet()) | {
        "fc.weight": np.ones((3, 2), np.float32),
        "bn1.num_batches_tracked": np.array(1),
    }


def write_torch(path: Path, state: State) -> Path:
    save_zip(path, {name: tensor(value) for name, value in state.items()})
    return path


@pytest.fixture(scope="module")
def torch_file(resnet: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_torch(tmp_path_factory.mktemp("resnet") / "resnet.pth", resnet)


@pytest.fixture(scope="module")
def started(torch_file: Path, config: Config) -> KeypointRCNN:
    start = open_starting_point(torch_file)
    model = KeypointRCNN(start.adapt(config), COCO_PERSON)
    assert start.fill(model).endswith("left over: 1 × num_batches_tracked, fc.weight")
    return model


def backbone(model: KeypointRCNN) -> dict[str, Any]:
    return {path: v.numpy() for path, v in model.variables_by_path().items() if path.startswith("backbone.")}


def test_torchvisions_resnet_becomes_the_backbone(started: KeypointRCNN, resnet: State, config: Config) -> None:
    arrived = np.sort(np.concatenate([value.ravel() for value in backbone(started).values()]))
    weights = [value.ravel() for name, value in resnet.items() if name not in ("fc.weight", "bn1.num_batches_tracked")]
    np.testing.assert_array_equal(arrived, np.sort(np.concatenate(weights)))
    untouched = KeypointRCNN(started.config, COCO_PERSON).variables_by_path()
    for path, variable in started.variables_by_path().items():
        assert path.startswith("backbone.") or np.array_equal(variable, untouched[path])
    assert started.config == dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, frozen_stages=2))


def caffe2_names(resnet: State, affine: bool) -> State:
    """As MSRA's R-50.pkl has them; `affine`: as Caffe2's older files, whose norms have no statistics."""
    variables = {"weight": "s", "bias": "b"} if affine else {"weight": "gamma", "bias": "beta"}
    made: State = {"conv1_b": np.ones(STEM, np.float32), "fc1000_w": np.ones((3, 2), np.float32)}
    for name, value in resnet.items():
        name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
        name = name.replace("downsample.0", "branch1").replace("downsample.1", "branch1_bn")
        name = re.sub(r"(conv|bn)([123])", lambda m: f"branch2{'abc'[int(m[2]) - 1]}{'_bn' if m[1] == 'bn' else ''}", name)
        name = name.replace("branch2a_bn.", "res_conv1_bn.") if name.startswith("branch2a_bn") else name
        layer, _, variable = name.rpartition(".")
        layer = "conv1" if layer == "branch2a" else layer
        if affine and "running" in variable:
            continue
        variable = variables.get(variable, variable) if layer.endswith("bn") else "w"
        if layer.startswith(("res", "conv1")) and "num" not in variable:
            made[f"{layer.replace('.', '_')}_{variable}"] = value
    return made


@pytest.mark.parametrize("affine", [False, True])
def test_detectron2s_backbone_of_msra(
    affine: bool, started: KeypointRCNN, resnet: State, config: Config, tmp_path: Path
) -> None:
    state = caffe2_names(resnet, affine)
    assert {"res2_0_branch2a_w", "res3_1_branch2c_bn_b" if affine else "res3_1_branch2c_bn_running_mean"} <= set(state)
    assert {"res_conv1_bn_s" if affine else "res_conv1_bn_gamma", "res2_0_branch1_w", "conv1_w"} <= set(state)
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(state, 2))
    start = open_starting_point(tmp_path / "R-50.pkl")
    assert isinstance(start, BackboneFile) and start.source["left_over"] == ["fc1000_w", "conv1_b"]
    changed = start.adapt(config).backbone
    assert (changed.stride_in_1x1, changed.pixel_order, changed.pixel_range) == (True, "BGR", 255.0)
    model = KeypointRCNN(start.adapt(config), COCO_PERSON)
    start.fill(model)
    found = backbone(model)
    for path, value in backbone(started).items():
        if affine and path.endswith(("/mean", "/variance")):
            factor = 1 / np.sqrt(found[path.replace("/mean", "/variance")] + changed.norm_epsilon)
            np.testing.assert_allclose(factor, 1, rtol=1e-6)
            assert not path.endswith("/mean") or not found[path].any()
        else:
            np.testing.assert_array_equal(found[path], value, path)


def test_keras_applications(config: Config, tmp_path: Path) -> None:
    """ResNet50 with random statistics and biases, from both of Keras' formats: its own features."""
    network = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    random = np.random.default_rng(0)
    for variable in network.variables:
        if variable.path.endswith(("moving_variance", "gamma")):
            variable.assign(random.uniform(0.5, 1.0, variable.shape))
        elif variable.path.endswith(("moving_mean", "beta", "bias")):
            variable.assign(random.normal(0, 0.1, variable.shape))
    network.save_weights(tmp_path / "keras3.weights.h5")
    with h5py.File(tmp_path / "legacy.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    pixels = random.normal(0, 50, (1, 64, 64, 3)).astype(np.float32)
    ends = ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
    expected = keras.Model(network.input, [network.get_layer(name).output for name in ends])(pixels)
    small = dataclasses.replace(
        config,
        backbone=BackboneConfig(fpn_channels=8),
        box_head=BoxHeadConfig(channels=8),
        keypoint_head=KeypointHeadConfig(convolutions=1, channels=8),
    )
    model = None
    for name in ("keras3.weights.h5", "legacy.h5"):
        start = open_starting_point(tmp_path / name)
        adapted = start.adapt(small)
        assert adapted.backbone.pixel_mean == (103.939, 116.779, 123.68) and adapted.backbone.norm_epsilon == 1.001e-5
        model = KeypointRCNN(adapted, COCO_PERSON) if model is None else model
        for path, variable in model.variables_by_path().items():
            variable.assign(tf.zeros_like(variable) if path.startswith("backbone.") else variable)
        assert start.fill(model).endswith("nothing left over")
        for ours, theirs in zip(model.backbone(pixels), expected, strict=True):
            assert np.abs(ours - theirs).max() <= H5_TOLERANCE * np.abs(theirs).max()


def test_weights_decide_over_what_a_run_without_a_checkpoint_has_left(torch_file: Path, resnet: State, tmp_path: Path) -> None:
    """Else a backbone that wants BGR would get RGB, in silence."""
    sizes = [f"backbone.blocks={list(BLOCKS)}", f"backbone.stem_width={STEM}", f"backbone.width={WIDTH}"]
    begun = configuration(tmp_path, open_starting_point(torch_file), "r50_fpn", sizes)
    (tmp_path / "config.json").write_text(json.dumps(to_json(begun)))
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(caffe2_names(resnet, affine=False), 2))
    other = configuration(tmp_path, open_starting_point(tmp_path / "R-50.pkl"), "r50_fpn", sizes)
    assert (begun.backbone.pixel_order, other.backbone.pixel_order) == ("RGB", "BGR")
    assert configuration(tmp_path, None, None, ["train.steps=5"]).backbone == begun.backbone
    assert prepare_model_dir(tmp_path, other, COCO_PERSON) == []  # no model is in the directory yet
    assert load(tmp_path / "config.json") == other
    assert configuration(tmp_path, open_starting_point(torch_file), "r50_fpn", [*sizes, "backbone.frozen_stages=0"]) == (
        dataclasses.replace(begun, backbone=dataclasses.replace(begun.backbone, frozen_stages=0))
    )


def test_what_cannot_be_started_from(torch_file: Path, config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a ResNet with \(1, 2, 1, 1\) blocks, 4 wide; --preset=r101_fpn has \(3, 4, 23, 3\)"):
        open_starting_point(torch_file).adapt(R101_FPN)
    whole = write_torch(tmp_path / "whole.pth", torchvision_state())
    with pytest.raises(UserError, match=r"whole\.pth: a whole detector: python -m model\.import_weights"):
        open_starting_point(whole)
    strange = write_torch(tmp_path / "strange.pth", {"a": np.zeros(2, np.float32)})
    with pytest.raises(UserError, match=r"strange\.pth: the names of its 1 tensors \('a', …\) are not those"):
        open_starting_point(strange)
    resnet = torchvision_resnet()
    del resnet["layer4.0.bn3.bias"]
    start = open_starting_point(write_torch(tmp_path / "part.pth", random_state(resnet)))
    with pytest.raises(UserError, match=r"part\.pth: has no tensor for backbone\.layer4\.0\.bn3/beta"):
        start.fill(KeypointRCNN(start.adapt(config), COCO_PERSON))
    with pytest.raises(UserError, match="no such file"):
        open_starting_point(tmp_path / "missing.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--init=\S+empty: has no config\.json"):
        open_starting_point(tmp_path / "empty")


# What makes an imported model's training small; its grid and its way of resizing stay its own.
SMALL = (
    *("data.short_edges=[96]", "data.max_edge=192"),
    *("data.sampled_anchors=32", "data.max_boxes=8", "data.num_canvases=1", "rpn.top_k_train=40", "rpn.proposals_train=40"),
    *("box_head.rois=16", "keypoint_head.rois=6", "train.steps=1", "train.global_batch_size=2", "train.warmup_steps=0"),
    "train.clip_norm=0.01",  # gradients of random weights are large
)


@pytest.fixture(scope="module")
def imported_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    file = write_torch(folder / "w.pth", torchvision_state())
    import_model("torchvision", file, folder / "model", assignments=SMALL, report=lambda _: None)
    return folder / "model"


def test_a_model_directory_gives_all_but_what_other_keypoints_change(imported_dir: Path) -> None:
    start = open_starting_point(imported_dir)
    assert isinstance(start, ModelDirectory) and start.source["file"] == "w.pth"
    given = start.model.variables_by_path()
    assert start.adapt(R101_FPN) == start.model.config
    model = KeypointRCNN(start.model.config, SKELETON, seed=1)
    fresh = model.variables_by_path()["keypoint.deconv/kernel"].numpy()
    assert "keypoint.deconv/kernel, keypoint.deconv/bias from random weights" in start.fill(model)
    for path, variable in model.variables_by_path().items():
        np.testing.assert_array_equal(
            variable, fresh if path == "keypoint.deconv/kernel" else 0 if "deconv" in path else given[path]
        )
    drawn_otherwise = KeypointRCNN(start.model.config, dataclasses.replace(COCO_PERSON, limbs=(), sigmas=(0.1,) * 17), seed=1)
    assert "random" not in start.fill(drawn_otherwise)  # the same keypoints
    np.testing.assert_array_equal(
        drawn_otherwise.variables_by_path()["keypoint.deconv/kernel"], given["keypoint.deconv/kernel"]
    )
    with pytest.raises(UserError, match=r"its model's keypoint set has limbs = \(.*\), that of the records \(\)"):
        prepare_model_dir(imported_dir, start.model.config, drawn_otherwise.skeleton)
    wider = dataclasses.replace(start.model.config, box_head=dataclasses.replace(start.model.config.box_head, channels=11))
    with pytest.raises(UserError, match=r"has \(392, 10\) for box\.fc1/kernel \(392, 11\)"):
        start.fill(KeypointRCNN(wider, COCO_PERSON))


@pytest.fixture(scope="module")
def record_folder(tmp_path_factory: pytest.TempPathFactory) -> RecordFolder:
    folder = tmp_path_factory.mktemp("synthetic")
    rendered = dataset.write_dataset(folder, dataset.Arguments(4, 5, "train", 160, 128), num_workers=1)
    convert(
        rendered.annotations,
        rendered.image_folder,
        folder / "records",
        "train",
        ConversionConfig(short_edges=(96,), max_edge=192),
    )
    return open_record_folder(folder / "records")


def test_training_goes_on_in_an_imported_directory(
    imported_dir: Path, record_folder: RecordFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_model(imported_dir)
    assert record_folder.skeleton == before.skeleton
    train(before.config, record_folder, "train", Run(imported_dir), make_strategy("one_device"))
    assert f"starts from the imported weights of {imported_dir}" in capsys.readouterr().out
    after = load_model(imported_dir).variables_by_path()
    for path, variable in before.variables_by_path().items():
        moved = np.abs(after[path] - variable).max()
        assert moved < 0.01, path  # a step away, not at random
        assert moved == 0 or not path.startswith(("backbone.conv1", "backbone.layer1")), path
    assert np.any(after["rpn.conv/kernel"] != before.variables_by_path()["rpn.conv/kernel"])


def test_training_starts_from_a_backbone(
    torch_file: Path, started: KeypointRCNN, config: Config, record_folder: RecordFolder, tmp_path: Path
) -> None:
    start = open_starting_point(torch_file)
    adapted = start.adapt(config)
    one_step = dataclasses.replace(
        adapted, train=dataclasses.replace(config.train, steps=1), data=dataclasses.replace(config.data, short_edges=(96,))
    )
    of_category_7 = dataclasses.replace(record_folder, category_id=7)
    train(one_step, of_category_7, "train", Run(tmp_path), make_strategy("one_device"), start=start)
    after = load_model(tmp_path)
    assert after.config.inference.category_id == 7  # that of the records
    assert json.loads((tmp_path / NOTE_FILE).read_text())["file"] == "resnet.pth"
    found = backbone(after)
    for path, value in backbone(started).items():
        if path.startswith(("backbone.conv1", "backbone.layer1")) or not path.endswith("/kernel"):
            np.testing.assert_array_equal(found[path], value, path)  # frozen
