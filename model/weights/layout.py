"""Reads the model's size off a file's tensors, and turns, cuts and reorders each tensor into a variable's value.

Layouts, PyTorch's → Keras': convolution [out, in, h, w] → [h, w, in, out]; deconvolution [in, out, h, w] → [h, w, out, in];
fully connected [out, in] → [in, out], and behind a flattening of [C, h, w] to one of [h, w, C].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.weights.families import Architecture
from model.weights.names import KERAS, Family, Tensors
from model.weights.pickle_reader import RefusedError

STAGES = 4
MOST_BLOCKS = 200  # of a stage; ResNet-152 has 36, and a file can name as many as it likes
MOST_TIMES_SHARED = 4  # bytes of all variables over those of a file's tensors: one tensor may stand for a few layers


def backbone_architecture(tensors: Tensors, *, channels_last: bool = False) -> Architecture:
    """The size of the ResNet in a file, all else by default.

    Args:
      tensors: by path, laid out as the file has them.
      channels_last: whether kernels lie as Keras has them.

    Raises:
      RefusedError: no ResNet with bottlenecks, or only a part of one.
    """

    def out_in(layer: str) -> tuple[int, int]:
        kernel = _find(tensors, f"backbone.{layer}/kernel", 4)
        return (kernel.shape[3], kernel.shape[2]) if channels_last else (kernel.shape[0], kernel.shape[1])

    stem_width, colours = out_in("conv1")
    if colours != 3:
        raise RefusedError(f"its first convolution takes {colours} channels; an image has 3")
    blocks = tuple(_count(tensors, f"backbone.layer{stage}.{{}}.conv1/kernel") for stage in range(1, STAGES + 1))
    if 0 in blocks:
        raise RefusedError(f"its stages C2…C5 have {blocks} blocks; each needs one or more")
    if max(blocks) > MOST_BLOCKS:
        raise RefusedError(f"its stages C2…C5 have {blocks} blocks; {MOST_BLOCKS} are the most that is read")
    if "backbone.layer1.0.conv3/kernel" not in tensors:
        raise RefusedError("its blocks have two convolutions (ResNet-18 or 34); this model's have three (ResNet-50 and deeper)")
    width, per_group = out_in("layer1.0.conv2")
    if width % per_group:
        raise RefusedError(f"its first 3×3 convolution turns {per_group} channels into {width}, which makes no whole groups")
    channels = out_in("layer1.0.conv3")[0]
    if channels % width:
        raise RefusedError(f"its first stage has {channels} channels, no multiple of the {width} of its 3×3 convolutions")
    return Architecture(
        blocks=blocks, stem_width=stem_width, width=width, expansion=channels // width, groups=width // per_group
    )


def architecture(tensors: Tensors) -> Architecture:
    """The sizes of a whole Keypoint R-CNN in PyTorch's layout, as `backbone_architecture` reads those of a backbone."""
    convolutions = _count(tensors, "keypoint.conv{}/kernel")
    if convolutions > MOST_BLOCKS:
        raise RefusedError(f"its keypoint head has {convolutions} convolutions; {MOST_BLOCKS} are the most that is read")
    return dataclasses.replace(
        backbone_architecture(tensors),
        fpn_channels=_find(tensors, "fpn.inner.0/kernel", 4).shape[0],
        box_channels=_find(tensors, "box.fc1/kernel", 2).shape[0],
        keypoint_convolutions=convolutions,
        keypoint_channels=_find(tensors, "keypoint.conv0/kernel", 4).shape[0],
    )


def num_keypoints(tensors: Tensors) -> int:
    return int(_find(tensors, "keypoint.deconv/kernel", 4).shape[1])


def _find(tensors: Tensors, path: str, dimensions: int) -> NDArray[Any]:
    if path not in tensors:
        raise RefusedError(f"has no tensor for {path}: another architecture, or only a part of a file")
    if tensors[path].ndim != dimensions or 0 in tensors[path].shape:
        raise RefusedError(f"its tensor for {path} has the shape {tensors[path].shape}; {dimensions} sizes were expected")
    return tensors[path]


def _count(tensors: Tensors, pattern: str) -> int:
    count = 0
    while pattern.format(count) in tensors:
        count += 1
    return count


def complete(tensors: Tensors, family: Family, norm_epsilon: float) -> dict[str, NDArray[Any]]:
    """Brings norms into this model's form: four variables each, and no bias before them.

    Caffe2's older files have norms that are an affine function alone: they get statistics that change nothing. Keras'
    convolutions have biases: a norm subtracts its mean, so the mean takes them in.
    """
    made = dict(tensors)
    for path, gamma in tensors.items():
        layer, _, variable = path.partition("/")
        if variable == "gamma" and f"{layer}/mean" not in tensors and f"{layer}/variance" not in tensors:
            made[f"{layer}/mean"] = np.zeros_like(gamma)
            made[f"{layer}/variance"] = np.full_like(gamma, 1.0 - norm_epsilon)
    for path, bias in tensors.items() if family is KERAS else ():
        layer, _, variable = path.partition("/")
        mean = f"{layer.replace('conv', 'bn').replace('downsample.0', 'downsample.1')}/mean"
        if variable == "bias" and mean in made and made[mean].shape == bias.shape:
            made[mean] = made[mean] - bias
            del made[path]
    return made


def values(
    tensors: Tensors,
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
    *,
    box_resolution: int = 7,
) -> dict[str, NDArray[np.float32]]:
    """Values of the model's variables.

    Args:
      tensors: from `complete`; those that `shapes` lacks are left aside.
      shapes: of the variables to be filled, by path.
      names: the file's name of each tensor, for messages.
      box_resolution: sides of what the box head flattens.

    Raises:
      RefusedError: a variable that stays empty, a shape that does not fit, or a value that is not finite.
    """
    missing = [path for path in shapes if path not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RefusedError(f"has no tensor for {missing[0]}{more}: another architecture, or only a part of a file")
    used = {id(tensors[path]): tensors[path].size for path in shapes}
    if sum(tensors[path].size for path in shapes) > MOST_TIMES_SHARED * sum(used.values()) + 2**18:
        raise RefusedError("refused: a few of its tensors stand for many layers")
    filled = {}
    for path, shape in shapes.items():
        value = _value(path, tensors[path], family, box_resolution)
        if value.shape != shape:
            raise RefusedError(
                f"{names.get(path, path)} has the shape {tensors[path].shape}, here {value.shape}, where {path} has {shape}"
            )
        if not np.isfinite(value).all():
            raise RefusedError(f"{names.get(path, path)} has values that are not finite: a training that went wrong?")
        filled[path] = np.ascontiguousarray(value, np.float32)
    return filled


def _value(path: str, tensor: NDArray[Any], family: Family, box_resolution: int) -> NDArray[Any]:
    layer, _, variable = path.partition("/")
    if layer == "box.class":
        if len(tensor) != 2:
            raise RefusedError(
                f"tells {len(tensor)} classes apart, the background among them; this model knows it and one other"
            )
        tensor = tensor[::-1] if family.background_last else tensor
    if layer == "box.deltas" and len(tensor) == 8:  # torchvision's, one box a class: nobody looks at the background's
        tensor = tensor[4:]
    if variable != "kernel" or family.channels_last:
        return tensor
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    places = box_resolution**2
    if layer == "box.fc1" and tensor.ndim == 2 and tensor.shape[1] % places == 0:
        by_channel = tensor.reshape(len(tensor), -1, places)  # [out, C, S · S]
        return by_channel.transpose(2, 1, 0).reshape(-1, len(tensor))  # [S · S · C, out]
    return tensor.T
