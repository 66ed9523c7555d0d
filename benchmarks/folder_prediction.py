"""What reading, drawing and noting add to the network, over a folder of images: `model.predict` beside the network alone.

  python -m benchmarks.folder_prediction --model=run --images=my_images

The network's own rate is that of the same predictor over the same files in memory, in the same batches. Both take turns in one
process; the medians of the rounds count. Processor time is that of all threads.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.measuring import table
from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "Model directory or SavedModel. Required.", required=True, flag_values=FLAGS)
flags.DEFINE_string("images", None, "Folder of images. Required.", required=True, flag_values=FLAGS)
flags.DEFINE_integer("limit", 300, "Most images; fewer are taken several times.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 3, "Rounds of each.", lower_bound=1, flag_values=FLAGS)


def main(_: list[str]) -> None:
    command.load_tensorflow()
    from model.inference.image_folder import FILES_AT_ONCE, image_files, predict_files
    from model.inference.image_names import FoundImage, numbered
    from model.inference.predictor import open_model

    paths = image_files(Path(FLAGS.images), "--images")
    repeated = [paths[i % len(paths)] for i in range(FLAGS.limit)]
    # Each has a name of its own, so that each is drawn.
    images = numbered([FoundImage(path, f"{i}_{path.name}") for i, path in enumerate(repeated)])[0]
    contents = [path.read_bytes() for path in repeated]
    predictor = open_model(FLAGS.model, score_threshold=0.5)
    predictor.predict(contents[:FILES_AT_ONCE])
    seconds = np.zeros((FLAGS.rounds, 2, 2))
    for turn in range(FLAGS.rounds):
        started = time.perf_counter(), time.process_time()
        for first in range(0, len(contents), FILES_AT_ONCE):
            predictor.predict(contents[first : first + FILES_AT_ONCE])
        seconds[turn, 0] = np.subtract((time.perf_counter(), time.process_time()), started)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter(), time.process_time()
            predict_files(predictor, images, Path(folder))
            seconds[turn, 1] = np.subtract((time.perf_counter(), time.process_time()), started)
    network, whole = np.median(seconds, axis=0) / len(contents)
    rows = [
        [name, f"{1 / wall:.1f}", f"{1000 * processor:.1f}", f"{network[0] / wall:.2f}"]
        for name, (wall, processor) in (("the network alone", network), ("model.predict, drawn", whole))
    ]
    print(table(["", "images/s", "processor ms an image", "× rate of the network"], rows))


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
