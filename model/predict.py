"""Finds people and their keypoints in images.

  python -m model.predict --model=MODEL --input=FOLDER_OR_FILE --output_dir=OUT

MODEL is a model directory, a SavedModel or a .tflite file. The command writes OUT/predictions.json, one entry per person in
COCO's results format, and OUT/pictures/, where left limbs are orange, right ones blue, and unsure points hollow. Everything is
in pixels of the image as a viewer shows it: a rotation that a file stores (EXIF) is applied.

image_id comes from --annotations, by the file's name. Without that flag it is the number that ends the file's name, else the
file's position in the sorted folder, from 0; if that gives two files one id, every file's id is its position.

An image that cannot be read is named, and the others are done. Answers appear as they are made, in
OUT/predictions.unfinished.jsonl; a run that was stopped goes on from there.
"""

import dataclasses
from pathlib import Path

from absl import flags

from model.checkpoint_names import define_which
from pipeline import command

SCORE_THRESHOLD = 0.5  # what suits drawings
LARGEST_EDGE = 8192  # pixels; the most that a conversion prepares

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "Model directory, SavedModel or .tflite file. Required.", flag_values=FLAGS)
flags.DEFINE_string("input", None, "Image, or folder of .jpg, .jpeg and .png. Required.", flag_values=FLAGS)
flags.DEFINE_string("output_dir", None, "Folder to write to. Required.", flag_values=FLAGS)
flags.DEFINE_string(
    "annotations",
    None,
    "COCO JSON that gives the images their ids, by file name. Only its images are looked at; it needs no people.",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "score_threshold",
    None,
    "Least score of a person who is kept. By default 0.5, or the model's own inference.score_threshold if that is higher.",
    0,
    1,
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "decoder",
    "fast",
    ["fast", "reference"],
    "How heatmaps become keypoints: at a fixed cost, or pixel by pixel as published (reference; model directories only).",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "draw",
    True,
    "Draws the people; --nodraw writes only predictions.json, and removes older drawings.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "short_edge",
    None,
    "Pixels of the shorter side after resizing; for model directories only. By default the model's.",
    1,
    LARGEST_EDGE,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "max_edge",
    None,
    "Most pixels of the longer side after resizing; for model directories only. By default the model's.",
    1,
    LARGEST_EDGE,
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "legacy_decoding",
    False,
    "Rounds boxes and keypoints to whole pixels as the original does; for the network of --source=matterport only.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "masks",
    False,
    "Adds each person's mask to predictions.json (segmentation, run lengths); for the network of --source=matterport only.",
    flag_values=FLAGS,
)
define_which(FLAGS)
flags.mark_flags_as_required(["model", "input", "output_dir"], flag_values=FLAGS)


def main(_rest: list[str]) -> None:
    command.load_tensorflow()
    from model.inference.image_folder import look_into, predict_files, summary_text
    from model.inference.image_names import annotated, numbered, read_image_names
    from model.inference.predictor import open_model

    path = Path(FLAGS.input)
    files, notes = look_into(path)
    if FLAGS.annotations is None:
        images, rule = numbered(files)
        notes.append(rule)
    else:
        images, left_out = annotated(path, files, read_image_names(FLAGS.annotations), FLAGS.annotations)
        notes += left_out
    predictor = open_model(
        FLAGS.model,
        score_threshold=FLAGS.score_threshold,
        short_edge=FLAGS.short_edge,
        max_edge=FLAGS.max_edge,
        decoder=FLAGS.decoder,
        legacy_decoding=FLAGS.legacy_decoding,
        masks=FLAGS.masks,
        which=FLAGS.which,
    )
    if FLAGS.score_threshold is None:
        predictor = dataclasses.replace(predictor, score_threshold=max(SCORE_THRESHOLD, predictor.score_threshold))
    summary = predict_files(predictor, images, Path(FLAGS.output_dir), draw=FLAGS.draw, notes=notes)
    print(summary_text(summary))
    if summary.unreadable:
        count = f"{len(summary.unreadable)} of {len(images)} images"
        raise command.UserError(f"{count} could not be read and are left out; the first: {summary.unreadable[0]}")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
