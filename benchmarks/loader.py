r"""Images per second and core of this loader beside the bare operations, torchvision's way and that of tf-models-official.

The images are photographs with a labelled keypoint, resized to a short edge of 800 and a long edge of 1333 at most.

  KEYPOINT_SHARED=../shared python -m benchmarks.loader --cores=1
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "coco", None, "Folder with annotations/ and train2017/; default: data/coco_sample in KEYPOINT_SHARED.", flag_values=FLAGS
)
flags.DEFINE_string("work_dir", "benchmark_data", "Folder for records and logs.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 2, "Images in a batch.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("cores", 1, "Processor cores that each way may use.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 9, "How many turns each way has.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("images", 240, "Images in a turn.", lower_bound=2, flag_values=FLAGS)

WAYS = {
    "bare": "(a) decode_jpeg, resize of uint8",
    "bare_float": "(a′) decode_jpeg, cast, resize",
    "precomputed": "(b) this loader, precomputed anchors",
    "originals": "(b′) this loader, resize on the device",
    "device": "(b″) the device's part: the compiled resize, here",
    "dense": "(c) this loader, dense matching",
    "online": "(c′) this loader, cheap matching online",
}


def main(_: list[str]) -> None:
    from benchmarks.contest import Contestant, contest
    from benchmarks.measuring import environment_python, fresh_folder, machine, table, use_cores

    coco = Path(FLAGS.coco or Path(os.environ.get("KEYPOINT_SHARED", "../shared")) / "data" / "coco_sample").resolve()
    batch_size = str(FLAGS.batch_size)
    folder = fresh_folder(Path(FLAGS.work_dir) / "loader")
    annotations = _with_keypoints(coco, folder)
    data_dir = _records(annotations, coco / "train2017", folder)
    use_cores(FLAGS.cores)
    contestants = [
        Contestant(name, [sys.executable, "-m", "benchmarks.loader_ways", way, str(data_dir), batch_size])
        for way, name in WAYS.items()
    ]
    if torch := environment_python("torch"):
        module = [str(torch), "-m", "benchmarks.loader_torchvision"]
        arguments = [str(coco / "train2017"), str(annotations), batch_size, "2"]
        contestants.append(Contestant("(d) torchvision, 2 workers", module + arguments))
    if tf_models := environment_python("tf_models"):
        module = [str(tf_models), "-m", "benchmarks.loader_tf_models"]
        contestants.append(Contestant("(e) tf-models-official", [*module, f"{data_dir}/*.tfrecord-*", batch_size]))
    results = contest(contestants, rounds=FLAGS.rounds, amount=FLAGS.images, logs=folder)
    rows = [
        [
            name,
            f"{result.rate:.0f}",
            f"{result.spread[0]:.0f}–{result.spread[1]:.0f}",
            f"{1000 * result.cpu:.2f}",
            *(f"{result.times(results[WAYS[way]]):.2f}" for way in ("bare", "bare_float", "dense")),
        ]
        for name, result in results.items()
    ]
    turns = f"{FLAGS.rounds} rounds of {FLAGS.images} images in turn"
    print(f"\n{machine()}; {FLAGS.cores} in use, batches of {batch_size}, {turns}\n")
    header = ["", "images/s", "slowest–fastest round", "processor ms/image", "× (a)", "× (a′)", "× (c)"]
    print(table(header, rows))


def _with_keypoints(coco: Path, folder: Path) -> Path:
    """The annotations of those images that training takes, in a file of their own."""
    source = coco / "annotations" / "person_keypoints_train2017.json"
    if not source.is_file():
        raise command.UserError(f"{source}: no such file; --coco names a folder laid out as COCO 2017 is")
    content = json.loads(source.read_text())
    labelled = {a["image_id"] for a in content["annotations"] if a["num_keypoints"] and not a["iscrowd"]}
    content["images"] = [image for image in content["images"] if image["id"] in labelled]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in labelled]
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def _records(annotations: Path, images: Path, folder: Path) -> Path:
    from pipeline.writing.conversion import convert
    from pipeline.writing.conversion_config import ConversionConfig

    convert(annotations, images, folder / "records", "train", ConversionConfig())
    return folder / "records"


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
