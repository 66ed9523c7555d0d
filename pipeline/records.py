"""The record: one definition for writing, reading, TFDS metadata and documentation.

A record is one `tf.train.Example` per image, with the keys of the TF Object Detection conventions, so that it is widely read.
`FIELDS` lists them: P objects (persons and crowds, sorted by annotation id), K keypoints, V variants. A variant is one resized
size of the image, flipped or not: variant = 2 · (index of the short edge) + flipped.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from pipeline.anchor_matching import match_variants
from pipeline.anchors import AnchorConfig, Matching, variant_boxes
from pipeline.coco import CocoImage
from pipeline.data_config import resized_size


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of the record.

    Attributes:
      shape: of the values: "[]" is a scalar, "[V, …]" a ragged list of lists, stored as TFDS stores it under two keys.
      unit: of places, with their frame; "" if the value is no place.
    """

    key: str
    dtype: Literal["bytes", "float", "int64"]
    shape: Literal["[]", "[P]", "[P·K]", "[V, …]"]
    unit: str
    meaning: str


_AXES = (("x", "width", "left"), ("y", "height", "upper"))
FIELDS: tuple[Field, ...] = (
    Field(
        "image/encoded",
        "bytes",
        "[]",
        "",
        "the file's own bytes, never re-encoded unless a stored rotation had to be applied or the image to be shrunk",
    ),
    Field("image/format", "bytes", "[]", "", "jpeg or png"),
    Field("image/height", "int64", "[]", "pixels", "of the decoded image"),
    Field("image/width", "int64", "[]", "pixels", "of the decoded image"),
    Field("image/filename", "bytes", "[]", "", "file_name of the JSON"),
    Field("image/source_id", "bytes", "[]", "", "image id of the JSON, in decimal"),
    Field("image/key/sha256", "bytes", "[]", "", "of image/encoded, in hexadecimal"),
    *(
        Field(
            f"image/object/bbox/{axis}{end}",
            "float",
            "[P]",
            f"1 / {side}, from the {edge} edge",
            f"{'low' if end == 'min' else 'high'} end of the box, clipped to the image: 0…1",
        )
        for end in ("min", "max")
        for axis, side, edge in _AXES
    ),
    Field(
        "image/object/class/label",
        "int64",
        "[P]",
        "",
        "1 = person; of several classes 1…C, in the order of the folder's metadata",
    ),
    Field("image/object/class/text", "bytes", "[P]", "", "name of the category"),
    Field("image/object/is_crowd", "int64", "[P]", "", "1 where the box encloses a crowd"),
    Field("image/object/area", "float", "[P]", "pixels²", "of the JSON's segment"),
    Field("image/object/id", "int64", "[P]", "", "annotation id of the JSON"),
    *(
        Field(
            f"image/object/keypoint/{axis}",
            "float",
            "[P·K]",
            f"1 / {side}, from the {edge} edge",
            f"the JSON's {axis} without a shift; 0 where not labelled",
        )
        for axis, side, edge in _AXES
    ),
    Field("image/object/keypoint/visibility", "int64", "[P·K]", "", "0 not labelled, 1 labelled but hidden, 2 visible"),
    Field("image/object/keypoint/num", "int64", "[P]", "", "number of labelled keypoints"),
    Field("anchors/positive", "int64", "[V, …]", "differences", "names of the positive anchors, sorted"),
    Field("anchors/positive_box", "int64", "[V, …]", "", "for each of them the matched object, 0…P−1, never a crowd"),
    Field("anchors/ignored", "int64", "[V, …]", "differences", "names of the anchors neither positive nor negative, sorted"),
)


def ragged_keys(key: str) -> tuple[str, str]:
    """The two keys under which TFDS stores a ragged list of lists: all values, and the lengths of the lists."""
    return f"{key}/ragged_flat_values", f"{key}/ragged_row_lengths_0"


def features() -> tfds.features.FeaturesDict:
    """The record as TensorFlow Datasets describes it; `image/encoded` is decoded to RGB."""
    dtypes = {"bytes": np.str_, "float": np.float32, "int64": np.int64}
    result: dict[str, Any] = {}
    for field in FIELDS:
        scalar = tfds.features.Text() if field.dtype == "bytes" else tfds.features.Scalar(dtypes[field.dtype])
        if field.shape == "[]":
            result[field.key] = scalar
        elif field.shape == "[V, …]":
            result[field.key] = tfds.features.Sequence(tfds.features.Sequence(scalar))
        else:
            result[field.key] = tfds.features.Sequence(scalar)
    result["image/encoded"] = tfds.features.Image(shape=(None, None, 3))
    return tfds.features.FeaturesDict(result)


# What reading and parsing a record raises. TensorFlow's messages quote the record, and Python cannot decode every quotation.
READ_ERRORS = (tf.errors.OpError, UnicodeDecodeError)


def parse(serialized: tf.Tensor, keys: Collection[str] | None = None) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    """A serialized record (scalar string) → its values by key: scalars, dense [P] or [P·K], ragged [V, None] int64.

    Lists of names of anchors stay differences: `names_from_differences` undoes them for the one variant that is wanted.

    Args:
      keys: the keys of `FIELDS` that are wanted; by default all.
    """
    dtypes = {"bytes": tf.string, "float": tf.float32, "int64": tf.int64}
    spec: dict[str, Any] = {}
    for field in FIELDS:
        if keys is not None and field.key not in keys:
            continue
        dtype = dtypes[field.dtype]
        if field.shape == "[]":
            spec[field.key] = tf.io.FixedLenFeature([], dtype)
        elif field.shape == "[V, …]":
            values, lengths = ragged_keys(field.key)
            spec[field.key] = tf.io.RaggedFeature(
                dtype, values, [tf.io.RaggedFeature.RowLengths(lengths)], row_splits_dtype=tf.int64
            )
        else:
            spec[field.key] = tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)
    parsed: dict[str, tf.Tensor | tf.RaggedTensor] = tf.io.parse_single_example(serialized, spec)
    return parsed


def list_of_variant(lists: tf.RaggedTensor, variant: tf.Tensor) -> tf.Tensor:
    """One list of a parsed [V, None]. (Indexing does the same with three times as many operations.)"""
    splits = lists.row_splits
    return lists.values[tf.gather(splits, variant) : tf.gather(splits, variant + 1)]


def differences_from_names(names: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted names of anchors → the first, then the steps: small numbers, which take one or two bytes each."""
    differences = names.copy()
    differences[1:] -= names[:-1]  # (np.diff with prepend takes ten times as long on short lists)
    return differences


def names_from_differences(differences: tf.Tensor) -> tf.Tensor:
    """Undoes `differences_from_names` for one variant, int64 [N]."""
    return tf.cumsum(differences)


def normalised_boxes(entry: CocoImage) -> NDArray[np.float32]:
    """Boxes of all objects as the record holds them: float32 [P, 4], x0, y0, x1, y1 as fractions of width and height."""
    boxes = np.array([person.box for person in entry.persons], np.float64).reshape(-1, 4)
    return (boxes / (entry.width, entry.height, entry.width, entry.height)).astype(np.float32)


def match_image(entry: CocoImage, config: AnchorConfig, short_edges: Sequence[int], max_edge: int) -> list[Matching]:
    """The matching of all variants, from the very float32 boxes that a reader of the record gets."""
    is_crowd = np.array([person.is_crowd for person in entry.persons], np.bool_)
    size = (entry.height, entry.width)
    return match_objects(normalised_boxes(entry), is_crowd, size, config, short_edges, max_edge)


def match_objects(
    boxes: NDArray[np.float32],
    is_crowd: NDArray[np.bool_],
    size: tuple[int, int],
    config: AnchorConfig,
    short_edges: Sequence[int],
    max_edge: int,
) -> list[Matching]:
    """The matching of all variants.

    Args:
      boxes: float32 [P, 4] of all objects, x0, y0, x1, y1 as fractions of width and height.
      is_crowd: bool [P].
      size: height and width of the image.

    Returns:
      One matching for each variant. `positive_box` is an index into all objects of the record, though crowds are never matched.
    """
    if not short_edges:
        return []
    persons = np.flatnonzero(~is_crowd)
    boxes = boxes[persons]
    sizes, variants = [], []
    for short_edge in short_edges:
        height, width = resized_size(*size, short_edge, max_edge)
        for flipped in (False, True):
            sizes.append((height, width))
            variants.append(variant_boxes(boxes, height, width, flipped=flipped))
    matchings = match_variants(config, np.stack(variants), sizes)
    return [dataclasses.replace(m, positive_box=persons[m.positive_box]) for m in matchings]


def encode(
    entry: CocoImage,
    image_bytes: bytes,
    image_format: Literal["jpeg", "png"],
    category: str | Sequence[str],
    matchings: Sequence[Matching],
) -> bytes:
    """Serializes one record.

    Args:
      entry: the image's cleaned annotations.
      image_bytes: the encoded image, which has `entry`'s height and width when decoded.
      image_format: the format of `image_bytes`.
      category: the name of the persons' category, or of each of several classes.
      matchings: as `match_image` gives them, one for each variant.
    """
    persons = entry.persons
    boxes = normalised_boxes(entry)
    names = [category] if isinstance(category, str) else category
    values: dict[str, Any] = {
        "image/encoded": [image_bytes],
        "image/format": [image_format.encode()],
        "image/height": [entry.height],
        "image/width": [entry.width],
        "image/filename": [stored_name(entry.file_name)],
        "image/source_id": [str(entry.id).encode()],
        "image/key/sha256": [hashlib.sha256(image_bytes).hexdigest().encode()],
        "image/object/bbox/xmin": boxes[:, 0].tolist(),
        "image/object/bbox/ymin": boxes[:, 1].tolist(),
        "image/object/bbox/xmax": boxes[:, 2].tolist(),
        "image/object/bbox/ymax": boxes[:, 3].tolist(),
        "image/object/class/label": [person.label for person in persons],
        "image/object/class/text": [names[person.label - 1].encode() for person in persons],
        "image/object/is_crowd": [int(person.is_crowd) for person in persons],
        "image/object/area": [person.area for person in persons],
        "image/object/id": [person.id for person in persons],
        "image/object/keypoint/num": [person.num_labelled for person in persons],
    }
    keypoints = np.concatenate([np.zeros((0, 3)), *(person.keypoints for person in persons)])  # [P·K, 3]
    values["image/object/keypoint/x"] = (keypoints[:, 0] / entry.width).tolist()
    values["image/object/keypoint/y"] = (keypoints[:, 1] / entry.height).tolist()
    values["image/object/keypoint/visibility"] = keypoints[:, 2].astype(np.int64).tolist()
    lists = {
        "anchors/positive": [differences_from_names(m.positive) for m in matchings],
        "anchors/positive_box": [m.positive_box for m in matchings],
        "anchors/ignored": [differences_from_names(m.ignored) for m in matchings],
    }
    for key, rows in lists.items():
        flat_key, lengths_key = ragged_keys(key)
        values[flat_key] = np.concatenate([np.zeros(0, np.int64), *rows]).tolist()
        values[lengths_key] = [len(row) for row in rows]
    return _serialize(values)


def stored_name(file_name: str) -> bytes:
    """A file's name in UTF-8. Bytes that are no UTF-8, which Python and JSON hold as surrogates, are stored as they are."""
    try:
        return file_name.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return file_name.encode(errors="backslashreplace")


_KINDS: Mapping[str, str] = {"bytes": "bytes_list", "float": "float_list", "int64": "int64_list"}
# The keys as they are stored, and of which kind of `tf.train.Feature` each is.
KIND_OF_KEY: Mapping[str, str] = {
    key: _KINDS[field.dtype]
    for field in FIELDS
    for key in (ragged_keys(field.key) if field.shape == "[V, …]" else (field.key,))
}


def _serialize(values: Mapping[str, Sequence[Any]]) -> bytes:
    example = tf.train.Example()
    feature = example.features.feature
    for key, kind in KIND_OF_KEY.items():
        getattr(feature[key], kind).value.extend(values[key])
    # Maps have no order of their own: without this the same record could have other bytes in another process.
    serialized: bytes = example.SerializeToString(deterministic=True)
    return serialized


def read_serialized(path: tf.Tensor, offset: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """One record by its place: scalar string.

    Args:
      path: of the shard.
      offset: of the record's header, in bytes.
      length: of the record itself.

    Raises:
      tf.errors.OpError: damaged or cut short; both checksums are compared.
    """
    one = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None],
        compression_type="",
        buffer_size=length + 16,  # the record and its frame: one read from the file
        byte_offsets=offset[None],
    )
    return tf.data.experimental.from_variant(one, tf.TensorSpec([], tf.string)).take(1).get_single_element()
