"""Writes docs/RECORD.md, the specification of the record, from its one definition in `pipeline/records.py`.

python -m scripts.record_page
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from pipeline import command

PAGE = Path(__file__).resolve().parents[1] / "docs" / "RECORD.md"

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", str(PAGE), "File to write.", flag_values=FLAGS)

_BEFORE = """\
# The record

<!-- Written by `python -m scripts.record_page` from pipeline/records.py; a test fails where the two differ. -->

One `tf.train.Example` for each image, in TFRecord shards. The keys are those of the TF Object Detection conventions, so that
its readers, TensorFlow Datasets and a plain `tf.io.parse_single_example` all read it. The letters in the shapes:

- **P** objects, persons and crowds, sorted by annotation id;
- **K** keypoints of the set that `skeleton` in `pipeline.json` describes, object by object: value `p·K + k` is keypoint k of
  object p;
- **V** variants of the image that training may show: every short edge of `variants` in `pipeline.json`, plain and flipped.
  Variant `2·i + f` has short edge i, and is flipped where f = 1.

"""

_AFTER = """
A field of shape [V, …] is a ragged list of lists, and lies under two keys, as TFDS stores it: {ragged}.

## Places
x runs to the right from the image's left edge, y down from its upper edge, both continuous: x · width is in pixels, 0 the
left edge and `width` the right one. Boxes and keypoints are those of the JSON in this measure, without half a pixel added.
Boxes are clipped to the image, and a keypoint outside the image counts as not labelled. A reader must not turn an image
by its EXIF orientation: a rotation that is to be applied was applied when the record was made.

## Anchors
Precomputed for each variant, by the published matching. Positive: an IoU of `positive_iou` or more with a person's box, or no
smaller an IoU than any other anchor has with it (ties included). Negative: less than `negative_iou` with all of them. The rest
is ignored, and what is not listed is negative. Crowds take no part; a sampler of negatives leaves out anchors in crowds.

The image is resized to `int(side · scale + 0.5)` with `scale = min(short_edge / short side, max_edge / long side)`. A flipped
variant mirrors boxes (`x → width − x`, in pixels of the resized image), never the grid. A level of the grid has
`ceil(height / stride) × ceil(width / stride)` cells, centres at multiples of the stride, and one anchor in each cell for each
aspect ratio (height / width), its corners rounded half to even; `anchors` in `pipeline.json` has the numbers. **An anchor's
name is its index in the order level, row, column, ratio** on the resized image's own grid. Names are stored as differences:
the first name, then the steps; a running sum undoes it.

## Reading it
With TensorFlow Datasets, which finds all it needs in the folder:

```python
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory("records")
for example in builder.as_dataset(split="train").take(1):
    height, width, _ = example["image/encoded"].shape  # decoded
    x0 = example["image/object/bbox/xmin"] * width  # [P]
    x = example["image/object/keypoint/x"] * width  # [P·K]
print(tfds.as_dataframe(builder.as_dataset(split="train").take(4), builder.info))  # needs pandas, jinja2
```

With TensorFlow alone:

```python
import tensorflow as tf


def ragged(key):
    return tf.io.RaggedFeature(
        tf.int64, f"{{key}}/ragged_flat_values", [tf.io.RaggedFeature.RowLengths(f"{{key}}/ragged_row_lengths_0")]
    )


spec = {{
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/object/keypoint/x": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
    "anchors/positive": ragged("anchors/positive"),
}}
for serialized in tf.data.TFRecordDataset(tf.io.gfile.glob("records/*-train.tfrecord-*")).take(1):
    example = tf.io.parse_single_example(serialized, spec)
    names = tf.cumsum(example["anchors/positive"][0])  # of the first short edge, not flipped
```
"""


def main(_: list[str]) -> None:
    command.load_tensorflow()
    from pipeline.files import write_file

    write_file(Path(FLAGS.output), page())
    print(f"written: {FLAGS.output}")


def page() -> str:
    """The whole page."""
    from pipeline import records

    head = ("key", "type", "shape", "unit and frame", "meaning")
    rows = [
        (f"`{field.key}`", field.dtype, field.shape.replace("[]", "scalar"), field.unit, field.meaning)
        for field in records.FIELDS
    ]
    table = "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))
    ragged = " and ".join(f"`{key}`" for key in records.ragged_keys("KEY"))
    return _BEFORE + table + _AFTER.format(ragged=ragged)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
