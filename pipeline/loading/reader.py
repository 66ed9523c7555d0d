"""Reads a record by its place in the shards, and decodes its image; both may be kept in memory (`LoadingOptions.cache`).

Everything is TensorFlow, for the parallel map of `batches.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from pipeline import image
from pipeline.loading.options import Cache
from pipeline.records import read_serialized


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the records of one split.

    Attributes:
      shards: paths of the files.
      records, images: tables of what is kept of images that have been read, by image id; None: nothing is kept.
    """

    shards: tuple[str, ...]
    records: Any = None
    images: Any = None

    @staticmethod
    def of(shards: Sequence[str], cache: Cache = "none") -> Reader:
        return Reader(
            shards=tuple(shards),
            records=None if cache == "none" else _table(),
            images=_table() if cache == "decoded" else None,
        )

    def record(self, row: dict[str, tf.Tensor]) -> tf.Tensor:
        """The serialized record: scalar string.

        Args:
          row: image_id, shard, offset and length, as in the index.

        Raises:
          tf.errors.OpError: as `read_serialized`.
        """

        def read() -> tf.Tensor:
            return read_serialized(tf.gather(tf.constant(self.shards), row["shard"]), row["offset"], row["length"])

        return _kept(self.records, row["image_id"], read)

    def pixels(self, row: dict[str, tf.Tensor], record: dict[str, tf.Tensor]) -> tf.Tensor:
        """The image: uint8 [h, w, 3].

        Args:
          row: as above.
          record: the parsed record.

        Raises:
          tf.errors.InvalidArgumentError: no JPEG or PNG, a broken one, or one of another size than the record says.
        """
        if self.images is None:
            return decode(record)
        kept = _kept(self.images, row["image_id"], lambda: tf.io.serialize_tensor(decode(record)))
        return tf.ensure_shape(tf.io.parse_tensor(kept, tf.uint8), [None, None, 3])


def decode(record: dict[str, tf.Tensor]) -> tf.Tensor:
    """The image of a parsed record, uint8 [h, w, 3]; raises tf.errors.InvalidArgumentError as `Reader.pixels`."""
    pixels = image.decode(record["image/encoded"])
    recorded = tf.stack([record["image/height"], record["image/width"]])
    same = tf.debugging.Assert(
        tf.reduce_all(tf.shape(pixels, tf.int64)[:2] == recorded), ["image of another size than recorded", recorded]
    )
    with tf.control_dependencies([same]):
        return tf.identity(pixels)


def _table() -> Any:
    return tf.lookup.experimental.MutableHashTable(tf.int64, tf.string, default_value="")


def _kept(table: Any, key: tf.Tensor, make: Callable[[], tf.Tensor]) -> tf.Tensor:
    """The value that the table has for the key, made and put there if it has none: scalar string."""
    if table is None:
        return make()
    found = table.lookup(key)

    def missing() -> tf.Tensor:
        made = make()
        with tf.control_dependencies([table.insert(key, made)]):
            return tf.identity(made)

    return tf.cond(tf.strings.length(found) > 0, lambda: found, missing)
