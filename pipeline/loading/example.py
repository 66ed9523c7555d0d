"""One image's way from its row of the plan to its part of a batch, stage by stage.

    read → decode → resize (and crop) → place → people (boxes and keypoints) → targets (sampled anchors)

`Preparation.image` lists the stages in this order, and each is the method of that name. `batches.py` runs it in a parallel map
and describes the batch; `measurement.py` times the stages.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from pipeline import image, records
from pipeline.anchors import AnchorConfig
from pipeline.data_config import CROWD, PADDING, PERSON, DataConfig
from pipeline.loading import anchor_targets, augment, device_resize, online_matching, originals
from pipeline.loading.image_grid import ImageGrid, Size
from pipeline.loading.options import Cache
from pipeline.loading.reader import Reader
from pipeline.record_folder import RecordFolder
from pipeline.skeleton import Skeleton

# What the plan says of one image, scalars: image_id (−1: a padding image), shard, offset, length (of the record, as in the
# index), short_edge, key (of the epoch's draws): int64; flipped: bool; canvas_height, canvas_width: int32; and, if originals
# are shipped, source_height, source_width of their canvas: int32.
Row = dict[str, tf.Tensor]
Record = dict[str, tf.Tensor]
Batch = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class View:
    """How an image is seen in this epoch. Sizes are int32 scalars (height, width) in pixels.

    Attributes:
      original: of the file.
      resized: of the whole image at the size that it is seen at.
      corner: int32 [2], where the part that the canvas shows begins in the resized image, y and x; None: the canvas shows all.
      size: of the part that the canvas shows.
      canvas: of the canvas, which holds that part top left.
      flipped: bool scalar, whether left and right are exchanged.
    """

    original: Size
    resized: Size
    corner: tf.Tensor | None
    size: Size
    canvas: Size
    flipped: tf.Tensor


@dataclasses.dataclass(frozen=True)
class People:
    """The P objects that an image shows, in pixels of the canvas.

    Attributes:
      boxes: float32 [P, 4], x0, y0, x1, y1.
      keypoints: float32 [P, K, 3], x, y and visibility; all zero where not labelled.
      crowd: bool [P], whether the box encloses a crowd.
      label: int32 [P], 1…C, the class of each.
    """

    boxes: tf.Tensor
    keypoints: tf.Tensor
    crowd: tf.Tensor
    label: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The stages, with everything that is the same for all images.

    Attributes:
      reader: of the split's records.
      skeleton: of the records.
      config: what batches are made of.
      anchors: the model's grid.
      recorded_short_edges: those that the records hold a matching for.
      originals: whether images are shipped as the file has them, for `device_resize.py`.
    """

    reader: Reader
    skeleton: Skeleton
    config: DataConfig
    anchors: AnchorConfig
    recorded_short_edges: tuple[int, ...]
    originals: bool = False

    @staticmethod
    def of(
        record_folder: RecordFolder,
        split: str,
        config: DataConfig,
        anchors: AnchorConfig,
        *,
        cache: Cache = "none",
        originals: bool = False,
    ) -> Preparation:
        return Preparation(
            reader=Reader.of([str(path.absolute()) for path in record_folder.shards(split)], cache),
            skeleton=record_folder.skeleton,
            config=config,
            anchors=anchors,
            recorded_short_edges=record_folder.short_edges,
            originals=originals,
        )

    def __call__(self, row: Row) -> Batch:
        """An image's part of a batch, or that of a padding image."""
        batch: Batch = tf.cond(row["image_id"] >= 0, lambda: self.image(row), lambda: self._padding(row))
        return batch

    def image(self, row: Row) -> Batch:
        """The stages in their order."""
        record = self.read(row)
        pixels = self.decode(row, record)
        view = self.view(row, record)
        pixels = self.resize(pixels, view)
        pixels = self.place(row, pixels, view)
        people = self.people(record, view)
        kept = _largest(people.boxes, self.config.max_boxes)
        scale = [tf.cast(r, tf.float32) / tf.cast(o, tf.float32) for r, o in zip(view.resized, view.original, strict=True)]
        return {
            "image": pixels,
            **(self._source(view) if self.originals else {}),
            "image_size": tf.stack(view.size),
            "scale": tf.stack(scale),
            "original_size": tf.stack(view.original),
            "image_id": row["image_id"],
            **self._slots(people, kept),
            **self.targets(row, record, view, people, kept),
        }

    def read(self, row: Row) -> Record:
        """Reads and parses the record: the fields that the other stages look at."""
        keys = ["image/encoded", "image/height", "image/width", "image/object/is_crowd"]
        keys += [f"image/object/bbox/{end}" for end in ("xmin", "ymin", "xmax", "ymax")]
        keys += [f"image/object/keypoint/{name}" for name in ("x", "y", "visibility")]
        if self.skeleton.num_classes > 1:
            keys += ["image/object/class/label"]
        if self.config.anchors == "precomputed":
            keys += ["anchors/positive", "anchors/positive_box", "anchors/ignored"]
        return records.parse(self.reader.record(row), keys)

    def decode(self, row: Row, record: Record) -> tf.Tensor:
        """The image as the file has it: uint8 [h, w, 3]."""
        return self.reader.pixels(row, record)

    def view(self, row: Row, record: Record) -> View:
        """Works out the geometry: no pixels yet."""
        height, width = (tf.cast(record[f"image/{side}"], tf.int32) for side in ("height", "width"))
        canvas = (row["canvas_height"], row["canvas_width"])
        if not self.config.jitter_canvas:
            size = image.resized_size_tf(height, width, row["short_edge"], self.config.max_edge, self.config.resize)
            return View((height, width), size, None, size, canvas, row["flipped"])
        longer, place = augment.draw_jitter(self.config, row["key"], row["image_id"])
        resized = image.resized_size_tf(height, width, longer, longer, self.config.resize)
        corner, window = augment.crop_window(resized, canvas, place)
        return View((height, width), resized, corner, (window[0], window[1]), canvas, row["flipped"])

    def resize(self, pixels: tf.Tensor, view: View) -> tf.Tensor:
        """Flips, resizes and crops the image: [shown height, shown width, 3] of `image.pixel_dtype`.

        If originals are shipped, the device does this for all images but those that have too many pixels (`is_shipped`).
        """
        if not self.originals:
            return self._seen(pixels, view)
        if self.config.resize == "torchvision":  # (`originals.why_not`)
            return pixels
        return tf.cond(self._is_shipped(view), lambda: pixels, lambda: self._seen(pixels, view))

    def _seen(self, pixels: tf.Tensor, view: View) -> tf.Tensor:
        pixels = tf.cond(view.flipped, lambda: image.flip(pixels), lambda: pixels)
        pixels = image.resize(pixels, *view.resized, self.config.resize)
        if view.corner is not None:
            pixels = tf.slice(pixels, [view.corner[0], view.corner[1], 0], [view.size[0], view.size[1], 3])
        return pixels

    def place(self, row: Row, pixels: tf.Tensor, view: View) -> tf.Tensor:
        """Puts the image on its canvas, or the original on that of originals: [H, W, 3]."""
        canvas = (row["source_height"], row["source_width"]) if self.originals else view.canvas
        return image.place(pixels, *canvas)

    def _is_shipped(self, view: View) -> tf.Tensor:
        height, width, *resized = (tf.cast(side, tf.int64) for side in (*view.original, *view.resized))
        return originals.is_shipped(height, width, resized[0], resized[1], self.config.resize)

    def _source(self, view: View) -> Batch:
        """What the device must know: the canvas's size, as the shape of nothing, and `device_resize.SOURCE` numbers."""
        corner = tf.zeros([2], tf.int32) if view.corner is None else view.corner
        flipped = tf.cast(view.flipped, tf.int32)
        as_it_is = tf.stack([*view.original, *view.resized, corner[0], corner[1], flipped])
        seen = tf.stack([*view.size, *view.size, 0, 0, 0])  # it has been resized
        source = as_it_is if self.config.resize == "torchvision" else tf.where(self._is_shipped(view), as_it_is, seen)
        return {"canvas": tf.zeros([*view.canvas, 0], tf.uint8), "source": source}

    def people(self, record: Record, view: View) -> People:
        """Boxes and keypoints as the view shows them; objects that lie outside of it are left out."""
        boxes = self.boxes(record, view)
        keypoints = self._keypoints(record, view)
        crowd = record["image/object/is_crowd"] > 0
        label = (
            tf.cast(record["image/object/class/label"], tf.int32)
            if self.skeleton.num_classes > 1
            else tf.ones_like(crowd, tf.int32)
        )
        if view.corner is None:
            return People(boxes, keypoints, crowd, label)
        window = tf.stack(view.size)
        boxes = augment.crop_boxes(boxes, view.corner, window)
        keypoints = augment.crop_keypoints(keypoints, view.corner, window)
        shown = _places(tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=1))
        return People(*(tf.gather(values, shown) for values in (boxes, keypoints, crowd, label)))

    def targets(self, row: Row, record: Record, view: View, people: People, kept: tf.Tensor) -> Batch:
        """Samples the anchors that the RPN's loss looks at: `anchor_index`, `anchor_label`, `anchor_box` [A].

        Args:
          kept: int32 [at most G], which of the people are in the batch. Anchors matched with the others count as ignored.
        """
        grid = ImageGrid.of(self.anchors, view.size, view.canvas)
        if self.config.anchors == "online":
            positive, positive_box, ignored = self.online_matching(grid, people)
        else:
            positive, positive_box, ignored = self.recorded_matching(record, row["short_edge"], view.flipped)
        number = tf.shape(people.boxes)[0]
        slot = tf.scatter_nd(kept[:, None], 1 + tf.range(tf.size(kept)), [number]) - 1  # [P]; −1: not kept
        sampled = anchor_targets.sample(
            grid,
            (positive, tf.gather(slot, positive_box), ignored),
            tf.gather(people.boxes, _places(people.crowd)),
            count=self.config.sampled_anchors,
            positive_fraction=self.config.positive_fraction,
            seed=tf.stack([row["key"], row["image_id"]]),
        )
        index = tf.where(sampled.label >= 0, grid.positions(sampled.index), 0)
        return {"anchor_index": index, "anchor_label": sampled.label, "anchor_box": sampled.box}

    def boxes(self, record: Record, view: View) -> tf.Tensor:
        """Float32 [P, 4] pixels of the resized image: `anchors.variant_boxes` in TensorFlow, the same bits."""
        height, width = (tf.cast(side, tf.float32) for side in view.resized)
        x0, y0, x1, y1 = (record[f"image/object/bbox/{corner}"] for corner in ("xmin", "ymin", "xmax", "ymax"))
        x0, x1 = x0 * width, x1 * width
        x0, x1 = tf.where(view.flipped, width - x1, x0), tf.where(view.flipped, width - x0, x1)
        return tf.stack([x0, y0 * height, x1, y1 * height], axis=1)

    def _keypoints(self, record: Record, view: View) -> tf.Tensor:
        """Float32 [P, K, 3] pixels of the resized image and visibility; left and right are exchanged where flipped."""
        height, width = (tf.cast(side, tf.float32) for side in view.resized)
        visibility = tf.cast(record["image/object/keypoint/visibility"], tf.float32)
        x, y = record["image/object/keypoint/x"], record["image/object/keypoint/y"]
        if self.config.keypoint_offset:
            x += self.config.keypoint_offset / tf.cast(record["image/width"], tf.float32)
            y += self.config.keypoint_offset / tf.cast(record["image/height"], tf.float32)
        x = tf.where(view.flipped, width - x * width, x * width)
        points = tf.stack([x, y * height, visibility], axis=1)  # [P·K, 3]
        points = tf.reshape(tf.where(visibility[:, None] > 0, points, 0.0), [-1, self.skeleton.num_keypoints, 3])
        return tf.where(view.flipped, tf.gather(points, self.skeleton.flip, axis=1), points)

    def _slots(self, people: People, kept: tf.Tensor) -> Batch:
        """`boxes`, `keypoints`, `box_kind` and, of several classes, `box_class` of the people that are kept.

        They lie in the G places of the batch; behind them is zero.
        """
        padded = tf.pad(kept, [[0, self.config.max_boxes - tf.size(kept)]], constant_values=-1)
        in_slot = tf.ensure_shape(padded, [self.config.max_boxes]) + 1  # [G]; 0: nobody

        def slots(values: tf.Tensor) -> tf.Tensor:  # [P, …] → [G, …]
            return tf.gather(tf.pad(values, [[1, 0]] + [[0, 0]] * (values.shape.rank - 1)), in_slot)

        kind = tf.where(people.crowd, CROWD, PERSON)
        found = {"boxes": slots(people.boxes), "keypoints": slots(people.keypoints), "box_kind": slots(kind)}
        return found | ({"box_class": slots(people.label)} if self.skeleton.num_classes > 1 else {})

    def online_matching(self, grid: ImageGrid, people: People) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Matches anchors with the boxes that are no crowds; answers as `recorded_matching` does."""
        persons = tf.cast(_places(~people.crowd), tf.int32)
        positive, box, ignored = online_matching.match(grid, tf.gather(people.boxes, persons))
        return positive, tf.gather(persons, box), ignored

    def recorded_matching(
        self, record: Record, short_edge: tf.Tensor, flipped: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Names of positive anchors, the object 0…P−1 of each, and names of ignored anchors: int32, names sorted."""
        variant = 2 * tf.argmax(tf.constant(self.recorded_short_edges, tf.int64) == short_edge) + tf.cast(flipped, tf.int64)
        positive, box, ignored = (
            records.list_of_variant(record[f"anchors/{name}"], variant) for name in ("positive", "positive_box", "ignored")
        )
        positive, ignored = (records.names_from_differences(names) for names in (positive, ignored))
        return tf.cast(positive, tf.int32), tf.cast(box, tf.int32), tf.cast(ignored, tf.int32)

    def _padding(self, row: Row) -> Batch:
        """A padding image: nothing to see, nobody, and no anchor that counts."""
        boxes, keypoints = self.config.max_boxes, self.skeleton.num_keypoints
        unused = tf.zeros([self.config.sampled_anchors], tf.int32)
        canvas = [row["canvas_height"], row["canvas_width"]]
        if self.originals:
            pixels = {
                "image": tf.zeros([row["source_height"], row["source_width"], 3], tf.uint8),
                "canvas": tf.zeros([*canvas, 0], tf.uint8),
                "source": tf.zeros([device_resize.SOURCE], tf.int32),
            }
        else:
            pixels = {"image": tf.zeros([*canvas, 3], image.pixel_dtype(self.config.resize))}
        return {
            **pixels,
            "image_size": tf.zeros([2], tf.int32),
            "scale": tf.zeros([2], tf.float32),
            "original_size": tf.zeros([2], tf.int32),
            "image_id": tf.constant(-1, tf.int64),
            "boxes": tf.zeros([boxes, 4], tf.float32),
            "keypoints": tf.zeros([boxes, keypoints, 3], tf.float32),
            "box_kind": tf.fill([boxes], PADDING),
            **({"box_class": tf.zeros([boxes], tf.int32)} if self.skeleton.num_classes > 1 else {}),
            "anchor_index": unused,
            "anchor_label": unused - 1,
            "anchor_box": unused,
        }


def _largest(boxes: tf.Tensor, count: int) -> tf.Tensor:
    """Which of the boxes [P, 4] are the `count` largest: int32 in ascending order."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return tf.sort(tf.math.top_k(area, tf.minimum(tf.size(area), count), sorted=False).indices)


def _places(mask: tf.Tensor) -> tf.Tensor:
    """The places where a mask [P] holds, int64. (`tf.boolean_mask` takes a dozen operations more, to look at shapes.)"""
    return tf.where(mask)[:, 0]
