"""What `scripts.mutations` tries: for each kind of input how it is damaged, and which functions of the library read it.

A reader takes the folder of inputs, in which one file is damaged. It may return, or raise what its command turns into one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.mutation_damage import (
    Damage,
    bytes_anywhere,
    exif_bytes,
    header_bytes,
    json_lines,
    json_values,
    png_chunks,
)

Read = Callable[[Path, Path], object]


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
      share: how often it is tried, relative to the others.
      files: of which one is damaged, as a pattern in the folder of inputs.
      damage: sound bytes → damaged ones.
      read: takes the folder and the damaged file.
    """

    share: float
    files: str
    damage: Damage
    read: Read


# Readers. Imports lie within, for the worker imports TensorFlow once and the command not at all.


def each(*functions: Callable[[], object]) -> None:
    """Calls all, whichever of them refuses."""
    from pipeline.command import UserError

    for function in functions:
        try:
            function()
        except UserError as error:
            check_message(error)


def check_message(error: Exception) -> None:
    """The contract of messages."""
    from pipeline.command import shown

    text = shown(str(error))
    assert len(text) < 20_000, f"a message of {len(text)} characters: {text[:300]}"


def read_annotations(folder: Path, file: Path) -> None:
    from model.api import evaluate
    from model.inference.image_names import read_image_names
    from pipeline.coco import read_coco

    each(
        lambda: read_coco(file),
        lambda: read_image_names(file),
        lambda: evaluate(annotations=str(file), results=str(folder / "predictions.json")),
        lambda: evaluate(
            annotations=str(file), results=str(folder / "predictions.json"), data_dir=str(folder / "records"), split="train"
        ),
    )


def convert_annotations(folder: Path, file: Path) -> None:
    import shutil

    from pipeline.writing.conversion import convert
    from pipeline.writing.conversion_config import ConversionConfig

    config = ConversionConfig("small", num_shards=1, short_edges=(64,), max_edge=96)
    try:
        each(lambda: convert(file, folder / "data" / "train", folder / "converted", "train", config, on_error="skip"))
    finally:
        shutil.rmtree(folder / "converted", ignore_errors=True)


def read_results(folder: Path, file: Path) -> None:
    from model.api import evaluate

    annotations = folder / "data" / "annotations" / "person_keypoints_train.json"
    each(lambda: evaluate(annotations=str(annotations), results=str(file)))


def read_records(folder: Path, file: Path) -> None:
    from pipeline.record_folder import METADATA_FILE, open_record_folder
    from pipeline.record_reader import read_records as read
    from pipeline.writing.metadata import joined_metadata, skipped_by_reason

    def rows() -> None:
        records = open_record_folder(folder / "records")
        for split in records.splits:
            for _ in read(records, split, records.index(split)):
                pass

    shared = json.loads((folder / "model" / "config.json").read_text())
    each(
        rows,
        lambda: skipped_by_reason(str(folder / "records"), "train"),
        lambda: (
            joined_metadata(str(folder / "records"), "val", shared, overwrite=False) if file.name == METADATA_FILE else None
        ),
    )


def verify_records(folder: Path, file: Path) -> None:
    from pipeline.inspection.verification import verify
    from pipeline.record_folder import open_record_folder

    del file

    def faults() -> None:
        records = open_record_folder(folder / "records")
        for split in records.splits:
            for fault in verify(records, split, lambda _: None):
                str(fault)

    each(faults)


def damage_record(content: bytes, rng: random.Random) -> bytes:
    """A record of a shard, framed anew with true checksums."""
    import tensorflow as tf

    (length,) = struct.unpack("<Q", content[:8])
    record = bytes_anywhere(content[12 : 12 + length], rng, *rng.choice(((0, length), (length - 3000, length))))
    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            writer.write(record)
        return Path(file.name).read_bytes() + content[16 + length :]


def read_record(folder: Path, file: Path) -> None:
    """The first record of a shard, by its own length and whatever it holds."""
    import numpy as np
    import tensorflow as tf

    from pipeline.command import UserError
    from pipeline.inspection.verification import check_record
    from pipeline.record_folder import open_record_folder
    from pipeline.record_reader import decode_record, read_payload
    from pipeline.records import READ_ERRORS, parse

    records = open_record_folder(folder / "records")
    (length,) = struct.unpack("<Q", file.read_bytes()[:8])
    payload = read_payload(file, 0, length)
    check_record(payload, records.index("train")[0], records)
    with contextlib.suppress(ValueError, IndexError):  # what `read_records` turns into a line
        decode_record(payload, records.skeleton.num_keypoints)
    try:
        for value in parse(tf.constant(payload)).values():
            np.shape(value)
    except READ_ERRORS:
        raise UserError("refused by TensorFlow") from None


def read_work_folder(folder: Path, file: Path) -> None:
    from pipeline.anchors import AnchorConfig
    from pipeline.writing.shard_writer import ShardSettings, _read_noted, finished_shards

    work = str(folder / "work")
    settings = ShardSettings(
        images=str(folder / "data" / "train"), output=work, work=work, run="a", prefix="small-train", num_shards=2,
        category="person", anchors=AnchorConfig(), short_edges=(64,), max_edge=96, on_error="fail",
    )  # fmt: skip
    each(lambda: finished_shards(settings, [0]), lambda: _read_noted(str(folder / "work" / "images-00000")))


def read_model_files(folder: Path, file: Path) -> None:
    from model import config as config_lib
    from model.model_dir import load_note, load_skeleton
    from model.weights.importing import read_skeleton

    model_dir = folder / "model"
    each(
        lambda: config_lib.load(model_dir / "config.json"),
        lambda: load_skeleton(model_dir),
        lambda: load_note(model_dir),
        lambda: read_skeleton(file),
    )


def build_model(folder: Path, file: Path) -> None:
    from model.model_dir import load_model

    del file
    each(lambda: load_model(folder / "model"))


def read_checkpoint(folder: Path, file: Path) -> None:
    from model.checkpoint_files import newest_checkpoint
    from model.model_dir import checkpoint_of, has_optimizer, restore

    del file

    def read() -> None:
        path = newest_checkpoint(folder / "model")
        if path is not None:
            has_optimizer(path)
            restore(checkpoint_of(_model_to_fill(folder)), path, partial=True)

    each(read)


_BUILT: list[Any] = []


def _model_to_fill(folder: Path) -> Any:
    from model import config as config_lib
    from model.network.keypoint_rcnn import KeypointRCNN
    from pipeline.skeleton import COCO_PERSON

    if not _BUILT:
        _BUILT.append(KeypointRCNN(config_lib.load(folder / "model" / "config.json"), COCO_PERSON))
    return _BUILT[0]


def read_metrics(folder: Path, file: Path) -> None:
    from model.training.metrics_log import MetricsLog

    del file
    each(lambda: MetricsLog(folder / "model", 2))


def ask_tflite(folder: Path, file: Path) -> None:
    del file
    _ask(folder, "exported.tflite")


def ask_saved_model(folder: Path, file: Path) -> None:
    del file
    _ask(folder, "exported")


def _ask(folder: Path, model: str) -> None:
    """Opens an export and shows it an image."""
    from model.inference.predictor import open_model

    each(lambda: open_model(folder / model)(folder / "plain.png").to_coco(1))


def read_image(folder: Path, file: Path) -> None:
    from model.inference.image_input import decoded, image_size, read_image_file, shown_pixels
    from pipeline.coco import CocoImage
    from pipeline.writing.checked_image import ImageError, check_image

    del folder
    content = file.read_bytes()
    for size in ((96, 128), (128, 96)):
        try:
            check_image(content, CocoImage(1, file.name, *size, ()))
        except ImageError as error:
            check_message(error)
    each(
        lambda: read_image_file(file),
        lambda: image_size(content, file.name),
        lambda: decoded(content, file.name),
        lambda: shown_pixels(content, file.name),
    )


def read_zip(folder: Path, file: Path) -> None:
    from pipeline import storage
    from pipeline.writing.image_files import ZipMember, find_members, read_member

    def read() -> None:
        members = find_members(str(file), ["stored.jpg", *(path.name for path in (folder / "data" / "train").iterdir())])
        with storage.open_for_reading(str(file)) as archive:
            for member in members.values():
                if isinstance(member, ZipMember):
                    with contextlib.suppress(ValueError):  # what the reader turns into a line
                        read_member(archive, member)

    each(read)


def read_weights(folder: Path, file: Path) -> None:
    from model.weights import layout, names
    from model.weights.pickle_reader import RefusedError
    from model.weights.weight_files import read_weights as read

    del folder

    def recognised() -> None:
        tensors = read(file)
        try:
            by_path, _, _ = names.renamed(tensors, names.recognise(tensors))
            layout.architecture(by_path)
            layout.num_keypoints(by_path)
        except RefusedError as error:
            check_message(error)

    each(recognised)


def import_weights(folder: Path, file: Path) -> None:
    from model.weights.importing import imported

    del folder
    each(lambda: imported("torchvision", file, report=lambda _: None))


def read_cluster(folder: Path, file: Path) -> None:
    from model.training.cluster import read_cluster as read

    del folder
    each(lambda: read(file.read_bytes().decode(errors="surrogateescape")))


def read_settings(folder: Path, file: Path) -> None:
    from model import config as config_lib
    from pipeline.config_overrides import override

    del folder
    text = file.read_bytes().decode(errors="surrogateescape")
    each(lambda: override(config_lib.preset("tiny"), [text]))


TARGETS = {
    "annotations": Target(12, "data/annotations/*.json", json_values, read_annotations),
    "conversion": Target(0.15, "data/annotations/*.json", json_values, convert_annotations),
    "results": Target(6, "predictions.json", json_values, read_results),
    "pipeline.json": Target(10, "records/pipeline.json", json_values, read_records),
    "index": Target(5, "records/index-train.npy", bytes_anywhere, read_records),
    "shard": Target(3, "records/*.tfrecord-*", bytes_anywhere, read_records),
    "record": Target(4, "records/*.tfrecord-*", damage_record, read_record),
    "errors": Target(1, "records/errors-train.jsonl", json_lines, read_records),
    "verification": Target(0.7, "records/*", bytes_anywhere, verify_records),
    "features": Target(1, "records/*.json", json_values, verify_records),
    "work folder": Target(4, "work/*-00000*", json_values, read_work_folder),
    "model's JSON": Target(10, "model/*.json", json_values, read_model_files),
    "model": Target(0.15, "model/*.json", json_values, build_model),
    "checkpoint": Target(1.5, "model/checkpoints/*", bytes_anywhere, read_checkpoint),
    "metrics": Target(2, "model/metrics.jsonl", json_lines, read_metrics),
    "sidecar": Target(2, "exported.json", json_values, ask_tflite),
    "TFLite": Target(1, "exported.tflite", bytes_anywhere, ask_tflite),
    "SavedModel": Target(1, "exported/1/**/*", bytes_anywhere, ask_saved_model),
    "EXIF": Target(8, "exif.jpg", exif_bytes, read_image),
    "JPEG header": Target(8, "*.jpg", header_bytes, read_image),
    "PNG header": Target(4, "*.png", header_bytes, read_image),
    "PNG chunks": Target(4, "*.png", png_chunks, read_image),
    "zip": Target(4, "images.zip", bytes_anywhere, read_zip),
    "weights": Target(8, "weights/*.[ps]*", bytes_anywhere, read_weights),
    "weights' header": Target(6, "weights/*.[ps]*", header_bytes, read_weights),
    "weights in HDF5": Target(0.3, "weights/a.h5", bytes_anywhere, read_weights),
    "import": Target(0.15, "weights/*.[ps]*", bytes_anywhere, import_weights),
    "TF_CONFIG": Target(4, "tf_config.json", json_values, read_cluster),
    "--set": Target(4, "settings.txt", bytes_anywhere, read_settings),
}
