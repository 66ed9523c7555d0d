"""Finishes in NumPy what the signature `raw` of an exported SavedModel begins: the choice of people, and their keypoints.

python finish_raw.py --model=exported/keypoint_rcnn/1 photograph.jpg [more.png ...]

For those whose accelerator, language or rules have a choice (NMS) and a decoding of their own: this is what they replace. `raw`
takes pixels, which are resized here as `assets/config.json` says. It needs TensorFlow, NumPy and Pillow, and nothing of this
project.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

BICUBIC_A = -0.75  # PyTorch's
MEAN_REACH = 5  # places around the best one whose mean says where in its pixel a keypoint is


def finish(
    raw: Mapping[str, npt.NDArray[Any]], *, score_threshold: float, nms_threshold: float, most: int, keypoint_offset: float
) -> dict[str, Floats]:
    """The people in one image.

    Args:
      raw: what the signature gives: `boxes` [1, N, 4], `logits` [1, N, 2], `heatmaps` [1, M, S, S, K].
      score_threshold, nms_threshold, most, keypoint_offset: of the model's configuration: `inference.score_threshold`,
        `inference.nms_threshold`, `inference.max_detections`, `data.keypoint_offset`.

    Returns:
      `boxes` [n, 4], `scores` [n], `keypoints` [n, K, 2], `keypoint_scores` [n, K], best score first, pixels of the image.
    """
    boxes, logits, heatmaps = raw["boxes"][0], raw["logits"][0], raw["heatmaps"][0]
    scores = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))  # the person's softmax
    exists = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    kept: list[int] = []
    for i in np.flatnonzero(exists & (scores > score_threshold)):  # best first already
        if len(kept) < most and (overlap(boxes[i], boxes[kept]) <= nms_threshold).all():
            kept.append(int(i))
    decoded = [keypoints_of(heatmaps[i], boxes[i]) for i in kept]
    points = np.array([points for points, _ in decoded], np.float32).reshape(-1, heatmaps.shape[-1], 2)
    return {
        "boxes": boxes[kept],
        "scores": scores[kept],
        "keypoints": points - np.float32(keypoint_offset),
        "keypoint_scores": np.array([score for _, score in decoded], np.float32).reshape(-1, heatmaps.shape[-1]),
    }


def overlap(box: Floats, boxes: Floats) -> Floats:
    """The IoU of a box [4] with each of boxes [n, 4]: [n]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - shared
    return np.asarray(shared / np.maximum(union, 1e-9))


def keypoints_of(heatmaps: Floats, box: Floats) -> tuple[Floats, Floats]:
    """Keypoints [K, 2] (x, y) and their scores [K] of one person's heatmaps [S, S, K], logits over the places of the box.

    The heatmap is enlarged to the box's size in whole pixels, and its largest value is the pixel. From the pixel's middle the
    point moves towards the mean of the places around it, by half a pixel at most.
    """
    size = len(heatmaps)
    extent = np.maximum(box[2:] - box[:2], 1)  # width, height
    pixels = np.ceil(extent).astype(int)
    below_zero = heatmaps - heatmaps.max(axis=(0, 1))
    mass = np.exp(below_zero)  # [S, S, K]
    across, down = (bicubic_weights((np.arange(count) + 0.5) * size / count - 0.5, size) for count in pixels)
    enlarged = np.einsum("hs,stk,wt->khw", down, below_zero, across, optimize=True)
    points, scores = [], []
    for k, values in enumerate(enlarged):
        row, column = np.unravel_index(values.argmax(), values.shape)
        pixel = np.array([column, row], float)
        middle = np.clip(np.round((pixel + 0.5) * size / pixels - 0.5), 0, size - 1)
        near_x, near_y = (np.abs(np.arange(size) - place) <= MEAN_REACH for place in middle)
        around = mass[..., k] * near_y[:, None] * near_x  # [S, S]
        if around.sum() > 0:
            mean = np.array([around.sum(0) @ np.arange(size), around.sum(1) @ np.arange(size)]) / around.sum()
            pixel += np.clip((mean + 0.5) * pixels / size - 0.5 - pixel, -0.5, 0.5)
        points.append(box[:2] + (pixel + 0.5) * extent / pixels)
        scores.append(np.exp(values.max()) / mass[..., k].sum())
    return np.array(points, np.float32), np.array(scores, np.float32)


def bicubic_weights(position: npt.NDArray[np.floating[Any]], size: int) -> Floats:
    """The weights [n, S] of the places at positions [n]: Keys' kernel over four places, the border repeated."""
    first = np.floor(position)
    weights = np.zeros((len(position), size), np.float32)
    for tap in (-1, 0, 1, 2):
        d = np.abs(position - first - tap)
        if tap in (0, 1):
            weight = ((BICUBIC_A + 2) * d - (BICUBIC_A + 3)) * d * d + 1
        else:
            weight = BICUBIC_A * (((d - 5) * d + 8) * d - 4)
        np.add.at(weights, (np.arange(len(position)), np.clip(first + tap, 0, size - 1).astype(int)), weight)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the SavedModel: exported/keypoint_rcnn/1")
    parser.add_argument("--min_score", type=float, default=0.5, help="people below this score are left out (default: 0.5)")
    parser.add_argument("images", nargs="+", help="JPEG or PNG files")
    arguments = parser.parse_args()

    import tensorflow as tf
    from PIL import Image, ImageOps

    config = json.loads((Path(arguments.model) / "assets" / "config.json").read_text())
    loaded = tf.saved_model.load(arguments.model)
    inference = config["inference"]
    for path in arguments.images:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        scale = min(inference["short_edge"] / min(image.size), inference["max_edge"] / max(image.size))
        width, height = (max(1, int(side * scale + 0.5)) for side in image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        answer = loaded.signatures["raw"](images=tf.constant(pixels[None]))
        people = finish(
            {name: value.numpy() for name, value in answer.items()},
            score_threshold=max(arguments.min_score, inference["score_threshold"]),
            nms_threshold=inference["nms_threshold"],
            most=inference["max_detections"],
            keypoint_offset=config["data"]["keypoint_offset"],
        )
        factor = np.array([image.width / width, image.height / height])
        offset = config["data"]["keypoint_offset"]
        print(
            json.dumps(
                {
                    "image": path,
                    "people": [
                        {
                            "score": round(float(score), 4),
                            "box": (box * np.tile(factor, 2)).round(1).tolist(),
                            "keypoints": ((points + offset) * factor - offset).round(1).tolist(),
                        }
                        for score, box, points in zip(people["scores"], people["boxes"], people["keypoints"], strict=True)
                    ],
                }
            )
        )


if __name__ == "__main__":
    main()
