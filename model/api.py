"""`train` and `evaluate` for programs in Python: the commands of these names, whose flags are the functions' keywords.

    from model.api import evaluate, train

    train(data_dir="records", model_dir="run", init="imported", steps=5000)
    result = evaluate(model="run", data_dir="records", split="val", annotations="person_keypoints_val.json")
    print(result.keypoint_ap, result.joints["left_wrist"]["mean_error"])

`model.inference.predictor.open_model` opens what was trained.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.checkpoint_files import newest_checkpoint
from model.checkpoint_names import Weights, Which
from model.config import Config
from model.evaluation import evaluator
from model.evaluation.consistency import check_images, check_keypoints, checksum_notes
from model.evaluation.evaluator import Figures, evaluate_results, with_sigmas
from model.evaluation.figures_table import table
from model.evaluation.ground_truth import GroundTruth, ground_truth_of, read_ground_truth
from model.evaluation.share import Share
from model.inference.predictor import Predictor, open_model
from model.training import loop
from model.training.arguments import Arguments, OnDamaged, OnNonfinite, Precision, Strategy
from model.training.evaluator_task import follow
from model.training.settings import Settings, settle
from model.training.starting_point import open_starting_point
from model.training.strategies import evaluating_devices, make_strategy, naming_lost_workers, share_of
from model.training.validation import Validation
from pipeline.batch_flags import check_flip
from pipeline.command import UserError
from pipeline.files import write_json
from pipeline.loading.options import Cache, OnError
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.skeleton import read_category


def train(
    *,
    data_dir: str | Path,
    model_dir: str | Path,
    split: str = "train",
    preset: str | None = None,
    config: str | Path | None = None,
    recipe: str | None = None,
    init: str | Path | None = None,
    which: Which = "newest",
    overrides: Sequence[str] = (),
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    scale_learning_rate: bool | None = None,
    seed: int | None = None,
    flip: bool | None = None,
    brightness: float | None = None,
    contrast: float | None = None,
    saturation: float | None = None,
    hue: float | None = None,
    strategy: Strategy = "one_device",
    precision: Precision = "float32",
    jit_compile: bool = False,
    steps_per_call: int = 1,
    save_every: int = 1000,
    keep: int = 3,
    keep_every: int = 0,
    on_damaged_checkpoint: OnDamaged = "previous",
    on_nonfinite: OnNonfinite = "stop",
    eval_split: str | None = None,
    eval_annotations: str | Path | None = None,
    eval_every: int = 0,
    patience: int = 0,
    eval_loss: bool = False,
    on_error: OnError = "fail",
    cache: Cache = "none",
    data_service: str = "",
    cpu_devices: int = 1,
    deterministic: bool = False,
    peak_tflops: float | None = None,
    profile: str | None = None,
    dry_run: bool = False,
) -> Path:
    """Trains Keypoint R-CNN on a record folder, or goes on where an earlier call with the same `model_dir` was stopped.

    `python -m model.train --help` explains each argument at length, as the flag of its name. An argument that is None leaves
    the choice to the preset.

    Args:
      data_dir, split: the record folder, and the split of it to train on.
      model_dir: the directory that gets configuration, checkpoints and logs.
      preset: the configuration to begin with; by default that of `model_dir` or `init`, else "r50_fpn".
      config: a JSON file with what a model's config.json holds, instead of `preset`.
      recipe: settings with a name, or "auto": fitted to the records and to what training starts from.
      init: the weights to start from: a ResNet's file or a model directory; by default random ones.
      which: the checkpoint of the model directory that `init` names: the newest, or the best of the evaluations.
      overrides: values of the configuration, such as "rpn.nms_threshold=0.6": the flag --set.
      steps, epochs, batch_size, learning_rate, seed: the schedule. Epochs, instead of steps, are passes over the images of the
        split; the batch is that of all replicas together.
      scale_learning_rate: whether the learning rate is that of a batch of `train.reference_batch_size`, and grows with it.
      flip, brightness, contrast, saturation, hue: the augmentation.
      strategy, precision, jit_compile, cpu_devices: the devices, and how they compute.
      steps_per_call: steps that are taken in one call of TensorFlow, where nothing is to be done between them.
      save_every, keep, keep_every: steps between two checkpoints, how many of the newest are kept, and the steps between two
        that are kept for good. The best by keypoint AP of the evaluations is kept in any case.
      on_damaged_checkpoint: whether training goes on from the checkpoint before a damaged one.
      on_nonfinite: whether a step whose loss is not finite ends the training, or changes nothing and is counted.
      eval_split, eval_annotations, eval_every: the split that is evaluated, the COCO JSON that it was made of, and the steps
        between two evaluations. With 0 steps, only the last weights are evaluated.
      patience: the evaluations in a row without a higher keypoint AP after which training stops early; 0: it does not.
      eval_loss: whether an evaluation measures the split's losses, too.
      on_error, cache, data_service: how batches are loaded.
      deterministic: whether GPUs, too, compute the same bits in every run, at a price in speed.
      peak_tflops: what one device can do at most, for MFU; by default what a table says of its name.
      profile: steps to profile for TensorBoard, such as "100:110".
      dry_run: whether to print what would be done, and to write nothing.

    Returns:
      `model_dir`, which `open_model`, `evaluate` and `export_model` take.

    Raises:
      UserError: a wrong argument, or a training that cannot go on; the message says what to do.
      InterruptedWorkError: a `UserError` after Ctrl-C, SIGTERM or SIGHUP. The same call goes on.
    """
    asked = Arguments(**locals())  # which checks them
    where = Path(model_dir)
    if asked.is_evaluator:
        follow(where, _validation(asked))
        return where
    if asked.deterministic:
        tf.config.experimental.enable_op_determinism()
    has_checkpoint = newest_checkpoint(where) is not None
    start = open_starting_point(asked.init, asked.which) if asked.init and not has_checkpoint else None
    record_folder = open_record_folder(asked.data_dir)
    devices = make_strategy(asked.strategy, cpu_devices=asked.cpu_devices)
    settings = settle(asked, start, record_folder, devices.num_replicas_in_sync)
    check_flip(settings.config.data.flip, record_folder)
    losses_of = settings.config if asked.eval_loss else None
    validate = _validation(asked, losses_of, share_of(devices)) if asked.eval_split else None
    run = _run(asked, where, settings)
    with naming_lost_workers(devices):
        loop.train(settings.config, record_folder, asked.split, run, devices, validate, start)
    return where


def _run(asked: Arguments, model_dir: Path, settings: Settings) -> loop.Run:
    """What the loop is told beside the configuration."""
    return loop.Run(
        model_dir=model_dir,
        precision=asked.precision,
        jit_compile=asked.jit_compile,
        steps_per_call=asked.steps_per_call,
        save_every=asked.save_every,
        evaluate_every=asked.eval_every,
        patience=asked.patience,
        options=asked.loading,
        keep=asked.keep,
        keep_every=asked.keep_every,
        on_damaged_checkpoint=asked.on_damaged_checkpoint,
        on_nonfinite=asked.on_nonfinite,
        peak_tflops=asked.peak_tflops,
        profile=asked.profiled,
        dry_run=asked.dry_run,
        remarks=settings.remarks,
        recipe=settings.recipe,
    )


def _validation(asked: Arguments, loss_of: Config | None = None, share: Share | None = None) -> Validation:
    assert asked.eval_split is not None and asked.eval_annotations is not None  # `Arguments` has checked it
    return Validation(open_record_folder(asked.data_dir), asked.eval_split, asked.eval_annotations, loss_of, share)


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found out. `str(result)` is the table that `model.evaluate` prints.

    A figure that the annotations leave undefined, such as AP where nobody is annotated, is -1.

    Attributes:
      title: what was evaluated, on what.
      figures: everything, as `model.evaluation.evaluator.evaluate` explains it and as the JSON file holds it.
      written: the JSON file, if one was asked for.
      keypoint_ap, box_ap: COCO's AP, the mean over the thresholds 0.50, 0.55, …, 0.95 of OKS or IoU.
      keypoints, boxes: COCO's ten and twelve figures by name: AP, AP50, AP75, AP_medium, AP_large, AR and its like.
      joints: for each keypoint, how many are labelled and found, their mean and median error, the share of hits.
      counts: how many images, persons, persons_with_keypoints, crowds and results there were.
      notes: lines on the input that may make the figures other than expected.
    """

    title: str
    figures: Figures
    written: Path | None = None

    @property
    def keypoint_ap(self) -> float:
        return float(self.figures["keypoints"]["AP"])

    @property
    def box_ap(self) -> float:
        return float(self.figures["bbox"]["AP"])

    @property
    def keypoints(self) -> Mapping[str, float]:
        return self.figures["keypoints"]  # type: ignore[no-any-return]

    @property
    def boxes(self) -> Mapping[str, float]:
        return self.figures["bbox"]  # type: ignore[no-any-return]

    @property
    def joints(self) -> Mapping[str, Mapping[str, Any]]:
        return self.figures["joints"]  # type: ignore[no-any-return]

    @property
    def counts(self) -> Mapping[str, int]:
        return self.figures["counts"]  # type: ignore[no-any-return]

    @property
    def notes(self) -> Sequence[str]:
        return self.figures["notes"]  # type: ignore[no-any-return]

    def __str__(self) -> str:
        end = "" if self.written is None else f"\n\nwritten: {self.written}"
        return f"{self.title}\n\n{table(self.figures)}{end}"


def evaluate(
    *,
    annotations: str | Path,
    model: str | Path | None = None,
    data_dir: str | Path | None = None,
    split: str | None = None,
    results: str | Path | None = None,
    category: str | None = None,
    categories: str | None = None,
    sigmas: Sequence[float] | None = None,
    decoder: str = "fast",
    legacy_decoding: bool = False,
    output_dir: str | Path | None = None,
    which: Which = "newest",
    weights: Weights | None = None,
    strategy: str = "one_device",
    cpu_devices: int = 1,
) -> EvaluationResult:
    """Judges a model over a split of a record folder, or a file of results.

    Args:
      annotations: the COCO JSON with the ground truth.
      model: a model directory, a SavedModel or a `.tflite` file; needs `data_dir`.
      data_dir, split: the record folder and its split, by default "val", with the images that the model looks at. With
        `results`, they limit the images that count and give the keypoint set, and may be left out.
      results: instead of `model`, a JSON file in COCO's results format.
      category: of the annotations, for `results` without `data_dir`: a name, several with commas between, or "all".
      categories: instead of `category`, names with commas between, or "all": they are told apart, and each is judged.
      sigmas: OKS constants, one for each keypoint or one for all; by default those of the records, else COCO's by name.
      decoder: of the keypoints, "fast" or "reference"; the second is for a model directory only.
      legacy_decoding: rounds as the original of the old network does.
      output_dir: a folder that gets the figures as `evaluation-<split>.json`, which without `data_dir` is `evaluation.json`;
        the first of several workers writes it.
      which: the checkpoint of a model directory: the newest, or the best of the evaluations made in training.
      weights: of that checkpoint: "average" for the moving average that training kept, "raw" for the weights themselves; by
        default the average if there is one.
      strategy, cpu_devices: "one_device"; "mirrored": the images are shared among all GPUs, or devices of the CPU; or
        "multi_worker": among the workers that TF_CONFIG names, too, which all call this function and get the figures.

    Returns:
      The figures by name.

    Raises:
      UserError: neither or both of `model` and `results`; a wrong file; annotations of other keypoints or images.
    """
    if results is not None and strategy != "one_device":
        raise UserError(f"--strategy={strategy}: --results need no devices; leave it out")
    if category is not None and categories is not None:
        raise UserError(f"--categories={categories}: keeps categories apart and --category={category} joins them; give one")
    if categories is not None and data_dir is not None:
        raise UserError(f"--categories={categories}: --data_dir has the classes that its records were made of; leave it out")
    _check_what_is_judged(model, data_dir, split, results, category, decoder, legacy_decoding, which, weights)
    split, is_first = split or "val", True
    record_folder = None if data_dir is None else open_record_folder(data_dir)
    # Before a model is opened: what is refused is refused at once.
    truth, notes = _truth(annotations, record_folder, split, category, categories)
    if model is not None:
        assert record_folder is not None
        devices, together = evaluating_devices(strategy, cpu_devices=cpu_devices)
        share = None if together is None else share_of(together)
        is_first = share is None or share.index == 0
        opened = _on_devices(
            devices,
            lambda: open_model(model, decoder=decoder, legacy_decoding=legacy_decoding, which=which, weights=weights),
        )
        with contextlib.nullcontext() if together is None else naming_lost_workers(together):
            figures = evaluator.evaluate(opened, record_folder, split, truth, sigmas=sigmas, share=share)
        title = f"{model}{', the best checkpoint,' if which == 'best' else ''} on {split} of {data_dir}"
    else:
        assert results is not None
        figures = _judge_results(results, truth, record_folder, split, sigmas)
        title = f"{results} against {annotations}"
    figures["notes"] = [*notes, *figures["notes"]]
    written = None
    if output_dir is not None and is_first:
        written = Path(output_dir) / ("evaluation.json" if record_folder is None else f"evaluation-{split}.json")
        about = {"model": model, "results": results, "annotations": annotations}
        names = {name: None if value is None else str(value) for name, value in about.items()}
        write_json(written, {**figures, **names, "split": None if record_folder is None else split})
    return EvaluationResult(title, figures, written)


def _truth(
    annotations: str | Path, record_folder: RecordFolder | None, split: str, category: str | None, categories: str | None
) -> tuple[GroundTruth, list[str]]:
    """The ground truth, and lines on what in it is not as the records have it."""
    if record_folder is None:
        return read_ground_truth(annotations, categories or category, classes=categories is not None), []
    truth = ground_truth_of(annotations, record_folder.skeleton)
    check_keypoints(truth, record_folder.skeleton)
    check_images(truth, record_folder, split)
    return truth, checksum_notes(truth, record_folder, split)


def _judge_results(
    results: str | Path,
    truth: GroundTruth,
    record_folder: RecordFolder | None,
    split: str,
    sigmas: Sequence[float] | None,
) -> Figures:
    """The figures of a results file, over the images of the split if there are records, else over all of the annotations."""
    if record_folder is not None:
        image_ids = record_folder.index(split)["image_id"].tolist()
        return evaluate_results(truth, results, with_sigmas(record_folder.skeleton, sigmas), image_ids)
    figures = evaluate_results(truth, results, truth.skeleton(sigmas), None)
    notes = [note for note in read_category(truth.category, sigmas=sigmas)[1] if note.startswith("OKS sigma")]
    figures["notes"] = [*notes, *figures["notes"]]
    return figures


def _on_devices(devices: Sequence[str], open_one: Callable[[], Predictor]) -> list[Predictor]:
    """A predictor with weights of its own on each device; one wherever TensorFlow puts it if no devices are given."""
    if not devices:
        return [open_one()]
    opened = []
    for device in devices:
        with tf.device(device):
            opened.append(open_one().on_device(device))
    return opened


def _check_what_is_judged(
    model: str | Path | None,
    data_dir: str | Path | None,
    split: str | None,
    results: str | Path | None,
    category: str | None,
    decoder: str,
    legacy_decoding: bool,
    which: Which,
    weights: Weights | None,
) -> None:
    if (model is None) == (results is None):
        raise UserError("--model (with --data_dir) or --results: give one of them")
    if results is not None and decoder != "fast":
        raise UserError(f"--decoder={decoder}: --results are decoded already; leave it out")
    if results is not None and which != "newest":
        raise UserError(f"--which={which}: --results come from no checkpoint; leave it out")
    if results is not None and weights is not None:
        raise UserError(f"--weights={weights}: --results come from no model; leave it out")
    if results is not None and legacy_decoding:
        raise UserError("--legacy_decoding: --results are decoded already; leave it out")
    if category is not None and data_dir is not None:
        raise UserError(f"--category={category}: --data_dir has the category that its records were made of; leave it out")
    if model is not None and data_dir is None:
        raise UserError("--data_dir: --model needs the record folder with the images that it looks at")
    if split is not None and data_dir is None:
        raise UserError(
            f"--split={split}: is a split of records, and --data_dir is not given; name both to limit --results to its images, "
            "or leave it out to count all images of --annotations"
        )
