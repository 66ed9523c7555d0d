"""Writes report.html and report.json of a finished demo folder: what was measured, in one page that needs nothing else.

python -m scripts.report --output_dir=demo_output
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from pipeline import command
from pipeline.skeleton import Skeleton
from scripts.demo_files import DemoFiles
from scripts.stages import STATE_FILE

if TYPE_CHECKING:  # draws, and so imports NumPy and Pillow, which --help can do without
    from pipeline.inspection.html_page import Tile
    from scripts.report_gallery import Example

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "output_dir", "demo_output", "The folder of a demo run; it gets report.html and report.json.", flag_values=FLAGS
)
flags.DEFINE_integer("images", 12, "How many val images the report shows.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_string("sheet", None, "A PNG file to which the first pairs are written, too.", flag_values=FLAGS)
flags.DEFINE_boolean("quick", False, "Says in the report that the run was a quick look.", flag_values=FLAGS)

TEMPLATE = Path(__file__).with_name("report.html")
FAILURES_SHOWN = 4
SCORE_THRESHOLD = 0.5  # of model.predict
# What of the configuration stands in the report, by its path in config.json.
SETTINGS = (
    "preset", "train.steps", "train.global_batch_size", "train.learning_rate", "train.schedule", "train.seed",
    "data.short_edges", "data.max_edge", "backbone.blocks", "backbone.width", "backbone.norm", "keypoint_head.convolutions",
    "keypoint_head.channels", "inference.short_edge", "inference.max_edge",
)  # fmt: skip


def main(_: list[str]) -> None:
    command.load_tensorflow()
    files = DemoFiles(Path(FLAGS.output_dir))
    summary = write_report(files, FLAGS.images, quick=FLAGS.quick)
    print(f"keypoint AP {summary['keypoint_ap']:.3f}, box AP {summary['box_ap']:.3f}")
    if FLAGS.sheet:
        from scripts import report_gallery

        report_gallery.write_sheet(Path(FLAGS.sheet), *_examples(files))
        print(f"written: {FLAGS.sheet}")
    print(f"written: {files.report} ({files.report.stat().st_size / 1e6:.1f} MB)\nwritten: {files.summary}")


def write_report(files: DemoFiles, shown: int, *, quick: bool = False) -> dict[str, Any]:
    """Reads what the stages wrote, and writes the page and its figures.

    Args:
      files: of a run whose stages are finished.
      shown: val images in the gallery, the first ones by id.
      quick: whether the run was a quick look, of which the page says so.

    Returns:
      The figures, as in `report.json`.

    Raises:
      UserError: a file that a stage should have written is missing or broken.
    """
    from pipeline.files import read_json, write_file, write_json
    from pipeline.inspection.html_page import render
    from scripts import report_charts, report_gallery
    from scripts.mean_pose import mean_pose_baseline

    figures = read_json(files.figures_of_val)
    exports = read_json(files.export_report)
    stages = read_json(files.root / STATE_FILE)
    lines = _metrics(files.metrics)
    skeleton, examples = _examples(files)
    baseline = mean_pose_baseline(files.annotations("train"), files.annotations("val"), skeleton)
    summary = {
        "keypoint_ap": figures["keypoints"]["AP"],
        "box_ap": figures["bbox"]["AP"],
        "baseline_keypoint_ap": baseline,
        "agreement": {one["title"]: one["equal_share"] for one in exports["artifacts"] if one["detections"]},
        "milliseconds_per_image": {one["title"]: one["milliseconds"] for one in exports["artifacts"]},
        "seconds": {name: state["seconds"] for name, state in stages.items() if name != "report"},
        "cores": len(os.sched_getaffinity(0)),
        "val_images": figures["counts"]["images"],
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "quick": quick,
    }

    def pair(example: Example) -> dict[str, str]:
        from pipeline.inspection.html_page import jpeg_source

        truth, found = map(jpeg_source, report_gallery.draw(example, skeleton))
        return {"truth": truth, "found": found, "name": example.path.name, "caption": report_gallery.caption(example)}

    page = render(
        TEMPLATE,
        origin=_origin(summary),
        tiles=_tiles(summary),
        reading=_reading(summary, figures, examples),
        loss_chart=report_charts.loss_chart(lines),
        score_threshold=SCORE_THRESHOLD,
        gallery=[pair(example) for example in examples[:shown]],
        failures=[pair(example) for example in report_gallery.worst(examples[shown:], FAILURES_SHOWN)],
        figure_rows=_figure_rows(figures),
        joint_rows=_joint_rows(figures),
        twin_rows=_twin_rows(figures),
        swapped=_swapped(figures),
        comparison_text=_comparison_text(exports),
        comparison_rows=_comparison_rows(exports),
        time_rows=_time_rows(stages, summary["seconds"]),
        speed=_speed(summary),
        setting_rows=_setting_rows(read_json(files.model / "config.json"), figures),
        file_rows=list(_file_rows(files)),
        next_commands=_next_commands(files),
        commands=[line for state in stages.values() for line in state["commands"]],
    )
    write_json(files.summary, summary)
    write_file(files.report, page)
    return summary


def _examples(files: DemoFiles) -> tuple[Skeleton, list[Example]]:
    from scripts import report_gallery

    predictions = files.predictions / "predictions.json"
    return report_gallery.read_examples(files.annotations("val"), files.images("val"), predictions)


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise command.UserError(f"{path}: no such file; scripts/demo.sh makes it")
    return [json.loads(line) for line in path.read_text().splitlines()]


def _origin(summary: Mapping[str, Any]) -> str:
    quick = "This was a quick look, with too few steps to learn much: bash scripts/demo.sh trains to the end. "
    return (quick if summary["quick"] else "") + (
        f"Everything here was measured in this run, which ended on {summary['date']}: TensorFlow "
        f"{metadata.version('tensorflow')}, Python {platform.python_version()}, {summary['cores']} CPU cores "
        f"({platform.machine()}), random weights at the start."
    )


def _tiles(summary: Mapping[str, Any]) -> list[Tile]:
    from pipeline.inspection.html_page import Tile

    total = sum(summary["seconds"].values())
    training = summary["seconds"].get("train", 0)
    tiles = [
        Tile(
            f"{summary['keypoint_ap']:.3f}",
            f"keypoint AP on {summary['val_images']} images that it has not seen (0 to 1)",
            kind="main",
            above="this model",
        ),
        Tile(
            f"{summary['baseline_keypoint_ap']:.3f}",
            "keypoint AP of guessing: the same average pose drawn into every true box",
            kind="baseline",
            above="for comparison",
        ),
        Tile(f"{summary['box_ap']:.3f}", "box AP", above="this model"),
        Tile(
            f"{int(total) // 60}:{int(total) % 60:02d}",
            f"minutes for all stages, {training:.0f} s of them training",
            above="time",
        ),
    ]
    for title, milliseconds in list(summary["milliseconds_per_image"].items())[:1]:
        tiles.append(Tile(f"{milliseconds:.0f} ms", f"for an image, by the {title} on this machine", above="speed"))
    if summary["agreement"]:
        tiles.append(
            Tile(f"{min(summary['agreement'].values()):.1%}", "of detections alike in model and exports", above="exports")
        )
    return tiles


def _reading(summary: Mapping[str, Any], figures: Mapping[str, Any], examples: Sequence[Example]) -> str:
    from pipeline.inspection.contact_sheet import number_of

    persons, hits = sum(e.persons for e in examples), sum(e.hits for e in examples)
    extra, counts = sum(e.extra for e in examples), figures["counts"]
    empty = sum(e.persons == 0 for e in examples)
    return (
        f"The images are rendered: {number_of(counts['persons'], 'person')} in {number_of(counts['images'], 'image')}, "
        f"{number_of(counts['crowds'], 'crowd')}, {number_of(empty, 'image')} without a single person. "
        f"At a score of {SCORE_THRESHOLD} "
        f"the exported model finds {hits} of {persons} persons (overlap from 50 % on), and {extra} where nobody is."
    )


def _share(value: float | None) -> str:
    """COCO writes -1 for a figure that the annotations leave undefined."""
    return f"{value:.3f}" if value is not None and value >= 0 else "–"


def _figure_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR")
    boxes = figures["bbox"] | {"AR": figures["bbox"]["AR_100"]}
    return [
        [title, *(_share(values.get(name)) for name in names)]
        for title, values in (("keypoints", figures["keypoints"]), ("boxes", boxes))
    ]


def _joint_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name.replace("_", " "), str(row["labelled"]), str(row["found"]), _share(row["median_error"]),
            _share(row["mean_error"]), "–" if row["hit"] is None else f"{row['hit']:.0%}",
        ]
        for name, row in figures["joints"].items()
    ]  # fmt: skip


def _twin_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            " / ".join(joint.replace("_", " ") for joint in pair["joints"]), str(pair["compared"]), *map(str, pair["confused"]),
            "–" if pair["share"] is None else f"{pair['share']:.1%}",
        ]
        for pair in figures["twins"]
    ]  # fmt: skip


def _swapped(figures: Mapping[str, Any]) -> str:
    swapped = figures["swapped_back"]
    ap = swapped["keypoints"]["AP"]
    after = "" if ap < 0 else f" With those swapped back, keypoint AP is {ap:.3f} ({swapped['AP_gain']:+.3f})."
    return f"In {swapped['pairs']} pairs, an exchange of the two brings both nearer to the truth.{after}"


def _comparison_text(exports: Mapping[str, Any]) -> str:
    if not any(one["detections"] for one in exports["artifacts"]):
        return "The model finds nobody in the images of the comparison, so there is nothing to compare."
    return (
        f"The same pixels ({exports['images_from']}, at {exports['width']}×{exports['height']}) went through the trained "
        "model, and through each export in a process that imports its runtime alone. Two detections are alike if every side of "
        f"the box is within {exports['bars_in_pixels']['box']:g} px and every keypoint within "
        f"{exports['bars_in_pixels']['keypoint']:g} px. Detections of every score are counted."
    )


def _comparison_rows(exports: Mapping[str, Any]) -> list[list[str]]:
    return [
        [one["title"], str(one["detections"]), str(one["equal"]), f"{one['equal_share']:.2%}"]
        for one in exports["artifacts"]
        if one["detections"]
    ]


def _time_rows(stages: Mapping[str, Any], seconds: Mapping[str, float]) -> list[dict[str, str]]:
    longest = max(seconds.values())
    return [
        {"title": stages[name]["title"], "seconds": f"{taken:.1f} s", "share": f"{100 * taken / longest:.1f}"}
        for name, taken in seconds.items()
    ]


def _speed(summary: Mapping[str, Any]) -> str | None:
    times = summary["milliseconds_per_image"]
    if not times:
        return None
    each = ", ".join(f"{title} {milliseconds:.0f} ms" for title, milliseconds in times.items())
    return f"For one image, from pixels to people, on {summary['cores']} CPU cores: {each}; medians of runs that take turns."


def _setting_rows(config: Mapping[str, Any], figures: Mapping[str, Any]) -> list[list[str]]:
    rows = [["val images", f"{figures['counts']['images']}, with {figures['counts']['persons']} persons"]]
    for path in SETTINGS:
        value: Any = config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            rows.append([path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)])
    return rows


def _file_rows(files: DemoFiles) -> Iterator[dict[str, str]]:
    purposes = (
        (files.data, "the rendered images and their COCO JSON"),
        (files.first_look, "a dozen of the val images with their annotations"),
        (files.records, "TFRecords with anchors, their index, and the metadata of TensorFlow Datasets"),
        (files.model, "the model directory: configuration, keypoint set, checkpoints, metrics.jsonl, TensorBoard logs"),
        (files.evaluation, "all box and keypoint figures as JSON"),
        (files.saved_model, "the SavedModel: takes JPEG or PNG bytes, or pixels; in TensorFlow Serving's layout"),
        (files.tflite, "the TFLite file, built-in operators only"),
        (files.predictions, "predictions.json in COCO's results format, and the images drawn on"),
        (files.export_report, "how far the exports agree with the model, how large and how fast they are"),
    )
    for path, purpose in purposes:
        if path.exists():
            found = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
            size = _size(sum(p.stat().st_size for p in found))
            yield {
                "path": f"{path}/" if path.is_dir() else str(path),
                "purpose": purpose,
                "number": str(len(found)),
                "size": size,
            }


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _next_commands(files: DemoFiles) -> list[tuple[str, str]]:
    """What a reader may type now, each with what it is for."""
    return [
        ("once, in this shell", ". .venv/bin/activate"),
        (
            "images of your own",
            f"python -m model.predict --model={files.saved_model} --input=my_images --output_dir=my_predictions",
        ),
        ("losses, AP and images over time", f"tensorboard --logdir={files.model}/tensorboard"),
        (
            "your own COCO keypoint data",
            "python -m pipeline.make_tfrecords --annotations=person_keypoints_train.json --images=train "
            "--output_dir=my_records --split=train",
        ),
        (
            "the full-sized model on all GPUs of this machine",
            "python -m model.train --data_dir=my_records --model_dir=my_model --set=backbone.norm=group --strategy=mirrored",
        ),
    ]


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
