"""The way on: a new network's training starts from the old one's backbone and pyramid.

The old biases have no place in the new backbone: a norm subtracts its mean, so the mean takes them in. The old stem pools from
the top left corner, the new one from one place before; the features are otherwise the same, and training learns the difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.config import Config
from model.matterport import layout
from model.matterport.config import STAGES, Architecture
from model.matterport.network import MaskRCNN
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline.command import UserError

FROZEN_STAGES = 2  # as for other backbones: the stem and C2's stage stay as they are
NAMED = 6  # variables that a line names one by one
_NORM = {"gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "variance"}


@dataclasses.dataclass(frozen=True)
class OldNetwork:
    """A model directory of the old network, as a `training.starting_point.StartingPoint`."""

    path: Path
    model: MaskRCNN
    source: Mapping[str, Any]

    def adapt(self, config: Config) -> Config:
        """The configuration with this backbone's and pyramid's sizes, and the backbone's colours, norms and strides.

        Raises:
          UserError: stages that the new backbone cannot have.
        """
        size = self.model.config.architecture
        expansion, rest = divmod(size.channels[0], size.widths[0])
        widths = tuple(size.widths[0] * 2**i for i in range(len(STAGES)))
        if rest or size.widths != widths or size.channels != tuple(width * expansion for width in widths):
            raise UserError(
                f"--init={self.path}: its stages have {list(size.widths)} and {list(size.channels)} channels; those of the new "
                "backbone double from stage to stage"
            )
        backbone = dataclasses.replace(
            config.backbone,
            blocks=size.blocks,
            width=size.widths[0],
            stem_width=size.stem,
            expansion=expansion,
            groups=1,
            fpn_channels=size.fpn,
            norm="frozen_batch",
            norm_epsilon=self.model.config.backbone.norm_epsilon,
            stride_in_1x1=True,
            frozen_stages=FROZEN_STAGES,
            pixel_order="RGB",
            pixel_range=255.0,
            pixel_mean=self.model.config.backbone.pixel_mean,
            pixel_std=(1.0, 1.0, 1.0),
        )
        return dataclasses.replace(config, backbone=backbone)

    def fill(self, model: KeypointRCNN) -> str:
        """Gives the model the values whose shapes agree. Returns what was taken and what was not.

        Raises:
          UserError: nothing fits.
        """
        variables = model.variables_by_path()
        values = backbone_and_pyramid(self.model)
        taken = [path for path, value in values.items() if path in variables and tuple(variables[path].shape) == value.shape]
        other = [path for path in values if path not in taken]
        if not taken:
            raise UserError(f"--init={self.path}: nothing of its backbone and pyramid fits; leave their sizes as they are")
        for path in taken:
            variables[path].assign(values[path])
        heads = [name for name in self.model.variables_by_path() if name.startswith(("rpn_", "mrcnn_"))]
        anew = [path for path in variables if path not in taken]
        parts = {part: sum(path.startswith(f"{part}.") for path in taken) for part in ("backbone", "fpn")}
        return (
            f"{parts['backbone']} variables of the backbone and {parts['fpn']} of the pyramid start from {self.path.name}; "
            f"not taken: {_told(other, 'of the same parts, whose shapes differ')}{len(heads)} tensors of its RPN and heads; "
            f"from random weights: {len(anew)} variables ({', '.join(sorted({path.split('.')[0] for path in anew}))})"
        )


def _told(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more} {what}; "


def backbone_and_pyramid(model: MaskRCNN) -> dict[str, npt.NDArray[np.float32]]:
    """The old network's values for the new one's variables, by their paths."""
    old = {name: variable.numpy() for name, variable in model.variables_by_path().items()}
    values: dict[str, npt.NDArray[np.float32]] = {}
    for layer, norm, new_layer, new_norm in _layers(model.config.architecture):
        values[f"{new_layer}/kernel"] = old[f"{layer}/kernel"]
        values |= {f"{new_norm}/{new}": old[f"{norm}/{variable}"] for variable, new in _NORM.items()}
        values[f"{new_norm}/mean"] = old[f"{norm}/moving_mean"] - old[f"{layer}/bias"]
    for level, stage in enumerate(STAGES):
        for layer, new in ((f"fpn_c{stage}p{stage}", f"fpn.inner.{level}"), (f"fpn_p{stage}", f"fpn.layer.{level}")):
            values |= {f"{new}/{variable}": old[f"{layer}/{variable}"] for variable in ("kernel", "bias")}
    return values


def _layers(size: Architecture) -> list[tuple[str, str, str, str]]:
    """The backbone's convolutions: the old names of each and of its norm, and the new ones."""
    layers = [("conv1", "bn_conv1", "backbone.conv1", "backbone.bn1")]
    parts = (("2a", "conv1", "bn1"), ("2b", "conv2", "bn2"), ("2c", "conv3", "bn3"), ("1", "downsample.0", "downsample.1"))
    for stage, blocks in zip(STAGES, size.blocks, strict=True):
        for block in range(blocks):
            old, new = layout.block_name(stage, block), f"backbone.layer{stage - 1}.{block}"
            for branch, convolution, norm in parts if block == 0 else parts[:3]:
                name = f"{old}_branch{branch}"
                layers.append((f"res{name}", f"bn{name}", f"{new}.{convolution}", f"{new}.{norm}"))
    return layers
