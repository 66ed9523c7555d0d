from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from pipeline import anchors, coco, data_config, records
from pipeline.coco import CocoImage
from pipeline.command import UserError
from pipeline.data_config import CROWD, PADDING, PERSON, DataConfig
from pipeline.loading import epoch_plan
from pipeline.loading.batches import check_compatible, training_batches, training_pool
from pipeline.loading.image_grid import ImageGrid
from pipeline.record_folder import RecordFolder

SMALL = DataConfig(
    short_edges=(96, 128), max_edge=192, max_boxes=8, sampled_anchors=64, num_canvases=3, require_keypoints=False
)
Arrays = dict[str, NDArray[Any]]


def arrays(batches: Iterable[dict[str, tf.Tensor]]) -> list[Arrays]:
    return [{name: value.numpy() for name, value in batch.items()} for batch in batches]


def train(record_folder: RecordFolder, config: DataConfig, split: str = "train", **options: Any) -> list[Arrays]:
    return arrays(
        training_batches(record_folder, split, config, **{"global_batch_size": 4, "seed": 1, "num_steps": 12, **options})
    )


def images(batches: Iterable[Arrays]) -> Iterator[tuple[int, Arrays]]:
    """Image id and image, without padding images."""
    for batch in batches:
        for i, image_id in enumerate(batch["image_id"].tolist()):
            if image_id >= 0:
                yield image_id, {name: value[i] for name, value in batch.items()}


def assert_same(first: list[Arrays], second: list[Arrays]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def length_of_epoch(
    record_folder: RecordFolder, config: DataConfig, split: str = "train", seed: int = 1, batch: int = 4
) -> int:
    pool = training_pool(record_folder, split, config)
    return len(epoch_plan.plan_epoch(pool, seed=seed, epoch=0, global_batch_size=batch).canvas)


def variants(
    record_folder: RecordFolder, config: DataConfig, split: str = "train", seed: int = 1, batch: int = 4
) -> dict[int, int]:
    """By image id the variant that it draws in the first epoch."""
    epoch = epoch_plan.plan_epoch(training_pool(record_folder, split, config), seed=seed, epoch=0, global_batch_size=batch)
    real = epoch.rows >= 0
    ids = record_folder.index(split)["image_id"][epoch.rows[real]]
    return dict(zip(ids.tolist(), epoch.variants[real].tolist(), strict=True))


# Contents -----------------------------------------------------------------------------------------------------------


def test_element_spec(small_record_folder: RecordFolder) -> None:
    spec = training_batches(small_record_folder, "train", SMALL, global_batch_size=4, seed=1).element_spec
    k = small_record_folder.skeleton.num_keypoints
    assert {name: (s.dtype.name, s.shape.as_list()) for name, s in spec.items()} == {
        "image": ("uint8", [4, None, None, 3]),
        "image_size": ("int32", [4, 2]),
        "scale": ("float32", [4, 2]),
        "original_size": ("int32", [4, 2]),
        "image_id": ("int64", [4]),
        "boxes": ("float32", [4, 8, 4]),
        "keypoints": ("float32", [4, 8, k, 3]),
        "box_kind": ("int32", [4, 8]),
        "anchor_index": ("int32", [4, 64]),
        "anchor_label": ("int32", [4, 64]),
        "anchor_box": ("int32", [4, 64]),
    }


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_boxes_and_keypoints_are_the_annotations_on_the_canvas(
    small_record_folder: RecordFolder, entries: dict[int, CocoImage], offset: float
) -> None:
    config = dataclasses.replace(SMALL, keypoint_offset=offset)
    drawn = variants(small_record_folder, config)
    for image_id, example in images(train(small_record_folder, config, num_steps=length_of_epoch(small_record_folder, config))):
        entry, variant = entries[image_id], drawn[image_id]
        height, width = data_config.resized_size(entry.height, entry.width, SMALL.short_edges[variant // 2], 192)
        assert example["image_size"].tolist() == [height, width]
        assert example["original_size"].tolist() == [entry.height, entry.width]
        np.testing.assert_allclose(example["scale"], [height / entry.height, width / entry.width], rtol=1e-6)
        count = len(entry.persons)
        assert example["box_kind"].tolist() == [CROWD if p.is_crowd else PERSON for p in entry.persons] + [PADDING] * (
            8 - count
        )
        assert not example["boxes"][count:].any() and not example["keypoints"][count:].any()
        scale = np.array([width / entry.width, height / entry.height])
        for box, keypoints, person in zip(example["boxes"], example["keypoints"], entry.persons, strict=False):
            expected_box = np.array(person.box) * np.tile(scale, 2)
            labelled = person.keypoints[:, 2:] > 0
            expected = (person.keypoints + np.where(labelled, [offset, offset, 0], 0)) * [*scale, 1]
            if variant % 2:
                expected_box[[0, 2]] = width - expected_box[[2, 0]]
                expected = expected[list(small_record_folder.skeleton.flip)]
                expected[:, 0] = np.where(expected[:, 2] > 0, width - expected[:, 0], 0)
            np.testing.assert_allclose(box, expected_box, atol=1e-3)
            np.testing.assert_allclose(keypoints, expected, atol=1e-3)


def test_a_keypoint_lies_on_its_own_colour(make_record_folder: Callable[..., RecordFolder], colours: NDArray[np.uint8]) -> None:
    """Flipped, the point called left lies on the pixels that were drawn for the right one, and the other way round."""
    rng = np.random.default_rng(0)
    corners = np.array([[30, 30], [100, 25], [35, 90], [110, 80], [70, 120]])
    persons = [
        coco.Person(
            i, (10, 10, 130, 140), 1.0, False, np.c_[rng.permutation(corners) + rng.integers(-5, 5, 2), [2, 1, 2, 2, i % 2]]
        )
        for i in range(12)
    ]
    for person in persons:
        person.keypoints[person.keypoints[:, 2] == 0] = 0
    record_folder = make_record_folder([CocoImage(p.id, "", 150 + p.id, 190 - p.id, (p,)) for p in persons])
    drawn = variants(record_folder, SMALL)
    flip = record_folder.skeleton.flip
    seen = set()
    for image_id, example in images(train(record_folder, SMALL, num_steps=length_of_epoch(record_folder, SMALL))):
        flipped = bool(drawn[image_id] % 2)
        for k, (x, y, visibility) in enumerate(example["keypoints"][0]):
            if visibility:
                assert np.abs(example["image"][int(y), int(x)].astype(int) - colours[flip[k] if flipped else k]).max() < 5
                seen.add((k, flipped))
        height, width = example["image_size"]
        assert not example["image"][height:].any() and not example["image"][:, width:].any()
    assert len(seen) == 2 * len(flip)


def test_all_matched_anchors_of_every_image(small_record_folder: RecordFolder, entries: dict[int, CocoImage]) -> None:
    config = dataclasses.replace(SMALL, sampled_anchors=4000, positive_fraction=1.0)
    assert_anchors(small_record_folder, "train", config, entries, epochs=2)


def assert_anchors(record_folder: RecordFolder, split: str, config: DataConfig, of: dict[int, CocoImage], epochs: int) -> None:
    """With room for all positives: they are those of `anchors.match`, and no negative is positive, ignored or in a crowd."""
    batches = train(record_folder, config, split, num_steps=epochs * (length_of_epoch(record_folder, config, split) + 2))
    checked = 0
    for image_id, example in images(batches):
        size, canvas = tuple(example["image_size"].tolist()), example["image"].shape[:2]
        persons = np.array([i for i, p in enumerate(of[image_id].persons) if not p.is_crowd], np.int64)
        crowds = np.array([i for i, p in enumerate(of[image_id].persons) if p.is_crowd], np.int64)
        matching = anchors.match(record_folder.anchors, example["boxes"][persons], *size)
        index, label = example["anchor_index"].astype(np.int64), example["anchor_label"]

        grid = ImageGrid.of(record_folder.anchors, size, canvas)
        positive = grid.positions(matching.positive.astype(np.int32)).numpy()
        order = np.argsort(index[label == 1])
        np.testing.assert_array_equal(index[label == 1][order], np.sort(positive))
        boxes = dict(zip(positive.tolist(), persons[matching.positive_box].tolist(), strict=True))
        assert [boxes[i] for i in index[label == 1].tolist()] == example["anchor_box"][label == 1].tolist()

        taboo = grid.positions(np.concatenate([matching.positive, matching.ignored]).astype(np.int32)).numpy()
        negative = index[label == 0]
        assert len(negative) and not np.isin(negative, taboo).any()
        own = grid.positions(tf.range(grid.size)).numpy()
        assert np.isin(negative, own).all()  # none of the canvas's padding
        boxes_of_negatives = anchors.grid(record_folder.anchors, *canvas)[negative][:, None]
        for crowd in example["boxes"][crowds]:
            low, high = boxes_of_negatives[..., :2], boxes_of_negatives[..., 2:]
            sides = np.clip(np.minimum(high, crowd[2:]) - np.maximum(low, crowd[:2]), 0, None)
            assert (sides.prod(axis=-1) < 0.7 * (high - low).prod(axis=-1)).all()
        checked += 1
    assert checked >= len(of)


def box_of_positives(example: Arrays) -> dict[int, int]:
    positive = example["anchor_label"] == 1
    return dict(zip(example["anchor_index"][positive].tolist(), example["anchor_box"][positive].tolist(), strict=True))


def test_half_of_the_anchors_are_positive_at_most(small_record_folder: RecordFolder) -> None:
    config = dataclasses.replace(SMALL, sampled_anchors=16, positive_fraction=0.5)
    most = 0
    for _, example in images(train(small_record_folder, config)):
        positives = (example["anchor_label"] == 1).sum()
        assert positives <= 8 and (example["anchor_label"] == 0).sum() == 16 - positives
        most = max(most, positives)
    assert most == 8


def test_of_too_many_boxes_the_largest_stay(small_record_folder: RecordFolder, entries: dict[int, CocoImage]) -> None:
    full = dataclasses.replace(SMALL, sampled_anchors=4000, positive_fraction=1.0)
    few = dataclasses.replace(full, max_boxes=2)
    steps = length_of_epoch(small_record_folder, full)
    everything = dict(images(train(small_record_folder, full, num_steps=steps)))
    dropped = 0
    for image_id, example in images(train(small_record_folder, few, num_steps=steps)):
        whole = everything[image_id]
        sides = whole["boxes"][:, 2:] - whole["boxes"][:, :2]
        kept = np.sort(np.argsort(-sides.prod(axis=1), kind="stable")[:2])
        for name in ("boxes", "keypoints", "box_kind"):
            np.testing.assert_array_equal(example[name], whole[name][kept])
        # Anchors of a box that is gone are neither positive nor negative; the others point to where their box is now.
        was, now = box_of_positives(whole), box_of_positives(example)
        assert now == {a: kept.tolist().index(b) for a, b in was.items() if b in kept}
        gone = [a for a, b in was.items() if b not in kept]
        assert not np.isin(example["anchor_index"][example["anchor_label"] == 0], gone).any()
        dropped += max(0, len(entries[image_id].persons) - 2)
    assert dropped == training_pool(small_record_folder, "train", few).dropped_boxes > 0


# Order --------------------------------------------------------------------------------------------------------------


def test_every_image_once_an_epoch(small_record_folder: RecordFolder, entries: dict[int, CocoImage]) -> None:
    steps = length_of_epoch(small_record_folder, SMALL)
    assert sorted(i for i, _ in images(train(small_record_folder, SMALL, num_steps=steps))) == sorted(entries)


def test_padding_images_are_empty(small_record_folder: RecordFolder) -> None:
    found = 0
    for batch in train(small_record_folder, SMALL):
        padding = batch["image_id"] < 0
        found += padding.sum()
        for name in ("image", "image_size", "scale", "original_size", "boxes", "keypoints", "box_kind"):
            assert not batch[name][padding].any()
        assert (batch["anchor_label"][padding] == -1).all()
    assert found


def test_images_without_labelled_persons_are_left_out(small_record_folder: RecordFolder, entries: dict[int, CocoImage]) -> None:
    config = dataclasses.replace(SMALL, require_keypoints=True)
    steps = length_of_epoch(small_record_folder, config)
    labelled = [i for i, p in entries.items() if any(q.num_labelled for q in p.persons)]
    assert sorted(i for i, _ in images(train(small_record_folder, config, num_steps=steps))) == labelled
    assert len(labelled) < len(entries)


@pytest.mark.parametrize("start", [1, 19])
def test_a_restart_goes_on_with_the_same_batches(small_record_folder: RecordFolder, start: int) -> None:
    whole = train(small_record_folder, SMALL, num_steps=24)  # three epochs
    assert_same(whole[start:], train(small_record_folder, SMALL, start_step=start, num_steps=24 - start))


def test_other_seed_other_batches(small_record_folder: RecordFolder) -> None:
    first, second = ([b["image_id"].tolist() for b in train(small_record_folder, SMALL, seed=seed)] for seed in (1, 2))
    assert first != second


def test_workers_share_the_global_batch(small_record_folder: RecordFolder) -> None:
    whole = train(small_record_folder, SMALL)
    slices = [train(small_record_folder, SMALL, input_workers=2, worker_index=worker) for worker in (0, 1)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*slices, strict=True)]
    assert_same(whole, joined)


def test_draws_do_not_depend_on_the_batch_size(small_record_folder: RecordFolder) -> None:
    by_size = []
    for size in (2, 6):
        steps = length_of_epoch(small_record_folder, SMALL, batch=size)
        by_size.append(dict(images(train(small_record_folder, SMALL, global_batch_size=size, num_steps=steps))))
    for image_id, example in by_size[0].items():
        np.testing.assert_array_equal(example["boxes"], by_size[1][image_id]["boxes"])
        np.testing.assert_array_equal(example["anchor_index"], by_size[1][image_id]["anchor_index"])


# Refusals -----------------------------------------------------------------------------------------------------------


def test_records_of_another_configuration_are_refused(small_record_folder: RecordFolder) -> None:
    check_compatible(small_record_folder, small_record_folder.anchors, SMALL, small_record_folder.skeleton)
    check_compatible(
        small_record_folder,
        small_record_folder.anchors,
        dataclasses.replace(SMALL, short_edges=(128,)),
        small_record_folder.skeleton,
    )
    other_anchors = dataclasses.replace(small_record_folder.anchors, sizes=(16.0, 32.0, 64.0, 128.0, 256.0))
    other_skeleton = dataclasses.replace(small_record_folder.skeleton, sigmas=(0.07,) * 5)
    for given, message in (
        (
            (other_anchors, SMALL, small_record_folder.skeleton),
            r"\{'sizes': \[32.*512.*\]\}, training asks for \{'sizes': \[16",
        ),
        ((small_record_folder.anchors, SMALL, other_skeleton), r"'sigmas': \[0\.05.*asks for \{'sigmas': \[0\.07"),
        (
            (small_record_folder.anchors, dataclasses.replace(SMALL, short_edges=(128, 160)), small_record_folder.skeleton),
            r"short edges \[96, 128\], training asks for \[128, 160\]",
        ),
        (
            (small_record_folder.anchors, dataclasses.replace(SMALL, max_edge=200), small_record_folder.skeleton),
            r"max_edge 192, training asks for 200; .*data\.anchors=online",
        ),
        (
            (small_record_folder.anchors, dataclasses.replace(SMALL, resize="detectron2"), small_record_folder.skeleton),
            r"resize rule standard, training asks for detectron2",
        ),
    ):
        with pytest.raises(UserError, match=message):
            check_compatible(small_record_folder, *given)
    online = dataclasses.replace(SMALL, anchors="online", short_edges=(100,), max_edge=200, resize="detectron2")
    check_compatible(small_record_folder, other_anchors, online, small_record_folder.skeleton)
    with pytest.raises(UserError, match="sigmas"):
        check_compatible(small_record_folder, other_anchors, online, other_skeleton)


def test_batches_refuse_short_edges_that_the_records_lack(small_record_folder: RecordFolder) -> None:
    with pytest.raises(UserError, match=r"short edges \[96, 128\], training asks for \[100\]"):
        training_batches(
            small_record_folder, "train", dataclasses.replace(SMALL, short_edges=(100,)), global_batch_size=4, seed=1
        )


def test_batch_that_workers_cannot_share(small_record_folder: RecordFolder) -> None:
    with pytest.raises(UserError, match=r"--batch_size=3: .* 2 input workers"):
        training_batches(small_record_folder, "train", SMALL, global_batch_size=3, seed=1, input_workers=2)


@pytest.mark.parametrize(
    "wrong", [{"short_edges": ()}, {"short_edges": (96, 96)}, {"max_edge": 90}, {"num_canvases": 0}, {"positive_fraction": 1.5}]
)
def test_wrong_configuration(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        dataclasses.replace(SMALL, **wrong)


# Real photographs ---------------------------------------------------------------------------------------------------


def test_real_photographs(coco_sample_records: RecordFolder, coco_sample: Any) -> None:
    config = DataConfig(
        short_edges=(128, 160),
        max_boxes=20,
        sampled_anchors=3000,
        positive_fraction=1.0,
        num_canvases=3,
        require_keypoints=False,
    )
    for split in ("train", "val"):
        data = coco.read_coco(coco_sample / "annotations" / f"person_keypoints_{split}2017.json")
        assert_anchors(coco_sample_records, split, config, {p.id: p for p in data.images}, epochs=2)


def test_pixels_of_real_photographs(coco_sample_records: RecordFolder, coco_sample: Any) -> None:
    """At the size of the file, a batch holds Pillow's pixels."""
    config = DataConfig(short_edges=(480,), max_edge=640, flip=False, anchors="online", num_canvases=3, require_keypoints=False)
    steps = length_of_epoch(coco_sample_records, config, "val", batch=1)
    checked = 0
    for image_id, example in images(train(coco_sample_records, config, "val", global_batch_size=1, num_steps=steps)):
        height, width = example["original_size"].tolist()
        if example["image_size"].tolist() == [height, width]:
            with Image.open(coco_sample / "val2017" / f"{image_id:012d}.jpg") as file:
                np.testing.assert_array_equal(example["image"][:height, :width], np.asarray(file.convert("RGB")))
            checked += 1
    assert checked >= 5


def test_record_is_read_whole_by_its_offset(small_record_folder: RecordFolder) -> None:
    """The index says where; a reader of whole files finds the same records there."""
    index = small_record_folder.index("train")
    for shard, path in enumerate(small_record_folder.shards("train")):
        ids = [int(records.parse(r)["image/source_id"].numpy()) for r in tf.data.TFRecordDataset(str(path))]
        assert index["image_id"][index["shard"] == shard].tolist() == ids
