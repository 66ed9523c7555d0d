"""Images of one size, spread over a folder of images or of records: for the comparison, and for the ranges of int8."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from export.tflite import Pixels, random_images
from model.inference.image_folder import image_files
from model.inference.image_input import decoded, image_size, letterbox, read_image_file, without_rotation
from pipeline.command import UserError
from pipeline.data_config import ResizeRule
from pipeline.record_folder import METADATA_FILE, open_record_folder
from pipeline.record_reader import read_records

CHECK_IMAGES = 8  # of a comparison: enough to see that two files say the same
CALIBRATION_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class Fit:
    """The canvas that images are letterboxed into, and how the model's family resizes."""

    height: int
    width: int
    rule: ResizeRule


@dataclasses.dataclass(frozen=True)
class Sample:
    """Letterboxed images.

    Attributes:
      images: uint8 [H, W, 3] each, of one size.
      origin: where they come from, for the report.
    """

    images: list[Pixels]
    origin: str


def for_comparison(check_images: str | Path | None, eval_data_dir: str | Path | None, eval_split: str, fit: Fit) -> Sample:
    """Those of `--check_images`; if it is missing, of the split on which AP is measured; else coloured patches.

    Raises:
      UserError: as `sample`.
    """
    if check_images is not None:
        return sample(check_images, "--check_images", fit, CHECK_IMAGES)
    if eval_data_dir is not None:
        return sample(eval_data_dir, "--eval_data_dir", fit, CHECK_IMAGES, split=eval_split)
    made = list(random_images(fit.height, fit.width))
    return Sample(made, f"{len(made)} images of coloured patches")


def for_ranges(calibration: str | Path | None, eval_data_dir: str | Path | None, compared: Sample, fit: Fit) -> Sample:
    """Those of `--calibration`; if it is missing, of the training split beside the one of AP; else those of the comparison.

    Raises:
      UserError: as `sample`.
    """
    if calibration is not None:
        return sample(calibration, "--calibration", fit, CALIBRATION_IMAGES)
    if eval_data_dir is not None and "train" in open_record_folder(eval_data_dir).splits:
        return sample(eval_data_dir, "--eval_data_dir", fit, CALIBRATION_IMAGES)
    return compared


def sample(where: str | Path, flag: str, fit: Fit, limit: int, *, split: str | None = None) -> Sample:
    """At most `limit` images, spread evenly over what is there.

    Args:
      where: a folder of images, one image, or a record folder.
      flag: that names it, for messages.
      fit: what they are letterboxed into.
      limit: of their number.
      split: of a record folder; by default "train" if it has one, else its first.

    Raises:
      UserError: there are no images, or one of those chosen cannot be read.
    """
    if (Path(where) / METADATA_FILE).is_file():
        folder = open_record_folder(where)
        split = split or ("train" if "train" in folder.splits else min(folder.splits, default="train"))
        rows = folder.index(split)
        if not len(rows):
            raise UserError(f"{flag}={where}: the split {split} has no records; name a folder with images")
        records = read_records(folder, split, rows[_spread(len(rows), limit)])
        encoded = {f"image {record.image_id} of {where}": record.image_bytes for record in records}
        origin = f"{len(encoded)} images of the split {split}"
    else:
        files = image_files(Path(where), flag)
        paths = [files[i] for i in _spread(len(files), limit)]
        encoded = {str(path): without_rotation(read_image_file(path), str(path)) for path in paths}
        origin = f"{len(encoded)} images of the folder {Path(where).resolve().name}"
    return Sample([_fitted(content, name, fit) for name, content in encoded.items()], origin)


def _spread(number: int, limit: int) -> list[int]:
    """At most `limit` places of `number`, at equal distances, the first among them."""
    count = min(number, limit)
    return [i * number // count for i in range(count)]


def _fitted(encoded: bytes, name: str, fit: Fit) -> Pixels:
    image_size(encoded, name)
    decoded(encoded, name)  # (names the image if it is damaged)
    return np.asarray(letterbox(encoded, fit.height, fit.width, fit.rule)[0])
