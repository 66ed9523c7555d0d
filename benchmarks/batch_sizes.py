"""What batches and threads gain: time an image of `serving_default`, one image a call and several, and several calls at once.

  python -m benchmarks.batch_sizes --saved_model=exported/keypoint_rcnn/1
  python -m benchmarks.batch_sizes --saved_model=exported/keypoint_rcnn/1 --images=my_images

Images are photographs of a folder, resized to --height and --width, or coloured patches, as JPEG files: landscape, and in mixed
batches every second one portrait. Calls of all kinds take turns; the median of the rounds counts. Then the same calls of one
image come from one thread and from --threads at once, in turn; their answers are compared. Processor time is that of all
threads.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from pipeline import command
from pipeline.command import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("saved_model", None, "Folder of one version of an exported model.", required=True, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 15, "Calls of each kind.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("images", None, "Folder of photographs. By default images are coloured patches.", flag_values=FLAGS)
flags.DEFINE_integer("threads", 8, "Callers at once.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("height", 480, "Height of the landscape images.", lower_bound=32, flag_values=FLAGS)
flags.DEFINE_integer("width", 640, "Width of the landscape images.", lower_bound=32, flag_values=FLAGS)

SIZES = (1, 2, 4, 8)


def photographs(count: int, height: int, width: int, *, mixed: bool, folder: Path | None = None) -> list[bytes]:
    """JPEG files of photographs or of coloured patches; every second one on its side if `mixed`."""
    files, paths = [], sorted(folder.glob("*.jpg")) if folder is not None else []
    if folder is not None and not paths:
        raise UserError(f"--images={folder}: has no .jpg files")
    for seed in range(count):
        if paths:
            rough = Image.open(paths[seed % len(paths)]).convert("RGB")
        else:
            rough = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 16, 3)).astype(np.uint8))
        file = io.BytesIO()
        size = (height, width) if mixed and seed % 2 else (width, height)
        rough.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def medians(answer: Callable[..., Any], rounds: int, kinds: Sequence[Sequence[bytes]]) -> list[tuple[float, float]]:
    """Milliseconds and processor milliseconds an image, of each kind of call."""
    import tensorflow as tf

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


def of_threads(answer: Callable[..., Any], rounds: int, images: Sequence[bytes], threads: int) -> tuple[np.ndarray, float]:
    """Calls of one image each, from one thread and from several at once.

    Returns:
      milliseconds and processor milliseconds an image of either, [2, 2]; the largest difference of a number in their answers.
    """
    import tensorflow as tf

    calls = [tf.constant([image]) for image in images for _ in range(2)]

    def ask(call: Any) -> dict[str, Any]:
        return {name: value.numpy() for name, value in answer(image_bytes=call).items()}

    expected = [ask(call) for call in calls]
    seconds = np.zeros((rounds, 2, 2))
    difference = 0.0
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(threads) as several:
        for turn in range(rounds):
            for place, pool in enumerate((one, several)):
                started = time.perf_counter(), time.process_time()
                found = list(pool.map(ask, calls))
                ended = time.perf_counter(), time.process_time()
                seconds[turn, place] = np.subtract(ended, started) / len(calls)
                for own, other in zip(expected, found, strict=True):
                    difference = max(difference, *(float(np.abs(own[name] - other[name]).max()) for name in own))
    return 1000 * np.median(seconds, axis=0), difference


def main(_: list[str]) -> None:
    from benchmarks.measuring import table

    path = Path(FLAGS.saved_model)
    if not (path / "saved_model.pb").is_file():
        raise UserError(f"--saved_model={path}: has no saved_model.pb; name the folder of one version")
    command.load_tensorflow()
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    answer = loaded.signatures["serving_default"]
    folder = Path(FLAGS.images) if FLAGS.images else None
    kinds = [(mixed, size) for mixed in (False, True) for size in SIZES if not mixed or size > 1]
    files = [photographs(size, FLAGS.height, FLAGS.width, mixed=mixed, folder=folder) for mixed, size in kinds]
    rows = [
        [f"{size} {'landscape and portrait' if mixed else 'landscape'}", f"{wall:.1f}", f"{processor:.1f}"]
        for (mixed, size), (wall, processor) in zip(kinds, medians(answer, FLAGS.rounds, files), strict=True)
    ]
    print(table(["images a call", "ms an image", "processor ms an image"], rows))
    times, difference = of_threads(answer, FLAGS.rounds, files[kinds.index((False, SIZES[-1]))], FLAGS.threads)
    rows = [
        [name, f"{wall:.1f}", f"{processor:.1f}"]
        for name, (wall, processor) in zip(("1 thread", f"{FLAGS.threads} threads"), times.tolist(), strict=True)
    ]
    print(table(["one image a call, from", "ms an image", "processor ms an image"], rows))
    print(f"largest difference of a number in the answers of {FLAGS.threads} threads from those of one: {difference:g}")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
