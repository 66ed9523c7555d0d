"""Exports a trained model as a SavedModel (TensorFlow Serving's layout) and as a TFLite file.

  python -m export.export_model --model=MODEL_DIR --output_dir=OUT

Writes OUT/<name>/<version>/ (signatures serving_default for JPEG or PNG bytes, serve_images for pixels) and OUT/<name>.tflite
(images of one size, built-in operators only) with OUT/<name>.json, its configuration and keypoint set: keep the two together.
Every file is compared with the model before it gets its name.
"""

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "a model directory", flag_values=FLAGS)
flags.DEFINE_string("output_dir", None, "folder to write to", flag_values=FLAGS)
flags.DEFINE_string("name", "keypoint_rcnn", "of the exported model", flag_values=FLAGS)
flags.DEFINE_integer("version", None, "of the SavedModel; the next free number if left out", flag_values=FLAGS)
flags.DEFINE_list("formats", ["saved_model", "tflite"], "what to write", flag_values=FLAGS)
flags.DEFINE_integer(
    "tflite_height",
    None,
    "height of the images for the TFLite file, a multiple of 32; the configuration's short edge if left out",
    flag_values=FLAGS,
)
flags.DEFINE_integer("tflite_width", None, "width of them; 4/3 of the short edge if left out", flag_values=FLAGS)
flags.DEFINE_string(
    "check_images", None, "folder of images for the comparison; coloured patches if left out", flag_values=FLAGS
)
flags.mark_flags_as_required(["model", "output_dir"], flag_values=FLAGS)


def main(_rest: list[str]) -> None:
    command.load_tensorflow()
    from export.publish import export_model

    written = export_model(
        FLAGS.model,
        FLAGS.output_dir,
        name=FLAGS.name,
        version=FLAGS.version,
        formats=FLAGS.formats,
        tflite_height=FLAGS.tflite_height,
        tflite_width=FLAGS.tflite_width,
        check_images=FLAGS.check_images,
    )
    for kind, path in written.items():
        command.say(f"written: {path} ({kind})")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
