"""Exports a trained model as SavedModel, TFLite and ONNX, with a report of what each artifact is worth.

  python -m export.export_model --model=MODEL_DIR --output_dir=OUT --formats=all

Writes OUT/<name>/<version>/, the SavedModel in TensorFlow Serving's layout (signatures serving_default and serving_tolerant for
JPEG or PNG files, serve_images for pixels); OUT/<name>.tflite and its smaller forms (images of one size, built-in operators
only), each with a .json of what a client must know; OUT/<name>.onnx (one image of any size); OUT/export-report.html and .json;
OUT/model-card.md. Every artifact is run and compared with the model before it gets its name.
"""

from absl import flags

from model.checkpoint_names import define_weights, define_which
from pipeline import command

FORMATS = (
    "saved_model", "tflite", "tflite_float16", "tflite_dynamic", "tflite_int8", "tflite_int8_all", "tflite_parts",
    "tflite_sizes", "onnx",
    "tf_trt",
)  # fmt: skip

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "A model directory. Required.", flag_values=FLAGS)
flags.DEFINE_string("output_dir", None, "The folder to write to, for the export of one model. Required.", flag_values=FLAGS)
flags.DEFINE_string("name", "keypoint_rcnn", "The name of the exported model.", flag_values=FLAGS)
flags.DEFINE_integer("version", None, "The version of the SavedModel; by default the next free number.", flag_values=FLAGS)
flags.DEFINE_list(
    "formats",
    ["saved_model", "tflite"],
    f"What to write: some of {', '.join(FORMATS)}; or all, which leaves out tflite_int8_all, "
    "tflite_parts and tflite_sizes. A format that this machine cannot "
    "make says why, and does not stop the others.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "tflite_height",
    None,
    "The height of the images for the TFLite files, a multiple of 32; by default the configuration's short edge.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "tflite_width", None, "The width of the images for the TFLite files; by default 4/3 of the short edge.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "tflite_static_shapes",
    False,
    "Fixes all shapes inside the TFLite files, for delegates that want that; they then take 2 to 5 times as long.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "check_images",
    None,
    "A folder of images, or a record folder, for the comparison; by default --eval_split, or coloured patches.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "calibration",
    None,
    "A folder of images, or a record folder, 32 of whose images give int8 its ranges; by default the split train of "
    "--eval_data_dir, or the images of the comparison.",
    flag_values=FLAGS,
)
flags.DEFINE_string("eval_data_dir", None, "A record folder on which each artifact's AP is measured.", flag_values=FLAGS)
flags.DEFINE_string("eval_split", None, "The split of --eval_data_dir. By default val.", flag_values=FLAGS)
flags.DEFINE_string("eval_annotations", None, "The COCO JSON that --eval_split was converted from.", flag_values=FLAGS)
flags.DEFINE_float(
    "min_equal",
    0.98,
    "The share of the model's detections that a float artifact must give within 0.5 px (boxes) and 1 px (keypoints).",
    0.0,
    1.0,
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "min_alike",
    0.9,
    "The share of the model's detections that a smaller artifact must give with IoU and OKS of 0.9 or more.",
    0.0,
    1.0,
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "min_ap_kept", 0.98, "The share of the model's AP that each artifact must keep.", 0.0, 1.0, flag_values=FLAGS
)
flags.DEFINE_string(
    "data_licence",
    None,
    "The licence of the training data, in words for the model card, beside what the records' annotations stated of it.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("overwrite", False, "Replaces the export of another model in --output_dir.", flag_values=FLAGS)
define_which(FLAGS)
define_weights(FLAGS)
flags.mark_flags_as_required(["model", "output_dir"], flag_values=FLAGS)


def main(_rest: list[str]) -> None:
    command.load_tensorflow()
    from export.examination import Bars
    from export.publish import export_model

    written = export_model(
        FLAGS.model,
        FLAGS.output_dir,
        name=FLAGS.name,
        version=FLAGS.version,
        formats=FLAGS.formats,
        tflite_height=FLAGS.tflite_height,
        tflite_width=FLAGS.tflite_width,
        tflite_static_shapes=FLAGS.tflite_static_shapes,
        check_images=FLAGS.check_images,
        calibration=FLAGS.calibration,
        eval_data_dir=FLAGS.eval_data_dir,
        eval_split=FLAGS.eval_split,
        eval_annotations=FLAGS.eval_annotations,
        bars=Bars(FLAGS.min_equal, FLAGS.min_alike, FLAGS.min_ap_kept),
        data_licence=FLAGS.data_licence,
        overwrite=FLAGS.overwrite,
        which=FLAGS.which,
        weights=FLAGS.weights,
    )
    for kind, path in written.items():
        command.say(f"written: {path} ({kind})")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__, url_flags=("eval_annotations",))
