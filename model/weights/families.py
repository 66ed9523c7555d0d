"""Configurations of the published families: models whose files this project reads, and how they differ from its own presets.

What both families share with the presets needs no field: deltas' weights and clamp, the order of anchors and of deltas, P6 =
every second place of P5, top-k and NMS within each level, heatmaps by a 4×4 deconvolution and bilinear × 2, keypoint targets
and loss. `layout.values` puts the box head's columns in this model's order: background, person, and deltas of the person
only (torchvision has deltas of the background, too; Detectron2 has the background last).
"""

from __future__ import annotations

import dataclasses

from model.config import (
    BackboneConfig,
    BoxHeadConfig,
    Config,
    InferenceConfig,
    KeypointHeadConfig,
    RoiAlignConfig,
    RpnConfig,
)
from pipeline.anchors import AnchorConfig
from pipeline.data_config import DataConfig


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the shapes of a file's tensors tell; by default the full-size ResNet-50.

    Attributes:
      blocks: bottlenecks of the stages C2…C5.
      stem_width, width: channels of the stem, and of the first stage's 3×3 convolutions.
      expansion: a stage's channels over those of its 3×3 convolutions.
      groups: of the channels of the 3×3 convolutions; above 1 in a ResNeXt.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stem_width: int = 64
    width: int = 64
    expansion: int = 4
    groups: int = 1
    fpn_channels: int = 256
    box_channels: int = 1024
    keypoint_convolutions: int = 8
    keypoint_channels: int = 512


def torchvision(architecture: Architecture = Architecture(), *, norm_epsilon: float = 1e-5) -> Config:
    """As torchvision's `keypointrcnn_resnet50_fpn` (torchvision/models/detection, 0.29), of any size.

    Args:
      norm_epsilon: 0 for the published COCO_V1 file, for which torchvision sets it so after loading.
    """
    return Config(
        preset="torchvision",
        anchors=AnchorConfig(canvas_strides=True),
        data=DataConfig(resize="torchvision", anchors="online"),  # its grid depends on the canvas: no record has it
        backbone=dataclasses.replace(_backbone(architecture), norm_epsilon=norm_epsilon),
        rpn=RpnConfig(proposals_train=2000, rank_by="sigmoid", min_size=1e-3, smooth_l1_beta=1 / 9, normalise_by="labelled"),
        roi_align=RoiAlignConfig(aligned=False, level_tolerance=1e-6),
        box_head=BoxHeadConfig(channels=architecture.box_channels, smooth_l1_beta=1 / 9),
        keypoint_head=_keypoint_head(architecture),
        inference=InferenceConfig(min_size=1e-2),
    )


# Of Detectron2's ResNeXt, whose file says neither: its configuration keypoint_rcnn_X_101_32x8d_FPN_3x.yaml does.
RESNEXT_PIXEL_STD = (57.375, 57.12, 58.395)


def detectron2(architecture: Architecture = Architecture()) -> Config:
    """As Detectron2's `COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x` (and `R_101`, `X_101_32x8d`), of any size."""
    is_resnext = architecture.groups > 1
    return Config(
        preset="detectron2",
        anchors=AnchorConfig(rounded=False),
        data=DataConfig(resize="detectron2", keypoint_offset=0.5, anchors="online"),
        backbone=dataclasses.replace(
            _backbone(architecture),
            stride_in_1x1=not is_resnext,
            pixel_order="BGR",
            pixel_range=255.0,
            pixel_mean=(103.53, 116.28, 123.675),
            pixel_std=RESNEXT_PIXEL_STD if is_resnext else (1.0, 1.0, 1.0),
        ),
        rpn=RpnConfig(proposals_train=1500),
        box_head=BoxHeadConfig(sampling_ratio=0, channels=architecture.box_channels),
        keypoint_head=dataclasses.replace(_keypoint_head(architecture), sampling_ratio=0),
    )


def _backbone(architecture: Architecture) -> BackboneConfig:
    return BackboneConfig(
        blocks=architecture.blocks,
        stem_width=architecture.stem_width,
        width=architecture.width,
        expansion=architecture.expansion,
        groups=architecture.groups,
        fpn_channels=architecture.fpn_channels,
        frozen_stages=2,
    )


def _keypoint_head(architecture: Architecture) -> KeypointHeadConfig:
    return KeypointHeadConfig(convolutions=architecture.keypoint_convolutions, channels=architecture.keypoint_channels)
