"""The main job on rendered images: data, records, training, evaluation, export, prediction, and a report of what came out.

  bash scripts/demo.sh
  bash scripts/demo.sh --quick
  bash scripts/demo.sh --output_dir=/tmp/short --num_train=200 --num_val=40 --steps=200

Every stage is a public command, shown as it would be typed; the first ends with a sheet of a dozen images. Run a second time,
finished stages are reused and an unfinished one goes on; another number of images or steps is made anew. The status is 1 if a
stage fails. With --min_ap it is 1, too, if the model falls below that keypoint AP on images that it was not trained on: a run
by default reaches 0.61, a short one less. --quick goes the whole path in about two minutes, with few and small images and too
few steps to learn much, and exports a SavedModel alone.
Relative paths start at the repository.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from absl import flags

from pipeline import command
from scripts.demo_files import MODEL_NAME, DemoFiles
from scripts.stages import Stage, StageError, Stages


@dataclasses.dataclass(frozen=True)
class Size:
    """What is rendered and trained.

    Attributes:
      num_train, num_val: images.
      steps: of training.
      short_edge: pixels of the images as the network sees them; the long edge has at most twice as many.
      formats: of the export, with commas between.
      most_seconds: what all stages are meant to take on two free cores, after set-up.
    """

    num_train: int
    num_val: int
    steps: int
    short_edge: int
    formats: str
    most_seconds: float


FULL = Size(num_train=2400, num_val=200, steps=2800, short_edge=192, formats="saved_model,tflite", most_seconds=600.0)
QUICK = Size(num_train=120, num_val=16, steps=50, short_edge=128, formats="saved_model", most_seconds=90.0)
FORMATS = {"saved_model": "SavedModel", "tflite": "TFLite"}
SEED = 0
MOST_BASELINE_AP = 0.20  # of a mean pose in the true boxes: what a model gains without looking at limbs

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "output_dir",
    None,
    "The folder for everything that is written. By default demo_output, with --quick demo_quick.",
    flag_values=FLAGS,
)
flags.DEFINE_boolean(
    "quick", False, "Takes a quick look: the whole path with fewer and smaller images and fewer steps.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "num_train",
    None,
    f"The number of images to train on. By default {FULL.num_train}, with --quick {QUICK.num_train}.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "num_val",
    None,
    f"The number of images to evaluate on. By default {FULL.num_val}, with --quick {QUICK.num_val}.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "steps",
    None,
    f"The number of training steps. By default {FULL.steps}, with --quick {QUICK.steps}.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "seed", SEED, "The seed of the images, the weights and the order of the images.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_float(
    "min_ap",
    None,
    "The keypoint AP below which the status is 1; the project's own test gives 0.58. By default any AP will do.",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
flags.DEFINE_multi_string(
    "set", [], "A value of the configuration, section.field=value, for model.train; may be repeated.", flag_values=FLAGS
)


def size() -> Size:
    """What the flags ask for."""
    chosen = QUICK if FLAGS.quick else FULL
    given = {name: FLAGS[name].value for name in ("num_train", "num_val", "steps") if FLAGS[name].value is not None}
    return dataclasses.replace(chosen, **given)


def stages(files: DemoFiles) -> list[Stage]:
    """What is run, in order."""
    made = (_look, _render, _convert, _train, _evaluate, _export, _predict, _report)
    return [stage(files) for stage in made]


def _rendering(files: DemoFiles, split: str, count: int) -> tuple[str, ...]:
    return (
        "-m", "pipeline.synthetic", f"--output_dir={files.data}", f"--split={split}", f"--num_images={count}",
        f"--seed={FLAGS.seed}",
    )  # fmt: skip


def _look(files: DemoFiles) -> Stage:
    return Stage(
        name="look",
        title=f"Render {size().num_val} images of people to evaluate on, as a COCO data set with keypoints, and look at some",
        commands=[
            _rendering(files, "val", size().num_val),
            (
                "-m", "scripts.first_look", f"--annotations={files.annotations('val')}", f"--images={files.images('val')}",
                f"--output_file={files.first_look}",
            ),
        ],
        reads=(),
        writes=(files.images("val"), files.annotations("val"), files.first_look),
        resumes=True,
    )  # fmt: skip


def _render(files: DemoFiles) -> Stage:
    return Stage(
        name="data",
        title=f"Render {size().num_train} images to train on",
        commands=[_rendering(files, "train", size().num_train)],
        reads=(),
        writes=(files.images("train"), files.annotations("train")),
        resumes=True,
    )


def _convert(files: DemoFiles) -> Stage:
    return Stage(
        name="records",
        title="Convert to TFRecords with precomputed anchors (Beam)",
        commands=[
            (
                "-m", "pipeline.make_tfrecords", f"--annotations={files.annotations(split)}",
                f"--images={files.images(split)}", f"--output_dir={files.records}", f"--split={split}",
                f"--short_edges={size().short_edge}", f"--max_edge={2 * size().short_edge}",
            )
            for split in ("train", "val")
        ],
        reads=(files.data,),
        writes=(files.records,),
        resumes=True,
    )  # fmt: skip


def _train(files: DemoFiles) -> Stage:
    wanted = size()
    smaller = [] if wanted.short_edge == FULL.short_edge else [
        f"{section}={value}"
        for section, value in (
            ("data.short_edges", wanted.short_edge), ("data.max_edge", 2 * wanted.short_edge),
            ("inference.short_edge", wanted.short_edge), ("inference.max_edge", 2 * wanted.short_edge),
            ("train.warmup_steps", max(1, wanted.steps // 5)),  # (the preset's would outlast these steps)
        )
    ]  # fmt: skip
    return Stage(
        name="train",
        title=f"Train the preset tiny for {wanted.steps} steps",
        commands=[
            (
                "-m", "model.train", f"--data_dir={files.records}", f"--model_dir={files.model}", "--preset=tiny",
                f"--steps={wanted.steps}", f"--seed={FLAGS.seed}", "--save_every=250",
                *(f"--set={assignment}" for assignment in [*smaller, *FLAGS.set]),
            )
        ],
        reads=(files.records,),
        writes=(files.model,),
        resumes=True,
    )  # fmt: skip


def _evaluate(files: DemoFiles) -> Stage:
    return Stage(
        name="evaluate",
        title="Evaluate on the images that training has not seen",
        commands=[
            (
                "-m", "model.evaluate", f"--model={files.model}", f"--data_dir={files.records}", "--split=val",
                f"--annotations={files.annotations('val')}", f"--output_dir={files.evaluation}",
            )
        ],
        reads=(files.records, files.annotations("val"), files.model),
        writes=(files.evaluation,),
    )  # fmt: skip


def _export(files: DemoFiles) -> Stage:
    return Stage(
        name="export",
        title=f"Export as {' and '.join(FORMATS[name] for name in size().formats.split(','))}",
        commands=[
            (
                "-m", "export.export_model", f"--model={files.model}", f"--output_dir={files.exported}",
                f"--name={MODEL_NAME}", "--version=1", f"--check_images={files.images('val')}",
                f"--formats={size().formats}",
            )
        ],
        reads=(files.model, files.images("val")),
        writes=(files.exported,),
    )  # fmt: skip


def _predict(files: DemoFiles) -> Stage:
    return Stage(
        name="predict",
        title="Predict with the exported SavedModel",
        commands=[
            (
                "-m", "model.predict", f"--model={files.saved_model}", f"--input={files.images('val')}",
                f"--output_dir={files.predictions}",
            )
        ],
        reads=(files.saved_model, files.images("val")),
        writes=(files.predictions,),
    )  # fmt: skip


def _report(files: DemoFiles) -> Stage:
    return Stage(
        name="report",
        title="Write the report",
        commands=[("-m", "scripts.report", f"--output_dir={files.root}", *(["--quick"] if FLAGS.quick else []))],
        reads=(files.data, files.records, files.model, files.evaluation, files.exported, files.predictions),
        writes=(files.report, files.summary),
    )  # fmt: skip


def main(_: list[str]) -> None:
    files = DemoFiles(Path(FLAGS.output_dir or ("demo_quick" if FLAGS.quick else "demo_output")))
    first, *rest = stages(files)
    try:
        run = Stages(files.root)
        run.run(first)
        print(
            f"   look at these people: {files.first_look}\n   next: {rest[0].title.lower()}, then {len(rest) - 1} stages more"
        )
        for stage in rest:
            run.run(stage)
    except StageError as error:
        raise command.UserError(str(error)) from None
    misses = _conclude(files, sum(run.seconds.values()), run.elapsed)
    if misses:
        raise command.UserError(f"the run is complete, but {'; '.join(misses)}")


def _conclude(files: DemoFiles, seconds: float, elapsed: float) -> list[str]:
    """Prints what was measured; returns the bars that `--min_ap` asks for and the run missed."""
    summary = json.loads(files.summary.read_text())
    keypoint_ap, baseline = summary["keypoint_ap"], summary["baseline_keypoint_ap"]
    exports = ", ".join(f"{name} {share:.2%} as the model" for name, share in summary["agreement"].items())
    print(
        f"\n== Result"
        f"\nkeypoint AP   {keypoint_ap:.3f}   (guessing, a mean pose placed in the true boxes, reaches {baseline:.3f})"
        f"\nbox AP        {summary['box_ap']:.3f}"
        f"\nexports       {exports or 'not compared: the model finds nobody yet'}"
        f"\ntime          {_minutes(seconds)} for all stages, {_minutes(elapsed)} in this run"
        f"\nreport        {files.report}",
        flush=True,
    )
    if FLAGS.quick:
        print("This was a quick look: the AP is that of a few steps. bash scripts/demo.sh trains a model worth looking at.")
    if size() in (FULL, QUICK) and seconds > size().most_seconds:
        meant = _minutes(size().most_seconds)
        print(f"warning: the stages took {_minutes(seconds)}; {meant} are meant to do on two free cores")
    misses = []
    if FLAGS.min_ap is not None:
        if keypoint_ap < FLAGS.min_ap:
            misses.append(f"keypoint AP {keypoint_ap:.3f} is below --min_ap={FLAGS.min_ap:g}")
        if baseline >= MOST_BASELINE_AP:
            misses.append(f"the mean pose scores {baseline:.3f}, not below {MOST_BASELINE_AP}: the images are too easy")
    return misses


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
