"""Whether annotations, records, model and results speak of the same images and keypoints.

What cannot be right is refused: other keypoints, images of other names or sizes. What may be meant is said in one line, a note:
annotations that changed since the conversion, areas that OKS cannot use, results that do not count. Without these checks each
of them would end as a keypoint AP of 0.000, or as a figure that is a little off, without a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.evaluation.coco_results import ResultTable
from model.evaluation.ground_truth import GroundTruth
from pipeline.annotation_file import plain_name
from pipeline.coco import read_coco
from pipeline.command import UserError
from pipeline.record_folder import METADATA_FILE, RecordFolder
from pipeline.sides import plain_names
from pipeline.skeleton import Skeleton

TINY_AREA = 0.02  # of the box: an outlined person covers a third to two thirds of it, a thin or hidden one a twentieth
OUTSIDE = 0.1  # of the image's side: results are clipped to the image, and rounding moves them by less
SAME_SHAPE = 1.5  # pixels by which a side may miss the proportions of the other image after a resize


def check_keypoints(truth: GroundTruth, skeleton: Skeleton) -> None:
    """Refuses annotations whose keypoints are not the skeleton's, one by one, as `sides.plain_names` writes their names.

    Raises:
      UserError: another number, other names, or the same names in another order; or other classes.
    """
    if truth.classes != skeleton.classes:
        raise UserError(
            f"{truth.path}: has the classes {_classes(truth.classes)}, the model or the records {_classes(skeleton.classes)}; "
            "give annotations of the same classes"
        )
    theirs, ours = truth.category.get("keypoints") or (), skeleton.keypoints
    if len(theirs) != len(ours):
        raise UserError(
            f"{truth.path}: its annotations have {len(theirs)} keypoints, the model or the records {len(ours)} "
            f"({', '.join(ours)}); give annotations of the same keypoint set"
        )
    plain = [plain_names([str(name) for name in names]) for names in (theirs, ours)]
    for place, (name, wanted) in enumerate(zip(theirs, ours, strict=True)):
        if plain[0][place] != plain[1][place]:
            what = "the same keypoints in another order" if sorted(plain[0]) == sorted(plain[1]) else "other keypoints"
            raise UserError(
                f"{truth.path}: has {what}: number {place + 1} is {name!r}, that of the model or the records {wanted!r}; "
                f"give annotations with the keypoints {', '.join(ours)}, in this order"
            )


def check_model_keypoints(record_folder: RecordFolder, skeleton: Skeleton) -> None:
    """Refuses records of other keypoints than a model's. Raises: UserError."""
    theirs, ours = record_folder.skeleton.keypoints, skeleton.keypoints
    if plain_names(theirs) != plain_names(ours):
        raise UserError(
            f"{record_folder.path}: has keypoints {', '.join(theirs)}, the model {', '.join(ours)}: they must be the same; "
            "make records of the model's keypoint set"
        )
    if record_folder.skeleton.classes != skeleton.classes:
        raise UserError(
            f"{record_folder.path}: has the classes {_classes(record_folder.skeleton.classes)}, the model "
            f"{_classes(skeleton.classes)}: they must be the same; make records with the model's --categories"
        )


def _classes(classes: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{name} ({number})" for number, name in classes) or "of one category"


def check_images(truth: GroundTruth, record_folder: RecordFolder, split: str) -> list[str]:
    """Compares ids and sizes of a split's images with the annotations'.

    Returns:
      Notes: a line about images that the conversion shrank, if there are any.

    Raises:
      UserError: an image that the annotations do not have, or have in another shape.
    """
    index = record_folder.index(split)
    truth.check_known(index["image_id"].tolist())
    shrunk = 0
    for image_id, height, width in zip(*(index[name].tolist() for name in ("image_id", "height", "width")), strict=True):
        shrunk += scale_of(truth, image_id, height, width) != (1.0, 1.0)
    if not shrunk:
        return []
    return [f"{_of(shrunk, len(index), 'images')} are smaller in the records: answers are enlarged to the annotations' pixels"]


def scale_of(truth: GroundTruth, image_id: int, height: int, width: int) -> tuple[float, float]:
    """What takes x and y of a record's image to those of the annotations: 1, or more if the conversion shrank the image.

    Raises:
      UserError: the annotations give the image another shape.
    """
    entry = truth.images.get(image_id)
    if entry is None or entry.height is None or entry.width is None or (entry.height, entry.width) == (height, width):
        return 1.0, 1.0
    x, y = entry.width / width, entry.height / height
    if (
        x >= 1
        and y >= 1
        and abs(entry.width - y * width) <= SAME_SHAPE * y
        and abs(entry.height - x * height) <= SAME_SHAPE * x
    ):
        return x, y
    raise UserError(
        f"{truth.path}: image {image_id} has {entry.width}×{entry.height} pixels (width × height), in the records "
        f"{width}×{height}: these are annotations of other images; give those that the records were made from"
    )


def check_file_name(truth: GroundTruth, image_id: int, file_name: str) -> None:
    """Refuses annotations that give an image of the records another file name.

    Raises:
      UserError: the names differ.
    """
    entry = truth.images.get(image_id)
    if entry is not None and entry.file_name is not None and plain_name(entry.file_name) != plain_name(file_name):
        raise UserError(
            f"{truth.path}: image {image_id} is the file {entry.file_name!r}, in the records {file_name!r}: these are "
            "annotations of other images, such as those of another split; give those that the records were made from"
        )


def checksum_notes(truth: GroundTruth, record_folder: RecordFolder, split: str) -> list[str]:
    """A note if the annotations are not those whose checksum the conversion wrote into `pipeline.json`."""
    noted = record_folder.splits[split].get("input_sha256")
    if noted is None:
        return []
    skeleton = record_folder.skeleton
    coco = read_coco(
        truth.path,
        category=skeleton.category,
        classes=bool(skeleton.classes),
        keypoints=skeleton.keypoints,
        sigmas=skeleton.sigmas,
    )
    # The keypoint set was compared before; its sigmas and twins may have come from flags of the conversion.
    coco = dataclasses.replace(coco, skeleton=skeleton, category_id=record_folder.category_id)
    if coco.sha256() == noted:
        return []
    return [
        f"{truth.path} is not what the split {split!r} was converted from, or was changed since: the checksum of its content "
        f"is {coco.sha256()[:12]}…, {METADATA_FILE} notes {noted[:12]}…"
    ]


def area_notes(truth: GroundTruth) -> list[str]:
    """Lines about areas that OKS, which divides by them, makes too much or too little of."""
    persons = [person for person in truth.persons if not person["iscrowd"]]
    notes = []
    if truth.without_area:
        notes.append(
            f"{_of(truth.without_area, len(truth.persons), 'annotations')} have no area: that of the box stands for it, "
            "which is larger than a person's outline, so that OKS is milder than COCO's"
        )
    tiny = [person for person in persons if person["area"] < TINY_AREA * person["bbox"][2] * person["bbox"][3]]
    if tiny:
        image_id, area, (*_, width, height) = (tiny[0][key] for key in ("image_id", "area", "bbox"))
        what = _of(len(tiny), len(persons), "annotations")
        notes.append(
            f"{what} have a tiny area, below {TINY_AREA:.0%} of the box (image {image_id}: {area:g} in a box of "
            f"{width:g}×{height:g}): OKS divides by it, so that their keypoints count as wrong unless they are exact; "
            "remove area from the JSON, or correct it"
        )
    return notes


def result_notes(truth: GroundTruth, table: ResultTable) -> list[str]:
    """Lines about results that do not count, or cannot be in the annotations' pixels."""
    notes = []
    if table.of_other_categories:
        others, total = sum(table.of_other_categories.values()), sum(table.of_other_categories.values()) + len(table)
        names = ", ".join(sorted(table.of_other_categories))
        notes.append(
            f"{_of(others, total, 'results')} do not count: they are of category {names}, the annotations' "
            f"{truth.category.get('name')!r} is {', '.join(map(str, truth.category_ids))}"
        )
    if table.renumbered:
        notes.append(
            f"{_of(table.renumbered, len(table), 'results')} have another image_id than their file_name has in the "
            "annotations: the file name decides"
        )
    sizes = [truth.images.get(image_id) for image_id in table.image_ids.tolist()]
    limits = np.array([(e.width or np.inf, e.height or np.inf) if e else (np.inf, np.inf) for e in sizes]).reshape(-1, 2)
    x, y, width, height = table.values[:, :4].T
    with np.errstate(invalid="ignore"):
        beyond = np.maximum(x + width - limits[:, 0], -x) > OUTSIDE * limits[:, 0]
        beyond |= np.maximum(y + height - limits[:, 1], -y) > OUTSIDE * limits[:, 1]
    if beyond.any():
        place = int(np.argmax(beyond))
        notes.append(
            f"{_of(int(beyond.sum()), len(table), 'results')} reach far outside their image (image "
            f"{int(table.image_ids[place])}: a box up to {x[place] + width[place]:.0f}, {y[place] + height[place]:.0f} in "
            f"{limits[place, 0]:.0f}×{limits[place, 1]:.0f}): are they in pixels of another size, of a turned image, or "
            "x0 y0 x1 y1?"
        )
    return notes


def figure_notes(figures: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A line if boxes fit and keypoints do not."""
    boxes, keypoints = figures["bbox"]["AP50"], figures["keypoints"]["AP50"]
    if boxes < 0.3 or not 0 <= keypoints < 0.05 * boxes:
        return []
    return [
        f"boxes fit (AP50 {boxes:.3f}) and keypoints do not ({keypoints:.3f}): are the keypoints in the order "
        f"{', '.join(names)}, in pixels of the image, and are areas and sigmas right?"
    ]


def _of(count: int, total: int, what: str) -> str:
    return f"{count} of {total} {what}"
