r"""Conversion beside copying the same files, and beside the COCO converter of tf-models-official.

Each way is a process of its own, run in turn with the others; the start-up is the same command's time on a single image.
Images are made once in --work_dir (20,000 take 3 GB and some minutes), as large and as heavy as those of COCO: by
make_annotations_scale.py where KEYPOINT_SHARED has it, else by pipeline.synthetic.

  KEYPOINT_SHARED=../shared python -m benchmarks.conversion --num_images=20000
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from pipeline import command

if TYPE_CHECKING:
    from benchmarks.measuring import Measured

FLAGS = flags.FlagValues()
flags.DEFINE_integer("num_images", 20000, "Images to convert.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("repeats", 3, "How often each way runs.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("work_dir", "benchmark_data", "Folder for images, which stay, and records.", flag_values=FLAGS)

# Those of COCO's 2017 training images with persons.
ANNOTATIONS_PER_IMAGE = 262465 / 64115


@dataclasses.dataclass(frozen=True)
class Way:
    """A command that turns `annotations` and `images` into files below `output`."""

    name: str
    workers: int
    command: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is converted."""

    images: Path
    annotations: Path


def main(_: list[str]) -> None:
    from benchmarks.measuring import machine, table

    work = Path(FLAGS.work_dir).resolve()
    work.mkdir(parents=True, exist_ok=True)
    count = FLAGS.num_images
    source = _source(work, count)
    one = _first_of(source, work)
    runs: dict[Way, list[tuple[Measured, Measured]]] = {way: [] for way in _ways(source, work, count)}
    sizes: dict[str, int] = {}
    for number in range(FLAGS.repeats):
        for way, measured in runs.items():
            measured.append(_run(way, source, one, work, sizes))
            whole, start = measured[-1]
            line = f"{whole.wall:.1f} s, of which start-up {start.wall:.1f} s"
            print(f"run {number + 1} of {FLAGS.repeats}: {way.name}, {way.workers} workers: {line}", flush=True)

    def seconds(way: Way) -> float:
        return statistics.median(whole.wall - start.wall for whole, start in runs[way])

    others = [way for way in runs if way.name.startswith("tf-models")]
    rows = []
    for way, measured in runs.items():
        cpu = statistics.median(whole.cpu - start.cpu for whole, start in measured)
        rows.append(
            [
                way.name,
                str(way.workers),
                f"{statistics.median(whole.wall for whole, _ in measured):.1f}",
                f"{statistics.median(start.wall for _, start in measured):.1f}",
                f"{count / seconds(way):.0f}",
                f"{1000 * cpu / count:.2f}",
                f"{statistics.median(whole.memory for whole, _ in measured) / 1e9:.2f}",
                f"{seconds(way) / seconds(others[0]):.2f}" if others else "",
            ]
        )
    print(f"\n{machine()}; {count} images, {sizes['copy'] / 1e9:.2f} GB; medians of {FLAGS.repeats} runs\n")
    header = ["", "workers", "seconds", "start-up", "images/s", "processor ms/image", "peak GB", "× time of tf-models"]
    print(table(header, rows) + "\n")
    _print_anchors(source, sizes, count)


def _source(work: Path, count: int) -> Source:
    """Images and annotations, made where they are not there yet."""
    folder = work / f"images-{count}"
    if not folder.exists():
        temporary = work / "unfinished"
        shutil.rmtree(temporary, ignore_errors=True)
        tool = Path(os.environ.get("KEYPOINT_SHARED", "../shared")) / "tools" / "make_annotations_scale.py"
        if tool.exists():
            annotations = str(round(count * ANNOTATIONS_PER_IMAGE))
            number = [f"--num_images={count}", f"--num_annotations={annotations}", "--write_images", f"--num_pictures={count}"]
            made = [sys.executable, str(tool), f"--output_dir={temporary}", *number]
        else:
            size = [f"--num_images={count}", "--seed=0", "--width=640", "--height=480"]
            made = [sys.executable, "-m", "pipeline.synthetic", f"--output_dir={temporary}", *size]
        print(f"making {count} images in {folder}", flush=True)
        from benchmarks.measuring import measure

        measure(made, log=work / "images.log")
        temporary.rename(folder)
    (annotations_file,) = folder.rglob("*train*.json")
    images = next(path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob("*.jpg")))
    return Source(images, annotations_file)


def _first_of(source: Source, work: Path) -> Source:
    """The first of the images alone, on which a command does little but start."""
    content = json.loads(source.annotations.read_text())
    image = content["images"][0]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == image["id"]]
    content["images"] = [image]
    from benchmarks.measuring import fresh_folder

    folder = fresh_folder(work / "first")
    (folder / "images").mkdir()
    shutil.copy(source.images / image["file_name"], folder / "images")
    (folder / "annotations.json").write_text(json.dumps(content))
    return Source(folder / "images", folder / "annotations.json")


def _ways(source: Source, work: Path, count: int) -> list[Way]:
    """All ways; {images}, {annotations} and {output} in a command are filled in later."""
    from benchmarks.measuring import environment_python

    shards = f"--num_shards={max(1, round(count / 512))}"
    ways = []
    for workers in (1, 2):
        copy = f"find {{images}} -type f -print0 | xargs -0 -n 256 -P {workers} cp -t {{output}}"
        ways.append(Way("copy", workers, ("sh", "-c", copy)))
    ours = [sys.executable, "-m", "pipeline.make_tfrecords", "--annotations={annotations}", "--images={images}"]
    for name, flag in (("without anchors", ["--short_edges="]), ("with 12 variants", [])):
        for workers in (1, 2):
            beam = [] if workers == 1 else ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
            ways.append(Way(name, workers, (*ours, "--output_dir={output}", shards, *flag, *beam)))
    if python := environment_python("tf_models"):
        module = [str(python), "-m", "official.vision.data.create_coco_tf_record", "--num_processes=2", shards]
        files = ["--image_dir={images}", "--object_annotations_file={annotations}", "--output_file_prefix={output}/train"]
        ways.append(Way("tf-models-official", 2, (*module, *files)))
    return ways


def _run(way: Way, source: Source, one: Source, work: Path, sizes: dict[str, int]) -> tuple[Measured, Measured]:
    """A way's whole run, and its run on one image; notes the size of what it wrote."""
    from benchmarks.measuring import fresh_folder, measure

    measured = []
    for what in (one, source):
        output = fresh_folder(work / "output")
        os.sync()  # what was written before is not to be paid for now
        values = {"{images}": what.images, "{annotations}": what.annotations, "{output}": output}
        filled = list(way.command)
        for name, path in values.items():
            filled = [argument.replace(name, str(path)) for argument in filled]
        measured.append(measure(filled, log=work / "command.log"))
        sizes[way.name] = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
        shutil.rmtree(output)
    start, whole = measured
    return whole, start


def _print_anchors(source: Source, sizes: dict[str, int], count: int) -> None:
    """Time of matching alone, and what the anchors add to a record."""
    from benchmarks.measuring import table
    from pipeline import records
    from pipeline.coco import read_coco
    from pipeline.writing.conversion_config import ConversionConfig

    config = ConversionConfig()
    images = read_coco(source.annotations).images
    start = time.process_time()
    for image in images:
        records.match_image(image, config.anchors, config.short_edges, config.max_edge)
    milliseconds = 1000 * (time.process_time() - start) / len(images)
    without, added = sizes["without anchors"] / count, (sizes["with 12 variants"] - sizes["without anchors"]) / count
    print(
        table(
            ["anchors of 12 variants", "of an image"],
            [
                ["matching alone, one core", f"{milliseconds:.2f} ms"],
                ["record without them", f"{without / 1000:.1f} kB"],
                ["added by them", f"{added / 1000:.2f} kB, {100 * added / without:.1f} %"],
            ],
        )
    )


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
