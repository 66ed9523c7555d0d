"""What an artifact is worth, measured by running it: equality with the model, AP that is kept, speed, size."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from export import onnx_model
from export.asking import Pixels, ask
from export.compare import Answer, Comparison, ConversionError, compare
from export.formats import Artifact
from model.config import AnyConfig
from model.evaluation.consistency import check_images
from model.evaluation.evaluator import evaluate
from model.evaluation.ground_truth import GroundTruth, ground_truth_of
from model.inference import two_stages
from model.inference.predictor import Predictor, open_model
from model.inference.serving import ServingModule, own_pixels
from pipeline import data_config, image
from pipeline.command import UserError
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.sides import plain_names
from pipeline.skeleton import Skeleton

ROUNDS = 7  # of timing, in each of which every artifact runs once; the median counts
Run = Callable[[Pixels], Any]


@dataclasses.dataclass(frozen=True)
class Bars:
    """What an artifact must reach.

    Attributes:
      equal: the share of the model's detections that an exact format gives within 0.5 px (boxes) and 1 px (keypoints).
      alike: the share that a quantised format gives with IoU and OKS of 0.9 or more.
      ap_kept: the share of the model's box and keypoint AP, where records are given.
    """

    equal: float = 0.98
    alike: float = 0.9
    ap_kept: float = 0.98


@dataclasses.dataclass(frozen=True)
class Ap:
    """Keypoint and box AP on a split."""

    keypoints: float
    boxes: float


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What the figures of an export were measured on.

    Attributes:
      images: where those of the comparison come from.
      ranges: where those come from that gave int8 its ranges; None if nothing has ranges.
      split: name of the split of `model_ap`, and the number of its images; None if AP was not measured.
      model_ap: the model's own AP.
    """

    images: str
    ranges: str | None = None
    split: tuple[str, int] | None = None
    model_ap: Ap | None = None


@dataclasses.dataclass
class Examined:
    """An artifact's figures."""

    artifact: Artifact
    comparison: Comparison
    answers: list[Answer]
    milliseconds: float | None = None
    ap: Ap | None = None


@dataclasses.dataclass(frozen=True)
class Questions:
    """Images on which artifacts are compared, and the model's answers to them.

    Attributes:
      images: the first `fixed` have the size that a TFLite file takes; behind them lie those of the other `tflite.sizes`, if a
        file of several is asked; the last has a size that is no multiple of 32.
      expected: the model's answers.
      blank: a black image of the first size, on which a trained model finds nobody. It is asked, and not compared: what a model
        sees in nothing is a matter of the last bits.
    """

    images: list[Pixels]
    expected: Sequence[Answer]
    fixed: int
    blank: Pixels

    def number_for(self, artifact: Artifact) -> int:
        """How many of the images it takes: the first of them."""
        if artifact.format.runtime == "tflite_sizes":
            return len(self.images) - 1
        return self.fixed if artifact.format.is_tflite else len(self.images)


def questions(module: ServingModule, images: Sequence[Pixels], *, several_sizes: bool = False) -> Questions:
    """Images of one size, and beside them one of a size that is no multiple of 32; between them turned and square ones of
    `tflite.sizes`, if `several_sizes`.
    """
    height, width, _ = images[0].shape
    short = min(height, width)
    others = [np.rot90(images[0]), images[0][:short, :short]] if several_sizes else []
    others.append(images[0][: height - 5, : width - 11])
    asked = [*images, *map(np.ascontiguousarray, others)]
    expected: list[Answer] = [{k: v.numpy() for k, v in module.serve_images(tf.constant(one[None])).items()} for one in asked]
    return Questions(asked, expected, len(images), np.zeros_like(images[0]))


def examine(artifact: Artifact, asked: Questions, bars: Bars, skeleton: Skeleton, folder: Path) -> Examined:
    """Compares an artifact with the model, at every score, in a process that knows nothing of this project.

    Raises:
      ConversionError: it cannot be run, its answers have other shapes or are not finite, or it is below its bar.
    """
    number = asked.number_for(artifact)
    answers = ask(artifact.format.runtime, artifact.path, [*asked.images[:number], asked.blank], folder)
    title, wanted = artifact.format.title, {name: value.shape for name, value in asked.expected[0].items()}
    for answer in answers:
        shapes = {name: value.shape for name, value in answer.items()}
        if shapes != wanted:
            raise ConversionError(f"{title}: answers with {shapes}")
        if not all(np.isfinite(value).all() for value in answer.values()):
            raise ConversionError(f"{title}: gives answers that are not finite numbers")
    found = compare(asked.expected[:number], answers[:number], skeleton.sigmas)
    if artifact.format.exact and found.equal.share < bars.equal:
        raise ConversionError(
            f"{title}: gives {found.equal.matched} of the model's {found.equal.total} detections "
            f"({found.equal.share:.3f}); must be {bars.equal:g} or more (--min_equal)"
        )
    if not artifact.format.exact and found.alike.share < bars.alike:
        raise ConversionError(
            f"{title}: gives {found.alike.matched} of the model's {found.alike.total} detections with IoU and OKS of 0.9 or "
            f"more ({found.alike.share:.3f}); must be {bars.alike:g} or more (--min_alike); leave the format out, or calibrate "
            "on more images like yours (--calibration)"
        )
    return Examined(artifact, found, answers)


def time_them(found: Sequence[Examined], pixels: Pixels) -> None:
    """Sets the milliseconds of each for one image: the median of runs that take turns, so that a busy moment hits all alike."""
    runs = {one.artifact.name: _runner(one.artifact) for one in found}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run(pixels[None])
            if turn:  # the first is a warm-up
                taken[name].append(1000 * (time.perf_counter() - started))
    for one in found:
        one.milliseconds = float(np.median(taken[one.artifact.name]))


def threads() -> int:
    """The number of threads that every runtime has while it is timed."""
    return os.cpu_count() or 1


def _runner(artifact: Artifact) -> Run:
    if artifact.format.runtime == "onnx":
        return onnx_model.runner(artifact.path, threads())
    if artifact.format.is_tflite:
        from ai_edge_litert.interpreter import Interpreter

        run = two_stages.runner(Interpreter(model_path=str(artifact.path), num_threads=threads()))
        return lambda pixels: run(images=pixels)
    loaded = tf.saved_model.load(str(artifact.path))
    return lambda pixels: loaded.signatures["serve_images"](images=tf.constant(pixels))["boxes"].numpy()


@dataclasses.dataclass(frozen=True)
class Split:
    """Records on which AP is measured."""

    records: RecordFolder
    name: str
    truth: GroundTruth

    def __len__(self) -> int:
        return len(self.records.index(self.name))


def open_split(data_dir: str | Path, split: str, annotations: str | Path, skeleton: Skeleton) -> Split:
    """Opens records and their annotations, and checks that AP can be measured on them.

    Raises:
      UserError: there are no such records or annotations, they are damaged or do not belong together, or have another keypoint
        set than `skeleton`, the model's.
    """
    records = open_record_folder(data_dir)
    truth = ground_truth_of(annotations, records.skeleton)
    check_images(truth, records, split)
    theirs = records.skeleton.keypoints
    if plain_names(theirs) != plain_names(skeleton.keypoints):
        raise UserError(
            f"--eval_data_dir={data_dir} has keypoints {', '.join(theirs)}, the model {', '.join(skeleton.keypoints)}: "
            "they must be the same; make records of the model's keypoint set"
        )
    return Split(records, split, truth)


def ap_of(predictor: Predictor, split: Split) -> Ap:
    figures = evaluate(predictor, split.records, split.name, split.truth)
    return Ap(figures["keypoints"]["AP"], figures["bbox"]["AP"])


def measure_ap(
    found: Sequence[Examined],
    model: Ap,
    split: Split,
    bars: Bars,
    config: AnyConfig,
    skeleton: Skeleton,
    report: Callable[[str], None],
) -> dict[str, ConversionError]:
    """Sets the AP of each artifact, and reports it.

    Returns:
      By format, why those are refused that do not keep `bars.ap_kept` of the model's AP.
    """
    refused: dict[str, ConversionError] = {}
    if max(model.keypoints, model.boxes) <= 0:
        report(f"the model's own AP on {split.name} is 0: no artifact can lose any; train longer, or name other records")
    for one in found:
        path = one.artifact.path
        predictor = _onnx_predictor(path, config, skeleton) if one.artifact.format.runtime == "onnx" else open_model(path)
        one.ap = ap_of(predictor, split)
        title = one.artifact.format.title
        report(f"{title}: keypoint AP {one.ap.keypoints:.4f}, box AP {one.ap.boxes:.4f}")
        for kind in ("keypoints", "boxes"):
            kept, own = getattr(one.ap, kind), getattr(model, kind)
            if own > 0 and kept < bars.ap_kept * own and one.artifact.name not in refused:
                refused[one.artifact.name] = ConversionError(
                    f"{title}: keeps {kind} AP {kept:.4f} of the model's {own:.4f}; "
                    f"must be {bars.ap_kept * own:.4f} or more (--min_ap_kept={bars.ap_kept:g})"
                )
    return refused


def _onnx_predictor(path: Path, config: AnyConfig, skeleton: Skeleton) -> Predictor:
    """An ONNX file as a predictor: it takes pixels, so images are resized here, by the rule of the model's family."""
    run = onnx_model.runner(path)
    inference, rule, offset = config.inference, config.data.resize, config.data.keypoint_offset

    def answer(images: Sequence[bytes]) -> Mapping[str, Any]:
        (encoded,) = images
        pixels = image.decode(tf.constant(encoded))
        height, width, _ = pixels.shape
        size = data_config.resized_size(height, width, inference.short_edge, inference.max_edge, rule)
        resized = image.resize(pixels, *size, "standard" if rule == "torchvision" else rule)  # the file takes bytes
        found = {name: tf.constant(value) for name, value in run(resized.numpy()[None]).items()}
        points = tf.where(found["scores"][..., None, None] > 0, found["keypoints"] + offset, 0.0)
        scale = tf.constant([[size[0] / height, size[1] / width]], tf.float32)
        own = own_pixels({**found, "keypoints": points}, scale, tf.constant([[height, width]]), offset)
        return {name: value.numpy() for name, value in own.items()}

    def canvas(height: int, width: int) -> tuple[int, int]:
        return data_config.resized_size(height, width, inference.short_edge, inference.max_edge, rule)

    return Predictor(config, skeleton, answer, canvas, max_batch=1, score_threshold=inference.score_threshold)
