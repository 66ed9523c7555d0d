"""Writes report.html and report.json of a finished demo folder: what was measured, in one page that needs nothing else.

python -m scripts.report --output_dir=demo_output
"""

from __future__ import annotations

import base64
import html
import json
import os
import platform
import re
import string
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from pipeline import command
from pipeline.inspection.html_page import STYLE, table
from pipeline.skeleton import Skeleton
from scripts.demo_files import DemoFiles
from scripts.stages import STATE_FILE

if TYPE_CHECKING:  # draws, and so imports NumPy and Pillow, which --help can do without
    from scripts.report_gallery import Example

FLAGS = flags.FlagValues()
flags.DEFINE_string("output_dir", "demo_output", "Folder of a demo run; gets report.html and report.json.", flag_values=FLAGS)
flags.DEFINE_integer("images", 12, "How many val images to show.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_string("sheet", None, "Also writes the first pairs as one PNG under this name.", flag_values=FLAGS)

TEMPLATE = Path(__file__).with_name("report_template.html")
FAILURES_SHOWN = 4
SCORE_THRESHOLD = 0.5  # of model.predict


def main(_: list[str]) -> None:
    command.load_tensorflow()
    files = DemoFiles(Path(FLAGS.output_dir))
    summary = write_report(files, FLAGS.images)
    print(f"keypoint AP {summary['keypoint_ap']:.3f}, box AP {summary['box_ap']:.3f}")
    if FLAGS.sheet:
        from scripts import report_gallery

        report_gallery.write_sheet(Path(FLAGS.sheet), *_examples(files))
        print(f"written: {FLAGS.sheet}")
    print(f"written: {files.report} ({files.report.stat().st_size / 1e6:.1f} MB)\nwritten: {files.summary}")


def write_report(files: DemoFiles, shown: int) -> dict[str, Any]:
    """Reads what the stages wrote, and writes the page and its figures.

    Args:
      files: of a run whose stages are finished.
      shown: val images in the gallery, the first ones by id.

    Returns:
      The figures, as in `report.json`.

    Raises:
      UserError: a file that a stage should have written is missing or broken.
    """
    from pipeline.files import read_json, write_json
    from scripts import report_charts, report_gallery
    from scripts.mean_pose import mean_pose_baseline

    figures = read_json(files.figures_of_val)
    comparison = read_json(files.comparison) if files.comparison.exists() else {"exports": {}}
    stages = read_json(files.root / STATE_FILE)
    lines = _metrics(files.metrics)
    skeleton, examples = _examples(files)
    baseline = mean_pose_baseline(files.annotations("train"), files.annotations("val"), skeleton)
    times = {name: state["seconds"] for name, state in stages.items() if name != "report"}
    summary = {
        "keypoint_ap": figures["keypoints"]["AP"],
        "box_ap": figures["bbox"]["AP"],
        "baseline_keypoint_ap": baseline,
        "agreement": {name: count["matched"] / count["total"] for name, count in comparison["exports"].items()},
        "seconds": times,
        "cores": len(os.sched_getaffinity(0)),
        "val_images": figures["counts"]["images"],
    }

    def pair(example: Example) -> str:
        truth, found = report_gallery.draw(example, skeleton)
        return (
            f'<figure class="pair"><div>{_image(truth, "annotations")}{_image(found, "prediction")}</div>'
            f"<figcaption><span>{html.escape(report_gallery.caption(example))}</span><code>{example.path.name}</code>"
            "</figcaption></figure>"
        )

    missed = report_gallery.worst(examples[shown:], FAILURES_SHOWN)
    page = string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        style=STYLE,
        origin=html.escape(_origin(summary)),
        headline=_headline(summary),
        reading=_reading(summary, figures, examples),
        losses=report_charts.loss_chart(lines),
        ap=report_charts.ap_chart(lines, baseline),
        num_val=summary["val_images"],
        num_shown=min(shown, len(examples)),
        score_threshold=SCORE_THRESHOLD,
        gallery="\n".join(pair(example) for example in examples[:shown]),
        failures=_failures(list(map(pair, missed))),
        figures=_figures_table(figures),
        comparison_text=_comparison_text(comparison),
        comparison=_comparison_table(comparison),
        times=_times_table(stages, times),
        files=_files_table(files),
        next_commands=_next_commands(files),
        commands=html.escape("\n".join(line for state in stages.values() for line in state["commands"])),
    )
    write_json(files.summary, summary)
    temporary = files.report.with_name(f".{files.report.name}.unfinished")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(files.report)
    return summary


def _examples(files: DemoFiles) -> tuple[Skeleton, list[Example]]:
    from scripts import report_gallery

    predictions = files.predictions / "predictions.json"
    return report_gallery.read_examples(files.annotations("val"), files.images("val"), predictions)


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise command.UserError(f"{path}: no such file; scripts/demo.sh makes it")
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- parts of the page -----------------------------------------------------------------------------------------------


def _origin(summary: Mapping[str, Any]) -> str:
    return (
        f"Everything here was measured in this run: TensorFlow {metadata.version('tensorflow')}, "
        f"Python {platform.python_version()}, {summary['cores']} CPU cores ({platform.machine()}), random weights at the start."
    )


def _headline(summary: Mapping[str, Any]) -> str:
    total = sum(summary["seconds"].values())
    tiles = [
        ("main", f"{summary['keypoint_ap']:.3f}", f"keypoint AP on {summary['val_images']} unseen images"),
        ("", f"{summary['baseline_keypoint_ap']:.3f}", "keypoint AP of a mean pose placed in the true boxes"),
        ("", f"{summary['box_ap']:.3f}", "box AP"),
        (
            "",
            f"{int(total) // 60}:{int(total) % 60:02d}",
            f"minutes in all, {summary['seconds'].get('train', 0):.0f} s of them training",
        ),
    ]
    if summary["agreement"]:
        tiles.append(("", f"{min(summary['agreement'].values()):.1%}", "of detections alike in model and exports"))
    return "".join(f'<div class="{kind}"><b>{value}</b><span>{text}</span></div>' for kind, value, text in tiles)


def _reading(summary: Mapping[str, Any], figures: Mapping[str, Any], examples: Sequence[Example]) -> str:
    persons, hits = sum(e.persons for e in examples), sum(e.hits for e in examples)
    extra, counts = sum(e.extra for e in examples), figures["counts"]
    return (
        f"The images are rendered: {counts['persons']} persons in {counts['images']} images, {counts['crowds']} crowds, "
        f"{sum(e.persons == 0 for e in examples)} images without a single person. At a score of {SCORE_THRESHOLD} "
        f"the exported model finds {hits} of {persons} persons (overlap from 50 % on), and {extra} where nobody is."
    )


def _image(content: bytes, text: str) -> str:
    return f'<img alt="{text}" src="data:image/jpeg;base64,{base64.b64encode(content).decode()}">'


def _failures(pairs: Sequence[str]) -> str:
    if not pairs:
        return ""
    return (
        f"<h2>Where it fails</h2><p>Of the other val images, the {len(pairs)} with most people missed or invented.</p>"
        f'<div class="gallery">{"".join(pairs)}</div>'
    )


def _figures_table(figures: Mapping[str, Any]) -> str:
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR")
    rows = []
    for kind, title in (("keypoints", "keypoints"), ("bbox", "boxes")):
        values = figures[kind] | ({"AR": figures[kind]["AR_100"]} if kind == "bbox" else {})
        rows.append([title, *(f"{values[n]:.3f}" if values.get(n, -1) >= 0 else "–" for n in names)])
    return table(["", *(f"{name.replace('_', ' ')}#" for name in names)], rows)


def _comparison_text(comparison: Mapping[str, Any]) -> str:
    if not comparison["exports"]:
        return "The comparison did not come to an end; the demo's output says why."
    return (
        f"The same pixels ({comparison['images']} val images at {comparison['height']}×{comparison['width']}) went through "
        "the trained model, through the SavedModel in a process that imports TensorFlow only, and through the TFLite file in "
        f"one that imports ai_edge_litert only. Counted are detections with a score from {comparison['min_score']} on: "
        "they agree where every side of the box is within 0.5 px and every keypoint within 1 px."
    )


def _comparison_table(comparison: Mapping[str, Any]) -> str:
    rows = [
        [name, str(count["total"]), str(count["matched"]), f"{count['matched'] / count['total']:.2%}"]
        for name, count in comparison["exports"].items()
    ]
    return table(["export", "detections#", "alike#", "share#"], rows)


def _times_table(stages: Mapping[str, Any], times: Mapping[str, float]) -> str:
    longest = max(times.values())
    rows = [
        [
            html.escape(stages[name]["title"]),
            f"{s:.1f} s",
            f'<td class="bar"><i style="width:{100 * s / longest:.1f}%"></i></td>',
        ]
        for name, s in times.items()
    ]
    return table(["stage", "time#", ""], rows)


def _files_table(files: DemoFiles) -> str:
    purposes = (
        (files.data, "the rendered images and their COCO JSON"),
        (files.records, "TFRecords with anchors, their index, and the metadata of TensorFlow Datasets"),
        (files.model, "the model directory: configuration, keypoint set, checkpoints, metrics.jsonl, TensorBoard logs"),
        (files.evaluation, "all box and keypoint figures as JSON"),
        (files.saved_model, "the SavedModel: takes JPEG or PNG bytes, or pixels; in TensorFlow Serving's layout"),
        (files.tflite, "the TFLite file, built-in operators only"),
        (files.predictions, "predictions.json in COCO's results format, and the images drawn on"),
        (files.comparison, "how far the exports agree with the model"),
    )
    rows = []
    for path, purpose in purposes:
        if path.exists():
            found = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
            name = html.escape(f"{path}/" if path.is_dir() else str(path)).replace("/", "/<wbr>").replace("_", "_<wbr>")
            rows.append([f"<code>{name}</code>", purpose, str(len(found)), _size(sum(p.stat().st_size for p in found))])
    return table(["where", "what", "files#", "size#"], rows)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _next_commands(files: DemoFiles) -> str:
    text = html.escape(
        f"""\
# in this shell, once
. scripts/setup.sh
# images of your own
python -m model.predict --model={files.saved_model} --input=my_images --output_dir=my_predictions
# losses, AP and images over time
tensorboard --logdir={files.model}/tensorboard
# your own COCO keypoint data
python -m pipeline.make_tfrecords --annotations=person_keypoints_train.json --images=train --output_dir=my_records --split=train
# the full-sized model on all GPUs of this machine
python -m model.train --data_dir=my_records --model_dir=my_model --set=backbone.norm=group --strategy=mirrored"""
    )
    return re.sub("^(#.*)$", r"<em>\1</em>", text, flags=re.MULTILINE)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
