"""Writes a trained model as a SavedModel, in the layout that TensorFlow Serving watches: `<folder>/<name>/<version>/`."""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

from model import config as config_lib
from model.inference.serving import ServingModule
from pipeline.command import UserError
from pipeline.files import write_json

PACKAGES = ("tensorflow", "keras", "numpy", "ai-edge-litert", "keypoint-rcnn-tensorflow")


def choose_version(folder: Path, wanted: int | None) -> int:
    """`wanted`, or the next free number of the model's folder.

    Raises:
      UserError: `wanted` is taken, or is no version number.
    """
    taken = {int(child.name) for child in folder.iterdir() if child.name.isdecimal()} if folder.is_dir() else set()
    free = max(taken, default=0) + 1
    if wanted is None:
        return free
    if wanted < 1:
        raise UserError(f"--version={wanted}: must be 1 or more")
    if wanted in taken:
        raise UserError(
            f"--version={wanted}: {folder / str(wanted)} is there already; leave the flag out to write version {free}"
        )
    return wanted


def versions(source: Mapping[str, Any]) -> dict[str, Any]:
    """What made an export: packages, and where the weights came from."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # this project itself may run from its source folder
            found[package] = metadata.version(package)
    return {"packages": found, "weights": dict(source)}


def write_saved_model(module: ServingModule, path: Path, source: Mapping[str, Any]) -> None:
    """Saves the signatures, with the configuration, the keypoint set and the versions beside them.

    Args:
      module: the model.
      path: a new folder; half-written if the process is stopped, so give it its final name afterwards.
      source: where the weights come from, for `versions.json`.
    """
    signatures = {name: getattr(module, name) for name in ("serving_default", "serving_tolerant", "serve_images")}
    tf.saved_model.save(module, str(path), signatures=signatures)
    assets = path / "assets"
    write_json(assets / "config.json", config_lib.to_json(module.model.config))
    write_json(assets / "skeleton.json", module.model.skeleton.to_json())
    write_json(assets / "versions.json", versions(source))


@contextlib.contextmanager
def temporary_folder(folder: Path, name: str) -> Iterator[Path]:
    """A folder beside what is to be published, gone afterwards. Its name is no number: TensorFlow Serving passes it over."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{name}.unfinished"
    shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
