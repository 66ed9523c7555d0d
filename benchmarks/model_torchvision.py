"""torchvision's Keypoint R-CNN, for `model_speed.py`; runs in the environment `torch`.

Usage:
  python -m benchmarks.model_torchvision weights FOLDER PERSONS    # writes FOLDER/weights.pth and FOLDER/case.json
  python -m benchmarks.model_torchvision inference|training FOLDER

FOLDER/images.npz holds what both models look at: `images` uint8 [2, H, W, 3], `boxes` float32 [2, G, 4] and `keypoints`
float32 [2, G, 17, 3].
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.contestant import serve

TRAINED_STAGES = 3  # as torchvision trains from ImageNet weights: C3 to C5


def keypoint_rcnn(norm: Callable[..., nn.Module], score_threshold: float, short_edge: int) -> KeypointRCNN:
    """`keypointrcnn_resnet50_fpn`, which cannot be had with frozen batch norm unless its weights are downloaded.

    Images stay as they are: they have that short edge. RoIs are positive at an IoU of 0.999: those which
    are true boxes, so that their number is known.
    """
    backbone = _resnet_fpn_extractor(resnet50(weights=None, norm_layer=norm), TRAINED_STAGES)
    return KeypointRCNN(
        backbone,
        num_classes=2,
        num_keypoints=17,
        min_size=short_edge,
        box_score_thresh=score_threshold,
        box_fg_iou_thresh=0.999,
        box_bg_iou_thresh=0.999,
    )


def make_weights(folder: Path, persons: int) -> None:
    """Random weights whose activations are of ordinary size, and the score above which they find `persons` people."""
    torch.manual_seed(0)
    images, _ = case(folder)
    model = keypoint_rcnn(nn.BatchNorm2d, 0.0, min(images[0].shape[1:]))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of this one image
    with torch.no_grad():
        model.backbone.train()
        pyramid = model.backbone(model.transform(images[:1])[0].tensors)
        for block in model.backbone.fpn.layer_blocks:
            block[0].weight /= pyramid["0"].std()
        model.roi_heads.box_predictor.cls_score.weight *= 30  # scores that differ
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, folder / "weights.pth")
    scores = load(folder, 0.0, min(images[0].shape[1:])).eval()(images[:1])[0]["scores"].detach()
    if len(scores) <= persons:
        sys.exit(f"{len(scores)} detections in all, {persons} are wanted")
    threshold = float(scores[persons - 1 : persons + 1].mean())
    (folder / "case.json").write_text(json.dumps({"score_threshold": threshold}))
    print(f"scores around the threshold: {scores[persons - 2 : persons + 2].tolist()}")


def load(folder: Path, score_threshold: float, short_edge: int) -> KeypointRCNN:
    model = keypoint_rcnn(FrozenBatchNorm2d, score_threshold, short_edge)
    model.load_state_dict(torch.load(folder / "weights.pth"))
    return model


def case(folder: Path) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Images as torchvision takes them, and their persons."""
    content = np.load(folder / "images.npz")
    images = [torch.from_numpy(image).permute(2, 0, 1).contiguous() / 255 for image in content["images"]]
    targets = [
        {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.ones(len(boxes), dtype=torch.int64),
            "keypoints": torch.from_numpy(points),
        }
        for boxes, points in zip(content["boxes"], content["keypoints"], strict=True)
    ]
    return images, targets


def main(what: str, folder: Path) -> None:
    images, targets = case(folder)
    model = load(folder, json.loads((folder / "case.json").read_text())["score_threshold"], min(images[0].shape[1:]))
    keypoint_rois: list[int] = []
    model.roi_heads.keypoint_head.register_forward_hook(lambda module, inputs, output: keypoint_rois.append(len(output)))

    def detect(count: int) -> int:
        with torch.inference_mode():
            for _ in range(count):
                model(images[:1])
        return count

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9, weight_decay=1e-4)

    def train(count: int) -> int:
        for _ in range(count):
            optimizer.zero_grad()
            sum(model(images, targets).values()).backward()
            optimizer.step()
        return count

    model.train(what == "training")
    work = train if what == "training" else detect
    work(2)
    serve(work, f"{keypoint_rois[-1]} RoIs in the keypoint head")


if __name__ == "__main__":
    if sys.argv[1] == "weights":
        make_weights(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(sys.argv[1], Path(sys.argv[2]))
