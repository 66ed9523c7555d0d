"""Writes a trained model as a SavedModel, in the layout that TensorFlow Serving watches: `<folder>/<name>/<version>/`."""

from __future__ import annotations

import contextlib
import errno
import functools
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

from model import config as config_lib
from model.inference.parts import raw
from model.inference.saved_model_folder import CHECKSUMS
from model.inference.serving import ServingModule
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline.command import UserError, reason_of
from pipeline.files import note_sha256, write_json

SIGNATURES = ("serving_default", "serving_tolerant", "serve_images", "serve_one_image")
RAW = "raw"  # a fifth one, which models of several classes and the old network do not have
WARMUP_SIZE = (480, 640)
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
    if not 1 <= wanted < 2**63:  # TensorFlow Serving's versions have 64 bits
        raise UserError(f"--version={wanted}: must be from 1 to 2^63 - 1")
    if wanted in taken:
        raise UserError(
            f"--version={wanted}: {folder / str(wanted)} is there already; leave the flag out to write version {free}"
        )
    return wanted


def versions(source: Mapping[str, Any]) -> dict[str, Any]:
    """What made an export: packages, this project's version and commit, and where the weights came from.

    Args:
      source: of the weights; its `sha256`, of the checkpoint's files, stands apart.
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # this project itself may run from its source folder
            found[package] = metadata.version(package)
    weights = {key: value for key, value in source.items() if key != "sha256"}
    return {"packages": found, "commit": _commit(), "weights": weights, "checkpoint_sha256": source.get("sha256", {})}


@functools.cache
def _commit() -> str | None:
    """The commit of the source folder that runs, with "+" if files were changed since; None if it is installed elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        asked = [["git", "-C", str(root), *words] for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))]
        commit, changes = (subprocess.run(one, capture_output=True, text=True, check=True).stdout.strip() for one in asked)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")


def write_saved_model(module: ServingModule, path: Path, source: Mapping[str, Any], name: str) -> None:
    """Saves the signatures, with the configuration, the keypoint set and the versions beside them, and requests for a warm-up.

    Args:
      module: the model.
      path: a new folder; half-written if the process is stopped, so give it its final name afterwards.
      source: where the weights come from, for `versions.json`.
      name: under which a server will offer the model.
    """
    signatures = {signature: getattr(module, signature) for signature in SIGNATURES}
    if isinstance(module.model, KeypointRCNN) and module.model.skeleton.num_classes == 1:
        signatures[RAW] = raw(module.model)
    tf.saved_model.save(module, str(path), signatures=signatures)
    assets = path / "assets"
    write_json(assets / "config.json", config_lib.to_json(module.model.config))
    write_json(assets / "skeleton.json", module.model.skeleton.to_json())
    write_json(assets / "versions.json", versions(source))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    note_sha256(files, assets / CHECKSUMS, path)
    write_warmup_requests(path / "assets.extra" / "tf_serving_warmup_requests", name)


def write_warmup_requests(path: Path, name: str) -> None:
    """Writes the requests that TensorFlow Serving sends itself when it loads a model: the first call takes seconds.

    The file is a TFRecord of `PredictionLog` (tensorflow_serving/apis/prediction_log.proto). Its few fields are written by
    hand: tensorflow-serving-api would bring TensorFlow with CUDA along.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rough = tf.random.stateless_uniform([1, 12, 16, 3], [0, 0], 0, 255, alg="philox")
    photograph = tf.io.encode_jpeg(tf.cast(tf.image.resize(rough, WARMUP_SIZE)[0], tf.uint8)).numpy()
    tensor = tf.make_tensor_proto([photograph], tf.string).SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in ("serving_default", "serving_tolerant"):
            model_spec = _field(1, name.encode()) + _field(3, signature.encode())
            inputs = _field(1, b"image_bytes") + _field(2, tensor)
            request = _field(1, model_spec) + _field(2, inputs)
            writer.write(_field(6, _field(1, request)))  # PredictionLog.predict_log.request


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, or of a message, in protobuf's encoding."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@contextlib.contextmanager
def disk_errors_named(folder: Path) -> Iterator[None]:
    """Names the folder in errors of the disk: TensorFlow has kinds of its own for them, NumPy and a full disk name no file.

    Raises:
      UserError: TensorFlow cannot write. OSError: Python cannot, with the folder as its file if it names none.
    """
    try:
        yield
    except tf.errors.OpError as error:
        reason = reason_of(error)
        if not re.search(r"space|too large|denied|read-only|quota|i/o error|no such file", reason, re.IGNORECASE):
            raise  # (of another cause)
        raise UserError(f"{folder}: cannot be written ({reason}); make room, or name another folder") from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.ENOSPC, error.strerror or str(error), str(folder)) from error


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
