r"""The artifacts of an export beside its SavedModel: processor time for one image on one thread, and size.

All artifacts run in one process and take turns image by image, so that whatever slows the machine slows all alike; what counts
are the ratios.

  python -m export.export_model --model=run --output_dir=exported --formats=all,tflite_int8_all,tflite_parts \
    --calibration=records
  python -m benchmarks.exports --exported=exported --images=my_images
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "exported", None, "A folder that export.export_model wrote, with a SavedModel. Required.", flag_values=FLAGS
)
flags.DEFINE_string("images", None, "A folder of images, or a record folder; by default coloured patches.", flag_values=FLAGS)
flags.DEFINE_integer("limit", 8, "The number of images.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 5, "How often each artifact sees each image.", lower_bound=1, flag_values=FLAGS)
flags.mark_flags_as_required(["exported"], flag_values=FLAGS)

Run = Callable[[Any], Any]


def main(_: list[str]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    command.load_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from benchmarks.measuring import machine, table
    from export.sample_images import Fit, for_comparison
    from pipeline.files import read_json

    folder = Path(FLAGS.exported)
    report = read_json(folder / "export-report.json")
    fit = Fit(report["height"], report["width"], "standard")
    images = for_comparison(FLAGS.images, None, "", fit).images[: FLAGS.limit]
    runs = {one["title"]: _runner(folder, one) for one in report["artifacts"]}
    if "SavedModel" not in runs:
        raise command.UserError(f"--exported={folder}: has no SavedModel to compare with; export --formats=all")
    people = [int(runs["SavedModel"](one[None])["num_detections"][0]) for one in images]
    shown = f"{len(images)} images of {fit.height}×{fit.width} with {min(people)} to {max(people)} people"
    print(f"{machine()}; one thread, {shown}, {FLAGS.rounds} rounds in turn")
    taken = _take_turns(runs, images)
    whole = taken["SavedModel"]
    sizes = {one["title"]: one["bytes"] for one in report["artifacts"]}
    rows = [
        [title, f"{1000 * seconds:.1f}", f"{seconds / whole:.2f}", f"{sizes[title] / 2**20:.2f}"]
        for title, seconds in taken.items()
    ]
    print(table(["artifact", "processor ms/image", "× SavedModel", "MiB"], rows))


def _runner(folder: Path, artifact: Mapping[str, Any]) -> Run:
    """An artifact, on one thread, as a function of uint8 [1, H, W, 3]."""
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    from export import onnx_model
    from export.formats import FORMATS
    from model.inference import two_stages

    form = FORMATS[artifact["format"]]
    if form.is_tflite:
        run = two_stages.runner(Interpreter(model_path=str(folder / artifact["path"]), num_threads=1))
        return lambda pixels: run(images=pixels)
    if form.runtime == "onnx":
        return onnx_model.runner(folder / artifact["path"], threads=1)
    loaded = tf.saved_model.load(str(folder / artifact["path"]))
    signature = loaded.signatures["serve_one_image"]

    def answer(pixels: Any, keep: Any = loaded) -> Any:  # `keep`: holds the variables
        return {key: value.numpy() for key, value in signature(images=tf.constant(pixels)).items()}

    return answer


def _take_turns(runs: Mapping[str, Run], images: Sequence[Any]) -> dict[str, float]:
    """The median of each artifact's processor seconds for each image, averaged over the images."""
    import numpy as np

    taken = {title: np.zeros((FLAGS.rounds, len(images))) for title in runs}
    for turn in range(-1, FLAGS.rounds):  # the first is a warm-up
        for number, image in enumerate(images):
            for title, run in runs.items():
                started = time.process_time()
                run(image[None])
                if turn >= 0:
                    taken[title][turn, number] = time.process_time() - started
    return {title: float(np.median(seconds, axis=0).mean()) for title, seconds in taken.items()}


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
