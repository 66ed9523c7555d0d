"""Files of weights: both layouts, other sizes; truncated ones, other networks, and files that want to do harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from model.matterport import layout
from model.matterport.config import Architecture
from model.matterport.importing import import_model, imported
from model.matterport.weight_file import open_weights
from model.model_dir import load_any
from pipeline.command import UserError

SMALL = Architecture(
    blocks=(1, 2, 1, 1),
    stem=4,
    widths=(2, 2, 2, 2),
    channels=(4, 6, 8, 10),
    fpn=4,
    rpn=6,
    class_channels=8,
    mask_channels=4,
    keypoint_channels=6,
    classes=3,
    keypoints=17,
)


def group_of(layer: str) -> str:
    return layout.RPN_GROUP if layer in layout.RPN_LAYERS else layer


def write_network(path: Path, size: Architecture, prefix: str = "", seed: int = 0, dtype: str = "f4") -> None:
    """A file as Keras writes it, with random weights: `prefix` is "model_weights/" for a whole model."""
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for name, shape in layout.shapes(size).items():
            layer, variable = name.split("/")
            value = random.uniform(0.5, 1.5, shape) if variable == "moving_variance" else random.normal(0, 0.05, shape)
            file[f"{prefix}{group_of(layer)}/{layer}/{variable}:0"] = value.astype(dtype)
        file.create_group(f"{prefix}activation_17")  # a layer without weights
        file[prefix or "/"].attrs["layer_names"] = np.array([b"conv1"])


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.h5"
    write_network(path, SMALL)
    return path


def quiet(_line: str) -> None:
    pass


def test_every_tensor_of_the_true_file_is_used_once(weight_file: Path, oracle_folder: Path) -> None:
    lines: list[str] = []
    model, note = imported(weight_file, report=lines.append)
    assert any("740 tensors" in line and "all 740 variables; nothing left over" in line for line in lines)
    assert note["left_over"] == []
    described = json.loads((oracle_folder / "h5_layout.json").read_text())
    assert len(described) == 250
    shapes, full = layout.shapes(model.config.architecture), layout.shapes(Architecture())
    named = {}
    for group in described:
        for weight in group["weights"]:
            layer, variable = weight["name"].removesuffix(":0").split("/")
            named[f"{layer}/{variable}"] = (tuple(weight["reduced_shape"]), tuple(weight["full_shape"]))
    assert {name: pair[0] for name, pair in named.items()} == shapes
    assert {name: pair[1] for name, pair in named.items()} == full
    assert sum(int(np.prod(shape)) for shape in full.values()) == 81_483_439
    with h5py.File(weight_file, "r") as file:
        for name, variable in model.variables_by_path().items():
            layer, kind = name.split("/")
            np.testing.assert_array_equal(variable.numpy(), file[f"{group_of(layer)}/{layer}/{kind}:0"][()])


@pytest.mark.parametrize("prefix", ["", "model_weights/"])
def test_other_sizes_in_both_layouts(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "weights.h5"
    write_network(path, SMALL, prefix, dtype="f8")
    with h5py.File(path, "a") as file:
        file["optimizer_weights/Adam/iterations:0"] = np.int64(7)
        file[f"{prefix}conv1/notes"] = np.zeros(3)
    lines: list[str] = []
    import_model(path, tmp_path / "model", report=lines.append)
    model = load_any(tmp_path / "model")
    assert model.config.architecture == SMALL  # type: ignore[union-attr]
    assert any("left over" in line and "conv1/notes" in line and "iterations" in line for line in lines)
    note = json.loads((tmp_path / "model" / "weights.json").read_text())
    assert sorted(note["left_over"]) == sorted([f"{prefix}conv1/notes", "optimizer_weights/Adam/iterations:0"])
    value = h5py.File(path, "r")[f"{prefix}mrcnn_mask/mrcnn_mask/bias:0"][()]
    np.testing.assert_array_equal(model.variables_by_path()["mrcnn_mask/bias"].numpy(), value.astype(np.float32))


def test_scopes_that_keras_numbered_anew(tmp_path: Path, small_file: Path) -> None:
    """A program that builds the network twice has layers in scopes such as rpn_conv_shared_1."""
    with h5py.File(small_file, "a") as file:
        file["rpn_model"].move("rpn_conv_shared", "rpn_conv_shared_1")
        file["conv1"].move("conv1", "conv1_3")
    lines: list[str] = []
    imported(small_file, report=lines.append)
    assert any("nothing left over" in line for line in lines), lines


def rename(old: str, new: str) -> Callable[[h5py.File], None]:
    return lambda file: file.move(old, new)


def replaced(path: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[path]
        file[path] = value

    return change


BIAS = "mrcnn_mask/mrcnn_mask/bias:0"


def python_objects(file: h5py.File) -> None:
    del file[BIAS]
    file.create_dataset(BIAS, data=np.array(["__import__('os')"] * 3, object), dtype=h5py.string_dtype())


def external_data(file: h5py.File) -> None:
    del file[BIAS]
    file.create_dataset(BIAS, (3,), "f4", external=[("/etc/passwd", 0, 12)])


def virtual_data(file: h5py.File) -> None:
    del file[BIAS]
    source = h5py.VirtualLayout((3,), "f4")
    source[:] = h5py.VirtualSource("other.h5", "data", (3,))
    file.create_virtual_dataset(BIAS, source)


def huge_and_empty(file: h5py.File) -> None:
    del file[BIAS]
    file.create_dataset(BIAS, (2**40,), "f4", chunks=(1024,))


def bomb(file: h5py.File) -> None:
    del file[BIAS]
    file.create_dataset(BIAS, data=np.zeros(2**22, "f4"), compression="gzip")


def loop(file: h5py.File) -> None:
    file["conv1/again"] = file["/"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.__delitem__("mrcnn_keypoint_mask_bn3"), "lacks 4 of the network's"),
        (lambda f: [f.__delitem__(name) for name in list(f) if "keypoint" in name], "Mask R-CNN for objects .3 classes"),
        (lambda f: [f.__delitem__(n) for n in list(f) if not n.startswith(("conv1", "res", "bn"))], "a ResNet alone"),
        (lambda f: [f.__delitem__(name) for name in list(f) if name.startswith("fpn")], "no fpn_c5p5"),
        (replaced("conv1/conv1/kernel:0", np.zeros((7, 7, 4, 4), "f4")), "do not fit each other .conv1/kernel"),
        (
            replaced("mrcnn_bbox_fc/mrcnn_bbox_fc/bias:0", np.full(12, np.nan, "f4")),
            "mrcnn_bbox_fc/bias has values that are not",
        ),
        (replaced(BIAS, h5py.SoftLink("/conv1")), "is a link to another place"),
        (replaced(BIAS, h5py.ExternalLink("/etc/hostname", "/")), "is a link to another file"),
        (python_objects, "not numbers"),
        (external_data, "data from other files"),
        (virtual_data, "data from other files"),
        (huge_and_empty, "bytes than|no tensor of this network"),
        (bomb, "announce more bytes"),
        (rename("conv1", "conv9"), "has no conv1/kernel"),
    ],
)
def test_what_is_refused(small_file: Path, change: Callable[[h5py.File], None], said: str) -> None:
    with h5py.File(small_file, "a") as file:
        change(file)
    with pytest.raises(UserError, match=said) as caught:
        imported(small_file, report=quiet)
    assert str(caught.value).startswith(f"{small_file}: ")
    assert "\n" not in str(caught.value)


def test_a_group_that_contains_itself_is_entered_once(small_file: Path) -> None:
    with h5py.File(small_file, "a") as file:
        loop(file)
    lines: list[str] = []
    imported(small_file, report=lines.append)
    assert any("nothing left over" in line for line in lines), lines


def test_two_tensors_of_one_meaning(small_file: Path) -> None:
    with h5py.File(small_file, "a") as file:
        file["conv1/other/kernel:0"] = np.zeros((7, 7, 3, 4), "f4")
    with pytest.raises(UserError, match="both stand for conv1/kernel"):
        imported(small_file, report=quiet)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated(small_file: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "truncated.h5"
    content = small_file.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"truncated.h5: (is empty|truncated|not an \.h5 file|damaged)"):
        imported(path, report=quiet)


def test_no_file_and_a_directory_in_use(tmp_path: Path, small_file: Path) -> None:
    with pytest.raises(UserError, match="no such file of weights"):
        imported(tmp_path / "none.h5", report=quiet)
    with pytest.raises(UserError, match="exists already"):
        import_model(small_file, tmp_path, report=quiet)
    with pytest.raises(UserError, match="the file tells the network's sizes"):
        imported(small_file, assignments=["architecture.fpn=8"], report=quiet)


def test_what_a_file_does_not_tell_is_set(small_file: Path) -> None:
    model, _ = imported(small_file, assignments=["inference.score_threshold=0.6", "heads.keypoint_size=7"], report=quiet)
    assert model.config.inference.score_threshold == 0.6
    with pytest.raises(UserError, match="anchors a place"):
        imported(small_file, assignments=["anchors.ratios=[1.0]"], report=quiet)


def test_open_weights_reads_one_tensor_at_a_time(small_file: Path) -> None:
    with open_weights(small_file) as file:
        assert file.shapes == layout.shapes(SMALL)
        assert file.read("conv1/bias").dtype == np.float32


@pytest.mark.campaign
def test_a_full_size_file_takes_less_than_2_gb(tmp_path: Path) -> None:
    """81.5 million values, 326 MB; with TensorFlow itself, which takes about 0.5 GB."""
    path = tmp_path / "full.h5"
    write_network(path, Architecture())
    assert path.stat().st_size > 4 * 81_483_439
    code = """
import runpy
from tests.memory import peak_kib
try:
    runpy.run_module("model.import_weights", run_name="__main__", alter_sys=True)
finally:
    print(peak_kib())
"""
    command = [sys.executable, "-c", code, "--source=matterport", f"--weights={path}", f"--model_dir={tmp_path / 'model'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.splitlines()[-1])
    assert 500_000 < peak < 2_000_000_000 / 1024, f"{peak} KiB"
    assert (tmp_path / "model" / "config.json").exists()
