r"""`r50_fpn` beside torchvision's `keypointrcnn_resnet50_fpn`: the same weights, images of 800×1088, the same number of RoIs.

Inference is from pixels to people, one image; training a step on two images: losses, gradients, update. Needs the
environment `torch` (bash benchmarks/environments.sh torch).

  python -m benchmarks.model_speed --persons=10
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("work_dir", "benchmark_data", "Folder for weights and logs.", flag_values=FLAGS)
flags.DEFINE_integer("persons", 10, "People that both models find in an image.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("rois", 40, "Positive RoIs in an image of training.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("height", 800, "Of the images, in pixels.", lower_bound=64, flag_values=FLAGS)
flags.DEFINE_integer("width", 1088, "Of the images, in pixels.", lower_bound=64, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 7, "How many turns each model has.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("passes", 3, "Images, or training steps, in a turn.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("cores", 2, "Processor cores that each model may use.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_list("measure", "inference,training", "What to measure.", flag_values=FLAGS)


def main(_: list[str]) -> None:
    from benchmarks.contest import Contestant, contest
    from benchmarks.measuring import environment_python, fresh_folder, machine, measure, table, use_cores

    torch = environment_python("torch")
    if torch is None:
        raise command.UserError("no environment for torchvision; bash benchmarks/environments.sh torch makes it")
    torchvision = [str(torch), "-m", "benchmarks.model_torchvision"]
    ours = [sys.executable, "-m", "benchmarks.model_ways"]
    print(f"{machine()}; {FLAGS.cores} in use, {FLAGS.rounds} rounds of {FLAGS.passes} in turn", flush=True)
    use_cores(FLAGS.cores)
    folder = fresh_folder(Path(FLAGS.work_dir) / "model_speed")
    _write_images(folder / "images.npz")
    measure([*torchvision, "weights", str(folder), str(FLAGS.persons)], log=folder / "weights.log")
    importing = [sys.executable, "-m", "model.import_weights", "--source=torchvision", f"--model_dir={folder / 'model'}"]
    measure([*importing, f"--weights={folder / 'weights.pth'}"], log=folder / "import.log")
    for what in FLAGS.measure:
        contestants = [
            Contestant("torchvision", [*torchvision, what, str(folder)]),
            Contestant("ours", [*ours, what, str(folder)]),
        ]
        if what == "training":
            contestants.append(Contestant("ours, compiled by XLA", [*ours, "training_xla", str(folder)]))
        results = contest(contestants, rounds=FLAGS.rounds, amount=FLAGS.passes, logs=folder)
        rows = [
            [
                name,
                result.note,
                f"{1000 / result.rate:.0f}",
                f"{1000 / result.spread[1]:.0f}–{1000 / result.spread[0]:.0f}",
                f"{1000 * result.cpu:.0f}",
                f"{result.times(results['torchvision']):.2f}",
            ]
            for name, result in results.items()
        ]
        header = [what, "", "ms", "fastest–slowest round", "processor ms", "× torchvision"]
        print(f"\n{table(header, rows)}\n", flush=True)


def _write_images(path: Path) -> None:
    """Two images of random patches, and people in them, all of whose keypoints are visible."""
    import numpy as np

    from benchmarks.model_ways import random_persons

    rng = np.random.default_rng(0)
    height, width = FLAGS.height, FLAGS.width
    patches = rng.integers(0, 256, (2, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    boxes, keypoints = random_persons(rng, 2, FLAGS.rois, height, width)
    images = patches.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    np.savez(path, images=images, boxes=boxes, keypoints=keypoints)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
