"""Files of weights that others publish: their address, their digest, and what no file says about itself."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TORCHVISION = "https://download.pytorch.org/models"
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet"
# "All models available for download through this document" (Detectron2's MODEL_ZOO.md).
ZOO_LICENCE = "CC BY-SA 3.0"


@dataclasses.dataclass(frozen=True)
class Published:
    """One file.

    Attributes:
      url: where it is downloaded.
      sha256, md5: the beginning of the digest, from the file's name or its publisher; empty if neither says it.
      licence: as its publisher states it for this file; None if nothing is stated.
      norm_epsilon: of its batch norms.
    """

    url: str
    sha256: str = ""
    md5: str = ""
    licence: str | None = None
    norm_epsilon: float = 1e-5

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def _torch(name: str, norm_epsilon: float = 1e-5) -> Published:
    # torch.hub: the name ends with the first eight digits of the file's sha256.
    return Published(f"{TORCHVISION}/{name}", sha256=name.removesuffix(".pth").rpartition("-")[2], norm_epsilon=norm_epsilon)


def _zoo(path: str) -> Published:
    # MODEL_ZOO.md: "any model on this page contains its md5 prefix in its file name".
    md5 = path.removesuffix(".pkl").rpartition("_")[2]
    return Published(f"{DETECTRON2}/COCO-Keypoints/{path}", md5=md5, licence=ZOO_LICENCE)


def _keras(name: str, md5: str) -> Published:
    return Published(f"{KERAS}/{name}_weights_tf_dim_ordering_tf_kernels_notop.h5", md5=md5)  # keras/applications/resnet.py


KEYPOINT_RCNN = (
    # torchvision sets its epsilon to 0 after loading (models/detection/keypoint_rcnn.py: overwrite_eps).
    _torch("keypointrcnn_resnet50_fpn_coco-fc266e95.pth", norm_epsilon=0.0),
    _torch("keypointrcnn_resnet50_fpn_coco-9f466800.pth"),
    _zoo("keypoint_rcnn_R_50_FPN_1x/137261548/model_final_04e291.pkl"),
    _zoo("keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b.pkl"),
    _zoo("keypoint_rcnn_R_101_FPN_3x/138363331/model_final_997cc7.pkl"),
    _zoo("keypoint_rcnn_X_101_32x8d_FPN_3x/139686956/model_final_5ad38f.pkl"),
)
BACKBONES = (
    _torch("resnet50-0676ba61.pth"),
    _torch("resnet50-11ad3fa6.pth"),
    _torch("resnet50-19c8e357.pth"),
    _torch("resnet101-63fe2227.pth"),
    _torch("resnet101-cd907fc2.pth"),
    _torch("resnet101-5d3b4d8f.pth"),
    Published(f"{DETECTRON2}/ImageNetPretrained/MSRA/R-50.pkl", licence=ZOO_LICENCE),
    Published(f"{DETECTRON2}/ImageNetPretrained/MSRA/R-101.pkl", licence=ZOO_LICENCE),
    Published(f"{DETECTRON2}/ImageNetPretrained/FAIR/X-101-32x8d.pkl", licence=ZOO_LICENCE),
    _keras("resnet50", md5="4d473c1dd8becc155b73f8504c6f6626"),
    _keras("resnet101", md5="88cf7a10940856eca736dc7b7e228a21"),
)


@dataclasses.dataclass(frozen=True)
class Digests:
    """The digests of a whole file, in hexadecimal digits."""

    sha256: str
    md5: str


def digests(path: Path) -> Digests:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return Digests(sha256, md5)


def published_as(found: Digests) -> Published | None:
    """The file with these digests, if it is one that is published with a digest."""
    for file in (*KEYPOINT_RCNN, *BACKBONES):
        if (file.sha256 and found.sha256.startswith(file.sha256)) or (file.md5 and found.md5.startswith(file.md5)):
            return file
    return None


def named_otherwise(path: Path, found: Digests) -> Published | None:
    """The published file whose name `path` has without being it: changed, damaged, or another of that name."""
    named = next((file for file in (*KEYPOINT_RCNN, *BACKBONES) if file.name == path.name and (file.sha256 or file.md5)), None)
    return named if named is not None and published_as(found) != named else None


def note(source: str, weights: Path, found: Digests, left_over: Sequence[str]) -> dict[str, Any]:
    """Where weights come from, for `weights.json`. `licence` is null where none is stated for that very file."""
    published = published_as(found)
    return {
        "source": source,
        "file": weights.name,
        "sha256": found.sha256,
        "url": published.url if published else None,
        "licence": published.licence if published else None,
        "left_over": list(left_over),
    }
