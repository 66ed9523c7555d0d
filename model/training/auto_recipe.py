"""`--recipe=auto`: settings that fit the records and what training starts from, each with its reason.

The rules are those that people follow by hand: few images are seen often but not long, from trained weights with a low rate and
frozen first stages; small batches; canvases, sizes and mirroring as the records have them; anchors of the size of the boxes.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.config import Config
from model.training.recipe_files import AUTO, MOST_EPOCHS
from pipeline import anchors, data_config
from pipeline.anchors import AnchorConfig
from pipeline.command import UserError, counted
from pipeline.files import checked_json
from pipeline.record_folder import RecordFolder
from pipeline.record_reader import read_records
from pipeline.skeleton import Skeleton, sides_without_twin

RECIPE_FILE = "recipe.json"  # in the model directory
MOST_RECORDS = 400  # whose boxes are looked at
POOR_IOU = 0.5  # a box whose best anchor has a smaller IoU is matched poorly
POOR_SHARE = 0.25  # of the boxes, from which on anchors of other sizes are looked for
ANCHOR_SCALES = tuple(2.0 ** (power / 2) for power in range(-6, 5))  # of the sizes that are tried
PLENTY = 5000  # images, from which on neither colours nor first stages need care
FULL_BATCH = 16  # of the published recipes
OFTEN = 10  # views of an image, from which on it can be learned by heart
SHORT = 1500  # steps, up to which new keypoints are learned with the whole rate, as in torchvision's tutorial of fine-tuning

Start = Literal["random", "backbone", "model"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A value of the configuration, as --set takes it, or epochs=…; and why it is chosen."""

    set: str
    reason: str

    def __str__(self) -> str:
        return f"{self.set}: {self.reason}"

    @property
    def epochs(self) -> int | None:
        """N, if the choice is epochs=N, which is no value of the configuration."""
        name, _, value = self.set.partition("=")
        return int(value) if name == "epochs" else None


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decides the choices.

    Attributes:
      images: those with a labelled person.
      boxes: float32 [n, 2], width and height of persons' boxes in pixels of the images as training sees them.
      short_edges, max_edge: those of the records' matching; no short edge if they hold none.
      alone: keypoints that tell a side and have no mirror twin.
      start: what training starts from.
      new_keypoints: whether a model that training starts from has other keypoints.
      anchors: those of the records' matching.
      replicas: that share a batch.
      batch_size, steps, epochs: those that are asked for, if any; steps or epochs.
    """

    images: int
    boxes: NDArray[np.float32]
    short_edges: tuple[int, ...]
    max_edge: int
    alone: tuple[str, ...]
    start: Start
    new_keypoints: bool
    anchors: AnchorConfig
    replicas: int = 1
    batch_size: int | None = None
    steps: int | None = None
    epochs: int | None = None


def facts_of(record_folder: RecordFolder, split: str, config: Config, start: Start, model: Skeleton | None) -> Facts:
    """Looks at the index of a split, and at the boxes of some of its records.

    Args:
      config: the configuration before the recipe. Its sizes count if anchors are matched online.
      start: what training starts from.
      model: the keypoints of the model that training starts from.

    Raises:
      UserError: no such split, no image with a labelled person, or a damaged record.
    """
    rows = record_folder.index(split)
    rows = rows[rows["labelled_persons"] > 0] if config.data.require_keypoints else rows
    if not len(rows):
        raise UserError(f"--recipe={AUTO}: split {split!r} has no image with a labelled person; check the annotations")
    skeleton = record_folder.skeleton
    edges = record_folder.short_edges if config.data.anchors == "precomputed" else ()
    data = dataclasses.replace(config.data, short_edges=edges, max_edge=record_folder.max_edge) if edges else config.data
    middle = sorted(data.short_edges)[len(data.short_edges) // 2]
    boxes: list[NDArray[Any]] = [np.zeros((0, 2), np.float32)]
    for record in read_records(record_folder, split, rows[:: max(1, len(rows) // MOST_RECORDS)]):
        height, width = data_config.resized_size(record.height, record.width, middle, data.max_edge, data.resize)
        persons = record.boxes[~record.is_crowd]
        boxes.append((persons[:, 2:] - persons[:, :2]) * np.array([width, height], np.float32))
    return Facts(
        images=len(rows),
        boxes=np.concatenate(boxes).astype(np.float32),
        short_edges=edges,
        max_edge=record_folder.max_edge,
        alone=tuple(sides_without_twin(skeleton.keypoints, skeleton.flip)),
        start=start,
        new_keypoints=model is not None and model.keypoints != skeleton.keypoints,
        anchors=record_folder.anchors,
    )


def choose(facts: Facts, config: Config) -> list[Choice]:
    """The choices for a training, in the order in which they depend on each other.

    Args:
      config: the configuration before the recipe, of the preset or of the model that training starts from.
    """
    batch, epochs = facts.batch_size or _batch_size(facts), facts.epochs or _epochs(facts)
    steps = facts.steps or epochs * math.ceil(facts.images / batch)
    images = counted(facts.images, "image")
    few = "small batches make more steps of an epoch" if batch < FULL_BATCH else "as in the published recipes"
    return [
        Choice(f"train.global_batch_size={batch}", f"{images}, {few}"),
        Choice(f"epochs={epochs}", f"{images}, from {_START[facts.start]}: about {counted(steps, 'step')}"),
        _learning_rate(facts, config, batch, steps),
        Choice("train.schedule=cosine", "the rate falls to zero at the last step, wherever that is"),
        _warmup(facts, steps),
        *_frozen_stages(facts, config),
        *_augmentation(facts, steps * batch / facts.images),
        *_sizes(facts, config, batch),
        *_anchors(facts, config),
    ]


_START = {"random": "random weights", "backbone": "a backbone's weights", "model": "a trained model"}


def _batch_size(facts: Facts) -> int:
    fitting = 4 if facts.images < 1000 else 8 if facts.images < PLENTY else FULL_BATCH
    return math.ceil(fitting / facts.replicas) * facts.replicas


def _epochs(facts: Facts) -> int:
    """Views of images that a training needs, over the images; within what such trainings usually take.

    COCO's published schedules show 57,000 images 25 times (1x) to 75 times (3x), from a backbone; a trained model needs a
    fraction of it, and random weights three times as much (He et al. 2019).
    """
    views, least, most = {"model": (20_000, 8, 100), "backbone": (200_000, 25, 200), "random": (600_000, 75, 400)}[facts.start]
    return min(most, max(least, round(views / max(1, facts.images))))


def _learning_rate(facts: Facts, config: Config, batch: int, steps: int) -> Choice:
    own = config.train.learning_rate * batch / config.train.global_batch_size
    linear = f"the linear rule for batches of {batch}"
    if facts.start != "model":
        return Choice(f"train.learning_rate={own:.3g}", linear)
    if not facts.new_keypoints:
        return Choice(
            f"train.learning_rate={own / 10:.3g}", f"{linear}, and a tenth, so that a trained model keeps what it knows"
        )
    share = min(1.0, max(0.25, SHORT / steps))
    why = f"{share:.0%} of it, as the keypoints are new and must be learned within {counted(steps, 'step')}"
    return Choice(f"train.learning_rate={own * share:.3g}", f"{linear}, and {why}")


def _warmup(facts: Facts, steps: int) -> Choice:
    share, why = 10, "a tenth"
    if facts.start == "model" and facts.new_keypoints:
        share, why = 3, "new keypoints disturb what the model knows if the rate rises within less than a third"
    return Choice(
        f"train.warmup_steps={min(1000, max(1, steps // share))}", f"{why} of {counted(steps, 'step')}, at most 1,000"
    )


def _frozen_stages(facts: Facts, config: Config) -> list[Choice]:
    if facts.start == "random" or config.backbone.norm != "frozen_batch":
        return []
    if facts.images < 1000:
        return [
            Choice("backbone.frozen_stages=3", "few images cannot better the stem, C2 and C3, which know edges and textures")
        ]
    return [Choice("backbone.frozen_stages=2", "the stem and C2 stay as published recipes leave them")]


def _augmentation(facts: Facts, views: float) -> list[Choice]:
    """The choices for images that are seen `views` times each."""
    choices = []
    if facts.alone:
        names = ", ".join(facts.alone[:3])
        choices.append(Choice("data.flip=false", f"{names}: no mirror twin, so that a mirrored image would have wrong labels"))
    if facts.images < PLENTY and views >= OFTEN:
        why = f"colours vary little in few images, which are seen {views:.0f} times each"
        choices += [Choice(f"data.{name}=0.4", why) for name in ("brightness", "contrast", "saturation")]
    return choices


def _sizes(facts: Facts, config: Config, batch: int) -> list[Choice]:
    data, choices = config.data, []
    edges = facts.short_edges
    if edges and (set(data.short_edges) != set(edges) or data.max_edge != facts.max_edge):
        listed = ",".join(map(str, edges))
        choices += [
            Choice(f"data.short_edges={listed}", "those that the records were converted for"),
            Choice(f"data.max_edge={facts.max_edge}", "that of the records"),
            Choice(f"inference.short_edge={max(edges)}", "the largest of training, for evaluation and exports"),
            Choice(f"inference.max_edge={facts.max_edge}", "that of training"),
        ]
    fitting = max(1, min(data.num_canvases, facts.images // (8 * batch)))
    if fitting < data.num_canvases:
        why = f"{facts.images} images on {data.num_canvases} canvases would leave many batches half empty"
        choices.append(Choice(f"data.num_canvases={fitting}", why))
    return choices


def poor_share(boxes: NDArray[np.float32], config: AnchorConfig) -> float:
    """The share of boxes, [n, 2] widths and heights, that no anchor's shape fits with an IoU of `POOR_IOU`; 0 without boxes."""
    if not len(boxes):
        return 0.0
    shapes = anchors.cell_anchors(config)  # [levels, ratios, 4]
    sides = (shapes[..., 2:] - shapes[..., :2]).reshape(-1, 2)  # [A, 2]
    overlap = np.minimum(boxes[:, None], sides[None]).prod(axis=-1)  # [n, A]
    union = boxes.prod(axis=-1)[:, None] + sides.prod(axis=-1)[None] - overlap
    return float(((overlap / np.maximum(union, 1e-9)).max(axis=1) < POOR_IOU).mean())


def _anchors(facts: Facts, config: Config) -> list[Choice]:
    """Anchors of other sizes, if many boxes fit none of the model's and much fewer fit none of the others."""
    own = poor_share(facts.boxes, config.anchors)
    tried = [tuple(round(size * scale, 1) for size in config.anchors.sizes) for scale in ANCHOR_SCALES]
    possible = [dataclasses.replace(config.anchors, sizes=sizes) for sizes in tried if min(sizes) >= 2]
    best = min(possible, key=lambda anchors: poor_share(facts.boxes, anchors))
    poor = poor_share(facts.boxes, best)
    changes = own >= POOR_SHARE and poor <= own / 2
    choices = []
    if changes:
        listed = ",".join(f"{size:g}" for size in best.sizes)
        why = f"{own:.0%} of the boxes fit no anchor with an IoU of {POOR_IOU}, and {poor:.0%} none of these"
        choices.append(Choice(f"anchors.sizes={listed}", why))
    recorded = facts.anchors == (best if changes else config.anchors) and config.data.resize == "standard"
    if config.data.anchors == "precomputed" and not recorded:
        choices.append(Choice("data.anchors=online", "the records hold a matching of other anchors or another resize rule"))
    return choices


def stored(model_dir: Path) -> list[Choice] | None:
    """The choices of an earlier run into a model directory; None without one.

    Raises:
      UserError: a file that is none.
    """
    path = model_dir / RECIPE_FILE
    if not path.exists():
        return None

    def parse(value: Any) -> list[Choice] | None:
        if value["recipe"] != AUTO:
            return None
        choices = [Choice(str(choice["set"]), str(choice["reason"])) for choice in value["choices"]]
        if not all(1 <= epochs <= MOST_EPOCHS for choice in choices if (epochs := choice.epochs) is not None):
            raise UserError(f"epochs must be from 1 to {MOST_EPOCHS}")
        return choices

    return checked_json(path, "not a recipe's choices", parse, remedy="remove it, and the choices are made again")
