"""How good answers are: COCO's box and keypoint figures, each joint's error, and left and right confused.

Ground truth is the JSON as it is; predictions are in pixels of the images. Images are looked at one after the other, and
only what was matched is kept: the memory does not depend on how many people are found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.evaluation.coco_results import CocoFigures, read_results
from model.evaluation.consistency import (
    area_notes,
    check_file_name,
    check_images,
    check_keypoints,
    check_model_keypoints,
    figure_notes,
    result_notes,
    scale_of,
)
from model.evaluation.ground_truth import GroundTruth, Person, ground_truth_of, read_ground_truth
from model.evaluation.keypoint_errors import KeypointErrors
from model.evaluation.share import Share
from model.inference.coco_format import Result, results_to_coco
from model.inference.people import People
from model.inference.predictor import Predictor
from pipeline import records
from pipeline.command import Progress, UserError, reason_of
from pipeline.record_folder import RecordFolder
from pipeline.skeleton import Skeleton, given_sigmas

IMAGES_AT_ONCE = 64  # encoded, held while they are sorted into batches: a bound of the memory

Figures = dict[str, Any]


class Evaluation:
    """Compares answers with annotations, image by image.

    Args:
      truth: the annotations.
      skeleton: its sigmas and twins are used.
      notes: what was found out about the input, a line each; goes with the figures.

    Raises:
      UserError: the annotations have other keypoints than the skeleton.
    """

    def __init__(self, truth: GroundTruth, skeleton: Skeleton, notes: Sequence[str] = ()) -> None:
        check_keypoints(truth, skeleton)
        self._truth, self._skeleton = truth, skeleton
        self._notes = [*notes, *area_notes(truth)]
        kinds = ("keypoints", "bbox")
        self._figures = {kind: CocoFigures(kind, truth.category, skeleton.sigmas, truth.classes) for kind in kinds}
        self._of_classes = {
            number: {kind: CocoFigures(kind, truth.category, skeleton.sigmas, [(number, name)]) for kind in kinds}
            for number, name in truth.classes
        }
        self._swapped_back = CocoFigures("keypoints", truth.category, skeleton.sigmas, truth.classes)
        self._errors = KeypointErrors(skeleton)
        self._counts = dict.fromkeys(("images", "persons", "persons_with_keypoints", "crowds", "results"), 0)

    def add(self, images: Iterable[tuple[int, list[Result]]]) -> None:
        """Takes images, each once: id, and the results of the annotations' category in it, which may be none."""
        for image_id, results in images:
            persons = self._truth.by_image.get(image_id, ())
            for figures in self._figures.values():
                figures.add([image_id], persons, results)
            if self._of_classes:
                corrected = self._add_by_class(image_id, persons, results)
            else:
                corrected = self._errors.add(persons, results)
            self._swapped_back.add([image_id], persons, corrected)
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
            **({"classes": self._class_figures()} if self._of_classes else {}),
            "category": self._truth.category.get("name", "person"),
            "notes": [*self._notes, *figure_notes(figures, self._skeleton.keypoints)],
            "counts": self._counts,
            "joints": self._errors.joints(),
            "twins": twins,
            "swapped_back": {
                "pairs": sum(pair["swapped_back"] for pair in twins),
                "keypoints": swapped_back,
                "AP_gain": swapped_back["AP"] - figures["keypoints"]["AP"],
            },
        }

    def _add_by_class(self, image_id: int, persons: Sequence[Person], results: Sequence[Result]) -> list[Result]:
        """Adds an image to the figures of each class that it has; returns the results as `KeypointErrors.add` does."""
        corrected: list[Result] = []
        for number, figures in self._of_classes.items():
            theirs = [person for person in persons if person["category_id"] == number]
            found = [result for result in results if result["category_id"] == number]
            if theirs or found:
                for of_kind in figures.values():
                    of_kind.add([image_id], theirs, found)
                corrected += self._errors.add(theirs, found)
        return corrected

    def _class_figures(self) -> dict[str, Any]:
        """The figures of each class by its name, as if it were the only one."""
        names = dict(self._truth.classes)
        return {
            names[number]: {kind: of_kind.figures() for kind, of_kind in figures.items()}
            for number, figures in self._of_classes.items()
        }


def evaluate(
    predictor: Predictor | Sequence[Predictor],
    record_folder: RecordFolder,
    split: str,
    annotations: str | Path | GroundTruth,
    *,
    sigmas: Sequence[float] | None = None,
    progress: bool = True,
    share: Share | None = None,
) -> Figures:
    """Runs a model over a whole split of the records and compares its answers with the annotations.

    Args:
      predictor: the model; or the same model several times, each on a device of its own, which share the images.
      record_folder, split: which images count; the annotations may hold others.
      annotations: the COCO JSON that the records were made of, or what `read_ground_truth` made of it.
      sigmas: OKS constants instead of those of the records' keypoint set.
      progress: whether to show it.
      share: this worker's part, if several workers look at the images; each returns the figures of all.

    Returns:
      `keypoints`: COCO's ten figures, `bbox`: its twelve, by name; `counts`; `joints` and `twins` as `KeypointErrors` has them;
      `swapped_back`: how many `pairs` of confused twins were, COCO's figures `keypoints` after that, and the `AP_gain`;
      `notes`: a line for each thing about the input that may make the figures other than expected; `category`: its name. Of
      several classes `keypoints` and `bbox` are the means over them, and `classes` has both of each class by its name.

    Raises:
      UserError: another keypoint set than the model's or the annotations'; an image of the split that the annotations do not
        have, or have with another file name or shape; damaged records.
    """
    truth = annotations if isinstance(annotations, GroundTruth) else ground_truth_of(annotations, record_folder.skeleton)
    notes = check_images(truth, record_folder, split)  # before the work
    evaluation = Evaluation(truth, with_sigmas(record_folder.skeleton, sigmas), notes)
    evaluation.add(predict_split(predictor, record_folder, split, truth, progress=progress, share=share))
    return evaluation.figures()


def with_sigmas(skeleton: Skeleton, sigmas: Sequence[float] | None) -> Skeleton:
    """The skeleton with other sigmas, one for each keypoint or one for all."""
    if sigmas is None:
        return skeleton
    return dataclasses.replace(skeleton, sigmas=given_sigmas(sigmas, skeleton.num_keypoints))


def predict_split(
    predictor: Predictor | Sequence[Predictor],
    record_folder: RecordFolder,
    split: str,
    truth: GroundTruth,
    *,
    progress: bool = True,
    share: Share | None = None,
) -> Iterator[tuple[int, list[Result]]]:
    """The images of a split: id, and the people in it as COCO results in the annotations' pixels.

    Args:
      share: as `evaluate` takes it. All workers get all images, in the order of one worker.

    Raises:
      UserError: other keypoints than the model's; an image that the annotations call otherwise; damaged records.
    """
    predictors = [predictor] if isinstance(predictor, Predictor) else list(predictor)
    check_model_keypoints(record_folder, predictors[0].skeleton)
    title, total, category_ids = f"evaluate {split}", len(record_folder.index(split)), truth.category_ids
    workers = 1 if share is None else share.workers
    at_once = max(1, min(IMAGES_AT_ONCE, -(-total // (len(predictors) * workers))))
    chunks = _checked(_chunks(record_folder, split, at_once), truth)
    own = chunks if share is None else itertools.islice(chunks, share.index, None, share.workers)

    def results(chunk: list[_RecordImage], found: list[People]) -> list[tuple[int, list[Result]]]:
        of_images = []
        for one, people in zip(chunk, found, strict=True):
            x, y = scale_of(truth, one.image_id, one.height, one.width)
            ids = category_ids[0] if people.labels is None else [category_ids[label - 1] for label in people.labels]
            of_images.append((one.image_id, results_to_coco(one.image_id, people.scaled(x, y), ids)))
        return of_images

    answered = (results(chunk, found) for chunk, found in _answered(predictors, own, split))
    everybody = answered if share is None else share.in_turn(answered, -(-total // at_once))
    is_shown = progress and (share is None or share.index == 0)
    with Progress(total, title, "image") if is_shown else contextlib.nullcontext() as shown:
        for of_images in everybody:
            yield from ((image_id, found) for image_id, found in of_images)
            if shown is not None:
                shown.advance(len(of_images))


def _checked(chunks: Iterator[list[_RecordImage]], truth: GroundTruth) -> Iterator[list[_RecordImage]]:
    for chunk in chunks:
        for one in chunk:
            check_file_name(truth, one.image_id, one.file_name)
        yield chunk


def _answered(
    predictors: Sequence[Predictor], chunks: Iterable[list[_RecordImage]], split: str
) -> Iterator[tuple[list[_RecordImage], list[People]]]:
    """The chunks in their order, with the people in them. Each predictor works in a thread of its own, if there are several."""

    def ask(predictor: Predictor, chunk: list[_RecordImage]) -> list[People]:
        names = [f"{split} image {one.image_id}" for one in chunk]
        return predictor.predict([one.encoded for one in chunk], names, as_stored=True)

    if len(predictors) == 1:
        for chunk in chunks:
            yield chunk, ask(predictors[0], chunk)
        return
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="evaluate")) for _ in predictors]
        waiting: deque[tuple[list[_RecordImage], Future[list[People]]]] = deque()
        try:
            for number, chunk in enumerate(chunks):
                turn = number % len(predictors)
                waiting.append((chunk, workers[turn].submit(ask, predictors[turn], chunk)))
                if len(waiting) > len(predictors):
                    chunk, found = waiting.popleft()
                    yield chunk, found.result()
            while waiting:
                chunk, found = waiting.popleft()
                yield chunk, found.result()
        finally:
            for _, found in waiting:
                found.cancel()


@dataclasses.dataclass(frozen=True)
class _RecordImage:
    """The part of a record that an evaluation needs."""

    image_id: int
    file_name: str
    height: int
    width: int
    encoded: bytes


def _chunks(record_folder: RecordFolder, split: str, size: int) -> Iterator[list[_RecordImage]]:
    """All images of a split, `size` at a time."""
    keys = ("image/source_id", "image/filename", "image/height", "image/width", "image/encoded")

    @tf.autograph.experimental.do_not_convert
    def fields(serialized: tf.Tensor) -> tuple[tf.Tensor, ...]:
        record = records.parse(serialized, keys)
        return tuple(record[key] for key in keys)

    shards = [str(path) for path in record_folder.shards(split)]
    try:
        for columns in tf.data.TFRecordDataset(shards).map(fields).batch(size).as_numpy_iterator():
            yield [
                _RecordImage(int(image_id), name.decode(errors="surrogateescape"), int(height), int(width), encoded)
                for image_id, name, height, width, encoded in zip(*columns, strict=True)
            ]
    except records.READ_ERRORS as error:
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
    """Compares results with the annotations, without a model.

    Args:
      annotations: COCO JSON.
      results: entries in COCO's results format (or their file); there may be none. Those of other categories do not count.
        An entry with a `file_name` belongs to the image of that name if the annotations have names, else to its `image_id`.
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
    check_keypoints(truth, skeleton)
    found = read_results(results, frozenset(truth.image_ids), truth.category_ids, skeleton.num_keypoints, truth.names)
    evaluation = Evaluation(truth, skeleton, result_notes(truth, found))
    evaluation.add((image_id, found.of(image_id)) for image_id in sorted(set(counted)))
    return evaluation.figures()
