"""What the first answer costs, in parts: start, imports, the model, tracing, the network; and a SavedModel's likewise.

  python -m benchmarks.first_answer --model=run --image=photograph.jpg
  python -m benchmarks.first_answer --model=run --image=photograph.jpg --before=../older-checkout

Every round is a process of its own; checkouts take turns, and the medians count. Processor time is that of all threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.measuring import PROJECT, table
from pipeline import command
from pipeline.command import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "Model directory or SavedModel. Required.", required=True, flag_values=FLAGS)
flags.DEFINE_string("image", None, "JPEG or PNG file. Required.", required=True, flag_values=FLAGS)
flags.DEFINE_string("before", None, "Folder of another checkout of this project, to compare with.", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 5, "Processes of each checkout.", lower_bound=1, flag_values=FLAGS)

PARTS = ("imports", "the model", "the first answer", "the second answer")
# It runs in either checkout, and needs of it what both have.
CODE = """
import json, sys, time
from pathlib import Path
marks = [(time.perf_counter(), time.process_time())]
mark = lambda: marks.append((time.perf_counter(), time.process_time()))
from pipeline import command
command.load_tensorflow()
from model.inference import predictor as predictor_lib
mark()
if hasattr(predictor_lib, "expect_few_images"):  # as model.predict does for one image
    predictor_lib.expect_few_images()
predictor = predictor_lib.open_model(sys.argv[1])
mark()
content = Path(sys.argv[2]).read_bytes()
for _ in range(2):
    predictor.predict([content])
    mark()
print(json.dumps(marks))
"""


def one_round(checkout: Path, model: Path, image: Path) -> list[tuple[float, float]]:
    """Wall and processor seconds of each of `PARTS`, in a new process. Raises: UserError with the last line if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(model), str(image)],
        cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"{checkout}: a process ended with status {done.returncode}: {last}")
    marks = np.array(json.loads(done.stdout.strip().splitlines()[-1]))  # [5, 2]
    return [(float(wall), float(processor)) for wall, processor in np.diff(marks, axis=0)]


def main(_: list[str]) -> None:
    model, image = Path(FLAGS.model).absolute(), Path(FLAGS.image).absolute()
    checkouts = [PROJECT]
    if FLAGS.before is not None:
        before = Path(FLAGS.before).absolute()
        if not (before / "model" / "inference" / "predictor.py").is_file():
            raise UserError(f"--before={before}: is no checkout of this project; name the folder that holds model/inference")
        checkouts.append(before)
    seconds = np.zeros((FLAGS.rounds, len(checkouts), len(PARTS), 2))
    started = time.monotonic()
    for turn in range(FLAGS.rounds):
        for place, checkout in enumerate(checkouts):
            seconds[turn, place] = one_round(checkout, model, image)
    with_all = np.concatenate([seconds, seconds[:, :, :3].sum(axis=2, keepdims=True)], axis=2)
    medians = np.median(with_all, axis=0)  # [checkouts, parts, 2]
    header = ["", "s", "processor s"]
    if FLAGS.before is not None:
        header += ["before: s", "before: processor s", "× processor s"]
    rows = []
    for part, name in enumerate((*PARTS, "to the first answer")):
        row = [name, *(f"{value:.2f}" for value in medians[0, part])]
        if FLAGS.before is not None:
            row += [f"{value:.2f}" for value in medians[1, part]]
            row.append(f"{medians[0, part, 1] / medians[1, part, 1]:.2f}")
        rows.append(row)
    print(table(header, rows))
    print(f"{FLAGS.rounds} processes of each, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
