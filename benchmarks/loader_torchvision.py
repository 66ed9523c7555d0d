"""How torchvision's detection references load keypoints, for `loader.py`; runs in the environment `torch`.

A DataLoader whose workers read with Pillow, flip at random and make tensors, images of one orientation to a batch; then, as
its models do it on what the loader gives, normalising, resizing and padding (`GeneralizedRCNNTransform`). No anchors are
matched.

Usage: python -m benchmarks.loader_torchvision IMAGES ANNOTATIONS BATCH_SIZE WORKERS
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import functional

from benchmarks.contestant import serve

# Of COCO's 17 keypoints: the nose, then a left and a right one each.
FLIP = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
Sample = tuple[torch.Tensor, dict[str, torch.Tensor]]


class CocoKeypoints(Dataset[Sample]):
    """Images and persons, read and flipped as the references do it (without the masks that they make besides)."""

    def __init__(self, images: Path, annotations: Path) -> None:
        coco = json.loads(annotations.read_text())
        persons: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in coco["annotations"]:
            if not annotation["iscrowd"]:
                persons[annotation["image_id"]].append(annotation)
        self.images = [(images / entry["file_name"], persons[entry["id"]]) for entry in coco["images"]]
        self.wide = [entry["width"] > entry["height"] for entry in coco["images"]]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Sample:
        path, persons = self.images[number]
        image = Image.open(path).convert("RGB")
        boxes = torch.tensor([person["bbox"] for person in persons], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        keypoints = torch.tensor([person["keypoints"] for person in persons], dtype=torch.float32).reshape(-1, 17, 3)
        if random.random() < 0.5:
            image = functional.hflip(image)
            boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
            keypoints = keypoints[:, FLIP]
            keypoints[..., 0] = image.width - keypoints[..., 0]
            keypoints[keypoints[..., 2] == 0] = 0
        target = {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64), "keypoints": keypoints}
        return functional.convert_image_dtype(functional.pil_to_tensor(image), torch.float32), target


def batches_of_one_orientation(wide: list[bool], batch_size: int) -> Iterator[list[int]]:
    """Numbers of images in random order, without end."""
    waiting: dict[bool, list[int]] = {False: [], True: []}
    while True:
        for number in random.sample(range(len(wide)), len(wide)):
            group = waiting[wide[number]]
            group.append(number)
            if len(group) == batch_size:
                yield group.copy()
                group.clear()


def as_tuples(samples: list[Sample]) -> tuple[Any, ...]:
    return tuple(zip(*samples, strict=True))


def main(images: str, annotations: str, batch_size: int, workers: int) -> None:
    dataset = CocoKeypoints(Path(images), Path(annotations))
    loader: DataLoader[Sample] = DataLoader(
        dataset,
        batch_sampler=batches_of_one_orientation(dataset.wide, batch_size),
        num_workers=workers,
        collate_fn=as_tuples,
    )
    transform = GeneralizedRCNNTransform(800, 1333, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    batches = iter(loader)

    def load(count: int) -> int:
        done = 0
        while done < count:
            loaded, targets = next(batches)
            transform(list(loaded), list(targets))
            done += batch_size
        return done

    load(50)
    serve(load)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
