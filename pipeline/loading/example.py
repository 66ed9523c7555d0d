"""One image's way from its record to its part of a batch: decoding, resizing, flipping, sampling anchors.

The parallel map of `batches.py`, which also describes the batch.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from pipeline import image, records
from pipeline.anchors import AnchorConfig
from pipeline.data_config import CROWD, PADDING, PERSON, DataConfig, ResizeRule
from pipeline.loading import anchor_targets, augment
from pipeline.loading.anchor_targets import ImageGrid, Size
from pipeline.loading.options import Cache
from pipeline.loading.reader import Reader
from pipeline.record_folder import RecordFolder
from pipeline.skeleton import Skeleton

Batch = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """One image's way from its row to its part of a batch; everything that is the same for all images."""

    reader: Reader
    skeleton: Skeleton
    max_edge: int
    resize: ResizeRule
    keypoint_offset: float
    max_boxes: int
    anchors: AnchorConfig
    recorded_short_edges: tuple[int, ...]
    training: DataConfig | None  # None: without sampled anchors

    @staticmethod
    def of(
        record_folder: RecordFolder,
        split: str,
        config: DataConfig,
        anchors: AnchorConfig,
        *,
        max_edge: int,
        training: bool,
        cache: Cache = "none",
    ) -> Preparation:
        return Preparation(
            reader=Reader.of([str(path.absolute()) for path in record_folder.shards(split)], cache),
            skeleton=record_folder.skeleton,
            max_edge=max_edge,
            resize=config.resize,
            keypoint_offset=config.keypoint_offset,
            max_boxes=config.max_boxes,
            anchors=anchors,
            recorded_short_edges=record_folder.short_edges,
            training=config if training else None,
        )

    def __call__(self, row: dict[str, tf.Tensor]) -> Batch:
        """Takes what there is to know about an image, scalars:

        image_id (−1: a padding image), shard, offset, length (of the record, as in the index), short_edge, key (of the epoch's
        draws): int64; flipped: bool; canvas_height, canvas_width: int32.
        """
        batch: Batch = tf.cond(row["image_id"] >= 0, lambda: self._image(row), lambda: self._padding(row))
        return batch

    def _image(self, row: dict[str, tf.Tensor]) -> Batch:
        record = records.parse(self.reader.record(row), self._keys())
        original = tuple(tf.cast(record[f"image/{side}"], tf.int32) for side in ("height", "width"))
        canvas = (row["canvas_height"], row["canvas_width"])
        resized, place = self._view(row, *original)

        pixels = self.reader.pixels(row, record)
        pixels = tf.cond(row["flipped"], lambda: image.flip(pixels), lambda: pixels)
        pixels = image.resize(pixels, *resized, self.resize)
        boxes = self.boxes(record, resized, row["flipped"])  # [P, 4]
        keypoints = self._keypoints(record, resized, row["flipped"])  # [P, K, 3]
        crowd = record["image/object/is_crowd"] > 0  # [P]
        size = resized
        if place is not None:
            corner, window = augment.crop_window(resized, canvas, place)
            pixels = tf.slice(pixels, tf.pad(corner, [[0, 1]]), tf.pad(window, [[0, 1]], constant_values=3))
            boxes = augment.crop_boxes(boxes, corner, window)
            keypoints = augment.crop_keypoints(keypoints, corner, window)
            left = tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=1)  # [P]; of the others the window shows nothing
            boxes, keypoints, crowd = (tf.gather(values, _places(left)) for values in (boxes, keypoints, crowd))
            size = (window[0], window[1])
        kept = _largest(boxes, self.max_boxes)  # [at most G]
        padded = tf.pad(kept, [[0, self.max_boxes - tf.size(kept)]], constant_values=-1)
        in_slot = tf.ensure_shape(padded, [self.max_boxes]) + 1  # [G]; 0: none

        def slots(values: tf.Tensor) -> tf.Tensor:  # [P, …] → [G, …]
            return tf.gather(tf.pad(values, [[1, 0]] + [[0, 0]] * (values.shape.rank - 1)), in_slot)

        scale = [tf.cast(r, tf.float32) / tf.cast(o, tf.float32) for r, o in zip(resized, original, strict=True)]
        batch = {
            "image": image.place(pixels, *canvas),
            "image_size": tf.stack(size),
            "scale": tf.stack(scale),
            "original_size": tf.stack(original),
            "image_id": row["image_id"],
            "boxes": slots(boxes),
            "keypoints": slots(keypoints),
            "box_kind": slots(tf.where(crowd, CROWD, PERSON)),
        }
        if self.training is not None:
            batch |= self._anchors(record, row, boxes, crowd, kept, size, canvas)
        return batch

    def _keys(self) -> list[str]:
        """Of the record, what is looked at."""
        keys = ["image/encoded", "image/height", "image/width", "image/object/is_crowd"]
        keys += [f"image/object/bbox/{end}" for end in ("xmin", "ymin", "xmax", "ymax")]
        keys += [f"image/object/keypoint/{name}" for name in ("x", "y", "visibility")]
        if self.training is not None and self.training.anchors == "precomputed":
            keys += ["anchors/positive", "anchors/positive_box", "anchors/ignored"]
        return keys

    def _view(self, row: dict[str, tf.Tensor], height: tf.Tensor, width: tf.Tensor) -> tuple[Size, tf.Tensor | None]:
        """The size that an image is resized to, and under large-scale jitter where its crop lies (`augment.draw_jitter`)."""
        if self.training is None or not self.training.jitter_canvas:
            return image.resized_size_tf(height, width, row["short_edge"], self.max_edge, self.resize), None
        longer, place = augment.draw_jitter(self.training, row["key"], row["image_id"])
        return image.resized_size_tf(height, width, longer, longer, self.resize), place

    def _padding(self, row: dict[str, tf.Tensor]) -> Batch:
        boxes, keypoints = self.max_boxes, self.skeleton.num_keypoints
        batch = {
            "image": tf.zeros([row["canvas_height"], row["canvas_width"], 3], image.pixel_dtype(self.resize)),
            "image_size": tf.zeros([2], tf.int32),
            "scale": tf.zeros([2], tf.float32),
            "original_size": tf.zeros([2], tf.int32),
            "image_id": tf.constant(-1, tf.int64),
            "boxes": tf.zeros([boxes, 4], tf.float32),
            "keypoints": tf.zeros([boxes, keypoints, 3], tf.float32),
            "box_kind": tf.fill([boxes], PADDING),
        }
        if self.training is not None:
            none = tf.zeros([self.training.sampled_anchors], tf.int32)
            batch |= {"anchor_index": none, "anchor_label": none - 1, "anchor_box": none}
        return batch

    def boxes(self, record: dict[str, tf.Tensor], size: Size, flipped: tf.Tensor) -> tf.Tensor:
        """float32 [P, 4] pixels: `anchors.variant_boxes` in TensorFlow, the same bits."""
        height, width = (tf.cast(side, tf.float32) for side in size)
        x0, y0, x1, y1 = (record[f"image/object/bbox/{corner}"] for corner in ("xmin", "ymin", "xmax", "ymax"))
        x0, x1 = x0 * width, x1 * width
        x0, x1 = tf.where(flipped, width - x1, x0), tf.where(flipped, width - x0, x1)
        return tf.stack([x0, y0 * height, x1, y1 * height], axis=1)

    def _keypoints(self, record: dict[str, tf.Tensor], size: Size, flipped: tf.Tensor) -> tf.Tensor:
        """float32 [P, K, 3] pixels and visibility; left and right are exchanged where flipped."""
        height, width = (tf.cast(side, tf.float32) for side in size)
        visibility = tf.cast(record["image/object/keypoint/visibility"], tf.float32)
        x, y = record["image/object/keypoint/x"], record["image/object/keypoint/y"]
        if self.keypoint_offset:
            x += self.keypoint_offset / tf.cast(record["image/width"], tf.float32)
            y += self.keypoint_offset / tf.cast(record["image/height"], tf.float32)
        x = tf.where(flipped, width - x * width, x * width)
        points = tf.stack([x, y * height, visibility], axis=1)  # [P·K, 3]
        points = tf.reshape(tf.where(visibility[:, None] > 0, points, 0.0), [-1, self.skeleton.num_keypoints, 3])
        return tf.where(flipped, tf.gather(points, self.skeleton.flip, axis=1), points)

    def _anchors(
        self,
        record: dict[str, tf.Tensor],
        row: dict[str, tf.Tensor],
        boxes: tf.Tensor,
        crowd: tf.Tensor,
        kept: tf.Tensor,
        size: Size,
        canvas: Size,
    ) -> Batch:
        assert self.training is not None
        grid = ImageGrid.of(self.anchors, size, canvas)
        if self.training.anchors == "online":
            positive, positive_box, ignored = self.match(grid, boxes, crowd)
        else:
            positive, positive_box, ignored = self.recorded_matching(record, row["short_edge"], row["flipped"])
        slot = tf.scatter_nd(kept[:, None], 1 + tf.range(tf.size(kept)), [tf.shape(boxes)[0]]) - 1  # [P]; −1: not kept
        sampled = anchor_targets.sample(
            grid,
            (positive, tf.gather(slot, positive_box), ignored),
            tf.gather(boxes, _places(crowd)),
            count=self.training.sampled_anchors,
            positive_fraction=self.training.positive_fraction,
            seed=tf.stack([row["key"], row["image_id"]]),
        )
        index = tf.where(sampled.label >= 0, grid.positions(sampled.index), 0)
        return {"anchor_index": index, "anchor_label": sampled.label, "anchor_box": sampled.box}

    def match(self, grid: ImageGrid, boxes: tf.Tensor, crowd: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Matches anchors with the boxes [P, 4] that are no crowds; as `recorded_matching`."""
        persons = tf.cast(_places(~crowd), tf.int32)
        positive, box, ignored = anchor_targets.match(grid, tf.gather(boxes, persons))
        return positive, tf.gather(persons, box), ignored

    def recorded_matching(
        self, record: dict[str, tf.Tensor], short_edge: tf.Tensor, flipped: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Names of positive anchors, the object 0…P−1 of each, and names of ignored anchors: int32, names sorted."""
        variant = 2 * tf.argmax(tf.constant(self.recorded_short_edges, tf.int64) == short_edge) + tf.cast(flipped, tf.int64)
        positive, box, ignored = (
            records.list_of_variant(record[f"anchors/{name}"], variant) for name in ("positive", "positive_box", "ignored")
        )
        positive, ignored = (records.names_from_differences(names) for names in (positive, ignored))
        return tf.cast(positive, tf.int32), tf.cast(box, tf.int32), tf.cast(ignored, tf.int32)


def _largest(boxes: tf.Tensor, count: int) -> tf.Tensor:
    """Which of the boxes [P, 4] are the `count` largest: int32 in ascending order."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return tf.sort(tf.math.top_k(area, tf.minimum(tf.size(area), count), sorted=False).indices)


def _places(mask: tf.Tensor) -> tf.Tensor:
    """The places where a mask [P] holds, int64. (`tf.boolean_mask` takes a dozen operations more, to look at shapes.)"""
    return tf.where(mask)[:, 0]
