"""The folder of an exported SavedModel: the network and its signatures, and assets that say what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model import config as config_lib
from model.config import AnyConfig
from model.model_dir import load_skeleton
from pipeline.command import UserError
from pipeline.files import changed_file
from pipeline.skeleton import Skeleton

CHECKSUMS = "sha256.json"  # among the assets: of the other files


def find(path: Path) -> Path | None:
    """`path` itself or its newest version, if that is a SavedModel; else None."""
    if (path / "saved_model.pb").is_file():
        return path
    if not path.is_dir():
        return None
    versions = [child for child in path.iterdir() if child.name.isdecimal() and (child / "saved_model.pb").is_file()]
    return max(versions, key=lambda child: int(child.name), default=None)


@dataclasses.dataclass(frozen=True)
class SavedModelFolder:
    """A SavedModel that is not loaded yet, with the `config` and `skeleton` of its assets."""

    path: Path
    config: AnyConfig
    skeleton: Skeleton

    def function(self) -> Callable[[Sequence[bytes]], Mapping[str, tf.Tensor]]:
        """`serving_default`: encoded images → the arrays of `ServingModule`.

        Raises:
          UserError: its files are not as they were exported, or TensorFlow cannot load them.
        """
        wrong = changed_file(self.path / "assets" / CHECKSUMS, self.path)
        if wrong:  # TensorFlow would read most damage, and answer otherwise or end the process
            raise UserError(
                f"--model={self.path}: cannot be loaded as a SavedModel ({wrong}); copy it again, or export it again"
            )
        try:
            loaded = tf.saved_model.load(str(self.path))
            signature = loaded.signatures["serving_default"]
        except (OSError, IndexError, KeyError, ValueError, tf.errors.OpError) as error:  # IndexError: of variables cut short
            raise UserError(
                f"--model={self.path}: cannot be loaded as a SavedModel ({str(error).splitlines()[0]}); export it again"
            ) from None

        def answer(images: Sequence[bytes], keep: Any = loaded) -> Mapping[str, tf.Tensor]:  # `keep`: holds its variables
            return signature(image_bytes=tf.constant(images, tf.string))  # type: ignore[no-any-return]

        return answer


def read(path: Path) -> SavedModelFolder:
    """Reads the assets of a folder that `find` found. Raises: UserError, they are missing or damaged."""
    assets = path / "assets"
    if not (assets / "config.json").is_file() or not (assets / "skeleton.json").is_file():
        raise UserError(
            f"--model={path}: a SavedModel without assets/config.json and skeleton.json; export.export_model writes them"
        )
    return SavedModelFolder(path, config_lib.load_any(assets / "config.json"), load_skeleton(assets))
