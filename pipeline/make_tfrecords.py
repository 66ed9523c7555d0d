r"""Converts COCO keypoint annotations and their images to TFRecords with precomputed anchors. One Beam job.

Example:
  python -m pipeline.make_tfrecords --annotations=annotations/person_keypoints_train2017.json --images=train2017 \
      --output_dir=data/coco --split=train

Started again with the same arguments, it finishes what was interrupted. Any flag of Beam may follow, such as
--direct_running_mode=multi_processing --direct_num_workers=4.
"""

from __future__ import annotations

import logging

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "annotations",
    None,
    "COCO keypoint file, such as person_keypoints_train2017.json: a path or a URL (gs://, s3://), like the next two.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "images", None, "Folder of the images that the annotations name, or a zip file that holds it.", flag_values=FLAGS
)
flags.DEFINE_string("output_dir", None, "Folder of the records; a second split joins the first.", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "Name of the split.", flag_values=FLAGS)
flags.DEFINE_integer("num_shards", None, "Number of files; by default one for each 512 images.", flag_values=FLAGS)
flags.DEFINE_list(
    "short_edges",
    "640,672,704,736,768,800",
    "Short edges that training will use, in pixels; none (--short_edges=): records without anchors.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("max_edge", 1333, "Longest edge that training will use, in pixels.", flag_values=FLAGS)
flags.DEFINE_list("anchor_sizes", "32,64,128,256,512", "Sizes of the anchors of P2…P6, in pixels.", flag_values=FLAGS)
flags.DEFINE_enum(
    "on_error",
    "fail",
    ["fail", "skip"],
    "What to do with an image that cannot be used: stop, or leave it out and list it in errors-SPLIT.jsonl.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("limit", 0, "Takes only so many images; 0 takes all.", flag_values=FLAGS)
flags.DEFINE_string("dataset_name", "coco_person_keypoints", "First part of the files' names.", flag_values=FLAGS)
flags.DEFINE_bool("overwrite", False, "Replaces an existing split that was made with other arguments.", flag_values=FLAGS)
flags.DEFINE_list(
    "flip_pairs",
    None,
    "Keypoints that change places in a mirror, such as l_eye:r_eye; default: left_x and right_x.",
    flag_values=FLAGS,
)
flags.DEFINE_list("sigmas", None, "OKS sigma of each keypoint; COCO's are known.", flag_values=FLAGS)
flags.mark_flags_as_required(["annotations", "images", "output_dir"], flag_values=FLAGS)


def _numbers(name: str) -> tuple[float, ...]:
    """The numbers of a flag that is a list."""
    try:
        return tuple(float(value) for value in FLAGS[name].value)
    except ValueError:
        raise command.UserError(f"--{name}={','.join(FLAGS[name].value)}: numbers, separated by commas") from None


def _short_edges() -> tuple[int, ...]:
    values = _numbers("short_edges")
    if not all(value.is_integer() for value in values):
        raise command.UserError(f"--short_edges={','.join(FLAGS.short_edges)}: whole numbers of pixels, separated by commas")
    return tuple(int(value) for value in values)


def _flip_pairs() -> tuple[tuple[str, str], ...] | None:
    if FLAGS.flip_pairs is None:
        return None
    pairs = [tuple(pair.split(":")) for pair in FLAGS.flip_pairs]
    if any(len(pair) != 2 for pair in pairs):
        raise command.UserError(f"--flip_pairs={','.join(FLAGS.flip_pairs)}: pairs of names a:b, separated by commas")
    return tuple((a, b) for a, b in pairs)


def main(beam_flags: list[str]) -> None:
    root = logging.getLogger()
    root.setLevel(logging.ERROR)  # Beam warns of clients of cloud services that are not installed
    command.load_tensorflow()
    from pipeline import storage
    from pipeline.anchors import AnchorConfig
    from pipeline.inspection import contact_sheet
    from pipeline.writing.conversion import ConversionConfig, convert
    from pipeline.writing.metadata import summary_table

    config = ConversionConfig(
        dataset_name=FLAGS.dataset_name,
        num_shards=FLAGS.num_shards,
        short_edges=_short_edges(),
        max_edge=FLAGS.max_edge,
        anchors=AnchorConfig(sizes=_numbers("anchor_sizes")),
        limit=FLAGS.limit,
        flip_pairs=_flip_pairs(),
        sigmas=None if FLAGS.sigmas is None else _numbers("sigmas"),
    )
    result = convert(
        FLAGS.annotations,
        FLAGS.images,
        FLAGS.output_dir,
        FLAGS.split,
        config,
        on_error=FLAGS.on_error,
        overwrite=FLAGS.overwrite,
        beam_flags=beam_flags,
    )
    print(summary_table(result, FLAGS.output_dir, FLAGS.split))
    if storage.is_url(FLAGS.output_dir):
        return
    overview = contact_sheet.overview_path(FLAGS.output_dir, FLAGS.split)
    if result.seconds or not overview.exists():
        contact_sheet.write_overview(FLAGS.output_dir, FLAGS.split)
    command.say(f"a dozen of its images: {overview}")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__, passes_unknown_flags=True)
