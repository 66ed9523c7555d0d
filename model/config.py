"""The configuration: one tree of frozen dataclasses, presets, and its JSON, which lies beside everything trained or exported.

What the pipeline needs of it (`anchors`, `data`) is defined there. Commands set single values (`config_overrides.override`).
Each section checks its own values when it is made; `Config` checks what concerns two sections. Every check raises `UserError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from model.matterport import config as matterport_config
from model.matterport.config import MatterportConfig
from pipeline import config_overrides
from pipeline.anchors import AnchorConfig
from pipeline.command import UserError
from pipeline.data_config import DataConfig
from pipeline.files import checked_json

Norm = Literal["frozen_batch", "group", "sync_batch"]
STRIDES = (4, 8, 16, 32, 64)  # of P2…P6, whatever the ResNet


def _at_least(least: int, section: str, part: Any, *fields: str) -> None:
    """Checks fields of a section: a number, each of several numbers, or None where the field may be left open."""
    for field in fields:
        value = getattr(part, field)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not number >= least:  # not: NaN is no number
                raise UserError(f"{section}.{field}={number}: must be {least} or more")


def _at_most(most: int, section: str, part: Any, *fields: str) -> None:
    """Checks that fields of a section stay within what any network has: a damaged file may hold any number."""
    for field in fields:
        value = getattr(part, field)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and number > most:
                raise UserError(f"{section}.{field}={number}: must be {most} or less")


def _share(section: str, part: Any, *fields: str) -> None:
    """Checks fields of a section that lie between 0 and 1."""
    for field in fields:
        value = getattr(part, field)
        for number in value if isinstance(value, tuple) else (value,):
            if not 0 <= number <= 1:
                raise UserError(f"{section}.{field}={number}: must be between 0 and 1")


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """ResNet (He et al. 2015) with bottlenecks, and FPN (Lin et al. 2017)."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)  # of the stages C2…C5
    width: int = 64  # channels of the stem and of the first stage's 3×3 convolutions; a stage's output has 4 × as many
    expansion: int = 4
    groups: int = 1  # of the 3×3 convolutions' channels; 32 in ResNeXt 32×8d (Xie et al. 2017), whose `width` is 32 · 8
    # Of the ResNet. "group" where training starts from random weights: frozen statistics need pretrained ones; the pyramid and
    # the keypoint head have it then, too. "sync_batch" trains the norms of pretrained weights; it wants large batches.
    norm: Norm = "frozen_batch"
    # What group norms take their statistics from: the whole canvas, or the image alone, so that no canvas, and no company in a
    # batch, changes an image's features. Models of earlier versions have "canvas".
    group_statistics: Literal["canvas", "image"] = "canvas"
    norm_epsilon: float = 1e-5
    stem_width: int | None = None  # channels of the stem; None: `width`
    stride_in_1x1: bool = False  # a stage's stride lies in its first 1×1 convolution (MSRA's ResNet), else in the 3×3 one
    frozen_stages: int = 0  # parts that are not trained, counted from the pixels: 2 are the stem and C2's stage
    fpn_channels: int = 256
    pixel_order: Literal["RGB", "BGR"] = "RGB"  # of what the network sees; images are RGB everywhere else
    pixel_range: float = 1.0  # full intensity in the units of mean and deviation: 1 or 255
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # in `pixel_order`, as `pixel_std`
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _at_least(1, "backbone", self, "blocks", "width", "expansion", "groups", "stem_width", "fpn_channels")
        _at_most(200, "backbone", self, "blocks", "expansion")
        _at_most(16_384, "backbone", self, "width", "stem_width", "fpn_channels")
        _at_least(0, "backbone", self, "norm_epsilon", "frozen_stages", "pixel_range", "pixel_mean", "pixel_std")
        if self.width % self.groups:
            raise UserError(f"backbone.width={self.width}: must be a multiple of backbone.groups={self.groups}")
        for field, length, owner in (("blocks", 4, "stage C2…C5"), ("pixel_mean", 3, "colour"), ("pixel_std", 3, "colour")):
            values = list(getattr(self, field))
            if len(values) != length:
                raise UserError(f"backbone.{field}={values}: must be {length} numbers, one for each {owner}")
        for field, number in (("pixel_range", self.pixel_range), ("pixel_std", min(self.pixel_std))):
            if number <= 0:
                raise UserError(f"backbone.{field}={number}: pixels are divided by it; it must be above 0")


@dataclasses.dataclass(frozen=True)
class RpnConfig:
    """Region proposal network (Ren et al. 2015), one head shared by all levels."""

    top_k_train: int = 2000  # per level, before NMS
    top_k_test: int = 1000
    # Per image, after NMS: Detectron2's number for keypoints. Its Base-Keypoint-RCNN-FPN.yaml says that 1,000 hurt the box AP.
    proposals_train: int = 1500
    proposals_test: int = 1000
    nms_threshold: float = 0.7
    # Proposals are ranked by their logit, or by its sigmoid as torchvision has it: those of large logits are equal in float32,
    # and the finer level comes first.
    rank_by: Literal["logit", "sigmoid"] = "logit"
    min_size: float = 0.0  # canvas pixels; proposals with a shorter side are dropped, empty ones always
    smooth_l1_beta: float = 0.0  # 0: L1
    # Both losses are divided by the number of anchors sampled per image × images ("sampled"), or by the number of anchors that
    # have a label ("labelled"). The two differ if an image has too few anchors to sample, and if all anchors are taken.
    normalise_by: Literal["sampled", "labelled"] = "sampled"

    def __post_init__(self) -> None:
        _at_least(1, "rpn", self, "top_k_train", "top_k_test", "proposals_train", "proposals_test")
        _at_most(1_000_000, "rpn", self, "top_k_train", "top_k_test", "proposals_train", "proposals_test")
        _at_least(0, "rpn", self, "min_size", "smooth_l1_beta")
        _share("rpn", self, "nms_threshold")


@dataclasses.dataclass(frozen=True)
class RoiAlignConfig:
    """How both heads pool (He et al. 2017)."""

    # Detectron2's ROIAlignV2: place (i, j) lies at ((j + ½) · stride, (i + ½) · stride). Else half a place further up and
    # left, and a RoI is at least one place wide and high.
    aligned: bool = True
    level_tolerance: float = 0.0  # added to the level before it is rounded down: torchvision's 1e-6

    def __post_init__(self) -> None:
        _at_least(0, "roi_align", self, "level_tolerance")


@dataclasses.dataclass(frozen=True)
class BoxHeadConfig:
    """Fast R-CNN's second stage: two fully connected layers on 7×7 features, after `convolutions` 3×3 convolutions."""

    rois: int = 512  # sampled per image in training
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    resolution: int = 7
    sampling_ratio: int = 2  # samples per bin and axis; 0: as many as a bin has places, rounded up (Detectron2's)
    convolutions: int = 0  # with group norm; a head that starts from random weights learns faster with some (Wu & He 2018)
    channels: int = 1024
    smooth_l1_beta: float = 0.5

    def __post_init__(self) -> None:
        _at_least(1, "box_head", self, "rois", "resolution", "channels")
        _at_most(100, "box_head", self, "resolution", "sampling_ratio", "convolutions")
        _at_most(65_536, "box_head", self, "rois", "channels")
        _at_least(0, "box_head", self, "sampling_ratio", "convolutions", "smooth_l1_beta")
        _share("box_head", self, "positive_fraction", "positive_iou")
        if int(self.rois * self.positive_fraction) < 1:
            raise UserError(
                f"box_head.rois={self.rois}, positive_fraction={self.positive_fraction}: their product must be 1 or more"
            )


@dataclasses.dataclass(frozen=True)
class KeypointHeadConfig:
    """Mask R-CNN's keypoint head (He et al. 2017): convolutions on 14×14 features, heatmaps of 56×56."""

    rois: int = 40  # per image of a replica's batch: positives of the whole batch are packed into one buffer of rois × batch
    resolution: int = 14
    sampling_ratio: int = 2  # as the box head's
    convolutions: int = 8
    channels: int = 512
    # What a heatmap is trained for: one place (cross entropy), or the places of a keypoint's mask (`keypoint_head.mask_loss`).
    loss: Literal["softmax", "mask"] = "softmax"

    def __post_init__(self) -> None:
        _at_least(1, "keypoint_head", self, "rois", "resolution", "channels")
        _at_most(100, "keypoint_head", self, "resolution", "sampling_ratio", "convolutions")
        _at_most(65_536, "keypoint_head", self, "rois", "channels")
        _at_least(0, "keypoint_head", self, "sampling_ratio", "convolutions")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Schedule and optimizer: SGD with momentum or AdamW; linear warm-up, two steps down or a cosine."""

    steps: int = 270_000
    global_batch_size: int = 16
    # Parts that a replica computes its share of a batch in, one after the other, for the memory of one: their gradients add up
    # to those of the whole batch (`Learner.gradients`). It costs the backbone's forward pass a second time.
    accumulate: int = 1
    learning_rate: float = 0.02
    # The linear rule (Goyal et al. 2017): `learning_rate` is that of `reference_batch_size`, and grows with the batch.
    scale_learning_rate: bool = False
    reference_batch_size: int = 16
    schedule: Literal["steps", "cosine"] = "steps"
    decay_at: tuple[float, ...] = (7 / 9, 25 / 27)  # shares of `steps` after which the rate falls to a tenth
    warmup_steps: int = 1000
    warmup_factor: float = 0.001
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9  # of SGD; AdamW's β₁
    weight_decay: float = 1e-4  # of kernels: classic L2 for SGD, decoupled for AdamW, of which 0.05 is usual
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    # Of a moving average of the weights, which evaluation and exports then take; 0: none. 0.9998 is usual for long trainings.
    ema_decay: float = 0.0
    clip_norm: float = 0.0  # of the global gradient, after the all-reduce; 0: no clipping
    keypoint_loss_weight: float = 1.0
    # Patterns over variables' paths, such as backbone.layer1.*: those that match are not trained (`freezing.frozen`).
    freeze: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(1, "train", self, "steps", "global_batch_size", "reference_batch_size", "accumulate")
        _at_least(0, "train", self, "learning_rate", "warmup_steps", "warmup_factor", "weight_decay", "clip_norm")
        _at_least(0, "train", self, "keypoint_loss_weight", "seed")
        _at_most(2**63 - 1, "train", self, "seed")
        _at_most(10**9, "train", self, "steps", "warmup_steps")
        _at_most(65_536, "train", self, "global_batch_size", "reference_batch_size", "accumulate")
        _at_least(0, "train", self, "adam_epsilon")
        _share("train", self, "decay_at", "momentum", "adam_beta2", "ema_decay")
        for field in ("ema_decay", "adam_beta2", *(("momentum",) if self.optimizer == "adamw" else ())):
            if getattr(self, field) == 1:
                raise UserError(f"train.{field}=1: a mean that never moves; it must be below 1")

    @property
    def peak_learning_rate(self) -> float:
        """The rate between warm-up and decay, for this batch size."""
        scale = self.global_batch_size / self.reference_batch_size if self.scale_learning_rate else 1.0
        return self.learning_rate * scale


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How images are resized and which detections are kept."""

    short_edge: int = 800
    max_edge: int = 1333
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_size: float = 0.0  # canvas pixels; boxes with a shorter side are dropped, empty ones always
    category_id: int = 1  # of people in COCO's results format; training takes over the one of its records

    def __post_init__(self) -> None:
        _at_least(1, "inference", self, "short_edge", "max_edge", "max_detections")
        _at_least(0, "inference", self, "min_size", "category_id")
        if self.short_edge > self.max_edge:
            raise UserError(
                f"inference.short_edge={self.short_edge}: must be at most inference.max_edge={self.max_edge}, "
                "which would decide alone"
            )
        _share("inference", self, "score_threshold", "nms_threshold")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what a model is, how it is trained and how it answers."""

    preset: str = "r50_fpn"
    anchors: AnchorConfig = dataclasses.field(default_factory=AnchorConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    backbone: BackboneConfig = BackboneConfig()
    rpn: RpnConfig = RpnConfig()
    roi_align: RoiAlignConfig = RoiAlignConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    keypoint_head: KeypointHeadConfig = KeypointHeadConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()

    def __post_init__(self) -> None:
        if self.anchors.strides != STRIDES:
            raise UserError(f"anchors.strides={list(self.anchors.strides)}: must be {list(STRIDES)}, those of the levels P2…P6")
        if self.backbone.norm == "sync_batch" and self.train.accumulate > 1:
            raise UserError(
                f"train.accumulate={self.train.accumulate}: with backbone.norm=sync_batch, statistics are those of the whole "
                "batch, which is not computed at once then; leave one of them out"
            )
        widths = (self.backbone.width, self.backbone.fpn_channels, self.keypoint_head.channels)
        if self.backbone.norm == "group" and any(width % 4 for width in widths):
            raise UserError(
                f"backbone.width, backbone.fpn_channels, keypoint_head.channels = {widths}: for norm=group each must be "
                "a multiple of 4, the channels of a group"
            )


# Follows Detectron2's keypoint_rcnn_R_50_FPN_3x, of which its MODEL_ZOO.md publishes keypoint AP 65.5 and box AP 55.4 on COCO
# val2017, from ImageNet weights, at 0.316 s a step on eight V100 (270,000 steps: 24 hours), with 5.0 GB of memory on each. This
# project has not trained it to the end. (No preset follows torchvision's recipe, which has 2,000 proposals: a model that
# model.import_weights --source=torchvision made has them.)
R50_FPN = Config()
# Follows keypoint_rcnn_R_101_FPN_3x: published keypoint AP 66.1 and box AP 56.4, at 0.390 s a step on eight V100 (29 hours),
# with 6.1 GB on each. This project has not trained it to the end.
R101_FPN = Config(preset="r101_fpn", backbone=BackboneConfig(blocks=(3, 4, 23, 3)))
# Follows keypoint_rcnn_X_101_32x8d_FPN_3x, a ResNeXt: published keypoint AP 66.0 and box AP 57.3, at 0.738 s a step on eight
# V100 (55 hours), with 8.7 GB on each. This project has not trained it.
X101_FPN = Config(
    preset="x101_fpn", backbone=BackboneConfig(blocks=(3, 4, 23, 3), stem_width=64, width=256, expansion=1, groups=32)
)
# For the demo and the tests: learns rendered people in small images from random weights. Measured by scripts/demo.sh: keypoint
# AP 0.618 and box AP 0.546 on 200 unseen images after these 2,800 steps, the whole demo in 14 min 32 s on two CPU cores without
# AVX-512.
# .ci/run runs it with --min_ap=0.58, below which it fails.
TINY = Config(
    preset="tiny",
    # Rendered people have left limbs of warm and right ones of cold colours, which a mirrored image would deny.
    data=DataConfig(short_edges=(192,), max_edge=384, flip=False, max_boxes=32, sampled_anchors=128, num_canvases=1),
    backbone=BackboneConfig(blocks=(1, 1, 2, 2), width=16, norm="group", fpn_channels=32),
    rpn=RpnConfig(top_k_train=200, top_k_test=200, proposals_train=200, proposals_test=100),
    box_head=BoxHeadConfig(rois=32, sampling_ratio=1, convolutions=2, channels=128),
    # Few RoIs: 6 an image learned as fast as 10 (keypoint loss after 200 steps 6.27 and 6.28). Few, wide convolutions: after
    # 934 steps the keypoint loss was 4.10 with three of 128 channels, 4.27 with four of 64, 4.46 with six of 64.
    keypoint_head=KeypointHeadConfig(rois=5, sampling_ratio=1, convolutions=3, channels=128),
    train=TrainConfig(
        steps=2800,
        global_batch_size=4,
        reference_batch_size=4,
        learning_rate=0.05,
        schedule="cosine",
        warmup_steps=100,
        warmup_factor=0.01,
        clip_norm=10.0,
    ),
    inference=InferenceConfig(short_edge=192, max_edge=384, max_detections=20),
)
PRESETS: Mapping[str, Config] = {config.preset: config for config in (TINY, R50_FPN, R101_FPN, X101_FPN)}


def preset(name: str) -> Config:
    """The preset of that name. Raises: UserError, which lists the names."""
    if name not in PRESETS:
        raise UserError(f"--preset={name}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]


AnyConfig = Config | MatterportConfig  # of a model that answers; only the first is trained


def to_json(config: AnyConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_json(value: Mapping[str, Any]) -> Config:
    """Inverse of `to_json`. A missing field, which an earlier version did not know, has its default: that is what this version
    did. Raises: UserError for a field that is unknown or of another type.
    """
    return config_overrides.from_json(Config, value)


def load(path: Path) -> Config:
    """Reads the `config.json` of a Keypoint R-CNN. Raises: UserError if the file is none."""
    config = load_any(path)
    if isinstance(config, MatterportConfig):
        raise UserError(f"{path}: of the old network, which is not trained; --init={path.parent} starts a new model from it")
    return config


def any_from_json(value: Any) -> AnyConfig:
    """The configuration of whichever network; as `from_json`."""
    return matterport_config.from_json(value) if matterport_config.is_matterport(value) else from_json(value)


def load_any(path: Path) -> AnyConfig:
    """Reads a `config.json` of whichever network. Raises: UserError if the file is none."""
    return checked_json(
        path, "not a configuration", any_from_json, remedy="name a directory that model.train or model.import_weights wrote"
    )
