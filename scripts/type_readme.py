r"""Types the commands of README.md from top to bottom, as a new user would, in a new folder beside the sample data.

  KEYPOINT_SHARED=../shared python -m scripts.type_readme

Every line of every bash block is typed as it stands, one after the other, in one folder. Two things differ from a user's
afternoon: trainings take --steps steps of two small images, and what needs a network, a server or hours (UNTYPED) is not typed
and said so. The weights are those of the torchvision oracle, a small network in torchvision's own format.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from pipeline import command
from pipeline.command import UserError

REPOSITORY = Path(__file__).parents[1]
# Beginnings of lines that are not typed, and why.
UNTYPED = {
    "bash scripts/": "CI runs it by itself",
    "bash examples/serving/": "sends to a server",
    "KEYPOINT_SHARED=": "CI runs it by itself",
    "curl ": "needs a network",
    "docker ": "needs an image of TensorFlow Serving",
    "python -m model.predict --model=imported --input=camera:": "needs a camera",
    "python examples/serving/": "sends to a server",
    "tensorboard ": "serves until it is stopped",
}
WEIGHTS_FILE = "keypointrcnn_resnet50_fpn_coco-fc266e95.pth"
HAND_KEYPOINTS = ("thumb_l", "thumb_r", "palm_l", "palm_r")

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "output_dir",
    None,
    "Folder to type in, which must not exist yet. By default a temporary one that is removed.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("steps", 2, "Steps of each training.", lower_bound=1, flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class Typed:
    """A command of README, its continuation lines joined."""

    heading: str
    line: str

    @property
    def untyped_because(self) -> str | None:
        return next((reason for start, reason in UNTYPED.items() if self.line.startswith(start)), None)


def commands(readme: str) -> Iterator[Typed]:
    """The commands of the bash blocks, in order."""
    heading = ""
    for part in re.finditer(r"^#+ (?P<heading>[^\n]+)$|^```bash\n(?P<block>.*?)^```$", readme, re.MULTILINE | re.DOTALL):
        heading = part["heading"] or heading
        for line in (part["block"] or "").replace("\\\n", " ").splitlines():
            without_comment = re.sub(r"\s{2,}#.*", "", line).strip()
            if without_comment:
                yield Typed(heading, re.sub(r"\s+", " ", without_comment))


def prepare(folder: Path, shared: Path, steps: int) -> None:
    """Puts into `folder` what README takes for granted: images, annotations, weights, and a python that trains briefly."""
    sample = shared / "data" / "coco_sample"
    for name in ("annotations", "train2017", "val2017"):
        (folder / name).symlink_to(sample / name)
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    shutil.copy(shared / "oracles" / "torchvision" / "weights.pth", folder / WEIGHTS_FILE)
    (folder / "my_images").mkdir()
    for image in sorted((sample / "val2017").glob("*.jpg"))[:3]:
        shutil.copy(image, folder / "my_images")
    _write_clip(folder / "clip.mp4", sorted((folder / "my_images").iterdir())[0])
    _write_hands(folder, sample)
    shim = folder / "bin" / "python"
    shim.parent.mkdir()
    brief = f"--steps={steps} --batch_size=2 --precision=float32 --set data.short_edges=640"
    shim.write_text(f'#!/bin/sh\ncase "$*" in *"-m model.train "*) set -- "$@" {brief};; esac\nexec "{sys.executable}" "$@"\n')
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)


def _write_clip(path: Path, image: Path) -> None:
    """Four frames of one image."""
    import av
    import numpy as np
    from PIL import Image

    with av.open(str(path), "w") as container, Image.open(image) as opened:
        even = opened.convert("RGB").crop((0, 0, opened.width // 2 * 2, opened.height // 2 * 2))
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = even.width, even.height, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(even))))
        container.mux(stream.encode(None))


def _write_hands(folder: Path, sample: Path) -> None:
    """A set of four keypoints: wrists and elbows of the sample under the names that README has."""
    (folder / "hands").symlink_to(sample / "val2017")
    content = json.loads((sample / "annotations" / "person_keypoints_val2017.json").read_text())
    category = next(category for category in content["categories"] if category.get("keypoints"))
    chosen = [category["keypoints"].index(name) for name in ("left_wrist", "right_wrist", "left_elbow", "right_elbow")]
    category |= {"name": "hand", "keypoints": list(HAND_KEYPOINTS), "skeleton": [[1, 3], [2, 4]]}
    for person in content["annotations"]:
        points = [person["keypoints"][3 * k : 3 * k + 3] for k in chosen]
        person |= {
            "keypoints": [value for point in points for value in point],
            "num_keypoints": sum(point[2] > 0 for point in points),
        }
    (folder / "hands.json").write_text(json.dumps(content))


def type_all(folder: Path, readme: str) -> list[str]:
    """Types every command in `folder`, shows what each printed last, and returns those that failed."""
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "KEYPOINT_SHARED": "",
    }
    failed = []
    every = list(commands(readme))
    if not every:
        raise UserError("README.md: holds no bash block")
    for typed in every:
        if typed.untyped_because:
            print(f"not typed, {typed.untyped_because}: {typed.line}", flush=True)
            continue
        print(f"$ {typed.line}", flush=True)
        began = time.monotonic()
        ended = subprocess.run(
            ["bash", "-c", typed.line], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        last = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()][-3:]
        print("\n".join([*last, f"status {ended.returncode} after {time.monotonic() - began:.0f} s"]), flush=True)
        if ended.returncode:
            failed.append(f"{typed.heading}: {typed.line}")
    return failed


def main(_: list[str]) -> None:
    shared = Path(os.environ.get("KEYPOINT_SHARED") or REPOSITORY.parent / "shared").absolute()
    if not (shared / "data" / "coco_sample").is_dir():
        print(f"nothing typed: {shared / 'data' / 'coco_sample'} is missing (KEYPOINT_SHARED says where the sample data is)")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(FLAGS.output_dir or Path(temporary) / "typed").absolute()
        if folder.exists():
            raise UserError(f"--output_dir={folder}: exists already; name a new folder")
        folder.mkdir(parents=True)
        prepare(folder, shared, FLAGS.steps)
        failed = type_all(folder, (REPOSITORY / "README.md").read_text())
    if failed:
        raise UserError(f"{len(failed)} commands of README.md failed: {'; '.join(failed)}")
    print("every command of README.md that was typed ended with status 0")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
