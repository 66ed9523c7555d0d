"""The main job on rendered images: data, records, training, evaluation, export, prediction, and a report of what came out.

  bash scripts/demo.sh
  bash scripts/demo.sh --output_dir=/tmp/quick --num_train=200 --num_val=40 --steps=200

Every stage is a public command, shown as it would be typed. Run a second time, finished stages are reused and an unfinished
one goes on; another number of images or steps is made anew. The status is 1 if a stage fails. With --min_ap it is 1, too, if
the model falls below that keypoint AP on images that it was not trained on: a run by default reaches 0.61, a short one less.
Relative paths start at the repository.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from pipeline import command
from scripts.demo_files import MODEL_NAME, DemoFiles
from scripts.stages import Stage, StageError, Stages

# What is rendered and trained by default.
NUM_TRAIN = 2400
NUM_VAL = 200
STEPS = 2800
SHORT_EDGES, MAX_EDGE = "192", 384  # those of the preset tiny
EVALUATIONS = 2  # while training, for the curve
SEED = 0
MOST_BASELINE_AP = 0.20  # of a mean pose in the true boxes: what a model gains without looking at limbs
MOST_SECONDS = 600.0  # of a run by default, on two cores, after set-up

FLAGS = flags.FlagValues()
flags.DEFINE_string("output_dir", "demo_output", "The folder for everything that is written.", flag_values=FLAGS)
flags.DEFINE_integer("num_train", NUM_TRAIN, "The number of images to train on.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("num_val", NUM_VAL, "The number of images to evaluate on.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("steps", STEPS, "The number of training steps.", lower_bound=1, flag_values=FLAGS)
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


def stages(files: DemoFiles) -> list[Stage]:
    """What is run, in order."""
    made = (_render, _convert, _train, _evaluate, _export, _compare, _predict, _report)
    return [stage(files) for stage in made]


def _counts() -> dict[str, int]:
    """The number of images of each split."""
    return {"train": FLAGS.num_train, "val": FLAGS.num_val}


def _render(files: DemoFiles) -> Stage:
    counts = _counts()
    return Stage(
        name="data",
        title=f"Render {counts['train']} + {counts['val']} images of people as a COCO data set with keypoints",
        commands=[
            (
                "-m", "pipeline.synthetic", f"--output_dir={files.data}",
                f"--split={split}", f"--num_images={count}", f"--seed={FLAGS.seed}",
            )
            for split, count in counts.items()
        ],
        reads=(),
        writes=(files.data,),
        resumes=True,
    )  # fmt: skip


def _convert(files: DemoFiles) -> Stage:
    return Stage(
        name="records",
        title="Convert to TFRecords with precomputed anchors (Beam)",
        commands=[
            (
                "-m", "pipeline.make_tfrecords", f"--annotations={files.annotations(split)}",
                f"--images={files.images(split)}", f"--output_dir={files.records}", f"--split={split}",
                f"--short_edges={SHORT_EDGES}", f"--max_edge={MAX_EDGE}",
            )
            for split in _counts()
        ],
        reads=(files.data,),
        writes=(files.records,),
        resumes=True,
    )  # fmt: skip


def _train(files: DemoFiles) -> Stage:
    return Stage(
        name="train",
        title=f"Train the preset tiny for {FLAGS.steps} steps",
        commands=[
            (
                "-m", "model.train", f"--data_dir={files.records}", f"--model_dir={files.model}", "--preset=tiny",
                f"--steps={FLAGS.steps}", f"--seed={FLAGS.seed}", "--save_every=250",
                "--eval_split=val", f"--eval_annotations={files.annotations('val')}",
                f"--eval_every={-(-FLAGS.steps // EVALUATIONS)}",
                *(f"--set={assignment}" for assignment in FLAGS.set),
            )
        ],
        reads=(files.records, files.annotations("val")),
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
        title="Export as SavedModel and TFLite",
        commands=[
            (
                "-m", "export.export_model", f"--model={files.model}", f"--output_dir={files.exported}",
                f"--name={MODEL_NAME}", "--version=1", f"--check_images={files.images('val')}",
            )
        ],
        reads=(files.model, files.images("val")),
        writes=(files.exported,),
    )  # fmt: skip


def _compare(files: DemoFiles) -> Stage:
    return Stage(
        name="compare",
        title="Compare the exports with the model, each in a process of its own",
        commands=[
            (
                "-m", "export.compare_exports", f"--model={files.model}", f"--saved_model={files.saved_model}",
                f"--tflite={files.tflite}", f"--images={files.images('val')}", f"--output_file={files.comparison}",
            )
        ],
        reads=(files.model, files.exported, files.images("val")),
        writes=(files.comparison,),
        only_checks=True,
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
        commands=[("-m", "scripts.report", f"--output_dir={files.root}")],
        reads=(
            files.data, files.records, files.model, files.evaluation, files.exported, files.comparison, files.predictions,
        ),
        writes=(files.report, files.summary),
    )  # fmt: skip


def main(_: list[str]) -> None:
    files = DemoFiles(Path(FLAGS.output_dir))
    try:
        run = Stages(files.root)
        failed = [stage.title for stage in stages(files) if not run.run(stage)]
    except StageError as error:
        raise command.UserError(str(error)) from None
    misses = _conclude(files, sum(run.seconds.values()), run.elapsed)
    misses += [f"this failed: {title[0].lower()}{title[1:]}" for title in failed]
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
        f"\nexports       {exports or 'not compared'}"
        f"\ntime          {_minutes(seconds)} for all stages, {_minutes(elapsed)} in this run"
        f"\nreport        {files.report}",
        flush=True,
    )
    by_default = (FLAGS.num_train, FLAGS.num_val, FLAGS.steps) == (NUM_TRAIN, NUM_VAL, STEPS)
    if by_default and seconds > MOST_SECONDS:
        print(f"warning: the stages took {_minutes(seconds)}; {_minutes(MOST_SECONDS)} are meant to do on two free cores")
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
