"""What the tensors of each family's files are called: their names in, paths of this model's variables out.

Each family is recognised by its names:

    torchvision  keypointrcnn_resnet50_fpn, now and before 0.14; classification ResNets, which are the backbone alone
    detectron2   keypoint_rcnn_R_50_FPN and R_101; backbones that its tools/convert-torchvision-to-d2.py made
    caffe2       Detectron2's backbones of ImageNet (MSRA's R-50.pkl), which kept the names of Caffe2
    keras        keras.applications.ResNet50 and ResNet101, the backbone alone
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from model.weights.pickle_reader import RefusedError

Tensors = Mapping[str, NDArray[Any]]

# What PyTorch, Caffe2 and Keras (by name, or by number) call the variables of a linear layer and of a norm.
_LINEAR = {"weight": "kernel", "w": "kernel", "kernel": "kernel", "0": "kernel", "bias": "bias", "b": "bias", "1": "bias"}
_NORM = {
    "weight": "gamma",
    "s": "gamma",
    "gamma": "gamma",
    "0": "gamma",
    "bias": "beta",
    "b": "beta",
    "beta": "beta",
    "1": "beta",
    "running_mean": "mean",
    "moving_mean": "mean",
    "2": "mean",
    "running_var": "variance",
    "moving_variance": "variance",
    "3": "variance",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family names and lays out its tensors.

    Attributes:
      layers: patterns of layers' names, each with the layer of this model that it stands for.
      variable: pattern of what follows a layer's name, with a group `variable`.
      channels_last: whether kernels lie as Keras has them; else as PyTorch.
      background_last: whether the background is the last of the box head's classes; else it is the first.
    """

    name: str
    layers: Sequence[tuple[str, Callable[[re.Match[str]], str]]]
    variable: str = r"\.(?P<variable>weight|bias|running_mean|running_var)"
    channels_last: bool = False
    background_last: bool = False


def _block(match: re.Match[str], first: int = 0) -> str:
    """The bottleneck of stage `match[1]`, which others count from 2, and of block `match[2]`, counted from `first`."""
    return f"backbone.layer{int(match[1]) - 1}.{int(match[2]) - first}"


def _conv(part: str) -> str:
    """A bottleneck's convolution of which others say "conv2", "branch2b" or "2"; the shortcut's has no such number."""
    number = {"branch2a": "1", "branch2b": "2", "branch2c": "3"}.get(part, part[-1] if part != "branch1" else "")
    return f"conv{number}" if number in ("1", "2", "3") else "downsample.0"


def _norm(part: str) -> str:
    """The norm behind `_conv(part)`."""
    conv = _conv(part)
    return "downsample.1" if conv == "downsample.0" else conv.replace("conv", "bn")


TORCHVISION = Family(
    "torchvision",
    (
        (r"(?:backbone\.body\.)?(conv1|bn1|layer\d\.\d+\.(?:conv\d|bn\d|downsample\.[01]))", lambda m: f"backbone.{m[1]}"),
        (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.0)?", lambda m: f"fpn.{m[1]}.{m[2]}"),
        (r"rpn\.head\.conv(?:\.0\.0)?", lambda _: "rpn.conv"),
        (r"rpn\.head\.cls_logits", lambda _: "rpn.objectness"),
        (r"rpn\.head\.bbox_pred", lambda _: "rpn.deltas"),
        (r"roi_heads\.box_head\.fc([67])", lambda m: f"box.fc{int(m[1]) - 5}"),
        (r"roi_heads\.box_predictor\.cls_score", lambda _: "box.class"),
        (r"roi_heads\.box_predictor\.bbox_pred", lambda _: "box.deltas"),
        # Convolutions and ReLUs in turn: the even numbers.
        (r"roi_heads\.keypoint_head\.(\d*[02468])", lambda m: f"keypoint.conv{int(m[1]) // 2}"),
        (r"roi_heads\.keypoint_predictor\.kps_score_lowres", lambda _: "keypoint.deconv"),
    ),
)

DETECTRON2 = Family(
    "detectron2",
    (
        (r"(?:backbone\.bottom_up\.)?stem\.conv1", lambda _: "backbone.conv1"),
        (r"(?:backbone\.bottom_up\.)?stem\.conv1\.norm", lambda _: "backbone.bn1"),
        (r"(?:backbone\.bottom_up\.)?res(\d)\.(\d+)\.(conv\d|shortcut)", lambda m: f"{_block(m)}.{_conv(m[3])}"),
        (r"(?:backbone\.bottom_up\.)?res(\d)\.(\d+)\.(conv\d|shortcut)\.norm", lambda m: f"{_block(m)}.{_norm(m[3])}"),
        (r"backbone\.fpn_lateral(\d)", lambda m: f"fpn.inner.{int(m[1]) - 2}"),
        (r"backbone\.fpn_output(\d)", lambda m: f"fpn.layer.{int(m[1]) - 2}"),
        (r"proposal_generator\.rpn_head\.conv", lambda _: "rpn.conv"),
        (r"proposal_generator\.rpn_head\.objectness_logits", lambda _: "rpn.objectness"),
        (r"proposal_generator\.rpn_head\.anchor_deltas", lambda _: "rpn.deltas"),
        (r"roi_heads\.box_head\.fc([12])", lambda m: f"box.fc{m[1]}"),
        (r"roi_heads\.box_predictor\.cls_score", lambda _: "box.class"),
        (r"roi_heads\.box_predictor\.bbox_pred", lambda _: "box.deltas"),
        (r"roi_heads\.keypoint_head\.conv_fcn(\d+)", lambda m: f"keypoint.conv{int(m[1]) - 1}"),
        (r"roi_heads\.keypoint_head\.score_lowres", lambda _: "keypoint.deconv"),
    ),
    background_last=True,
)

CAFFE2 = Family(
    "caffe2",
    (
        (r"conv1", lambda _: "backbone.conv1"),
        (r"res_conv1_bn", lambda _: "backbone.bn1"),
        (r"res(\d)_(\d+)_(branch1|branch2[abc])", lambda m: f"{_block(m)}.{_conv(m[3])}"),
        (r"res(\d)_(\d+)_(branch1|branch2[abc])_bn", lambda m: f"{_block(m)}.{_norm(m[3])}"),
    ),
    variable=r"_(?P<variable>w|b|s|gamma|beta|running_mean|running_var)",
)

KERAS = Family(
    "keras",
    (
        (r"conv1_conv", lambda _: "backbone.conv1"),
        (r"conv1_bn", lambda _: "backbone.bn1"),
        (r"conv(\d)_block(\d+)_(\d)_conv", lambda m: f"{_block(m, first=1)}.{_conv(m[3])}"),
        (r"conv(\d)_block(\d+)_(\d)_bn", lambda m: f"{_block(m, first=1)}.{_norm(m[3])}"),
    ),
    # "conv1_bn/conv1_bn/gamma:0" in an .h5 file, "conv1_bn/vars/0" in .weights.h5.
    variable=r"/\w+/(?P<variable>kernel|bias|gamma|beta|moving_mean|moving_variance|[0-3])(?::0)?",
    channels_last=True,
)

FAMILIES = (TORCHVISION, DETECTRON2, CAFFE2, KERAS)


def renamed(tensors: Tensors, family: Family) -> tuple[dict[str, NDArray[Any]], dict[str, str], list[str]]:
    """Sorts a file's tensors by the paths of this model's variables, laid out as the file has them.

    Returns:
      The tensors by path; the file's name of each; the names that stand for no variable.

    Raises:
      RefusedError: two tensors of one meaning.
    """
    by_path: dict[str, NDArray[Any]] = {}
    names: dict[str, str] = {}
    left_over: list[str] = []
    layers = [(re.compile(pattern + family.variable), layer) for pattern, layer in family.layers]
    for name, tensor in tensors.items():
        bare = name.removeprefix("module.").removeprefix("model_weights/")  # saved from DataParallel; a whole Keras model
        found = ((match, layer) for pattern, layer in layers if (match := pattern.fullmatch(bare)))
        match, layer = next(found, (None, None))
        if match is None or layer is None:
            left_over.append(name)
            continue
        path = _path(layer(match), match["variable"])
        if path in names:
            raise RefusedError(f"the tensors {names[path]} and {name} both stand for {path}: which of them is meant?")
        by_path[path], names[path] = tensor, name
    return by_path, names, left_over


def _path(layer: str, variable: str) -> str:
    is_norm = re.search(r"\.(bn\d|downsample\.1)$", layer)
    return f"{layer}/{(_NORM if is_norm else _LINEAR).get(variable, variable)}"


def recognise(tensors: Tensors) -> Family:
    """The family whose names most of the tensors have. Raises: RefusedError if no family knows one of them."""
    counts = [len(renamed(tensors, family)[0]) for family in FAMILIES]
    if not any(counts):
        raise RefusedError(
            f"the names of its {len(tensors)} tensors ({next(iter(tensors))[:80]!a}, …) are not those of torchvision's, "
            "Detectron2's or Keras' ResNets"
        )
    return FAMILIES[counts.index(max(counts))]


def told(left_over: Sequence[str]) -> str:
    """One line that names the tensors for which the model has no variable; counters of batches are only counted."""
    counters = [name for name in left_over if name.endswith("num_batches_tracked")]
    others = [name for name in left_over if name not in set(counters)]
    parts = [f"{len(counters)} × num_batches_tracked"] if counters else []
    parts += [ascii(name)[1:-1][:80] for name in others]  # a file's names may hold anything
    return f"left over: {', '.join(parts)}" if parts else "nothing left over"
