"""Damaged records and images: named with file and byte, skipped where that is asked for."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.command import UserError
from pipeline.data_config import DataConfig
from pipeline.inspection import batch_sheet
from pipeline.loading import epoch_plan, measurement, unreadable
from pipeline.loading.batches import training_batches, training_pool
from pipeline.loading.options import LoadingOptions
from pipeline.loading.unreadable import describe_unreadable
from pipeline.record_folder import RecordFolder

CONFIG = DataConfig(
    short_edges=(96, 128), max_edge=192, max_boxes=8, sampled_anchors=16, num_canvases=2, require_keypoints=False
)
BATCH: dict[str, Any] = {"global_batch_size": 4, "seed": 1}
VICTIM = 6  # image id

Damage = Callable[[bytes], bytes]


def jpeg(height: int, width: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def with_image(change: Callable[[int, int], bytes]) -> Damage:
    """Replaces the image of a record by what `change` makes of its height and width."""

    def damage(record: bytes) -> bytes:
        example = tf.train.Example.FromString(record)
        feature = example.features.feature
        height, width = (feature[f"image/{side}"].int64_list.value[0] for side in ("height", "width"))
        feature["image/encoded"].bytes_list.value[0] = change(height, width)
        return bytes(example.SerializeToString())

    return damage


def rewritten(record_folder: RecordFolder, folder: Path, damages: dict[int, Damage]) -> RecordFolder:
    """A copy of the data set with the records of some image ids replaced by others, with sound checksums."""
    shutil.copytree(record_folder.path, folder)
    index = record_folder.index("train").copy()
    shards = []
    for number, path in enumerate(record_folder.shards("train")):
        offset = 0
        with tf.io.TFRecordWriter(str(folder / path.name)) as writer:
            for row, record in zip(np.flatnonzero(index["shard"] == number), tf.data.TFRecordDataset(str(path)), strict=True):
                content = damages.get(int(index["image_id"][row]), bytes)(record.numpy())
                writer.write(content)
                index["offset"][row], index["length"][row] = offset, len(content)
                offset += len(content) + 16
        shards.append({"file": path.name, "bytes": (folder / path.name).stat().st_size})
    np.save(folder / "index.npy", index)
    splits = {"train": {"shards": shards, "images": len(index), "index": "index.npy"}}
    return dataclasses.replace(record_folder, path=folder, splits=splits)


def overwritten(record_folder: RecordFolder, folder: Path, place: int, content: bytes) -> RecordFolder:
    """A copy of the data set with some bytes of the victim's record changed, counted from its header."""
    shutil.copytree(record_folder.path, folder)
    copy = dataclasses.replace(record_folder, path=folder)
    image = row(copy)
    with copy.shards("train")[image["shard"]].open("r+b") as file:
        file.seek(image["offset"] + place)
        file.write(content)
    return copy


def row(record_folder: RecordFolder, image_id: int = VICTIM) -> Any:
    index = record_folder.index("train")
    return index[np.flatnonzero(index["image_id"] == image_id)[0]]


IMAGES: dict[str, tuple[Callable[[int, int], bytes], str]] = {
    "a JPEG cut short": (lambda height, width: jpeg(height, width)[:-2000], "image is damaged.*Invalid JPEG"),
    "a JPEG without its header": (lambda height, width: jpeg(height, width)[20:], "image is damaged"),
    "another kind of file": (lambda *_: b"GIF89a" + bytes(100), "image is damaged"),
    "a PNG cut short": (lambda *_: b"\x89PNG\r\n\x1a\n" + bytes(40), "image is damaged.*PNG"),
    "nothing": (lambda *_: b"", "image is damaged"),
    "another size": (lambda height, width: jpeg(height + 1, width), "size that the record says.*another size than recorded"),
}
RECORDS: dict[str, tuple[Damage, str]] = {
    "an empty record": (lambda _: b"", "does not hold what a record holds"),
    "no record": (lambda record: bytes(len(record)), "does not hold what a record holds"),
}
BYTES = {"in the length": (3, b"\x07"), "in its checksum": (9, b"\0\0"), "in the data": (2000, bytes(8))}


@pytest.fixture
def damaged(request: pytest.FixtureRequest, small_record_folder: RecordFolder, tmp_path: Path) -> tuple[RecordFolder, str]:
    """A data set with one damaged image, and what is to be said about it."""
    case, folder = request.param, tmp_path / "damaged"
    if case in IMAGES:
        change, reason = IMAGES[case]
        return rewritten(small_record_folder, folder, {VICTIM: with_image(change)}), reason
    if case in RECORDS:
        damage, reason = RECORDS[case]
        return rewritten(small_record_folder, folder, {VICTIM: damage}), reason
    return overwritten(small_record_folder, folder, *BYTES[case]), "damaged or cut short.*corrupted record"


@pytest.mark.parametrize("damaged", [*IMAGES, *RECORDS, *BYTES], indirect=True)
def test_damage_is_named_and_nothing_else_is(damaged: tuple[RecordFolder, str]) -> None:
    record_folder, reason = damaged
    found = {i: unreadable.describe(record_folder, "train", row(record_folder, i)) for i in (VICTIM - 1, VICTIM, VICTIM + 2)}
    assert found.pop(VICTIM - 1) is found.pop(VICTIM + 2) is None
    line = found[VICTIM]
    image = row(record_folder)
    assert line is not None and len(line.splitlines()) == 1
    file = record_folder.shards("train")[image["shard"]]
    assert line.startswith(f"{file}, record at byte {image['offset']}, image {VICTIM}: ")
    assert re.search(reason, line), line
    assert "{{" not in line and "Op:" not in line


def test_fatal_or_a_padding_image(small_record_folder: RecordFolder, tmp_path: Path) -> None:
    entries = {4: IMAGES["a JPEG cut short"], 9: IMAGES["another size"]}
    damages = {i: with_image(change) for i, (change, _) in entries.items()} | {14: RECORDS["no record"][0]}
    record_folder = overwritten(
        rewritten(small_record_folder, tmp_path / "some", damages), tmp_path / "all", *BYTES["in the data"]
    )
    victims = [*damages, VICTIM]

    steps = 18  # two epochs
    sound = [arrays(batch) for batch in training_batches(small_record_folder, "train", CONFIG, **BATCH, num_steps=steps)]
    batches = training_batches(
        record_folder, "train", CONFIG, **BATCH, num_steps=steps, options=LoadingOptions(on_error="skip")
    )
    skipped = [arrays(batch) for batch in batches]
    assert len(skipped) == len(sound)
    for expected, found in zip(sound, skipped, strict=True):
        victim = np.isin(expected["image_id"], victims)
        assert found.pop("unreadable").tolist() == np.where(victim, expected["image_id"], -1).tolist()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name][~victim], value[~victim], err_msg=name)
        assert (found["image_id"][victim] == -1).all() and (found["anchor_label"][victim] == -1).all()
        assert not any(found[name][victim].any() for name in ("image", "image_size", "boxes", "keypoints", "box_kind"))

    met = [step for step, batch in enumerate(sound) if np.isin(batch["image_id"], victims).any()]
    assert len(met) >= 5
    iterator = iter(training_batches(record_folder, "train", CONFIG, **BATCH, num_steps=steps))
    for step in range(met[0]):
        np.testing.assert_array_equal(next(iterator)["image_id"], sound[step]["image_id"])
    with pytest.raises(tf.errors.OpError):
        next(iterator)
    for step in range(met[2]):
        lines = describe_unreadable(record_folder, "train", CONFIG, **BATCH, step=step)
        there = [i for i in victims if i in sound[step]["image_id"]]
        assert len(lines) == len(there)
        for image_id in there:
            assert any(f"byte {row(record_folder, image_id)['offset']}, image {image_id}: " in line for line in lines)


def arrays(batch: dict[str, tf.Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in batch.items()}


def test_a_whole_batch_may_be_unreadable(small_record_folder: RecordFolder, tmp_path: Path) -> None:
    """All others are still seen exactly once in the epoch."""
    pool = training_pool(small_record_folder, "train", CONFIG)
    plan = epoch_plan.plan_epoch(pool, seed=BATCH["seed"], epoch=0, global_batch_size=BATCH["global_batch_size"])
    every: dict[str, Any] = {**BATCH, "num_steps": len(plan.canvas)}
    whole = int(np.flatnonzero((plan.rows >= 0).all(axis=1))[0])  # the first batch without padding images
    first = small_record_folder.index("train")["image_id"][plan.rows[whole]].tolist()
    record_folder = rewritten(small_record_folder, tmp_path / "damaged", dict.fromkeys(first, lambda _: b""))
    batches = [
        arrays(b) for b in training_batches(record_folder, "train", CONFIG, **every, options=LoadingOptions(on_error="skip"))
    ]
    assert batches[whole]["unreadable"].tolist() == first and (batches[whole]["image_id"] == -1).all()
    seen = np.concatenate([batch["image_id"] for batch in batches])
    assert sorted(seen[seen >= 0]) == sorted(set(small_record_folder.index("train")["image_id"]) - set(first))


def test_a_shard_that_is_cut_short_while_it_is_read(small_record_folder: RecordFolder, tmp_path: Path) -> None:
    shutil.copytree(small_record_folder.path, tmp_path / "copy")
    record_folder = dataclasses.replace(small_record_folder, path=tmp_path / "copy")
    batches = training_batches(record_folder, "train", CONFIG, **BATCH, num_steps=9, options=LoadingOptions(on_error="skip"))
    shard = record_folder.shards("train")[0]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    index = record_folder.index("train")
    lost = index["image_id"][(index["shard"] == 0) & (index["offset"] + index["length"] + 16 > shard.stat().st_size)]
    marked = np.concatenate([batch["unreadable"].numpy() for batch in batches])
    assert set(marked[marked >= 0]) == set(lost) and len(lost) >= 5


def test_a_benchmark_and_a_sheet_name_it(small_record_folder: RecordFolder, tmp_path: Path) -> None:
    record_folder = overwritten(small_record_folder, tmp_path / "damaged", *BYTES["in the data"])
    named = rf"record at byte {row(record_folder)['offset']}, image {VICTIM}: the record is damaged .*"

    def measure(options: LoadingOptions) -> measurement.Measured:
        return measurement.measure(record_folder, "train", CONFIG, batch_size=4, num_images=24, options=options)

    with pytest.raises(UserError, match=named + "--on_error=skip"):
        measure(LoadingOptions())
    assert measure(LoadingOptions(on_error="skip")).images_per_second > 0
    steps = batch_sheet.chosen_steps(record_folder, "train", CONFIG, batch_size=4, seed=0, per_canvas=9)
    with pytest.raises(UserError, match=named + "inspect_records --verify"):
        batch_sheet.batch_sheet(record_folder, "train", CONFIG, steps, batch_size=4, seed=0, width=400)


# Counting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", ["another kind of file"], indirect=True)
def test_each_is_named_once_and_counted_every_time(damaged: tuple[RecordFolder, str]) -> None:
    lines: list[str] = []
    with unreadable.Skipped(damaged[0], "train", lines.append) as skipped:
        for ids in ([-1, -1], [-1, VICTIM], [VICTIM, -1]):
            skipped.see(np.array(ids))
    named, counted = lines
    assert named.startswith("skipped ") and f"image {VICTIM}: the image is damaged" in named
    assert counted == "1 image could not be read, and skipped 2 times"


def test_too_many_are_fatal(small_record_folder: RecordFolder) -> None:
    skipped = unreadable.Skipped(small_record_folder, "train", lambda _: None)
    skipped.see(np.arange(1, 11))
    with pytest.raises(UserError, match=r"11 of the 24 images of split 'train' cannot be read, too many"):
        skipped.see(np.arange(11, 12))
