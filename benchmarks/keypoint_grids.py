r"""The best OKS that heatmaps of a certain grid can reach: what a network that never errs would score with them.

Every labelled keypoint of every person takes the best place that its box offers. The 14×14 grid is that of Mask R-CNN for human
pose: its maps have 56×56 places, which are enlarged from 14×14, and whose maximum lies on a node of those (row and column 0, 4,
…, 52 of 56). The last row is this project's own way there and back: the place that training would ask for, and what decoding
makes of a heatmap with its peak there.

  KEYPOINT_SHARED=../shared python -m benchmarks.keypoint_grids
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from numpy.typing import NDArray

from pipeline import command
from pipeline.coco import Person, read_coco

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "coco", None, "Folder with annotations/ and images; default: data/coco_sample in KEYPOINT_SHARED.", flag_values=FLAGS
)

GRIDS = (14, 28, 56)
PLACES = 56  # a side of a heatmap
PEAK = 12.0  # logits of the peak over the other places
Floats = NDArray[np.float64]


def oks(person: Person, points: Floats, sigmas: Sequence[float]) -> float:
    """COCO's object keypoint similarity of points [K, 2] with a person's labelled keypoints."""
    labelled = person.keypoints[:, 2] > 0
    squared = np.square(points - person.keypoints[:, :2]).sum(axis=-1)
    variances = np.square(2 * np.array(sigmas))
    return float(np.exp(-squared / variances / (2 * person.area + np.spacing(1)))[labelled].mean())


def nearest_nodes(person: Person, grid: int) -> Floats:
    """Each keypoint moved to the nearest of grid × grid nodes of its box, [K, 2]: node i lies at i/grid of a side."""
    low, high = np.array(person.box[:2]), np.array(person.box[2:])
    nodes = np.clip(np.round((person.keypoints[:, :2] - low) / (high - low) * grid), 0, grid - 1)
    moved: Floats = low + nodes / grid * (high - low)
    return moved


def there_and_back(people: Sequence[Person]) -> list[Floats]:
    """Each keypoint encoded in its exact box and decoded again, [K, 2] each; outside of the box, in the nearest place."""
    import tensorflow as tf

    from model.network.keypoint_head import decode_fast, encode

    found = []
    for person in people:
        box = np.array([person.box], np.float32)
        inside = np.clip(person.keypoints[:, :2], box[0, :2], box[0, 2:])
        keypoints = np.concatenate([inside, np.ones((len(inside), 1))], axis=-1).astype(np.float32)
        place, valid = encode(tf.constant(keypoints[None]), tf.constant(box), PLACES)
        assert valid.numpy().all()
        heatmaps = PEAK * tf.one_hot(place[0], PLACES * PLACES)  # [K, 56 · 56]
        heatmaps = tf.transpose(tf.reshape(heatmaps, [1, -1, PLACES, PLACES]), [0, 2, 3, 1])
        found.append(decode_fast(heatmaps, tf.constant(box))[0].numpy()[0].astype(np.float64))
    return found


def annotated_people(coco: Path) -> tuple[list[Person], Sequence[float]]:
    """The people of both splits with a labelled keypoint, who are no crowd; and the sigmas."""
    people: list[Person] = []
    sigmas: Sequence[float] = ()
    for split in ("train2017", "val2017"):
        data = read_coco(coco / "annotations" / f"person_keypoints_{split}.json")
        sigmas = data.skeleton.sigmas
        people += [person for entry in data.images for person in entry.persons if person.num_labelled and not person.is_crowd]
    return people, sigmas


def main(_: list[str]) -> None:
    from benchmarks.measuring import table

    coco = Path(FLAGS.coco or Path(os.environ.get("KEYPOINT_SHARED", "../shared")) / "data" / "coco_sample").resolve()
    people, sigmas = annotated_people(coco)
    ways = {f"{grid}×{grid} nodes": [nearest_nodes(person, grid) for person in people] for grid in GRIDS}
    command.load_tensorflow()
    ways["encoded and decoded (56×56)"] = there_and_back(people)
    rows = []
    for name, points in ways.items():
        values = np.array([oks(person, moved, sigmas) for person, moved in zip(people, points, strict=True)])
        rows.append([name, f"{values.mean():.3f}", *(f"{(values >= least).mean():.0%}" for least in (0.95, 0.9, 0.75))])
    print(f"{len(people)} people with labelled keypoints, in their exact boxes\n")
    print(table(["heatmaps", "mean OKS", "≥ 0.95", "≥ 0.90", "≥ 0.75"], rows))


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
