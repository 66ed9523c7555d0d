"""Exports a model directory: every file is made in a temporary place and checked before it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from export import saved_model, tflite
from export.compare import LEAST_SHARE, Agreement, Answer, ConversionError, agreement
from export.tflite import Pixels
from model import config as config_lib
from model.inference.image_folder import image_files
from model.inference.image_input import letterbox_file
from model.inference.serving import ServingModule
from model.model_dir import load_any, load_note, newest_checkpoint
from pipeline.command import UserError
from pipeline.files import write_json

FORMATS = ("saved_model", "tflite")
CHECK_IMAGES = 8  # of --check_images: enough to see that two files say the same

Report = Callable[[str], None]


def export_model(
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    name: str = "keypoint_rcnn",
    version: int | None = None,
    formats: Sequence[str] = FORMATS,
    tflite_height: int | None = None,
    tflite_width: int | None = None,
    check_images: str | Path | None = None,
    report: Report = print,
) -> dict[str, Path]:
    """Writes `<output_dir>/<name>/<version>/` and `<output_dir>/<name>.tflite` with `<name>.json`.

    Args:
      model_dir: a trained model.
      output_dir, name: as above. An earlier .tflite file of that name is replaced, an earlier version never.
      version: of the SavedModel; by default the next free number.
      formats: some of `FORMATS`.
      tflite_height, tflite_width: pixels that the TFLite file takes; by default `tflite.default_size`.
      check_images: images on which the exports must agree with the model; by default coloured patches.
      report: called with a line at each step.

    Returns:
      What was written, by kind.

    Raises:
      UserError: a wrong argument, a version that is there already.
      ConversionError: an export that is not the model.
    """
    output_dir, folder = Path(output_dir), Path(output_dir) / name
    if not name or name != Path(name).name or name.startswith("."):
        raise UserError(f"--name={name}: must be the plain name of a folder")
    if not formats or not set(formats) <= set(FORMATS):
        raise UserError(f"--formats={','.join(formats)}: must be one or more of {','.join(FORMATS)}")
    number = saved_model.choose_version(folder, version) if "saved_model" in formats else 0
    model = load_any(model_dir)
    height, width = tflite.default_size(model.config)
    height, width = (asked if asked is not None else own for asked, own in ((tflite_height, height), (tflite_width, width)))
    tflite.check_size(height, width)
    module = ServingModule(model)
    images = _check_images(check_images, height, width)
    expected = [_arrays(module.serve_images(image[None])) for image in images]
    checkpoint = newest_checkpoint(Path(model_dir))
    source: dict[str, Any] = {
        "model_dir": Path(model_dir).resolve().name,
        "checkpoint": Path(checkpoint).name if checkpoint else None,
    }
    started_from = load_note(Path(model_dir))  # their licence travels with weights that began as somebody else's
    source |= {"started_from": started_from} if started_from is not None else {}

    written: dict[str, Path] = {}
    with saved_model.temporary_folder(output_dir, name) as temporary:
        if "saved_model" in formats:
            report("SavedModel: tracing and saving")
            saved_model.write_saved_model(module, temporary / "saved_model", source)
            report(f"SavedModel: {_told(_verify_saved_model(temporary / 'saved_model', images, expected))}")
        if "tflite" in formats:
            report(f"TFLite: converting for images of {height}×{width}")
            content = tflite.convert(model, height, width, temporary)
            report(f"TFLite: {_told(tflite.verify(content, model, images, expected))}, {len(content) / 2**20:.1f} MiB")
            (temporary / "model.tflite").write_bytes(content)
        # From here on only names are given.
        if "saved_model" in formats:
            folder.mkdir(exist_ok=True)
            written["saved_model"] = folder / str(number)
            try:
                (temporary / "saved_model").rename(written["saved_model"])
            except OSError:  # somebody else was faster
                raise UserError(f"--version={number}: {written['saved_model']} is there already; export again") from None
        if "tflite" in formats:
            written["tflite"], written["tflite's configuration"] = output_dir / f"{name}.tflite", output_dir / f"{name}.json"
            write_json(
                written["tflite's configuration"],
                {
                    "signature": tflite.SIGNATURE,
                    "height": height,
                    "width": width,
                    "config": config_lib.to_json(model.config),
                    "skeleton": model.skeleton.to_json(),
                    "versions": saved_model.versions(source),
                },
            )
            (temporary / "model.tflite").replace(written["tflite"])
    return written


def _check_images(folder: str | Path | None, height: int, width: int) -> list[Pixels]:
    if folder is None:
        return list(tflite.random_images(height, width))
    files = image_files(Path(folder), "--check_images")[:CHECK_IMAGES]
    return [letterbox_file(path, height, width) for path in files]


def _verify_saved_model(path: Path, images: Sequence[Pixels], expected: Sequence[Answer]) -> Agreement:
    """Loads what was saved, and compares its answers with the model's. Raises: ConversionError."""
    loaded, total = tf.saved_model.load(str(path)), Agreement(0, 0)
    for image, wanted in zip(images, expected, strict=True):
        total += agreement(wanted, _arrays(loaded.signatures["serve_images"](images=tf.constant(image[None]))))
    if total.share < LEAST_SHARE:
        raise ConversionError(f"the SavedModel gives {total.matched} of the model's {total.total} detections")
    return total


def _arrays(answer: Mapping[str, tf.Tensor]) -> Answer:
    return {name: value.numpy() for name, value in answer.items()}


def _told(found: Agreement) -> str:
    if not found.total:
        return "checked; the model finds nobody on the images of the check (--check_images takes better ones)"
    return f"checked, {found.matched} of {found.total} detections are the model's"
