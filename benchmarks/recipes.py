r"""What `--recipe=auto` gains: a trained model fine-tuned to a few hundred images of other keypoints and another look.

  python -m benchmarks.recipes --model=demo_output/model --output_dir=recipes

Rendered people get the keypoints of `KEYPOINTS`, of which neck and pelvis are new to the model, and each image becomes a
negative with its colours exchanged. Every way trains with the command that a person would type; `--recipe=auto` takes half of
the defaults' epochs. The keypoint AP is that of held-out images after the last step.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import flags
from PIL import Image

from model.config import load
from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "model", None, "The model directory to start from, of rendered people's keypoints. Required.", flag_values=FLAGS
)
flags.DEFINE_string("output_dir", None, "The folder for data and trainings; emptied first. Required.", flag_values=FLAGS)
flags.DEFINE_integer("images", 300, "The number of images that are trained on.", 1, flag_values=FLAGS)
flags.DEFINE_integer("eval_images", 100, "The number of held-out images.", 1, flag_values=FLAGS)
flags.DEFINE_integer("epochs", 8, "The epochs of the defaults; an even number.", 2, flag_values=FLAGS)
flags.DEFINE_list("seeds", ["1", "2"], "The seed of each training.", flag_values=FLAGS)
flags.mark_flags_as_required(["model", "output_dir"], flag_values=FLAGS)

# Each keypoint lies in the middle of these of COCO's, and is labelled if all of them are.
KEYPOINTS: Mapping[str, tuple[str, ...]] = {
    "head": ("nose",),
    "neck": ("left_shoulder", "right_shoulder"),
    "pelvis": ("left_hip", "right_hip"),
    **{f"{side}_{name}": (f"{side}_{name}",) for name in ("elbow", "knee") for side in ("left", "right")},
    **{f"{side}_hand": (f"{side}_wrist",) for side in ("left", "right")},
    **{f"{side}_foot": (f"{side}_ankle",) for side in ("left", "right")},
}
LIMBS = (
    *(("head", "neck"), ("neck", "pelvis")),
    *((f"{side}_elbow", end) for side in ("left", "right") for end in ("neck", f"{side}_hand")),
    *((f"{side}_knee", end) for side in ("left", "right") for end in ("pelvis", f"{side}_foot")),
)


def with_other_keypoints(content: Mapping[str, Any]) -> dict[str, Any]:
    """COCO's JSON of persons with the keypoints of `KEYPOINTS` in place of COCO's."""
    changed = copy.deepcopy(dict(content))
    (category,) = changed["categories"]
    places = {name: [category["keypoints"].index(source) for source in sources] for name, sources in KEYPOINTS.items()}
    names = list(KEYPOINTS)
    category["keypoints"] = names
    category["skeleton"] = [[names.index(one) + 1, names.index(other) + 1] for one, other in LIMBS]
    for person in changed["annotations"]:
        points = np.reshape(person["keypoints"], (-1, 3))
        found = np.array([[*points[place, :2].mean(axis=0), points[place, 2].min()] for place in places.values()])  # [K, 3]
        found[found[:, 2] == 0] = 0
        person["keypoints"] = [round(value, 2) for value in found.ravel().tolist()]
        person["num_keypoints"] = int((found[:, 2] > 0).sum())
    return changed


def with_another_look(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A negative, with green, blue and red in the places of red, green and blue."""
    looked: npt.NDArray[np.uint8] = 255 - pixels[..., [1, 2, 0]]
    return looked


def make_records(folder: Path, numbers: Mapping[str, int], edges: Sequence[str]) -> None:
    """Renders and converts splits of so many images into folder/records; folder/SPLIT.json has the annotations."""
    from pipeline.synthetic import dataset

    for split, number in numbers.items():
        rendered = dataset.write_dataset(folder / "rendered", dataset.Arguments(number, 77, split, 320, 240), num_workers=1)
        changed = with_other_keypoints(json.loads(rendered.annotations.read_text()))
        (folder / f"{split}.json").write_text(json.dumps(changed))
        (folder / split).mkdir()
        for image in changed["images"]:
            pixels = np.asarray(Image.open(rendered.image_folder / image["file_name"]).convert("RGB"))
            Image.fromarray(with_another_look(pixels)).save(folder / split / image["file_name"], quality=92)
        run(
            folder / f"{split}.txt",
            *("pipeline.make_tfrecords", f"--annotations={folder / split}.json", f"--images={folder / split}"),
            *(f"--output_dir={folder / 'records'}", f"--split={split}", *edges),
        )


def run(log: Path, *arguments: str) -> float:
    """Runs one of this project's commands. Returns its seconds."""
    from benchmarks.measuring import measure

    return measure([sys.executable, "-m", *arguments], log=log).wall


def train(folder: Path, model: Path, name: str, asked: Sequence[str]) -> tuple[dict[str, Any], float]:
    """The last evaluation of a training, and the seconds that it took."""
    seconds = run(
        folder / f"{name}.txt",
        *("model.train", f"--data_dir={folder / 'records'}", f"--model_dir={folder / name}", f"--init={model}"),
        *("--eval_split=val", f"--eval_annotations={folder / 'val.json'}", *asked),
    )
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "eval"][-1], seconds


def main(_: list[str]) -> None:
    from benchmarks.measuring import fresh_folder, machine, table

    if FLAGS.epochs % 2:
        raise command.UserError(f"--epochs={FLAGS.epochs}: must be even, because --recipe=auto takes half of it")
    model = Path(FLAGS.model).resolve()
    config = load(model / "config.json")
    data, rate = config.data, config.train.learning_rate
    edges = [f"--short_edges={','.join(map(str, data.short_edges))}", f"--max_edge={data.max_edge}"]
    folder = fresh_folder(FLAGS.output_dir)
    make_records(folder, {"train": FLAGS.images, "val": FLAGS.eval_images}, edges)
    ways = {
        f"--epochs={FLAGS.epochs}": (f"--epochs={FLAGS.epochs}",),
        f"--epochs={FLAGS.epochs} --learning_rate={rate / 10:g}": (
            f"--epochs={FLAGS.epochs}",
            f"--learning_rate={rate / 10:g}",
        ),
        f"--recipe=auto --epochs={FLAGS.epochs // 2}": ("--recipe=auto", f"--epochs={FLAGS.epochs // 2}"),
    }
    print(f"{machine()}; {FLAGS.images} images, {FLAGS.eval_images} held out; from {FLAGS.model}, whose rate is {rate:g}\n")
    found: dict[str, list[tuple[dict[str, Any], float]]] = {way: [] for way in ways}
    for seed in FLAGS.seeds:
        for number, (way, asked) in enumerate(ways.items()):
            found[way].append(train(folder, model, f"{number}-{seed}", [*asked, f"--seed={seed}"]))
            command.say(f"{way} --seed={seed}: step {found[way][-1][0]['step']}, AP {found[way][-1][0]['keypoint_ap']:.3f}")
    rows = []
    for way, trained in found.items():
        keypoint_ap, box_ap = (
            " ".join(f"{100 * figures[name]:.1f}" for figures, _ in trained) for name in ("keypoint_ap", "box_ap")
        )
        seconds = float(np.mean([seconds for _, seconds in trained]))
        rows.append([f"`{way}`", str(trained[0][0]["step"]), keypoint_ap, box_ap, f"{seconds:.0f}"])
    print()
    print(table(("flags", "steps", "keypoint AP of each seed", "box AP of each seed", "seconds"), rows))


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
