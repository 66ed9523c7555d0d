"""A TFLite file with the JSON beside it: the network for images of one size or a few, and what its user must know."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model import config as config_lib
from model.config import AnyConfig
from model.inference.image_input import image_size, letterbox
from model.inference.two_stages import runner, sizes_taken
from pipeline.command import UserError
from pipeline.files import open_regular, read_json
from pipeline.skeleton import Skeleton

LARGEST_FILE = 2**31  # bytes: what a TFLite file can address


@dataclasses.dataclass(frozen=True)
class TFLiteFile:
    """A file that belongs to its sidecar, whose `config` and `skeleton` these are."""

    path: Path
    config: AnyConfig
    skeleton: Skeleton

    def runner(self) -> tuple[Callable[[Sequence[bytes]], Mapping[str, Any]], Callable[[int, int], tuple[int, int]]]:
        """A function that answers for one encoded image in the image's own pixels; and one from an image's height and width to
        those of the canvas on which the first sees it.

        Raises:
          UserError: not a TFLite file of this project.
        """
        run = _runner(self.path)
        sizes = sizes_taken(run)
        rule, offset = self.config.data.resize, self.config.data.keypoint_offset

        def canvas(height: int, width: int) -> tuple[int, int]:
            """The size in which the image is largest; of equals the smallest."""
            return min(sizes, key=lambda size: (-min(size[0] / height, size[1] / width), size[0] * size[1]))

        def answer(images: Sequence[bytes]) -> Mapping[str, Any]:
            (encoded,) = images
            size = canvas(*image_size(encoded, "an image")) if len(sizes) > 1 else sizes[0]
            pixels, inside, own = letterbox(encoded, *size, rule)
            found = run(images=pixels[None])
            factor = np.array([own[1] / inside[1], own[0] / inside[0]], np.float32)  # x, y
            limit = np.array([own[1], own[0]] * 2, np.float32)
            return {
                **found,
                "boxes": np.clip(found["boxes"] * np.tile(factor, 2), 0, limit),
                # The offset was taken off in pixels of the letterbox, and is due in those of the image.
                "keypoints": (found["keypoints"] + offset) * factor - offset,
            }

        return answer, canvas


def read(path: Path) -> TFLiteFile:
    """Reads the sidecar of a TFLite file, and compares the file's checksum with it.

    Raises:
      UserError: no sidecar, one that `export.export_model` did not write, or one of another file.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise UserError(f"--model={path}: {sidecar.name} is not beside it; export.export_model writes both, keep them together")
    about = read_json(sidecar)
    try:
        config, skeleton = config_lib.any_from_json(about["config"]), Skeleton.from_json(about["skeleton"])
    except (UserError, KeyError, TypeError, ValueError) as error:
        reason = error if isinstance(error, UserError) else repr(error)
        raise UserError(f"{sidecar}: not what export.export_model writes ({reason}); export the model again") from None
    found = _sha256_of(path, "--model")
    if about.get("sha256", found) != found:
        raise UserError(
            f"--model={path}: is not the file that {sidecar.name} belongs to (its SHA-256 is {found[:12]}…, "
            f"the sidecar has {str(about['sha256'])[:12]}…): damaged, or of another export; copy both again"
        )
    return TFLiteFile(path, config, skeleton)


def size_of(path: Path, flag: str) -> tuple[int, int]:
    """Height and width of the images that a TFLite file takes; `flag` names it.

    Raises:
      UserError: any other file, or one that takes several sizes.
    """
    _sha256_of(path, flag)
    first, *others = sizes_taken(_runner(path, flag))
    if others:
        raise UserError(f"{flag}={path}: takes images of several sizes; name the file of --formats=tflite")
    return first


def _sha256_of(path: Path, flag: str) -> str:
    """Raises: UserError for what is no regular file, of which the runtime might wait for ever."""
    try:
        with open_regular(path, LARGEST_FILE) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{flag}={path}: cannot be read as a TFLite file ({error.strerror or error}); name another") from None


def _runner(path: Path, flag: str = "--model") -> Any:
    """What `two_stages.runner` gives of a TFLite file."""
    from ai_edge_litert.interpreter import Interpreter  # who has no TFLite file need not have it

    try:
        return runner(Interpreter(model_path=str(path), num_threads=os.cpu_count()))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{flag}={path}: not a TFLite file with a signature serve_images ({reason}); export it again") from None
