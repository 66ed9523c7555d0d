"""The configuration of the old network: its sizes, which its file of weights tells, and how it answers.

A model directory of the old network has a `config.json` with `"network": "matterport"` as its first field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pipeline import config_overrides
from pipeline.command import UserError

STAGES = (2, 3, 4, 5)  # C2…C5
STRIDES = (4, 8, 16, 32, 64)  # of P2…P6
CANVAS_MULTIPLE = 64  # the stride of P6: the levels of a smaller canvas would not lie on each other


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the shapes of a file's tensors tell; by default the full-size network.

    Attributes:
      blocks: bottlenecks of the stages C2…C5.
      stem: channels of the first convolution.
      widths, channels: of each stage, channels of its 3×3 convolutions and of its output.
      fpn, rpn: channels of P2…P6, and of the RPN's own convolution.
      anchors: of each place of a level.
      class_channels, class_size: channels of the class head, and places a side that it pools.
      mask_channels, keypoint_channels: of the other two heads.
      classes: the background among them.
      keypoints: their number.
    """

    blocks: tuple[int, ...] = (3, 4, 23, 3)
    stem: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)
    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    fpn: int = 256
    rpn: int = 512
    anchors: int = 3
    class_channels: int = 1024
    class_size: int = 7
    mask_channels: int = 256
    keypoint_channels: int = 512
    classes: int = 2
    keypoints: int = 17


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How images reach the network, and keypoints leave it, in the words of `pipeline.data_config.DataConfig`."""

    resize: Literal["matterport"] = "matterport"
    keypoint_offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """What the backbone sees, and how it normalises, in the words of `model.config.BackboneConfig`."""

    norm: Literal["frozen_batch"] = "frozen_batch"
    norm_epsilon: float = 1e-3
    pixel_mean: tuple[float, ...] = (123.7, 116.8, 103.9)  # RGB, 0…255; the padding is black before it is subtracted


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """One size for each of the levels P2…P6; the original's RPN_ANCHOR_SCALES and RPN_ANCHOR_RATIOS."""

    scales: tuple[int, ...] = (32, 64, 128, 256, 512)  # canvas pixels
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # width over height


@dataclasses.dataclass(frozen=True)
class RpnConfig:
    """Proposals of an image."""

    top_k: int = 6000  # of all levels together, before NMS
    proposals: int = 1000  # after NMS: POST_NMS_ROIS_INFERENCE
    nms_threshold: float = 0.7


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Places a side that the heads pool, which the weights do not tell."""

    mask_size: int = 14
    keypoint_size: int = 7  # 7×7 become 14×14, which are enlarged to 56×56


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How images are resized and which detections are kept."""

    short_edge: int = 800  # pixels; smaller images are enlarged to it, larger ones stay: IMAGE_MIN_DIM
    max_edge: int = 1024  # pixels, the side of the canvas: IMAGE_MAX_DIM
    score_threshold: float = 0.7  # DETECTION_MIN_CONFIDENCE; nobody is below 0.5, where the background is likelier
    nms_threshold: float = 0.3
    max_detections: int = 100
    category_id: int = 1  # of people in COCO's results format


@dataclasses.dataclass(frozen=True)
class MatterportConfig:
    """Everything that decides what the old network is and how it answers."""

    network: Literal["matterport"] = "matterport"
    architecture: Architecture = Architecture()
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RpnConfig = RpnConfig()
    heads: HeadConfig = HeadConfig()
    inference: InferenceConfig = InferenceConfig()

    def __post_init__(self) -> None:
        for section in ("architecture", "anchors", "rpn", "heads", "inference"):
            for field, value in dataclasses.asdict(getattr(self, section)).items():
                for number in value if isinstance(value, tuple) else (value,):
                    if field in ("nms_threshold", "score_threshold"):
                        if not 0 <= number <= 1:
                            raise UserError(f"{section}.{field}={number}: must be between 0 and 1")
                    elif not number > 0 and field != "category_id":
                        raise UserError(f"{section}.{field}={number}: must be above 0")
        for field, length in (("blocks", len(STAGES)), ("widths", len(STAGES)), ("channels", len(STAGES))):
            if len(getattr(self.architecture, field)) != length:
                raise UserError(f"architecture.{field}: must be {length} numbers, one for each stage C2…C5")
        if len(self.anchors.scales) != len(STRIDES):
            raise UserError(
                f"anchors.scales={list(self.anchors.scales)}: must be {len(STRIDES)} sizes, one for each level P2…P6"
            )
        if len(self.anchors.ratios) != self.architecture.anchors:
            raise UserError(
                f"anchors.ratios={list(self.anchors.ratios)}: the weights have {self.architecture.anchors} anchors a place"
            )
        inference = self.inference
        if len(self.backbone.pixel_mean) != 3:
            raise UserError(f"backbone.pixel_mean={list(self.backbone.pixel_mean)}: must be 3 numbers, one for each colour")
        if inference.max_edge % CANVAS_MULTIPLE:
            raise UserError(
                f"inference.max_edge={inference.max_edge}: must be a multiple of {CANVAS_MULTIPLE}, the stride of P6"
            )
        if inference.short_edge > inference.max_edge:
            raise UserError(
                f"inference.short_edge={inference.short_edge}: must be at most inference.max_edge={inference.max_edge}"
            )


def from_json(value: Mapping[str, Any]) -> MatterportConfig:
    """Inverse of `dataclasses.asdict`. Raises: UserError for a field that is unknown or of another type."""
    return config_overrides.from_json(MatterportConfig, value)


def is_matterport(value: Any) -> bool:
    """Whether the content of a `config.json` is one of the old network."""
    return isinstance(value, dict) and value.get("network") == "matterport"
