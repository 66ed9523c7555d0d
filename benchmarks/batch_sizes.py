"""What batches gain: time an image of `serving_default`, one image a call and several, of one size and of mixed sizes.

  python -m benchmarks.batch_sizes --saved_model=exported/keypoint_rcnn/1

Images are coloured patches as JPEG files: landscape, and in mixed batches every second one portrait. Calls of all kinds take
turns; the median of the rounds counts. Processor time is that of all threads.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from pipeline import command
from pipeline.command import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("saved_model", None, "Folder of one version of an exported model.", required=True, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 15, "Calls of each kind.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("height", 480, "Height of the landscape images.", lower_bound=32, flag_values=FLAGS)
flags.DEFINE_integer("width", 640, "Width of the landscape images.", lower_bound=32, flag_values=FLAGS)

SIZES = (1, 2, 4, 8)


def photographs(count: int, height: int, width: int, *, mixed: bool) -> list[bytes]:
    """JPEG files of coloured patches; every second one on its side if `mixed`."""
    files = []
    for seed in range(count):
        rough = np.random.default_rng(seed).integers(0, 255, (12, 16, 3)).astype(np.uint8)
        file = io.BytesIO()
        size = (height, width) if mixed and seed % 2 else (width, height)
        Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def medians(saved_model: Path, rounds: int, kinds: Sequence[Sequence[bytes]]) -> list[tuple[float, float]]:
    """Milliseconds and processor milliseconds an image, of each kind of call."""
    import tensorflow as tf

    answer = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    batches = [tf.constant(kind) for kind in kinds]
    for batch in batches:
        answer(image_bytes=batch)
    seconds = np.zeros((rounds, len(batches), 2))
    for turn in range(rounds):
        for kind, batch in enumerate(batches):
            started = time.perf_counter(), time.process_time()
            answer(image_bytes=batch)["boxes"].numpy()
            ended = time.perf_counter(), time.process_time()
            seconds[turn, kind] = np.subtract(ended, started) / batch.shape[0]
    return [(float(wall), float(processor)) for wall, processor in 1000 * np.median(seconds, axis=0)]


def main(_: list[str]) -> None:
    from benchmarks.measuring import table

    path = Path(FLAGS.saved_model)
    if not (path / "saved_model.pb").is_file():
        raise UserError(f"--saved_model={path}: has no saved_model.pb; name the folder of one version")
    command.load_tensorflow()
    kinds = [(mixed, size) for mixed in (False, True) for size in SIZES if not mixed or size > 1]
    files = [photographs(size, FLAGS.height, FLAGS.width, mixed=mixed) for mixed, size in kinds]
    rows = [
        [f"{size} {'landscape and portrait' if mixed else 'landscape'}", f"{wall:.1f}", f"{processor:.1f}"]
        for (mixed, size), (wall, processor) in zip(kinds, medians(path, FLAGS.rounds, files), strict=True)
    ]
    print(table(["images a call", "ms an image", "processor ms an image"], rows))


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
