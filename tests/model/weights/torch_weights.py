"""State dicts of small Keypoint R-CNNs with random values, under the names that torchvision and Detectron2 give them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[Any]]
STEM, WIDTH, PYRAMID, BOX, KEYPOINT = 6, 4, 8, 10, 12  # channels, all different
BLOCKS = (1, 2, 1, 1)
CONVOLUTIONS = 2


def blocks() -> Iterator[tuple[int, int, int, int, int]]:
    """Stage from 0, block, channels in, inner channels, channels out."""
    channels = STEM
    for stage, count in enumerate(BLOCKS):
        for block in range(count):
            yield stage, block, channels, WIDTH * 2**stage, 4 * WIDTH * 2**stage
            channels = 4 * WIDTH * 2**stage


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    random = np.random.default_rng(seed)
    state = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: abs(value) + 0.5 if name.endswith("running_var") else value for name, value in state.items()}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{variable}": (channels,) for variable in ("weight", "bias", "running_mean", "running_var")}


def linear(name: str, *shape: int, bias: int | None = None) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0] if bias is None else bias,)}


def torchvision_resnet(prefix: str = "", groups: int = 1) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}conv1.weight": (STEM, 3, 7, 7), **norm(f"{prefix}bn1", STEM)}
    for stage, block, before, inner, after in blocks():
        name = f"{prefix}layer{stage + 1}.{block}"
        convolutions = {"conv1": (inner, before, 1, 1), "conv2": (inner, inner // groups, 3, 3), "conv3": (after, inner, 1, 1)}
        for number, (conv, shape) in enumerate(convolutions.items(), 1):
            shapes |= {f"{name}.{conv}.weight": shape, **norm(f"{name}.bn{number}", shape[0])}
        if block == 0:
            shapes |= {f"{name}.downsample.0.weight": (after, before, 1, 1), **norm(f"{name}.downsample.1", after)}
    return shapes


def torchvision_state(keypoints: int = 17, classes: int = 2, groups: int = 1) -> State:
    shapes = torchvision_resnet("backbone.body.", groups)
    for level in range(4):
        shapes |= linear(f"backbone.fpn.inner_blocks.{level}.0", PYRAMID, 4 * WIDTH * 2**level, 1, 1)
        shapes |= linear(f"backbone.fpn.layer_blocks.{level}.0", PYRAMID, PYRAMID, 3, 3)
    shapes |= linear("rpn.head.conv.0.0", PYRAMID, PYRAMID, 3, 3)
    shapes |= linear("rpn.head.cls_logits", 3, PYRAMID, 1, 1) | linear("rpn.head.bbox_pred", 12, PYRAMID, 1, 1)
    shapes |= linear("roi_heads.box_head.fc6", BOX, 49 * PYRAMID) | linear("roi_heads.box_head.fc7", BOX, BOX)
    shapes |= linear("roi_heads.box_predictor.cls_score", classes, BOX)
    shapes |= linear("roi_heads.box_predictor.bbox_pred", 4 * classes, BOX)
    for layer in range(CONVOLUTIONS):
        shapes |= linear(f"roi_heads.keypoint_head.{2 * layer}", KEYPOINT, KEYPOINT if layer else PYRAMID, 3, 3)
    shapes |= linear("roi_heads.keypoint_predictor.kps_score_lowres", KEYPOINT, keypoints, 4, 4, bias=keypoints)
    return random_state(shapes)


def detectron2_state(state: State) -> State:
    """The same model in Detectron2's names, with its order of classes and one box for all of them."""
    made: State = {}
    for name, value in state.items():
        part = name.removeprefix("backbone.body.")
        if part != name:
            if part.startswith("layer"):
                stage, block, layer, variable = part.split(".", 3)
                stem = f"res{int(stage[-1]) + 1}.{block}."
            else:
                (layer, variable), stem = part.split(".", 1), "stem."
            if layer == "downsample":
                number, variable = variable.split(".")
                layer = "shortcut" if number == "0" else "shortcut.norm"
            layer = f"conv{layer[-1]}.norm" if layer.startswith("bn") else layer
            made[f"backbone.bottom_up.{stem}{layer}.{variable}"] = value
            continue
        if "inner_blocks" in name or "layer_blocks" in name:
            _, _, kind, level, _, variable = name.split(".")
            made[f"backbone.fpn_{'lateral' if kind == 'inner_blocks' else 'output'}{int(level) + 2}.{variable}"] = value
            continue
        if "cls_score" in name:
            value = value[::-1]
        if "box_predictor.bbox_pred" in name:
            value = value[4:]
        for before, after in (
            ("rpn.head.conv.0.0", "proposal_generator.rpn_head.conv"),
            ("rpn.head.cls_logits", "proposal_generator.rpn_head.objectness_logits"),
            ("rpn.head.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"),
            ("box_head.fc6", "box_head.fc1"),
            ("box_head.fc7", "box_head.fc2"),
            ("keypoint_head.0", "keypoint_head.conv_fcn1"),
            ("keypoint_head.2", "keypoint_head.conv_fcn2"),
            ("keypoint_predictor.kps_score_lowres", "keypoint_head.score_lowres"),
        ):
            name = name.replace(before, after)
        made[name] = value
    return made


def without_groups(state: State) -> State:
    """The same model with ordinary 3×3 convolutions, whose kernels are zero between channels of different groups."""
    made = dict(state)
    for name, kernel in state.items():
        if name.endswith("conv2.weight") and kernel.shape[0] != kernel.shape[1]:
            channels, per_group = kernel.shape[:2]
            made[name] = np.zeros((channels, channels, *kernel.shape[2:]), kernel.dtype)
            for first in range(0, channels, per_group):
                group = slice(first, first + per_group)
                made[name][group, group] = kernel[group]
    return made
