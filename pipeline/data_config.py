"""What training batches are made of: the configuration that loader and model share, and the constants of the batch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pipeline.command import UserError

PADDING, PERSON, CROWD = 0, 1, 2  # values of `box_kind`
CROWD_SHARE = 0.7  # an anchor or RoI with this share of its area inside a crowd's box is never a negative
# Both sides of a canvas are multiples of the stride of the backbone's last stage: a smaller canvas would lose the last row or
# column of a level.
CANVAS_MULTIPLE = 32
MAX_PIXELS = 1 << 26  # of an image that is decoded: a file's header may promise more than any memory holds

# How a family of models resizes images, in training, evaluation and exports alike. Sizes are computed by
# `resized_size`, pixels by `image.resize`. All are bilinear with half-pixel centres.
#   standard: sides rounded half up; no antialiasing; pixels rounded to bytes, a quarter of the traffic to the device.
#   torchvision: sides rounded down; no antialiasing; pixels stay floats.
#   detectron2: sides rounded half up, in two steps; Pillow's antialiasing of bytes, which costs 6.5 to 8.6 times as much.
#   matterport: only images whose shorter side is too small are enlarged; sides rounded half to even; Pillow's antialiasing.
ResizeRule = Literal["standard", "torchvision", "detectron2", "matterport"]

AnchorSource = Literal["precomputed", "online"]
ResizeOn = Literal["auto", "host", "device"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What training batches are made of.

    Attributes:
      short_edges: pixels; each image draws one of them in each epoch.
      max_edge: pixels that the longer side has at most.
      resize: the family's rule, for training, evaluation and exports alike.
      resize_on: where training resizes its images. "host": while loading. "device": the loader ships the file's own pixels, and
        the training step flips, resizes and places them, to the same pixels within one level (docs/LOADER.md). "auto": the
        device if it is a GPU, else the host.
      keypoint_offset: pixels of the file that are added to x and y of keypoints on their way in, and taken off again on their
        way out: 0.5 in Detectron2, which takes COCO's coordinates for indices of pixels.
      anchors: where the matching of anchors comes from. "precomputed": from the records, which hold it for their own short
        edges, max_edge and anchors, and the standard resize rule. "online": computed while loading, for any of these, with the
        same answer where the records hold one; it takes 0.4 ms of a core more an image (benchmarks/README.md).
      flip: whether half of the images are mirrored.
      brightness, contrast, saturation, hue: strengths of the colour jitter of `augment.jitter_colours`, as torchvision's
        ColorJitter takes them (0.4, 0.4, 0.4, 0.1 are usual); 0: none.
      jitter_canvas: pixels of the side of one square canvas, a multiple of 32, for large-scale jitter in place of `short_edges`
        and `max_edge`: each image's longer side is resized to the canvas times a scale drawn evenly from `jitter_scales`, and
        what is larger than the canvas is cropped at random (Ghiasi et al. 2021, with 1024 and 0.1…2; for schedules of a
        hundred epochs and more). It needs anchors = "online". 0: no jitter.
      jitter_scales: the smallest and the largest scale.
      max_boxes: G, boxes that an image has at most; if it has more, the largest stay.
      sampled_anchors: A, anchors per image for the loss of the RPN.
      positive_fraction: largest share of positives among them.
      num_canvases: sizes of batches. Each costs a trace and, under XLA, a compilation. On COCO, at six short edges between 640
        and 800, four leave 19 % padding, six 14 %, eight 11 %, twelve 8 %; at 800 alone six leave 4 %.
      require_keypoints: whether training leaves out images without a labelled keypoint.
    """

    short_edges: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_edge: int = 1333
    resize: ResizeRule = "standard"
    resize_on: ResizeOn = "auto"
    keypoint_offset: float = 0.0
    anchors: AnchorSource = "precomputed"
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_canvas: int = 0
    jitter_scales: tuple[float, ...] = (0.1, 2.0)
    max_boxes: int = 100
    sampled_anchors: int = 256
    positive_fraction: float = 0.5
    num_canvases: int = 6
    require_keypoints: bool = True

    def __post_init__(self) -> None:
        if not self.short_edges or len(set(self.short_edges)) != len(self.short_edges) or min(self.short_edges) < 1:
            raise UserError(f"data.short_edges={list(self.short_edges)}: must be one or more numbers of pixels, each once")
        if self.max_edge < max(self.short_edges):
            raise UserError(f"data.max_edge={self.max_edge}: must be at least the largest short edge, {max(self.short_edges)}")
        if self.num_canvases < 1 or self.max_boxes < 1 or self.sampled_anchors < 1:
            raise UserError(
                f"data.num_canvases={self.num_canvases}, data.max_boxes={self.max_boxes}, "
                f"data.sampled_anchors={self.sampled_anchors}: must be at least 1 each"
            )
        if not 0 <= self.keypoint_offset < 1:
            raise UserError(f"data.keypoint_offset={self.keypoint_offset}: must be pixels from 0 to below 1")
        if not 0 <= self.positive_fraction <= 1:
            raise UserError(f"data.positive_fraction={self.positive_fraction}: must be a share from 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if not getattr(self, name) >= 0:
                raise UserError(
                    f"data.{name}={getattr(self, name)}: must be a strength of 0 or more; 0.4 draws factors from 0.6 to 1.4"
                )
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"data.hue={self.hue}: must be a part of the circle from 0 to 0.5")
        if self.jitter_canvas < 0 or self.jitter_canvas % CANVAS_MULTIPLE:
            raise UserError(
                f"data.jitter_canvas={self.jitter_canvas}: must be a multiple of {CANVAS_MULTIPLE} pixels, or 0 for no jitter"
            )
        if self.jitter_canvas and self.anchors != "online":
            raise UserError(
                f"data.jitter_canvas={self.jitter_canvas}: records hold no anchors for crops; add data.anchors=online"
            )
        scales = self.jitter_scales
        if len(scales) != 2 or not 0 < scales[0] <= scales[1] <= 8:
            raise UserError(f"data.jitter_scales={list(scales)}: must be two numbers, 0 < smallest ≤ largest ≤ 8")


def resized_size(height: int, width: int, short_edge: int, max_edge: int, rule: ResizeRule = "standard") -> tuple[int, int]:
    """Size of an image whose short edge becomes `short_edge`, unless its long edge would then exceed `max_edge`.

    torchvision rounds down (and may end one pixel short of `short_edge`); Detectron2 scales to the short edge first and then,
    if need be, to the long one; matterport never makes an image smaller than it is unless its long edge asks for it.
    """
    if rule == "matterport":
        scale = max(1.0, short_edge / min(height, width))
        if round(max(height, width) * scale) > max_edge:
            scale = max_edge / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    if rule == "detectron2":
        scale = short_edge / min(height, width)
        resized = tuple(short_edge if side == min(height, width) else side * scale for side in (height, width))
        if max(resized) > max_edge:
            again = max_edge / max(resized)
            resized = tuple(side * again for side in resized)
    else:
        scale = min(short_edge / min(height, width), max_edge / max(height, width))
        resized = (height * scale, width * scale)
    half = 0.0 if rule == "torchvision" else 0.5
    return max(1, int(resized[0] + half)), max(1, int(resized[1] + half))
