"""Finds people and their keypoints in images.

  python -m model.predict --model=MODEL --input=FOLDER_OR_FILE --output_dir=OUT

MODEL is a model directory, a SavedModel or a .tflite file. Writes OUT/predictions.json, one entry per person in COCO's results
format (image_id: the digits that end the file's name, else its position in the sorted folder, from 0), and OUT/pictures/, where
left limbs are orange, right ones blue, and unsure points hollow. An image that cannot be read is named, the others are done.
"""

from pathlib import Path

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "model directory, SavedModel or .tflite file", flag_values=FLAGS)
flags.DEFINE_string("input", None, "an image, or a folder of .jpg, .jpeg and .png", flag_values=FLAGS)
flags.DEFINE_string("output_dir", None, "folder to write to", flag_values=FLAGS)
flags.DEFINE_float("score_threshold", 0.5, "leave out people below this score", flag_values=FLAGS)
flags.DEFINE_enum(
    "decoder",
    "fast",
    ["fast", "reference"],
    "how heatmaps become keypoints: at a fixed cost, or pixel by pixel as published; the latter for a model directory only",
    flag_values=FLAGS,
)
flags.DEFINE_bool("draw", True, "draw the people found (--nodraw: only predictions.json)", flag_values=FLAGS)
flags.DEFINE_integer("short_edge", None, "resize the shorter side to this; a model directory only", 1, flag_values=FLAGS)
flags.DEFINE_integer("max_edge", None, "but the longer at most to this; a model directory only", 1, flag_values=FLAGS)
flags.mark_flags_as_required(["model", "input", "output_dir"], flag_values=FLAGS)


def main(_rest: list[str]) -> None:
    command.load_tensorflow()
    from model.inference.image_folder import image_files, predict_files, summary_text
    from model.inference.predictor import open_model

    files = image_files(Path(FLAGS.input))
    predictor = open_model(
        FLAGS.model,
        score_threshold=FLAGS.score_threshold,
        short_edge=FLAGS.short_edge,
        max_edge=FLAGS.max_edge,
        decoder=FLAGS.decoder,
    )
    summary = predict_files(predictor, files, Path(FLAGS.output_dir), draw=FLAGS.draw)
    print(summary_text(summary))
    if summary.unreadable:
        count = f"{len(summary.unreadable)} of {len(files)} images"
        raise command.UserError(f"{count} could not be read and are left out; the first: {summary.unreadable[0]}")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
