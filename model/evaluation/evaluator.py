"""How good answers are: COCO's box and keypoint figures, each joint's error, and left and right confused.

Ground truth is the JSON as it is; predictions are in pixels of the images. Images are looked at one after the other, and
only what was matched is kept: the memory does not depend on how many people are found.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.evaluation.coco_results import CocoFigures, read_results
from model.evaluation.ground_truth import GroundTruth, read_ground_truth
from model.evaluation.keypoint_errors import KeypointErrors
from model.inference.coco_format import Result, results_to_coco
from model.inference.predictor import Predictor, open_model
from pipeline import records
from pipeline.command import Progress, UserError, reason_of
from pipeline.files import write_json
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.skeleton import Skeleton

IMAGES_AT_ONCE = 64  # bounds the memory: so many encoded images are held while they are sorted into batches

Figures = dict[str, Any]


class Evaluation:
    """Compares answers with annotations, image by image.

    Args:
      truth: the annotations.
      skeleton: its sigmas and twins are used.
    """

    def __init__(self, truth: GroundTruth, skeleton: Skeleton) -> None:
        if len(truth.category.get("keypoints") or ()) != skeleton.num_keypoints:
            raise UserError(f"{truth.path}: its persons do not have the {skeleton.num_keypoints} keypoints of the model")
        self._truth = truth
        self._figures = {kind: CocoFigures(kind, truth.category, skeleton.sigmas) for kind in ("keypoints", "bbox")}
        self._swapped_back = CocoFigures("keypoints", truth.category, skeleton.sigmas)
        self._errors = KeypointErrors(skeleton)
        self._counts = dict.fromkeys(("images", "persons", "persons_with_keypoints", "crowds", "results"), 0)

    def add(self, images: Iterable[tuple[int, list[Result]]]) -> None:
        """Takes images, each once: id, and the results of the annotations' category in it, which may be none."""
        for image_id, results in images:
            persons = self._truth.by_image.get(image_id, ())
            for figures in self._figures.values():
                figures.add([image_id], persons, results)
            self._swapped_back.add([image_id], persons, self._errors.add(persons, results))
            single = [person for person in persons if not person["iscrowd"]]
            self._counts["images"] += 1
            self._counts["persons"] += len(single)
            self._counts["persons_with_keypoints"] += sum(person["num_keypoints"] > 0 for person in single)
            self._counts["crowds"] += len(persons) - len(single)
            self._counts["results"] += len(results)

    def figures(self) -> Figures:
        """What `evaluate` returns. Nothing can be added afterwards."""
        figures: Figures = {kind: of_kind.figures() for kind, of_kind in self._figures.items()}
        swapped_back = self._swapped_back.figures()
        twins = self._errors.twins()
        return {
            **figures,
            "counts": self._counts,
            "joints": self._errors.joints(),
            "twins": twins,
            "swapped_back": {
                "pairs": sum(pair["swapped_back"] for pair in twins),
                "keypoints": swapped_back,
                "AP_gain": swapped_back["AP"] - figures["keypoints"]["AP"],
            },
        }


def evaluate(
    predictor: Predictor,
    record_folder: RecordFolder,
    split: str,
    annotations: str | Path | GroundTruth,
    *,
    sigmas: Sequence[float] | None = None,
    progress: bool = True,
) -> Figures:
    """Runs a model over a whole split of the records and compares its answers with the annotations.

    Args:
      predictor: the model.
      record_folder, split: which images; only these count, whatever else the annotations hold.
      annotations: the COCO JSON that the records were made of, or what `read_ground_truth` made of it.
      sigmas: OKS constants instead of those of the records' keypoint set.
      progress: whether to show it.

    Returns:
      `keypoints`: COCO's ten figures, `bbox`: its twelve, by name; `counts`; `joints` and `twins` as `KeypointErrors` has them;
      `swapped_back`: how many `pairs` of confused twins were, COCO's figures `keypoints` after that, and the `AP_gain`.

    Raises:
      UserError: another keypoint set than the model's; an image of the split that the annotations do not know;
        damaged records.
    """
    truth = (
        annotations if isinstance(annotations, GroundTruth) else read_ground_truth(annotations, record_folder.skeleton.category)
    )
    truth.check_known(record_folder.index(split)["image_id"].tolist())  # before the work
    evaluation = Evaluation(truth, _with_sigmas(record_folder.skeleton, sigmas))
    evaluation.add(predict_split(predictor, record_folder, split, truth.category["id"], progress=progress))
    return evaluation.figures()


def _with_sigmas(skeleton: Skeleton, sigmas: Sequence[float] | None) -> Skeleton:
    return skeleton if sigmas is None else dataclasses.replace(skeleton, sigmas=tuple(sigmas))


def predict_split(
    predictor: Predictor, record_folder: RecordFolder, split: str, category_id: int, *, progress: bool = True
) -> Iterator[tuple[int, list[Result]]]:
    """All images of a split: id, and the people in it as COCO results."""
    theirs, ours = record_folder.skeleton.keypoints, predictor.skeleton.keypoints
    if theirs != ours:
        raise UserError(
            f"--data_dir={record_folder.path} has keypoints {', '.join(theirs)}, the model {', '.join(ours)}: "
            "they must be the same; make records of the model's keypoint set"
        )
    title, total = f"evaluate {split}", len(record_folder.index(split))
    with Progress(total, title, "image") if progress else contextlib.nullcontext() as shown:
        for chunk in _chunks(record_folder, split):
            found = predictor.predict([encoded for _, encoded in chunk], [f"{split} image {i}" for i, _ in chunk])
            for (image_id, _), people in zip(chunk, found, strict=True):
                yield image_id, results_to_coco(image_id, people, category_id)
            if shown is not None:
                shown.advance(len(chunk))


def _chunks(record_folder: RecordFolder, split: str) -> Iterator[list[tuple[int, bytes]]]:
    """All images of a split, a few at a time: (image id, encoded)."""

    def fields(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        record = records.parse(serialized)
        return record["image/source_id"], record["image/encoded"]

    shards = [str(path) for path in record_folder.shards(split)]
    try:
        for ids, encoded in tf.data.TFRecordDataset(shards).map(fields).batch(IMAGES_AT_ONCE).as_numpy_iterator():
            yield [(int(image_id), image) for image_id, image in zip(ids, encoded, strict=True)]
    except tf.errors.OpError as error:
        raise UserError(
            f"{record_folder.path}: the split {split!r} is damaged ({reason_of(error)}); "
            f"python -m pipeline.inspect_records --data_dir={record_folder.path} --verify names the place"
        ) from None


def evaluate_results(
    annotations: str | Path | GroundTruth,
    results: str | Path | Sequence[Result],
    skeleton: Skeleton | None = None,
    image_ids: Sequence[int] | None = None,
) -> Figures:
    """The same of results, without a model.

    Args:
      annotations: COCO JSON.
      results: entries in COCO's results format (or their file); there may be none. Those of other categories do not count.
      skeleton: its sigmas and twins are used; by default the one of the JSON with COCO's sigmas.
      image_ids: the images that count; by default all of the JSON.

    Returns:
      What `evaluate` returns.

    Raises:
      UserError: a broken file or entry, an entry or id of an image that the annotations do not know.
    """
    truth = annotations if isinstance(annotations, GroundTruth) else read_ground_truth(annotations)
    skeleton = skeleton or truth.skeleton()
    counted = truth.image_ids if image_ids is None else image_ids
    truth.check_known(counted)
    found = read_results(results, frozenset(truth.image_ids), truth.category["id"], skeleton.num_keypoints)
    evaluation = Evaluation(truth, skeleton)
    evaluation.add((image_id, found.of(image_id)) for image_id in sorted(set(counted)))
    return evaluation.figures()


def evaluate_files(
    *,
    annotations: str,
    model: str | None = None,
    data_dir: str | None = None,
    split: str = "val",
    results: str | None = None,
    sigmas: Sequence[float] | None = None,
    decoder: str = "fast",
    output_dir: str | None = None,
) -> str:
    """The command `model.evaluate`: a model over records, or a file of results. Returns what to print.

    With results, the records say which images count, and what the keypoint set is; they may be left out.

    Raises:
      UserError: neither or both of model and results, and all that the functions above refuse.
    """
    if (model is None) == (results is None):
        raise UserError("--model (with --data_dir) or --results: give one of them")
    record_folder = None if data_dir is None else open_record_folder(data_dir)
    if model is not None:
        if record_folder is None:
            raise UserError("--data_dir: --model needs the folder of records that it shall look at")
        figures = evaluate(open_model(model, decoder=decoder), record_folder, split, annotations, sigmas=sigmas)
        title = f"{model} on {split} of {data_dir}"
    else:
        assert results is not None
        if decoder != "fast":
            raise UserError(f"--decoder={decoder}: --results are decoded already; leave it out")
        truth = read_ground_truth(annotations, None if record_folder is None else record_folder.skeleton.category)
        skeleton = truth.skeleton(sigmas) if record_folder is None else _with_sigmas(record_folder.skeleton, sigmas)
        image_ids = None if record_folder is None else record_folder.index(split)["image_id"].tolist()
        figures = evaluate_results(truth, results, skeleton, image_ids)
        title = f"{results} against {annotations}"
    lines = [title, "", table(figures)]
    if output_dir is not None:
        path = Path(output_dir) / f"evaluation-{split}.json"
        write_json(path, {**figures, "model": model, "results": results, "annotations": annotations, "split": split})
        lines += ["", f"written: {path}"]
    return "\n".join(lines)


# The figures of an evaluation for reading. A dash stands for what the annotations leave undefined.


def table(figures: Mapping[str, Any]) -> str:
    """What `model.evaluation.evaluator.evaluate` returns, as text of several lines."""
    counts = figures["counts"]
    lines = [
        f"{counts['images']} images, {counts['persons']} persons, {counts['persons_with_keypoints']} with keypoints, "
        f"{counts['crowds']} crowds; {counts['results']} people found",
        "",
    ]
    for kind, title in (("keypoints", "keypoints"), ("bbox", "boxes")):
        for which in ("AP", "AR"):
            cells = [f"{name} {_share(value)}" for name, value in figures[kind].items() if name.startswith(which)]
            lines.append(f"{title if which == 'AP' else '':<10} " + " ".join(f"{cell:<16}" for cell in cells).rstrip())
    return "\n".join([*lines, "", *_joints(figures["joints"]), "", *_twins(figures)]).rstrip()


def _share(value: float | None) -> str:
    return "–" if value is None or value == -1.0 else f"{value:.3f}"


def _joints(joints: Mapping[str, Mapping[str, Any]]) -> list[str]:
    width = max(len(name) for name in joints)
    lines = [f"{'joint':<{width}}  labelled   found  mean error  median   hits"]
    for name, row in joints.items():
        lines.append(
            f"{name:<{width}}  {row['labelled']:>8} {row['found']:>7} {_share(row['mean_error']):>11} "
            f"{_share(row['median_error']):>7} {_share(row['hit']):>6}"
        )
    return lines


def _twins(figures: Mapping[str, Any]) -> list[str]:
    if not figures["twins"]:
        return []
    names = [" / ".join(pair["joints"]) for pair in figures["twins"]]
    title = "nearer the twin's truth"
    width = max(len(name) for name in [*names, title])
    lines = [f"{title:<{width}}  compared   first  second   share"]
    for name, pair in zip(names, figures["twins"], strict=True):
        first, second = pair["confused"]
        lines.append(f"{name:<{width}}  {pair['compared']:>8} {first:>7} {second:>7} {_share(pair['share']):>7}")
    swapped = figures["swapped_back"]
    ap = swapped["keypoints"]["AP"]
    gain = "" if ap == -1.0 else f": keypoint AP {ap:.3f}, {swapped['AP_gain']:+.3f}"
    return [*lines, f"{swapped['pairs']} pairs swapped back{gain}"]
