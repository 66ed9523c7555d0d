from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import anchors, records
from pipeline.anchors import AnchorConfig
from pipeline.data_config import DataConfig
from pipeline.loading.batches import training_batches
from pipeline.loading.example import Preparation
from pipeline.loading.image_grid import ImageGrid
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig

ONLINE = DataConfig(
    short_edges=(96, 128),
    max_edge=192,
    anchors="online",
    max_boxes=8,
    sampled_anchors=64,
    num_canvases=3,
    require_keypoints=False,
)


@pytest.fixture(scope="module")
def full_size_records(coco_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordFolder:
    """All of the sample, `train` and `val`, with the twelve variants of the default short edges."""
    folder = tmp_path_factory.mktemp("full_size")
    config = ConversionConfig(dataset_name="coco_sample", num_shards=1)
    for split in ("train", "val"):
        annotations = coco_sample / "annotations" / f"person_keypoints_{split}2017.json"
        convert(annotations, coco_sample / f"{split}2017", folder, split, config)
    return open_record_folder(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_online_matching_is_the_recorded_one_for_every_variant(full_size_records: RecordFolder, split: str) -> None:
    record_folder, config = full_size_records, DataConfig(anchors="online")
    prepare = Preparation.of(record_folder, split, config, record_folder.anchors)
    variants = [(edge, flipped) for edge in record_folder.short_edges for flipped in (False, True)]

    def both(serialized: tf.Tensor, short_edge: tf.Tensor, flipped: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        record = records.parse(serialized)
        side = tf.constant(1344)
        row = {"short_edge": short_edge, "flipped": flipped, "canvas_height": side, "canvas_width": side}
        view = prepare.view(row, record)
        people = prepare.people(record, view)
        online = prepare.online_matching(ImageGrid.of(record_folder.anchors, view.size, view.canvas), people)
        return list(zip(prepare.recorded_matching(record, short_edge, flipped), online, strict=True))

    every = tf.data.Dataset.from_tensor_slices(
        (tf.constant([v[0] for v in variants], tf.int64), tf.constant([v[1] for v in variants]))
    )
    files = tf.data.TFRecordDataset([str(path) for path in record_folder.shards(split)])
    compared = positives = 0
    for (recorded, online), *others in files.flat_map(lambda r: every.map(lambda e, f: both(r, e, f))):
        for names, own in ((recorded, online), *others):
            np.testing.assert_array_equal(names, own)
        compared, positives = compared + 1, positives + len(recorded)
    assert compared == 12 * len(record_folder.index(split)) and positives > 12 * compared


def arrays(
    record_folder: RecordFolder, config: DataConfig, anchor_config: AnchorConfig | None = None
) -> list[dict[str, np.ndarray]]:
    batches = training_batches(record_folder, "train", config, global_batch_size=4, seed=1, num_steps=7, anchors=anchor_config)
    return [{name: value.numpy() for name, value in batch.items()} for batch in batches]


@pytest.mark.parametrize("max_boxes", [8, 2])
def test_online_batches_are_the_precomputed_ones(small_record_folder: RecordFolder, max_boxes: int) -> None:
    online = dataclasses.replace(ONLINE, max_boxes=max_boxes)
    precomputed = dataclasses.replace(online, anchors="precomputed")
    for one, other in zip(arrays(small_record_folder, online), arrays(small_record_folder, precomputed), strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize(
    "anchor_config",
    [
        AnchorConfig(rounded=False),
        AnchorConfig(canvas_strides=True),
        AnchorConfig(strides=(8, 16, 32), sizes=(24.0, 48.0, 96.0), aspect_ratios=(1.0, 2.0)),
    ],
)
def test_grids_and_sizes_that_the_records_do_not_hold(small_record_folder: RecordFolder, anchor_config: AnchorConfig) -> None:
    config = dataclasses.replace(
        ONLINE, short_edges=(100, 150), max_edge=230, resize="torchvision", sampled_anchors=6000, positive_fraction=1.0
    )
    checked = 0
    for batch in arrays(small_record_folder, config, anchor_config):
        canvas = batch["image"].shape[1:3]
        for row in np.flatnonzero(batch["image_id"] >= 0):
            height, width = size = tuple(batch["image_size"][row].tolist())
            person = np.flatnonzero(batch["box_kind"][row] == 1)
            expected = anchors.match(anchor_config, batch["boxes"][row][person], height, width, canvas)
            label, index, box = (batch[f"anchor_{name}"][row] for name in ("label", "index", "box"))
            grid = ImageGrid.of(anchor_config, size, canvas)
            positive = grid.positions(expected.positive.astype(np.int32)).numpy()
            order = np.argsort(index[label == 1])
            np.testing.assert_array_equal(index[label == 1][order], positive)
            np.testing.assert_array_equal(box[label == 1][order], person[expected.positive_box])
            ignored = grid.positions(expected.ignored.astype(np.int32)).numpy()
            assert not np.isin(index[label == 0], np.concatenate([positive, ignored])).any()
            checked += 1
    assert checked >= 16
