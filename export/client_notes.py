"""What a client of an export must know, in one place: for the file beside a TFLite file, an ONNX file and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model import config as config_lib
from model.config import AnyConfig
from model.inference.encoded_images import DAMAGED, NOT_AN_IMAGE, READ, TOO_LARGE
from pipeline.data_config import MAX_PIXELS, ResizeRule
from pipeline.drawing import UNSURE
from pipeline.skeleton import Skeleton

SCORE = 0.5  # from which a person counts by default
STATUS = {
    READ: "read",
    NOT_AN_IMAGE: "neither a JPEG nor a PNG file",
    TOO_LARGE: f"no pixels or more than {MAX_PIXELS} by its header; not decoded",
    DAMAGED: "a damaged file; cannot be decoded",
}
RESIZE: dict[ResizeRule, str] = {
    "standard": "bilinear, half-pixel centres, no antialiasing, rounded half up to bytes",
    "torchvision": "bilinear, half-pixel centres, no antialiasing; where the family keeps floats, round them half up",
    "detectron2": "Pillow's bilinear: half-pixel centres, antialiased where it shrinks, rounded to bytes after each axis",
    "matterport": "as detectron2; an image whose shorter side is large enough is not enlarged",
}
SCORES = (
    "The network's belief that there is a person in the box, 0 to 1. The graph leaves out people below "
    "{threshold:g}; for showing, take {score:g} and more."
)
KEYPOINT_SCORES = (
    "The share of the joint's heatmap (56 × 56 places over the person's box) that lies in its best place. It is no "
    "probability that the joint is there: a heatmap without any idea has 0.0003, a joint that is seen clearly mostly 0.05 to "
    "0.5, and enlargement may lift it above 1. Below {unsure:g} treat a joint as unsure."
)


CLASSES = "int32 [1, D]: 1 is the first of skeleton.classes, which have the names and the category ids; 0 is nobody"


def keypoint_scores_text() -> str:
    return KEYPOINT_SCORES.format(unsure=UNSURE)


def scores_text(config: AnyConfig) -> str:
    return SCORES.format(threshold=config.inference.score_threshold, score=SCORE)


def notes_for_pixels(config: AnyConfig, skeleton: Skeleton) -> dict[str, Any]:
    """What a client of `serve_images` must do and know, as JSON."""
    rule = config.data.resize
    return {
        "input": {
            "name": "images",
            "dtype": "uint8",
            "layout": "[1, height, width, 3], RGB, 0…255",
            "16_bit_images": "keep the upper 8 bits",
            "stored_rotation": "the caller turns an image by its EXIF orientation before it is resized",
        },
        "resize": {
            "rule": rule,
            "antialias": rule in ("detectron2", "matterport"),
            "meaning": RESIZE[rule],
        },
        "output": {
            "num_detections": "int32 [1]: people, best score first; everything behind them is zero",
            "boxes": "float32 [1, D, 4]: x0, y0, x1, y1 in pixels of the input",
            "scores": scores_text(config),
            "keypoints": f"float32 [1, D, {skeleton.num_keypoints}, 2]: x, y in pixels of the input",
            "keypoint_scores": keypoint_scores_text(),
            **({"classes": CLASSES} if skeleton.classes else {}),
        },
        "keypoint_offset": config.data.keypoint_offset,
        "keypoint_offset_meaning": "own = (keypoint + keypoint_offset) × (own size ÷ size in the input) − keypoint_offset",
        "score_threshold": config.inference.score_threshold,
        "suggested_score": SCORE,
        "suggested_keypoint_score": UNSURE,
        "config": config_lib.to_json(config),
        "skeleton": skeleton.to_json(),
    }


def sizes_notes(sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Which signature of a TFLite file of several sizes an image is given to."""
    return {
        "signatures": list(sizes),
        "sizes": {name: {"height": height, "width": width} for name, (height, width) in sizes.items()},
        "choice": "the signature whose height and width make the scale of the letterbox largest, and of equals the smallest",
    }


def letterbox_notes(height: int, width: int) -> dict[str, Any]:
    """How an image is fitted into the one size that a TFLite file takes."""
    return {
        "height": height,
        "width": width,
        "letterbox": "scale = min(height ÷ own height, width ÷ own width); each side int(side × scale + 0.5), at least 1; "
        "placed at the top left, zeros elsewhere",
    }
