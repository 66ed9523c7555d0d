"""A TFLite file with the JSON beside it: the network for images of one size, and what its user must know."""

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
from model.inference.image_input import letterbox
from model.inference.two_stages import runner
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

    def runner(self) -> tuple[Callable[[Sequence[bytes]], Mapping[str, Any]], int, int]:
        """A function that answers for one encoded image in the image's own pixels, and the height and width that it works at.

        Raises:
          UserError: not a TFLite file of this project.
        """
        run = _runner(self.path)
        height, width = _size_taken(run)
        rule, offset = self.config.data.resize, self.config.data.keypoint_offset

        def answer(images: Sequence[bytes]) -> Mapping[str, Any]:
            (encoded,) = images
            pixels, inside, own = letterbox(encoded, height, width, rule)
            found = run(images=pixels[None])
            factor = np.array([own[1] / inside[1], own[0] / inside[0]], np.float32)  # x, y
            limit = np.array([own[1], own[0]] * 2, np.float32)
            return {
                **found,
                "boxes": np.clip(found["boxes"] * np.tile(factor, 2), 0, limit),
                # The offset was taken off in pixels of the letterbox, and is due in those of the image.
                "keypoints": (found["keypoints"] + offset) * factor - offset,
            }

        return answer, height, width


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
    """Height and width of the images that a TFLite file takes; `flag` names it. Raises: UserError for any other file."""
    _sha256_of(path, flag)
    return _size_taken(_runner(path, flag))


def _sha256_of(path: Path, flag: str) -> str:
    """Raises: UserError for what is no regular file, of which the runtime might wait for ever."""
    try:
        with open_regular(path, LARGEST_FILE) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{flag}={path}: cannot be read as a TFLite file ({error.strerror or error}); name another") from None


def _size_taken(run: Any) -> tuple[int, int]:
    _, height, width, _ = run.get_input_details()["images"]["shape"]
    return int(height), int(width)


def _runner(path: Path, flag: str = "--model") -> Any:
    """The function `serve_images` of a TFLite file."""
    from ai_edge_litert.interpreter import Interpreter  # who has no TFLite file need not have it

    try:
        return runner(Interpreter(model_path=str(path), num_threads=os.cpu_count()))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{flag}={path}: not a TFLite file with a signature serve_images ({reason}); export it again") from None
