from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import anchors, data_config, records
from pipeline.anchors import AnchorConfig
from pipeline.coco import CocoImage, Person, read_coco

CONFIG = AnchorConfig(strides=(8, 16), sizes=(32, 64), aspect_ratios=(0.5, 1.0, 2.0))
SHORT_EDGES, MAX_EDGE = (96, 128), 200


def person(number: int, box: tuple[float, float, float, float], *, crowd: bool = False) -> Person:
    keypoints = np.zeros((3, 3))
    if not crowd:
        keypoints[0], keypoints[2] = (box[0] + 1.25, box[1] + 2.5, 2), (box[0], box[1], 1)
    return Person(number, box, 12.5, crowd, keypoints)


IMAGE = CocoImage(
    id=77,
    file_name="ordner/ä.png",
    height=100,
    width=150,
    persons=(
        person(3, (0, 0, 150, 50), crowd=True),
        person(5, (10.1, 20.2, 45.3, 90.4)),
        person(8, (50, 10, 120.7, 95)),
    ),
)
PNG = tf.io.encode_png(np.arange(100 * 150 * 3).reshape(100, 150, 3).astype(np.uint8)).numpy()


def encode(entry: CocoImage) -> bytes:
    matchings = records.match_image(entry, CONFIG, SHORT_EDGES, MAX_EDGE)
    return records.encode(entry, PNG, "png", "person", matchings)


def test_a_record_holds_what_its_image_holds() -> None:
    record = records.parse(tf.constant(encode(IMAGE)))
    assert set(record) == {field.key for field in records.FIELDS}
    assert record["image/encoded"].numpy() == PNG
    assert record["image/format"].numpy() == b"png"
    assert (record["image/height"].numpy(), record["image/width"].numpy()) == (100, 150)
    assert record["image/filename"].numpy().decode() == "ordner/ä.png"
    assert record["image/source_id"].numpy() == b"77"
    assert record["image/key/sha256"].numpy().decode() == hashlib.sha256(PNG).hexdigest()
    np.testing.assert_array_equal(record["image/object/id"], [3, 5, 8])
    np.testing.assert_array_equal(record["image/object/is_crowd"], [1, 0, 0])
    np.testing.assert_array_equal(record["image/object/class/label"], [1, 1, 1])
    np.testing.assert_array_equal(record["image/object/class/text"], [b"person"] * 3)
    np.testing.assert_array_equal(record["image/object/area"], [12.5] * 3)
    np.testing.assert_array_equal(record["image/object/keypoint/num"], [0, 2, 2])
    np.testing.assert_array_equal(record["image/object/keypoint/visibility"], [0, 0, 0, 2, 0, 1, 2, 0, 1])
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = np.stack([record[f"image/object/bbox/{side}"] for side in sides], axis=1)
    np.testing.assert_array_equal(boxes, records.normalised_boxes(IMAGE))
    np.testing.assert_allclose(boxes[1] * [150, 100, 150, 100], IMAGE.persons[1].box, rtol=1e-6)
    x, y = (record[f"image/object/keypoint/{axis}"].numpy().reshape(3, 3) for axis in "xy")
    np.testing.assert_allclose(x[1] * 150, [11.35, 0, 10.1], rtol=1e-6)
    np.testing.assert_allclose(y[1] * 100, [22.7, 0, 20.2], rtol=1e-6)


def test_its_anchors_are_those_of_every_variant_matched_from_the_record_itself() -> None:
    record = records.parse(tf.constant(encode(IMAGE)))
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = np.stack([record[f"image/object/bbox/{side}"] for side in sides], axis=1)[1:]  # without the crowd
    for variant in range(4):
        short_edge, flipped = SHORT_EDGES[variant // 2], bool(variant % 2)
        size = data_config.resized_size(100, 150, short_edge, MAX_EDGE)
        expected = anchors.match(CONFIG, anchors.variant_boxes(boxes, *size, flipped=flipped), *size)
        for key, names in (("positive", expected.positive), ("ignored", expected.ignored)):
            got = records.names_from_differences(record[f"anchors/{key}"][variant])
            np.testing.assert_array_equal(got, names)
        np.testing.assert_array_equal(record["anchors/positive_box"][variant], expected.positive_box + 1)
        assert len(expected.positive)


@pytest.mark.parametrize("persons", [(), (person(1, (0, 0, 50, 50), crowd=True),)], ids=["nobody", "a crowd"])
def test_a_image_without_persons_has_empty_lists_for_every_variant(persons: tuple[Person, ...]) -> None:
    record = records.parse(tf.constant(encode(CocoImage(1, "a.png", 100, 150, persons))))
    assert record["image/object/bbox/xmin"].shape == (len(persons),)
    assert record["image/object/keypoint/x"].shape == (3 * len(persons),)
    for key in ("positive", "positive_box", "ignored"):
        np.testing.assert_array_equal(record[f"anchors/{key}"].row_lengths(), [0, 0, 0, 0])


def test_the_same_image_gives_the_same_bytes() -> None:
    assert encode(IMAGE) == encode(IMAGE)


def test_parse_gives_the_same_inside_a_dataset() -> None:
    eager = records.parse(tf.constant(encode(IMAGE)))
    mapped = next(iter(tf.data.Dataset.from_tensors(encode(IMAGE)).map(records.parse)))
    for key, value in eager.items():
        if isinstance(value, tf.RaggedTensor):
            assert value.to_list() == mapped[key].to_list()
        else:
            np.testing.assert_array_equal(value, mapped[key])


def test_tfds_reads_the_same_record() -> None:
    decoded = records.features().deserialize_example(encode(IMAGE))
    assert isinstance(records.features(), tfds.features.FeaturesDict)
    np.testing.assert_array_equal(decoded["image/encoded"], tf.io.decode_png(PNG))
    parsed = records.parse(tf.constant(encode(IMAGE)))
    for key in set(parsed) - {"image/encoded"}:
        got, expected = decoded[key], parsed[key]
        if isinstance(expected, tf.RaggedTensor):
            assert got.to_list() == expected.to_list()
        else:
            np.testing.assert_array_equal(got, expected)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 2**40), max_size=20))
def test_differences_are_undone(names: set[int]) -> None:
    sorted_names = np.array(sorted(names), np.int64)
    differences = records.differences_from_names(sorted_names)
    np.testing.assert_array_equal(records.names_from_differences(tf.constant(differences)), sorted_names)


def test_anchors_of_all_variants_are_a_small_part_of_a_record(coco_sample: Path) -> None:
    """At most 6 % of 150 kB, the mean of COCO's images."""
    config, short_edges = AnchorConfig(), (640, 672, 704, 736, 768, 800)
    entries = read_coco(coco_sample / "annotations" / "person_keypoints_train2017.json").images
    added = 0
    for entry in entries:
        sizes = [
            len(records.encode(entry, b"", "jpeg", "person", records.match_image(entry, config, edges, 1333)))
            for edges in ((), short_edges)
        ]
        added += sizes[1] - sizes[0]
    assert 1000 < added / len(entries) < 0.06 * 150_000
