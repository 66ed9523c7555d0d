r"""Kills trainings at random moments, starts them again, and compares the final weights with those of an uninterrupted run.

  python -m scripts.kills --kills=20 --output_dir=kills

Half of the kills (SIGKILL, of all workers) fall at any moment from the start of the process on, the others while a checkpoint
is being written. Every restart is the same command. The status is 1 if a restart fails, or if one bit of the final checkpoint
(weights, optimizer, step) differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from pipeline import command
from pipeline.command import UserError, say

REPOSITORY = Path(__file__).parents[1]
# Loss scaling, a moving average, and evaluations.
_ALL = ("--precision=mixed_float16", "--set=train.ema_decay=0.9", "--eval_every=8")
VARIANTS: dict[str, tuple[str, ...]] = {
    "one_device": (),
    "evaluation": ("--eval_every=8",),
    "loss_scaling": ("--precision=mixed_float16",),
    "moving_average": ("--set=train.ema_decay=0.9",),
    "steps_per_call": ("--steps_per_call=3",),
    "two_replicas": ("--strategy=mirrored", "--cpu_devices=2"),
    "two_workers": ("--strategy=multi_worker",),
    "two_replicas_all": ("--strategy=mirrored", "--cpu_devices=2", *_ALL),
    "two_workers_all": ("--strategy=multi_worker", *_ALL),
}
SMALL = (
    "--preset=tiny",
    "--batch_size=2",
    "--save_every=3",
    *(
        f"--set={assignment}"
        for assignment in (
            "data.short_edges=96,128",
            "data.max_edge=192",
            "data.max_boxes=8",
            "data.sampled_anchors=32",
            "data.num_canvases=2",
            "backbone.blocks=1,1,1,1",
            "backbone.width=8",
            "backbone.fpn_channels=16",
            "rpn.top_k_train=50",
            "rpn.proposals_train=40",
            "box_head.rois=16",
            "box_head.channels=32",
            "keypoint_head.rois=6",
            "keypoint_head.convolutions=1",
            "keypoint_head.channels=16",
            "train.warmup_steps=4",
            "inference.short_edge=96",
            "inference.max_edge=192",
        )
    ),
)
MOST_IN_ONE_TRAINING = 4  # kills, so that a campaign is made of several trainings
SECONDS_OF_PATIENCE = 600.0  # for a training, on a machine that does other things as well

FLAGS = flags.FlagValues()
flags.DEFINE_integer("kills", 20, "Number of kills for each variant.", 1, flag_values=FLAGS)
flags.DEFINE_integer("steps", 48, "Steps of each training.", 1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 1, "Seed of the moments.", flag_values=FLAGS)
flags.DEFINE_list("variants", list(VARIANTS), f"Some of {', '.join(VARIANTS)}.", flag_values=FLAGS)
flags.DEFINE_string("output_dir", None, "Folder for kills.json. By default none is written.", flag_values=FLAGS)


@dataclasses.dataclass
class Tally:
    """What a campaign of one variant came to."""

    variant: str
    trainings: int = 0
    kills: int = 0
    in_saves: int = 0
    different: int = 0  # trainings whose final checkpoint differs
    seconds: float = 0.0


def write_records(folder: Path) -> None:
    """A dozen rendered images as the split train, four others as val."""
    from pipeline.synthetic import dataset
    from pipeline.writing.conversion import convert
    from pipeline.writing.conversion_config import ConversionConfig

    config = ConversionConfig(short_edges=(96, 128), max_edge=192)
    for split, number, seed in (("train", 12, 5), ("val", 4, 6)):
        rendered = dataset.write_dataset(folder / split, dataset.Arguments(number, seed, split, 160, 128), num_workers=1)
        convert(rendered.annotations, rendered.image_folder, folder / "records", split, config)
        shutil.copy(rendered.annotations, folder / f"{split}.json")


class Training:
    """The processes of one training: one, or two workers. `ended` and `kill` concern all of them."""

    def __init__(self, data: Path, model_dir: Path, variant: str, steps: int) -> None:
        arguments = [
            f"--data_dir={data / 'records'}",
            f"--model_dir={model_dir}",
            f"--steps={steps}",
            *SMALL,
            *VARIANTS[variant],
        ]
        if any(flag.startswith("--eval_every=") for flag in VARIANTS[variant]):
            arguments += ["--eval_split=val", f"--eval_annotations={data / 'val.json'}"]
        self.output = model_dir.with_suffix(".txt")
        self._processes = []
        with self.output.open("ab") as output:
            for environment in _environments(2 if "--strategy=multi_worker" in VARIANTS[variant] else 1):
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "model.train", *arguments],
                        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
                        cwd=data,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self._processes)

    def kill(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def wait(self) -> None:
        """Raises: UserError, with the end of its output, if it fails or takes too long."""
        deadline = time.monotonic() + SECONDS_OF_PATIENCE
        while not self.ended and time.monotonic() < deadline:
            time.sleep(0.05)
        statuses = [process.poll() for process in self._processes]
        self.kill()
        if any(statuses) or None in statuses:
            end = " | ".join(self.output.read_text(errors="replace").splitlines()[-6:])
            raise UserError(f"a training ended with status {statuses}: {end}")


def _environments(workers: int) -> list[dict[str, str]]:
    if workers == 1:
        return [{}]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(workers)]
        addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    cluster = {"worker": addresses}
    return [
        {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})} for index in range(workers)
    ]


def interrupted(
    data: Path, model_dir: Path, variant: str, steps: int, most: int, seconds: float, draw: random.Random
) -> Iterator[bool]:
    """Trains to the end with at most `most` kills; yields at each whether it fell into a save.

    Args:
      seconds: that an uninterrupted training takes.
    """
    for number in range(most):
        training = Training(data, model_dir, variant, steps)
        try:
            deadline = time.monotonic() + draw.uniform(0.1, 1.0) * seconds
            in_save = number % 2 == 1
            unfinished = model_dir / "checkpoints" / ".unfinished"
            while not training.ended:
                # Looks as often as it can: a save of a small model takes milliseconds.
                if (in_save and time.monotonic() > deadline - 0.5 * seconds and unfinished.exists()) or (
                    not in_save and time.monotonic() > deadline
                ):
                    break
                time.sleep(0 if in_save else 0.01)
            else:
                training.wait()
                return
        finally:
            training.kill()
        yield in_save
    Training(data, model_dir, variant, steps).wait()


def differences(expected: Path, found: Path, steps: int) -> list[str]:
    """The names of the tensors that are not equal to the bit in the last checkpoints of two model directories."""
    import tensorflow as tf

    readers = [tf.train.load_checkpoint(str(model_dir / "checkpoints" / f"step-{steps}")) for model_dir in (expected, found)]
    names = [set(reader.get_variable_to_shape_map()) for reader in readers]
    common = sorted((names[0] & names[1]) - {"_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"})
    unequal = [name for name in common if readers[0].get_tensor(name).tobytes() != readers[1].get_tensor(name).tobytes()]
    return sorted(names[0] ^ names[1]) + unequal


def campaign(variant: str, data: Path, kills: int, steps: int, draw: random.Random) -> Tally:
    """Kills trainings of one variant `kills` times. Raises: UserError, if a training fails to go on."""
    tally, started = Tally(variant), time.monotonic()
    whole = data / f"{variant}-whole"
    Training(data, whole, variant, steps).wait()
    seconds = time.monotonic() - started
    while tally.kills < kills:
        model_dir = data / f"{variant}-{tally.trainings}"
        tally.trainings += 1
        for in_save in interrupted(
            data, model_dir, variant, steps, min(MOST_IN_ONE_TRAINING, kills - tally.kills), seconds, draw
        ):
            tally.kills += 1
            tally.in_saves += in_save
        unequal = differences(whole, model_dir, steps)
        if unequal:
            tally.different += 1
            say(f"kills: {variant}: {len(unequal)} tensors differ, the first: {unequal[0]}")
        shutil.rmtree(model_dir)
    tally.seconds = time.monotonic() - started
    return tally


def run(variants: Sequence[str], kills: int, steps: int, seed: int) -> list[Tally]:
    """The campaigns of some variants, a line for each."""
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder))
        for variant in variants:
            tally = campaign(variant, Path(folder), kills, steps, random.Random(f"{seed} {variant}"))
            tallies.append(tally)
            say(
                f"kills: {variant}: {tally.kills} kills, {tally.in_saves} of them while saving, in {tally.trainings} trainings "
                f"of {steps} steps: {tally.trainings - tally.different} end with the weights of an uninterrupted one "
                f"({tally.seconds:.0f} s)"
            )
    return tallies


def main(_: list[str]) -> None:
    unknown = sorted(set(FLAGS.variants) - set(VARIANTS))
    if unknown:
        raise UserError(f"--variants={','.join(unknown)}: must be some of {', '.join(VARIANTS)}")
    command.load_tensorflow()
    tallies = run(FLAGS.variants, FLAGS.kills, FLAGS.steps, FLAGS.seed)
    if FLAGS.output_dir:
        from pipeline.files import write_json

        path = Path(FLAGS.output_dir) / "kills.json"
        write_json(path, [dataclasses.asdict(tally) for tally in tallies])
        say(f"written: {path}")
    if any(tally.different for tally in tallies):
        raise UserError("some trainings ended with other weights than an uninterrupted one; see the lines above")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
