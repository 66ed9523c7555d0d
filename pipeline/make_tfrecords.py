r"""Converts COCO keypoint annotations and their images to TFRecords with precomputed anchors. One Beam job.

Example:
  python -m pipeline.make_tfrecords --annotations=annotations/person_keypoints_train2017.json --images=train2017 \
      --output_dir=data/coco --split=train

Started again with the same arguments, it finishes what was interrupted. Any flag of Beam may follow, such as
--direct_running_mode=multi_processing --direct_num_workers=4.

Images stay as their files are. A rotation that a file stores (EXIF) is applied if the annotations' width and height are those
of the image upright. If they fit both ways (half turns, mirrors, squares), it is applied if more of the other images show that
the annotations mean images upright than that they do not; such images are listed in ambiguous-SPLIT.jsonl.

An object whose box has no area, but that has labelled points, gets a box around them, which reaches beyond the outermost points
by a tenth of their extent and by 16 pixels at least. The command counts and prints what it puts right, makes, guesses or leaves
out.
"""

from __future__ import annotations

import logging

from absl import flags

from pipeline import command

MOST_KEYPOINTS = 1000

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "annotations",
    None,
    "Names the COCO keypoint file, such as person_keypoints_train2017.json; gzip is read, too. It is a path or a URL (gs://, "
    "s3://), like --images and --output_dir. Required.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "images",
    None,
    "Names the folder that the annotations' file names are relative to, or a zip file that holds it. Required.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "output_dir", None, "Names the record folder; a second split joins the first there. Required.", flag_values=FLAGS
)
flags.DEFINE_string("split", "train", "Names the split.", flag_values=FLAGS)
flags.DEFINE_string(
    "category",
    None,
    "Chooses the category by name. Several names with commas between, or all, join categories of the same keypoints into one "
    "class. By default the only category with keypoints is taken, or person.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "categories",
    None,
    "Chooses categories of the same keypoints, by names with commas between, or all, and keeps them apart. Each is a class, "
    "which training, predictions and evaluations tell from the others. Not together with --category.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "keypoints",
    None,
    "Names the keypoints in order if the annotations' category has no names; a single number, such as 98, makes point_1 … "
    "point_98 of it.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "flip_pairs",
    None,
    "Names the keypoints that change places in a mirror, such as l_eye:r_eye,l_ear:r_ear. By default they are found by left "
    "and right (or l and r) in their names, and printed.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "sigmas",
    None,
    "Gives the OKS sigma of each keypoint, or one for all; only evaluation needs them. By default COCO's, by name; other "
    "keypoints get 1/K, within COCO's range 0.025…0.107.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "on_error",
    "fail",
    ["fail", "skip"],
    "Says what happens with an image that cannot be used: the conversion stops, or the image is left out and listed in "
    "errors-SPLIT.jsonl.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "max_pixels", 1 << 26, "Limits the pixels of an image that is decoded; an image of more cannot be used.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "shrink_larger_than",
    0,
    "Shrinks images of more pixels (width times height) than this to this number at most, such as 4000000, with their "
    "annotations; JPEGs of up to 64 times --max_pixels can be read then. 1024 is the least; 0 leaves all images as they are.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "short_edges",
    "640,672,704,736,768,800",
    "Lists the short edges in pixels that training will use; an empty list (--short_edges=) makes records without anchors.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("max_edge", 1333, "Limits the long edge in pixels that training will use.", flag_values=FLAGS)
flags.DEFINE_list("anchor_sizes", "32,64,128,256,512", "Gives the sizes in pixels of the anchors of P2…P6.", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_shards", None, "Sets the number of record files; by default there is one for each 512 images.", flag_values=FLAGS
)
flags.DEFINE_integer("limit", 0, "Converts only this number of images; 0 converts all.", flag_values=FLAGS)
flags.DEFINE_string("dataset_name", "coco_person_keypoints", "Begins the names of the record files.", flag_values=FLAGS)
flags.DEFINE_bool("overwrite", False, "Replaces an existing split that was made with other arguments.", flag_values=FLAGS)
flags.mark_flags_as_required(["annotations", "images", "output_dir"], flag_values=FLAGS)


def _numbers(name: str) -> tuple[float, ...]:
    """The numbers of a flag that is a list."""
    try:
        return tuple(float(value) for value in FLAGS[name].value)
    except ValueError:
        raise command.UserError(f"--{name}={','.join(FLAGS[name].value)}: must be numbers, separated by commas") from None


def _short_edges() -> tuple[int, ...]:
    values = _numbers("short_edges")
    if not all(value.is_integer() for value in values):
        raise command.UserError(
            f"--short_edges={','.join(FLAGS.short_edges)}: must be whole numbers of pixels, separated by commas"
        )
    return tuple(int(value) for value in values)


def _flip_pairs() -> tuple[tuple[str, str], ...] | None:
    if FLAGS.flip_pairs is None:
        return None
    pairs = [tuple(pair.split(":")) for pair in FLAGS.flip_pairs]
    if any(len(pair) != 2 for pair in pairs):
        raise command.UserError(f"--flip_pairs={','.join(FLAGS.flip_pairs)}: must be pairs of names a:b, separated by commas")
    return tuple((a, b) for a, b in pairs)


def _keypoints() -> tuple[str, ...] | None:
    names = FLAGS.keypoints
    if names is not None and len(names) == 1 and names[0].isascii() and names[0].isdigit():
        if not 1 <= int(names[0]) <= MOST_KEYPOINTS:
            raise command.UserError(f"--keypoints={names[0]}: must be from 1 to {MOST_KEYPOINTS} keypoints")
        return tuple(f"point_{number}" for number in range(1, int(names[0]) + 1))
    if names is None:
        return None
    plain = tuple(name.strip() for name in names)
    if not plain or "" in plain or len(set(plain)) < len(plain):
        raise command.UserError(
            f"--keypoints={','.join(names)}: names of keypoints with commas between, each once, or their number"
        )
    return plain


def main(beam_flags: list[str]) -> None:
    root = logging.getLogger()
    root.setLevel(logging.ERROR)  # Beam warns of clients of cloud services that are not installed
    if FLAGS.categories is not None and FLAGS.category is not None:
        raise command.UserError(
            f"--categories={FLAGS.categories}: keeps categories apart and --category={FLAGS.category} joins them; give one"
        )
    command.load_tensorflow()
    from pipeline import storage
    from pipeline.anchors import AnchorConfig
    from pipeline.inspection import contact_sheet
    from pipeline.writing.conversion import convert
    from pipeline.writing.conversion_config import ConversionConfig
    from pipeline.writing.metadata import check_not_empty, summary_table

    config = ConversionConfig(
        dataset_name=FLAGS.dataset_name,
        num_shards=FLAGS.num_shards,
        short_edges=_short_edges(),
        max_edge=FLAGS.max_edge,
        anchors=AnchorConfig(sizes=_numbers("anchor_sizes")),
        limit=FLAGS.limit,
        category=FLAGS.categories or FLAGS.category,
        classes=FLAGS.categories is not None,
        keypoints=_keypoints(),
        flip_pairs=_flip_pairs(),
        sigmas=None if FLAGS.sigmas is None else _numbers("sigmas"),
        max_pixels=FLAGS.max_pixels,
        shrink_larger_than=FLAGS.shrink_larger_than,
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
    check_not_empty(result, FLAGS.images)
    if storage.is_url(FLAGS.output_dir):
        return
    overview = contact_sheet.overview_path(FLAGS.output_dir, FLAGS.split)
    if result.seconds or not overview.exists():
        contact_sheet.write_overview(FLAGS.output_dir, FLAGS.split)
    command.say(f"a dozen of its images: {overview}")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__, passes_unknown_flags=True, url_flags=("annotations", "images", "output_dir"))
