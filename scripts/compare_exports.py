r"""Whether the exports of a model say what the model says.

  python scripts/compare_exports.py --model=MODEL_DIR --saved_model=OUT/keypoint_rcnn --tflite=OUT/keypoint_rcnn.tflite \
    --images=FOLDER

The same letterboxed pixels go through the trained model, through the SavedModel in a process that imports TensorFlow and NumPy
and nothing else, and through the TFLite file in one that imports ai_edge_litert and NumPy. Of the model's detections with a
score of at least 0.5, 99 % must have a counterpart: box within 0.5 px, keypoints within 1 px. Status 1 where they have not.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "a model directory", flag_values=FLAGS)
flags.DEFINE_string("saved_model", None, "the SavedModel exported from it", flag_values=FLAGS)
flags.DEFINE_string("tflite", None, "the TFLite file exported from it", flag_values=FLAGS)
flags.DEFINE_string("images", None, "folder of images", flag_values=FLAGS)
flags.DEFINE_string("output_file", None, "where the counts go, as JSON", flag_values=FLAGS)
flags.DEFINE_integer("limit", 200, "compare on so many of them at most", 1, flag_values=FLAGS)
flags.mark_flags_as_required(["model", "saved_model", "tflite", "images"], flag_values=FLAGS)

MIN_SCORE, LEAST_SHARE = 0.5, 0.99

ASK_SAVED_MODEL = """
import sys
import numpy as np
import tensorflow as tf
model, pixels, answers = sys.argv[1:]
run = tf.saved_model.load(model).signatures["serve_images"]
found = [{k: v.numpy() for k, v in run(images=tf.constant(p[None])).items()} for p in np.load(pixels)]
assert not {"model", "pipeline", "export"} & set(sys.modules)
np.savez(answers, **{k: np.concatenate([f[k] for f in found]) for k in found[0]})
"""
ASK_TFLITE = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
model, pixels, answers = sys.argv[1:]
interpreter = Interpreter(model_path=model, num_threads=2)
run = interpreter.get_signature_runner("serve_images")
found = [run(images=p[None]) for p in np.load(pixels)]
assert not {"model", "pipeline", "export", "tensorflow"} & set(sys.modules)
np.savez(answers, **{k: np.concatenate([f[k] for f in found]) for k in found[0]})
"""


def main(_rest: list[str]) -> None:
    command.load_tensorflow()
    import numpy as np

    from export.compare import agreement
    from model.inference.image_folder import image_files
    from model.inference.image_input import letterbox_file
    from model.inference.predictor import saved_model_folder, tflite_size
    from model.inference.serving import ServingModule
    from model.model_dir import load_model
    from pipeline.files import write_json

    saved_model, tflite = saved_model_folder(Path(FLAGS.saved_model)), Path(FLAGS.tflite)
    if saved_model is None:
        raise command.UserError(f"--saved_model={FLAGS.saved_model}: not a SavedModel")
    height, width = tflite_size(tflite)
    files = image_files(Path(FLAGS.images), "--images")[: FLAGS.limit]
    pixels = np.stack([letterbox_file(path, height, width) for path in files])

    print(f"{len(files)} images at {height}×{width}; of the model's detections with a score of {MIN_SCORE} or more")
    shares: dict[str, float] = {}
    counts: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        np.save(f"{folder}/pixels.npy", pixels)
        exports = {"SavedModel": (ASK_SAVED_MODEL, saved_model), "TFLite": (ASK_TFLITE, tflite)}
        asked = {title: pool.submit(_ask, code, path, Path(folder), title) for title, (code, path) in exports.items()}
        module = ServingModule(load_model(FLAGS.model))
        own = [{k: v.numpy() for k, v in module.serve_images(image[None]).items()} for image in pixels]
        reference = {name: np.concatenate([answer[name] for answer in own]) for name in own[0]}
        for title, answer in asked.items():
            with np.load(answer.result()) as answers:
                found = agreement(reference, dict(answers), MIN_SCORE)
            if not found.total:
                raise command.UserError(
                    f"--images={FLAGS.images}: the model finds nobody there, so there is nothing to compare"
                )
            print(f"  {title:<10} {found.matched} of {found.total} have a counterpart: {100 * found.share:.2f} %")
            shares[title], counts[title] = found.share, {"matched": found.matched, "total": found.total}
    if FLAGS.output_file:
        size = {"images": len(files), "height": height, "width": width, "min_score": MIN_SCORE}
        write_json(Path(FLAGS.output_file), {**size, "exports": counts})
        print(f"written: {FLAGS.output_file}")
    if min(shares.values()) < LEAST_SHARE:
        raise command.UserError(
            f"{100 * min(shares.values()):.2f} % of the detections agree: must be {100 * LEAST_SHARE:.0f} % or more"
        )


def _ask(code: str, model: Path, folder: Path, title: str) -> Path:
    """Runs `code` on the pixels in `folder`, in a process that can import nothing from this repository; the answers' file."""
    answers = folder / f"{title}.npz"
    arguments = [str(model.resolve()), str(folder / "pixels.npy"), str(answers)]
    ended = subprocess.run([sys.executable, "-I", "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        raise command.UserError(f"{model}: asking it failed: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")
    return answers


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
