r"""Compares the answers of a model's exports with those of the model.

  python -m export.compare_exports --model=MODEL_DIR --saved_model=OUT/keypoint_rcnn --tflite=OUT/keypoint_rcnn.tflite \
    --images=FOLDER

The same letterboxed pixels go through the trained model, through the SavedModel in a process that imports TensorFlow and NumPy
and nothing else, and through the TFLite file in one that imports ai_edge_litert and NumPy. Of the model's detections at every
score, 98 % must have a counterpart: box within 0.5 px, keypoints within 1 px. The status is 1 if they do not. An export does
the same for each of its artifacts; this command is for files that came from elsewhere. If the model finds nobody, nothing
is compared.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from absl import flags

from model.checkpoint_names import define_weights, define_which
from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "The model directory. Required.", flag_values=FLAGS)
flags.DEFINE_string("saved_model", None, "The SavedModel that was exported from it. Required.", flag_values=FLAGS)
flags.DEFINE_string("tflite", None, "The TFLite file that was exported from it. Required.", flag_values=FLAGS)
flags.DEFINE_string("images", None, "A folder of images to compare the answers on. Required.", flag_values=FLAGS)
flags.DEFINE_string("output_file", None, "A JSON file to which the counts are written.", flag_values=FLAGS)
flags.DEFINE_integer("limit", 200, "The largest number of images that are compared.", 1, flag_values=FLAGS)
define_which(FLAGS)
define_weights(FLAGS)
flags.mark_flags_as_required(["model", "saved_model", "tflite", "images"], flag_values=FLAGS)

LEAST_SHARE = 0.98


def main(_rest: list[str]) -> None:
    command.load_tensorflow()
    import numpy as np

    from export.asking import ask
    from export.compare import Agreement, agreement
    from model.inference import saved_model_folder
    from model.inference.image_folder import image_files
    from model.inference.image_input import letterbox_file
    from model.inference.serving import ServingModule
    from model.inference.tflite_file import size_of
    from model.model_dir import load_model
    from pipeline.files import write_json

    saved_model, tflite = saved_model_folder.find(Path(FLAGS.saved_model)), Path(FLAGS.tflite)
    if saved_model is None:
        raise command.UserError(
            f"--saved_model={FLAGS.saved_model}: not a SavedModel; name the folder NAME or NAME/VERSION that was exported"
        )
    height, width = size_of(tflite, "--tflite")
    files = image_files(Path(FLAGS.images), "--images")[: FLAGS.limit]
    pixels = [np.asarray(letterbox_file(path, height, width)) for path in files]

    command.say(f"{len(files)} images of {width}×{height} (width × height); of the model's detections at every score")
    shares: dict[str, float] = {}
    counts: dict[str, dict[str, int]] = {}
    module = ServingModule(load_model(FLAGS.model, FLAGS.which, weights=FLAGS.weights))
    own = [{k: v.numpy() for k, v in module.serve_images(image[None]).items()} for image in pixels]
    with tempfile.TemporaryDirectory() as folder:
        for title, runtime, path in (("SavedModel", "saved_model", saved_model), ("TFLite", "tflite", tflite)):
            answers = ask(runtime, path, pixels, Path(folder))  # type: ignore[arg-type]
            found = sum(map(agreement, own, answers), Agreement(0, 0))
            if not found.total:
                command.say(
                    f"  the model finds nobody in {FLAGS.images}: nothing is compared; train longer, or name other images"
                )
                break
            command.say(f"  {title:<10} {found.matched} of {found.total} have a counterpart: {100 * found.share:.2f} %")
            shares[title], counts[title] = found.share, {"matched": found.matched, "total": found.total}
    if FLAGS.output_file:
        size = {"images": len(files), "height": height, "width": width, "min_score": 0.0}
        write_json(Path(FLAGS.output_file), {**size, "exports": counts})
        command.say(f"written: {FLAGS.output_file}")
    if shares and min(shares.values()) < LEAST_SHARE:
        raise command.UserError(
            f"{100 * min(shares.values()):.2f} % of the detections agree: must be {100 * LEAST_SHARE:.0f} % or more"
        )


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
