"""Exports a model directory: every artifact is made in a temporary place and examined before it gets its name.

An artifact that is not the model, or below its bar, gets none, and fails the export after the others have theirs. What a
machine cannot make does not stop the others either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export import model_card, report_page, sample_images, saved_model, tflite
from export.compare import ConversionError
from export.examination import (
    Ap,
    Bars,
    Conditions,
    Examined,
    Questions,
    Split,
    ap_of,
    examine,
    measure_ap,
    open_split,
    questions,
    time_them,
)
from export.formats import ALL, FORMATS, chosen
from export.making import Making, Report, open_source
from export.sample_images import Fit, Sample
from model.checkpoint_names import Weights, Which
from model.config import AnyConfig
from model.inference.predictor import model_predictor
from pipeline.command import UserError
from pipeline.files import only_writer, publish, read_json, write_file, write_json

REPORT, CARD = "export-report", "model-card.md"


def export_model(
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    name: str = "keypoint_rcnn",
    version: int | None = None,
    formats: Sequence[str] = ("saved_model", "tflite"),
    tflite_height: int | None = None,
    tflite_width: int | None = None,
    tflite_static_shapes: bool = False,
    check_images: str | Path | None = None,
    calibration: str | Path | None = None,
    eval_data_dir: str | Path | None = None,
    eval_split: str | None = None,
    eval_annotations: str | Path | None = None,
    bars: Bars | None = None,
    data_licence: str | None = None,
    overwrite: bool = False,
    which: Which = "newest",
    weights: Weights | None = None,
    report: Report = print,
) -> dict[str, Path]:
    """Writes the artifacts of a model with a report of what they are worth, and a model card.

    Args:
      model_dir: a trained model: its directory, or one checkpoint of it.
      output_dir: a folder for the export of one model.
      name: of the artifacts: `<name>/<version>/`, `<name>.tflite` with `<name>.json`, `<name>.onnx`, … An earlier file of the
        same model is replaced, an earlier version never.
      version: of the SavedModel; by default the next free number.
      formats: keys of `FORMATS`, or "all".
      tflite_height, tflite_width: pixels that the TFLite files take; by default `tflite.default_size`.
      tflite_static_shapes: see `tflite.convert`.
      check_images: images on which artifacts are compared with the model; by default those of `eval_split`, or patches.
      calibration: a record folder or a folder of images, for the ranges of int8; by default the training split of
        `eval_data_dir`, or the images of the check.
      eval_data_dir, eval_split, eval_annotations: records, split ("val" by default) and its annotations, for AP.
      bars: what artifacts must reach.
      data_licence: of the training data, for the model card, beside what the model directory knows of it.
      overwrite: whether files of another model's export are replaced.
      which: the checkpoint: the newest, or the best of the evaluations made in training.
      weights: "average" or "raw", as `model_dir.restore_weights` takes them.
      report: called with a line at each step.

    Returns:
      What was written, by kind.

    Raises:
      UserError: a wrong argument, a version that is there already, another model's export in `output_dir`, an export by another
        process; or a format that was asked for by name cannot be made on this machine (the others are written then).
      ConversionError: an artifact is not the model, or below its bar (the others are written then).
    """
    output_dir, bars, wanted = Path(output_dir), bars or Bars(), chosen(formats)
    _check_arguments(name, eval_data_dir, eval_split, eval_annotations)
    eval_split = eval_split or "val"
    in_versions = bool({"saved_model", "tf_trt"} & set(wanted))
    if in_versions:
        saved_model.choose_version(output_dir / name, version)  # before the work
    source = open_source(model_dir, data_licence, which, weights)
    model = source.module.model
    fit = _tflite_fit(model.config, tflite_height, tflite_width)
    split = None
    if eval_data_dir is not None and eval_annotations is not None:
        split = open_split(eval_data_dir, eval_split, eval_annotations, model.skeleton)
    compared = sample_images.for_comparison(check_images, eval_data_dir, eval_split, fit)
    ranges = sample_images.for_ranges(calibration, eval_data_dir, compared, fit)

    with (
        saved_model.disk_errors_named(output_dir),
        only_writer(output_dir, "export"),
        saved_model.temporary_folder(output_dir, name) as temporary,
    ):
        _check_other_model(output_dir, name, source.weights, overwrite)
        number = saved_model.choose_version(output_dir / name, version) if in_versions else 0
        making = Making(source, output_dir, name, number, fit, tflite_static_shapes, ranges, temporary, report)
        written = _write_what_passes(making, formats, compared, split, bars)
    _check_none_refused(formats, making.refused)
    _check_all_made(formats, making.missing)
    return written


def _write_what_passes(
    making: Making, formats: Sequence[str], compared: Sample, split: Split | None, bars: Bars
) -> dict[str, Path]:
    """Makes the artifacts, examines and measures them, and gives those names that pass; `export_model` says the rest."""
    module, weights = making.source.module, making.source.weights
    asked = questions(module, compared.images, several_sizes="tflite_sizes" in chosen(formats))
    found = _examined(making, formats, asked, bars)
    time_them(found, compared.images[0])
    own = _measured_ap(found, split, bars, making)
    if making.refused:
        found = [one for one in found if one.artifact.name not in making.refused]
        if not found:
            raise ConversionError(_refusal(formats, making.refused, "nothing is written"))
    conditions = _conditions(found, compared, making.ranges, split, own)
    pages = report_page.pages(found, making.missing, making.refused, asked, conditions, module.model, weights, making.name)
    card = model_card.card(found, conditions, module.model, weights, making.name)
    return _give_names(found, making.output_dir, pages, card)  # from here on only names are given


def _check_arguments(
    name: str, eval_data_dir: str | Path | None, eval_split: str | None, eval_annotations: str | Path | None
) -> None:
    if not name or name != Path(name).name or name.startswith("."):
        raise UserError(f"--name={name}: must be the plain name of a folder")
    if name == REPORT:
        raise UserError(f"--name={name}: is the name of the report, {REPORT}.json; give another")
    if (eval_data_dir is None) != (eval_annotations is None):
        raise UserError("--eval_data_dir and --eval_annotations: give both for AP, or neither")
    if eval_split is not None and eval_data_dir is None:
        raise UserError(f"--eval_split={eval_split}: is a split of --eval_data_dir, which is not given; give both, or neither")


def _tflite_fit(config: AnyConfig, height: int | None, width: int | None) -> Fit:
    """The canvas of the TFLite files: what was asked for, else the model's own."""
    own_height, own_width = tflite.default_size(config)
    height, width = own_height if height is None else height, own_width if width is None else width
    tflite.check_size(height, width)
    return Fit(height, width, config.data.resize)


def _examined(making: Making, formats: Sequence[str], asked: Questions, bars: Bars) -> list[Examined]:
    """Makes each format and compares it with the model.

    Raises:
      UserError: no format can be made here.
      ConversionError: all that can be made are refused.
    """
    found: list[Examined] = []
    for artifact in making.artifacts(chosen(formats)):
        try:
            found.append(examine(artifact, asked, bars, making.source.module.model.skeleton, making.temporary))
        except ConversionError as reason:
            making.refuse(artifact.name, reason)
        else:
            making.report(_checked(found[-1]))
    if not found and making.refused:
        raise ConversionError(_refusal(formats, making.refused, "nothing is written"))
    if not found:
        reasons = "; ".join(f"{FORMATS[kind].title} {reason}" for kind, reason in making.missing.items())
        raise UserError(f"--formats={','.join(formats)}: nothing can be made here: {reasons}")
    return found


def _measured_ap(found: Sequence[Examined], split: Split | None, bars: Bars, making: Making) -> Ap | None:
    """Measures the AP of the model, which is returned, and of each artifact; none without a split."""
    if split is None:
        return None
    module, report = making.source.module, making.report
    report(f"AP on {split.name}: {len(found) + 1} models, one after the other")
    own = ap_of(model_predictor(module.model), split)
    report(f"the model: keypoint AP {own.keypoints:.4f}, box AP {own.boxes:.4f}")
    refused = measure_ap(found, own, split, bars, module.model.config, module.model.skeleton, report)
    for kind, reason in refused.items():
        making.refuse(kind, reason)
    return own


def _conditions(found: Sequence[Examined], compared: Sample, ranges: Sample, split: Split | None, own: Ap | None) -> Conditions:
    has_ranges = any(one.artifact.format.has_ranges for one in found)
    return Conditions(
        images=compared.origin,
        ranges=ranges.origin if has_ranges else None,
        split=(split.name, len(split)) if split is not None else None,
        model_ap=own,
    )


def _check_none_refused(formats: Sequence[str], refused: Mapping[str, str]) -> None:
    """Raises: ConversionError, if an artifact was refused, whether its format was asked for by name or by "all"."""
    if refused:
        raise ConversionError(_refusal(formats, refused, "the others are written"))


def _refusal(formats: Sequence[str], refused: Mapping[str, str], and_so: str) -> str:
    """One line that says by which number artifacts are refused."""
    return f"--formats={','.join(formats)}: {'; '.join(refused.values())}; {and_so}"


def _check_all_made(formats: Sequence[str], missing: Mapping[str, str]) -> None:
    """Raises: UserError, if a format is missing that was asked for by its name and not by "all"."""
    for kind in chosen(formats):
        if kind in missing and ALL not in formats:
            raise UserError(f"--formats={kind}: cannot be made here: {missing[kind]}; the others are written")


def _check_other_model(output_dir: Path, name: str, weights: Mapping[str, Any], overwrite: bool) -> None:
    """Raises: UserError, if the folder holds the export of another model, or of this model by another name."""
    path = output_dir / f"{REPORT}.json"
    if overwrite or not path.exists():
        return
    about = read_json(path)
    before = about if isinstance(about, dict) else {}
    from_where = before.get("weights")
    there = (before.get("name"), from_where.get("model_dir") if isinstance(from_where, dict) else None)
    if there != (name, weights["model_dir"]):
        raise UserError(
            f"--output_dir={output_dir}: holds the export {there[0]} of the model {there[1]}, this is {name} of "
            f"{weights['model_dir']}; name another folder, or replace it with --overwrite"
        )


def _checked(one: Examined) -> str:
    """What a comparison found, in a line."""
    artifact, equal, alike = one.artifact, one.comparison.equal, one.comparison.alike
    if not equal.total:
        found = "the model finds nobody on the images of the check (--check_images takes better ones)"
    elif artifact.format.exact:
        found = f"{equal.matched} of {equal.total} detections are the model's"
    else:
        found = f"{alike.matched} of {alike.total} detections have IoU and OKS of 0.9 or more with the model's"
    return f"{artifact.format.title}: checked, {found}; {artifact.bytes() / 2**20:.1f} MiB"


def _give_names(found: Sequence[Examined], output_dir: Path, pages: Mapping[str, str], card: str) -> dict[str, Path]:
    written: dict[str, Path] = {}
    for artifact in (one.artifact for one in found):
        artifact.final.parent.mkdir(parents=True, exist_ok=True)
        written[artifact.name] = artifact.final
        if artifact.path.is_dir():
            try:
                artifact.path.rename(artifact.final)
            except OSError:
                if artifact.final.exists():  # somebody else was faster
                    raise UserError(f"--version: {artifact.final} is there already; export again") from None
                raise
            continue
        # Whoever is killed here leaves a file without its sidecar, which is refused, and never one with another's.
        beside = artifact.final.with_suffix(".json")
        if artifact.sidecar is not None:
            beside.unlink(missing_ok=True)
        publish(artifact.path, artifact.final)
        if artifact.sidecar is not None:
            written[f"{artifact.name}'s configuration"] = beside
            write_json(beside, artifact.sidecar)
    for ending, page in pages.items():
        written[f"report ({ending})"] = output_dir / f"{REPORT}.{ending}"
        write_file(output_dir / f"{REPORT}.{ending}", page)
    written["model card"] = output_dir / CARD
    write_file(output_dir / CARD, card)
    return written
