"""COCO's box and keypoint figures, with or without a model. The figures are pycocotools' own.

Ground truth is the JSON as it is; predictions are in pixels of the pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.json_files import read_json, write_json
from model.predictor import People, Predictor, open_model
from pipeline import records
from pipeline.command import Progress, UserError
from pipeline.data_set import DataSet, open_data_set
from pipeline.skeleton import Skeleton

BOX_FIGURES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
KEYPOINT_FIGURES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")
PICTURES_AT_ONCE = 64  # bounds the memory: so many encoded pictures are held while they are sorted into batches

Figures = dict[str, dict[str, Any]]
Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The part of an annotation file that the figures need."""

    path: str
    images: tuple[Mapping[str, Any], ...]
    persons: tuple[Mapping[str, Any], ...]  # of the one category, crowds included
    category: Mapping[str, Any]

    def skeleton(self, sigmas: Sequence[float] | None = None) -> Skeleton:
        return Skeleton.from_category(self.category, sigmas=sigmas)


def read_ground_truth(path: str | Path, category: str | None = None) -> GroundTruth:
    """Reads a COCO keypoint file.

    Args:
      path: of the JSON.
      category: the name of the one that counts; by default the one that has keypoints.

    Raises:
      UserError: no such file, not COCO JSON, no such category.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not all(isinstance(value.get(k), list) for k in ("images", "annotations", "categories")):
        raise UserError(f"{path}: not a COCO annotation file: it needs the lists images, annotations and categories")
    named = [c for c in value["categories"] if (c.get("name") == category if category else c.get("keypoints"))]
    if len(named) > 1 and category is None:
        named = [c for c in named if c.get("name") == "person"]
    if len(named) != 1:
        names, what = [c.get("name") for c in value["categories"]], f"named {category!r}" if category else "with keypoints"
        raise UserError(f"{path}: {len(named)} categories {what} among {names}; one is needed (person_keypoints_*.json)")
    size = 3 * len(named[0].get("keypoints") or ())
    persons = []
    for place, annotation in enumerate(value["annotations"]):
        try:
            if annotation["category_id"] != named[0]["id"]:
                continue
            keypoints = annotation.get("keypoints") or [0] * size
            box = [float(x) for x in annotation["bbox"]]
            if len(keypoints) != size or len(box) != 4:
                raise ValueError(f"{len(keypoints)} numbers in keypoints (must be {size}), {len(box)} in bbox (must be 4)")
            persons.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "bbox": box,
                    "area": box[2] * box[3] if annotation.get("area") is None else float(annotation["area"]),
                    "iscrowd": int(annotation.get("iscrowd") or 0),
                    "keypoints": keypoints,
                    "num_keypoints": int(annotation.get("num_keypoints", sum(v > 0 for v in keypoints[2::3]))),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: annotations[{place}] is broken ({error!r}); correct or remove it") from None
    return GroundTruth(str(path), tuple(value["images"]), tuple(persons), named[0])


def results_to_coco(image_id: int, people: People, category_id: int, **more: Any) -> list[Result]:
    """One picture's people in COCO's results format, keypoints as x, y, score. `more` is added to every entry."""
    results = []
    for box, score, points, point_scores in zip(
        people.boxes.tolist(), people.scores.tolist(), people.keypoints.tolist(), people.keypoint_scores.tolist(), strict=True
    ):
        x0, y0, x1, y1 = box
        flat = [v for (x, y), s in zip(points, point_scores, strict=True) for v in (round(x, 3), round(y, 3), round(s, 6))]
        results.append(
            {
                "image_id": image_id,
                **more,
                "category_id": category_id,
                "bbox": [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(score, 6),
                "keypoints": flat,
            }
        )
    return results


def evaluate(
    predictor: Predictor,
    data_set: DataSet,
    split: str,
    annotations: str | Path | GroundTruth,
    *,
    sigmas: Sequence[float] | None = None,
    progress: bool = True,
) -> Figures:
    """Runs a model over a whole split of the records and compares its answers with the annotations.

    Args:
      predictor: the model.
      data_set, split: which pictures; only these count, whatever else the annotations hold.
      annotations: the COCO JSON that the records were made of, or what `read_ground_truth` made of it.
      sigmas: OKS constants instead of those of the records' keypoint set.
      progress: whether to show it.

    Returns:
      "keypoints": the ten figures, "bbox": the twelve, "counts".

    Raises:
      UserError: another keypoint set than the model's; a picture of the split that the annotations do not know.
    """
    truth = annotations if isinstance(annotations, GroundTruth) else read_ground_truth(annotations, data_set.skeleton.category)
    _check_known(truth, data_set.index(split)["image_id"].tolist())  # before the work
    skeleton = data_set.skeleton if sigmas is None else dataclasses.replace(data_set.skeleton, sigmas=tuple(sigmas))
    results, image_ids = predict_split(predictor, data_set, split, progress=progress)
    return evaluate_results(truth, results, skeleton, image_ids)


def _check_known(truth: GroundTruth, image_ids: Iterable[int]) -> None:
    if unknown := set(image_ids) - {image["id"] for image in truth.images}:
        raise UserError(
            f"{truth.path}: has no image with id {min(unknown)}; give the annotations that the records were made of"
        )


def predict_split(
    predictor: Predictor, data_set: DataSet, split: str, *, progress: bool = True
) -> tuple[list[Result], list[int]]:
    """The people in all pictures of a split, as COCO results, and the ids of the pictures."""
    theirs, ours = data_set.skeleton.keypoints, predictor.skeleton.keypoints
    if theirs != ours:
        raise UserError(
            f"--data_dir={data_set.folder} has keypoints {', '.join(theirs)}, the model {', '.join(ours)}: "
            "they must be the same; make records of the model's keypoint set"
        )
    results: list[Result] = []
    image_ids: list[int] = []
    title, total = f"evaluate {split}", len(data_set.index(split))
    with Progress(total, title, "picture") if progress else contextlib.nullcontext() as shown:
        for chunk in _chunks(data_set, split):
            found = predictor.predict([encoded for _, encoded in chunk], [f"{split} picture {i}" for i, _ in chunk])
            for (image_id, _), people in zip(chunk, found, strict=True):
                results += results_to_coco(image_id, people, data_set.category_id)
                image_ids.append(image_id)
            if shown is not None:
                shown.advance(len(chunk))
    return results, image_ids


def _chunks(data_set: DataSet, split: str) -> Iterator[list[tuple[int, bytes]]]:
    """All pictures of a split, a few at a time: (image id, encoded)."""

    def fields(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        record = records.parse(serialized)
        return record["image/source_id"], record["image/encoded"]

    shards = [str(path) for path in data_set.shards(split)]
    for ids, encoded in tf.data.TFRecordDataset(shards).map(fields).batch(PICTURES_AT_ONCE).as_numpy_iterator():
        yield [(int(image_id), picture) for image_id, picture in zip(ids, encoded, strict=True)]


def evaluate_results(
    annotations: str | Path | GroundTruth,
    results: str | Path | Sequence[Result],
    skeleton: Skeleton | None = None,
    image_ids: Sequence[int] | None = None,
) -> Figures:
    """COCO's figures of results, without a model.

    Args:
      annotations: COCO JSON.
      results: entries in COCO's results format (or their file); there may be none. Those of other categories do not count.
      skeleton: its sigmas are used; by default the one of the JSON with COCO's sigmas.
      image_ids: the pictures that count; by default all of the JSON.

    Raises:
      UserError: a broken file or entry, an entry or id of a picture that the annotations do not know.
    """
    truth = annotations if isinstance(annotations, GroundTruth) else read_ground_truth(annotations)
    skeleton = skeleton or truth.skeleton()
    known = {image["id"] for image in truth.images}
    counted = known if image_ids is None else set(image_ids)
    _check_known(truth, counted)
    where = str(results) if isinstance(results, str | Path) else "results"
    entries = read_json(results) if isinstance(results, str | Path) else results
    category_id = truth.category["id"]
    found = _checked_results(entries, where, known, 3 * skeleton.num_keypoints, category_id)
    persons = [person for person in truth.persons if person["image_id"] in counted]
    count_found = sum(result["image_id"] in counted for result in found)
    gt, dt = _coco(truth.images, truth.persons, truth.category), _coco(truth.images, found, truth.category)
    figures: Figures = {}
    for kind, names in (("keypoints", KEYPOINT_FIGURES), ("bbox", BOX_FIGURES)):
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools narrates
            evaluation = COCOeval(gt, dt, kind)
            evaluation.params.imgIds = sorted(counted)
            evaluation.params.catIds = [category_id]
            if kind == "keypoints":
                evaluation.params.kpt_oks_sigmas = np.array(skeleton.sigmas)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        figures[kind] = {name: float(value) for name, value in zip(names, evaluation.stats, strict=True)}
    figures["counts"] = {
        "images": len(counted),
        "persons": sum(not person["iscrowd"] for person in persons),
        "persons_with_keypoints": sum(not person["iscrowd"] and person["num_keypoints"] > 0 for person in persons),
        "crowds": sum(person["iscrowd"] for person in persons),
        "results": count_found,
    }
    return figures


def _checked_results(entries: Any, where: str, known: set[int], size: int, category_id: int) -> list[Result]:
    """Copies of the entries with what pycocotools' `loadRes` adds; that one refuses an empty list."""
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise UserError(f"{where}: COCO results are a list of entries")
    found = []
    for place, entry in enumerate(entries):
        try:
            image_id, box, keypoints = entry["image_id"], [float(x) for x in entry["bbox"]], entry["keypoints"]
            score, its_category = float(entry["score"]), entry["category_id"]
            if len(box) != 4 or len(keypoints) != size:
                raise ValueError(f"{len(keypoints)} numbers in keypoints (must be {size}), {len(box)} in bbox (must be 4)")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: entry {place} is broken ({error!r}); see COCO's results format") from None
        if image_id not in known:
            raise UserError(f"{where}: entry {place} is of image {image_id}, which the annotations do not have")
        if its_category == category_id:
            found.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "keypoints": keypoints,
                    "score": score,
                }
            )
    return found


def _coco(images: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]], category: Mapping[str, Any]) -> COCO:
    """Entries numbered from 1: pycocotools takes an annotation of id 0 for no match. It writes into its input, so copies."""
    coco = COCO()
    coco.dataset = {
        "images": list(images),
        "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, 1)],
        "categories": [category],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def evaluate_files(
    *,
    annotations: str,
    model: str | None = None,
    data_dir: str | None = None,
    split: str = "val",
    results: str | None = None,
    sigmas: Sequence[float] | None = None,
    output_dir: str | None = None,
) -> str:
    """The command `model.evaluate`: a model over records, or a file of results. Returns what to print.

    Raises:
      UserError: neither or both of model and results, and all that the functions above refuse.
    """
    if (model is None) == (results is None):
        raise UserError("--model (with --data_dir) or --results: give one of them")
    if results is not None:
        truth = read_ground_truth(annotations)
        figures = evaluate_results(truth, results, truth.skeleton(sigmas))
        title = f"{results} against {annotations}"
    else:
        if data_dir is None:
            raise UserError("--data_dir: --model needs the folder of records that it shall look at")
        assert model is not None
        figures = evaluate(open_model(model), open_data_set(data_dir), split, annotations, sigmas=sigmas)
        title = f"{model} on {split} of {data_dir}"
    lines = [title, "", table(figures)]
    if output_dir is not None:
        path = Path(output_dir) / f"evaluation-{split}.json"
        write_json(path, {**figures, "model": model, "results": results, "annotations": annotations, "split": split})
        lines += ["", f"written: {path}"]
    return "\n".join(lines)


def table(figures: Figures) -> str:
    """The figures for reading; −1 stands for "no such person in the annotations", shown as a dash."""
    counts = figures["counts"]
    lines = [
        f"{counts['images']} pictures, {counts['persons']} persons, {counts['persons_with_keypoints']} with keypoints, "
        f"{counts['crowds']} crowds; {counts['results']} people found"
    ]
    for kind, title in (("keypoints", "keypoints"), ("bbox", "boxes")):
        for which in ("AP", "AR"):
            names = [name for name in figures[kind] if name.startswith(which)]
            cells = [f"{name} {figures[kind][name]:.3f}" if figures[kind][name] >= 0 else f"{name} –" for name in names]
            lines.append(f"{title if which == 'AP' else '':<10} " + " ".join(f"{cell:<16}" for cell in cells).rstrip())
    return "\n".join(lines)
