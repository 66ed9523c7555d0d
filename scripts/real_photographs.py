"""The whole path on real photographs: converts a sample of COCO, learns eight of its images by heart, exports, predicts.

  KEYPOINT_SHARED=../shared bash scripts/real_photographs.sh

A model that cannot learn eight images by heart has an error somewhere between the JSON and the keypoints that are drawn. The
status is 1 if the keypoint AP on the eight stays below the bar. Without the data (data/coco_sample in the folder that
KEYPOINT_SHARED names, by default ../shared beside this repository) it says so, and the status is 0. The photographs stay where
they are: the output folder gets links to them, and drawings.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from absl import flags

from pipeline import command
from scripts.stages import REPOSITORY, Stage, StageError, Stages

# Of train2017: people of a size that a small image shows, alone or overlapping, all of them with keypoints; all in landscape,
# so that a TFLite file for 256×384 sees each at the size that it was learned at.
IMAGE_IDS = (5802, 30752, 62060, 165029, 181714, 222564, 247285, 412151)
LEAST_PERSONS = 15  # with keypoints, among the eight
LEAST_KEYPOINT_AP = 0.80
STEPS = 800
SHORT_EDGE, MAX_EDGE = 256, 384

FLAGS = flags.FlagValues()
flags.DEFINE_string("output_dir", "real_photographs_output", "The folder for everything that is written.", flag_values=FLAGS)
flags.DEFINE_integer("steps", STEPS, "The number of training steps.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_multi_string(
    "set", [], "A value of the configuration, section.field=value, for model.train; may be repeated.", flag_values=FLAGS
)


def main(_: list[str]) -> None:
    shared = Path(os.environ.get("KEYPOINT_SHARED") or REPOSITORY.parent / "shared").absolute()
    coco = shared / "data" / "coco_sample"
    if not coco.is_dir():
        print(f"skipped: {coco} holds no photographs; KEYPOINT_SHARED must name the folder with data/coco_sample")
        return
    output_dir = Path(FLAGS.output_dir)
    try:
        run = Stages(output_dir)
        persons = select(coco, output_dir)
        print(f"{len(IMAGE_IDS)} photographs with {persons} persons that have keypoints: ids {', '.join(map(str, IMAGE_IDS))}")
        for stage in stages(coco, output_dir):
            run.run(stage)
    except StageError as error:
        raise command.UserError(str(error)) from None

    scores = {name: _keypoint_ap(output_dir / f"evaluation_{name}") for name in ("model", "saved_model", "tflite")}
    print(
        f"\n== Result"
        f"\nkeypoint AP on the {len(IMAGE_IDS)} photographs learned by heart: {scores['model']:.3f}"
        f" (exported: SavedModel {scores['saved_model']:.3f}, TFLite {scores['tflite']:.3f})"
        f"\ntraining time {run.seconds['train']:.0f} s for {FLAGS.steps} steps, {len(os.sched_getaffinity(0))} cores"
        f"\ndrawn by the SavedModel in {output_dir}/predictions_saved_model/pictures/, "
        f"by the TFLite file in {output_dir}/predictions_tflite/pictures/",
        flush=True,
    )
    if scores["model"] < LEAST_KEYPOINT_AP:
        raise command.UserError(f"keypoint AP {scores['model']:.3f}: must be {LEAST_KEYPOINT_AP} or more on what was learned")


def select(coco: Path, output_dir: Path) -> int:
    """Writes the annotations of the eight images, and links to the images; leaves both alone where they are right.

    Returns:
      The number of persons with keypoints.
    """
    source = coco / "annotations" / "person_keypoints_train2017.json"
    content = json.loads(source.read_text())
    subset = subset_of(content, IMAGE_IDS)
    missing = set(IMAGE_IDS) - {image["id"] for image in subset["images"]}
    persons = sum(int(a["num_keypoints"] > 0) for a in subset["annotations"])
    if missing or persons < LEAST_PERSONS:
        raise command.UserError(
            f"{source}: images {sorted(missing)} are missing, {persons} persons have keypoints: "
            f"all of {list(IMAGE_IDS)} with at least {LEAST_PERSONS} persons are needed; take the sample as it was delivered"
        )
    images = output_dir / "images"
    images.mkdir(exist_ok=True)
    for image in subset["images"]:
        link, photograph = images / image["file_name"], coco / "train2017" / image["file_name"]
        if not link.is_symlink() or link.readlink() != photograph:
            link.unlink(missing_ok=True)
            link.symlink_to(photograph)
    text, path = json.dumps(subset), _annotations(output_dir)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return persons


def subset_of(content: dict[str, Any], image_ids: Collection[int]) -> dict[str, Any]:
    """A COCO JSON with those of its images, and their annotations."""
    return content | {
        "images": [image for image in content["images"] if image["id"] in image_ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in image_ids],
    }


@dataclasses.dataclass(frozen=True)
class Files:
    """What lies where: the sample of COCO, and all that is written."""

    coco: Path
    root: Path

    @property
    def records(self) -> Path:
        """The record folder of the whole sample."""
        return self.root / "coco_records"

    @property
    def eight(self) -> Path:
        """The record folder of the eight photographs."""
        return self.root / "records"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def annotations(self) -> Path:
        return _annotations(self.root)

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def exported(self) -> Path:
        return self.root / "exported"

    @property
    def exports(self) -> dict[str, Path]:
        return {"saved_model": self.exported / "keypoint_rcnn" / "1", "tflite": self.exported / "keypoint_rcnn.tflite"}


def stages(coco: Path, output_dir: Path) -> list[Stage]:
    """What is run, in order."""
    files = Files(coco, output_dir)
    made = (_convert_sample, _convert_eight, _train, _export, _evaluate, _predict)
    return [stage(files) for stage in made]


def _convert_sample(files: Files) -> Stage:
    return Stage(
        name="convert",
        title="Convert both splits of the sample, at full size",
        commands=[
            (
                "-m", "pipeline.make_tfrecords", f"--annotations={files.coco}/annotations/person_keypoints_{split}2017.json",
                f"--images={files.coco}/{split}2017", f"--output_dir={files.records}", f"--split={split}",
            )
            for split in ("train", "val")
        ],
        reads=(files.coco,),
        writes=(files.records,),
        resumes=True,
    )  # fmt: skip


def _convert_eight(files: Files) -> Stage:
    return Stage(
        name="records",
        title="Convert the eight photographs as a data set of their own",
        commands=[
            (
                "-m", "pipeline.make_tfrecords", f"--annotations={files.annotations}", f"--images={files.images}",
                f"--output_dir={files.eight}", "--split=train", f"--short_edges={SHORT_EDGE}", f"--max_edge={MAX_EDGE}",
            )
        ],
        reads=(files.annotations, files.images),
        writes=(files.eight,),
        resumes=True,
    )  # fmt: skip


def _train(files: Files) -> Stage:
    settings = [f"data.short_edges=[{SHORT_EDGE}]", f"data.max_edge={MAX_EDGE}", "data.flip=false"]
    settings += [f"inference.short_edge={SHORT_EDGE}", f"inference.max_edge={MAX_EDGE}", *FLAGS.set]
    return Stage(
        name="train",
        title=f"Train the preset tiny for {FLAGS.steps} steps, until they are learned by heart",
        commands=[
            (
                "-m", "model.train", f"--data_dir={files.eight}", f"--model_dir={files.model}", "--preset=tiny",
                f"--steps={FLAGS.steps}", "--save_every=250", *(f"--set={setting}" for setting in settings),
            )
        ],
        reads=(files.eight,),
        writes=(files.model,),
        resumes=True,
    )  # fmt: skip


def _export(files: Files) -> Stage:
    return Stage(
        name="export",
        title="Export as SavedModel and TFLite",
        commands=[
            (
                "-m", "export.export_model", f"--model={files.model}", f"--output_dir={files.exported}", "--version=1",
                f"--tflite_height={SHORT_EDGE}", f"--tflite_width={MAX_EDGE}", f"--check_images={files.images}",
            )
        ],
        reads=(files.model, files.images),
        writes=(files.exported,),
    )  # fmt: skip


def _evaluate(files: Files) -> Stage:
    return Stage(
        name="evaluate",
        title="Evaluate the model and both exports on the eight photographs",
        commands=[
            (
                "-m", "model.evaluate", f"--model={path}", f"--data_dir={files.eight}", "--split=train",
                f"--annotations={files.annotations}", f"--output_dir={files.root}/evaluation_{name}",
            )
            for name, path in ({"model": files.model} | files.exports).items()
        ],
        reads=(files.model, files.exported, files.eight, files.annotations),
        writes=tuple(files.root / f"evaluation_{name}" for name in ("model", *files.exports)),
    )  # fmt: skip


def _predict(files: Files) -> Stage:
    return Stage(
        name="predict",
        title="Predict with the SavedModel and with the TFLite file",
        commands=[
            (
                "-m", "model.predict", f"--model={path}", f"--input={files.images}",
                f"--output_dir={files.root}/predictions_{name}",
            )
            for name, path in files.exports.items()
        ],
        reads=(files.exported, files.images),
        writes=tuple(files.root / f"predictions_{name}" for name in files.exports),
    )  # fmt: skip


def _annotations(output_dir: Path) -> Path:
    return output_dir / "person_keypoints_eight.json"


def _keypoint_ap(evaluation: Path) -> float:
    figures = json.loads((evaluation / "evaluation-train.json").read_text())
    return float(figures["keypoints"]["AP"])


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
