"""Renders articulated people as a COCO keypoint data set: JPEG images and a person_keypoints JSON.

People of many sizes, poses, skin and clothing tones stand, walk, sit, bend and lie over varied backgrounds with limb-like
clutter; some are hidden in part, cut by the frame, in a crowd, or too far away for keypoints. Left limbs are of warm colours,
right ones of cold colours, so train with data.flip=false. The same arguments give the same bytes, and the first N images
do not depend on how many follow.

  python -m pipeline.synthetic --output_dir=data/synthetic --num_images=1000 --seed=0 --split=train
  python -m pipeline.synthetic --output_dir=data/synthetic --num_images=200 --seed=0 --split=val

writes data/synthetic/annotations/person_keypoints_<split>.json and data/synthetic/<split>/000000000001.jpg …
"""

from __future__ import annotations

import os

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "output_dir", None, "The folder for annotations/ and <split>/; made if missing. Required.", flag_values=FLAGS
)
flags.DEFINE_integer("num_images", None, "The number of images. Required.", flag_values=FLAGS)
flags.DEFINE_integer(
    "seed", None, "The seed: an image is a function of seed, split and its number. Required.", flag_values=FLAGS
)
flags.DEFINE_string("split", "train", "The name of the split; different splits have different images.", flag_values=FLAGS)
flags.DEFINE_integer("width", 320, "The width of all images in pixels.", flag_values=FLAGS)
flags.DEFINE_integer("height", 240, "The height of all images in pixels.", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_workers", None, "The number of processes that render. By default one for each core.", flag_values=FLAGS
)
flags.DEFINE_boolean("overwrite", False, "Replaces the split if it was rendered with other arguments.", flag_values=FLAGS)
flags.mark_flags_as_required(["output_dir", "num_images", "seed"], flag_values=FLAGS)


def main(rest: list[str]) -> None:
    del rest
    from pipeline.synthetic import dataset

    arguments = dataset.Arguments(FLAGS.num_images, FLAGS.seed, FLAGS.split, FLAGS.width, FLAGS.height)
    workers = FLAGS.num_workers if FLAGS.num_workers is not None else len(os.sched_getaffinity(0))
    summary = dataset.write_dataset(FLAGS.output_dir, arguments, num_workers=workers, overwrite=FLAGS.overwrite)
    command.say(f"{'found finished, rendered with the same arguments' if summary.reused else 'rendered'}: {summary}")
    command.say(f"  images       {summary.image_folder}{os.sep}")
    command.say(f"  annotations  {summary.annotations}")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
