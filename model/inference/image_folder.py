"""Runs a model over image files: `predictions.json` in COCO's results format, and every image with its people drawn."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from model.inference.coco_format import Result, results_to_coco
from model.inference.predictor import People, Predictor
from pipeline import image
from pipeline.command import Progress, UserError
from pipeline.drawing import draw_people, drawn_people
from pipeline.files import write_file, write_json

SUFFIXES = (".jpg", ".jpeg", ".png")
FILES_AT_ONCE = 32  # bounds the memory


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
      predictions: the file with one entry per person.
      drawings: the folder of drawn images; None where nothing was drawn.
      images, people, empty: images looked at, people found, images in which nobody was.
      unreadable: a sentence for each image that could not be read.
    """

    predictions: Path
    drawings: Path | None
    images: int
    people: int
    empty: int
    unreadable: tuple[str, ...]


def image_files(path: Path, flag: str = "--input") -> list[Path]:
    """The images of a folder, sorted by name; or the one file. `flag` gave it.

    Raises:
      UserError: nothing there, or no image in it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{flag}={path}: no such file or folder")
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file() and not f.name.startswith("."))
    if not files:
        raise UserError(f"{flag}={path}: no images in it; their names must end in {', '.join(SUFFIXES)}")
    return files


def image_id_of(path: Path, position: int) -> int:
    """The number that ends a file's name (000000000139.jpg → 139), else its position in the sorted folder, from 0."""
    digits = re.search(r"[0-9]+$", path.stem)
    return int(digits.group()) if digits else position


def predict_files(predictor: Predictor, files: list[Path], output_dir: Path, *, draw: bool = True) -> Summary:
    """Looks at every file. One that cannot be read is left out, and named in the summary.

    Args:
      predictor: the model.
      files: JPEG or PNG images.
      output_dir: gets `predictions.json` and `images/<file name>`.
      draw: whether to write the latter.

    Raises:
      UserError: a drawing would replace one of the files.
    """
    category_id = predictor.config.inference.category_id
    results: list[Result] = []
    unreadable: list[str] = []
    empty = 0
    drawings = output_dir / "pictures"
    if draw and drawings.resolve() in {path.resolve().parent for path in files}:
        raise UserError(
            f"--output_dir={output_dir}: drawings go to {drawings}, where they would replace the images of --input; "
            "give another folder, or --nodraw"
        )
    (drawings if draw else output_dir).mkdir(parents=True, exist_ok=True)
    with Progress(len(files), "predict", "image") as progress:
        for first in range(0, len(files), FILES_AT_ONCE):
            chunk = files[first : first + FILES_AT_ONCE]
            contents = [path.read_bytes() for path in chunk]
            for place, people in enumerate(_predict(predictor, contents, [str(path) for path in chunk], unreadable)):
                if people is None:
                    continue
                path = chunk[place]
                results += results_to_coco(image_id_of(path, first + place), people, category_id, file_name=path.name)
                empty += len(people) == 0
                if draw:
                    drawn = drawn_people(people.boxes, people.scores, people.keypoints, people.keypoint_scores)
                    pixels = image.decode(tf.constant(contents[place])).numpy()
                    _write_image(drawings / path.name, draw_people(pixels, drawn, predictor.skeleton))
            progress.advance(len(chunk))
    predictions = output_dir / "predictions.json"
    write_json(predictions, results)
    return Summary(
        predictions, drawings if draw else None, len(files) - len(unreadable), len(results), empty, tuple(unreadable)
    )


def _predict(predictor: Predictor, contents: list[bytes], names: list[str], unreadable: list[str]) -> list[People | None]:
    """All at once; where one of them cannot be read, one by one, and None for that one."""
    try:
        return list(predictor.predict(contents, names))
    except UserError:
        found: list[People | None] = []
        for content, name in zip(contents, names, strict=True):
            try:
                found += predictor.predict([content], [name])
            except UserError as error:
                unreadable.append(str(error))
                found.append(None)
        return found


def _write_image(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """In the format that the name says, whole or not at all."""
    encoded = io.BytesIO()
    if path.suffix.lower() == ".png":
        Image.fromarray(pixels).save(encoded, "PNG")
    else:
        Image.fromarray(pixels).save(encoded, "JPEG", quality=90)
    write_file(path, encoded.getvalue())


def summary_text(summary: Summary) -> str:
    """What to print at the end of a run."""
    lines = [
        f"{summary.people} people found in {summary.images} images"
        + (f", nobody in {summary.empty} of them" if summary.empty else ""),
        f"written: {summary.predictions}",
    ]
    if summary.drawings is not None:
        lines.append(f"written: {summary.drawings}/ ({summary.images} drawn images)")
    return "\n".join([*lines, *(f"left out: {sentence}" for sentence in summary.unreadable)])
