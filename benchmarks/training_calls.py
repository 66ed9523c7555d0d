"""What several steps in a call of TensorFlow gain, and what saving beside the steps gains: training steps in turn.

  python -m benchmarks.training_calls --preset=tiny

Rendered images, batches held in memory. All ways take turns, in rounds; the medians of the rounds count, and a ratio is that of
two ways in one round. Processor time is that of all threads.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from model.config import Config, preset
from pipeline import command, config_overrides

if TYPE_CHECKING:
    from model.training.step import Learner

FLAGS = flags.FlagValues()
flags.DEFINE_string("preset", "tiny", "Configuration of the model.", flag_values=FLAGS)
flags.DEFINE_multi_string("set", [], "Sets one value of the configuration.", flag_values=FLAGS)
flags.DEFINE_list("steps_per_call", ["1", "4", "10"], "Numbers of steps in a call; 1 comes first.", flag_values=FLAGS)
flags.DEFINE_integer("steps", 20, "Steps of each way in a round.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 9, "Rounds.", lower_bound=1, flag_values=FLAGS)


def batches_of(learner: Learner, folder: Path, number: int) -> list[dict[str, Any]]:
    """Batches of rendered images, as the learner's strategy takes them."""
    from model.training.strategies import distribute
    from pipeline.loading.batches import training_batches
    from pipeline.record_folder import open_record_folder
    from pipeline.synthetic import dataset
    from pipeline.writing.conversion import convert
    from pipeline.writing.conversion_config import ConversionConfig

    data, size = learner.config.data, learner.config.train.global_batch_size
    rendered = dataset.write_dataset(folder, dataset.Arguments(4 * size, 1, "train", 320, 240), num_workers=1)
    config = ConversionConfig(short_edges=data.short_edges, max_edge=data.max_edge)
    convert(rendered.annotations, rendered.image_folder, folder / "records", "train", config)
    records = open_record_folder(folder / "records")
    batches = training_batches(
        records, "train", data, global_batch_size=size, seed=1, num_steps=number, anchors=learner.config.anchors
    )
    return list(distribute(batches, learner.strategy))


def learner_of(config: Config) -> Learner:
    from model.training.step import Learner
    from model.training.strategies import make_strategy
    from pipeline.skeleton import read_category
    from pipeline.synthetic import poses

    skeleton, _ = read_category(poses.PERSON_CATEGORY)
    return Learner(config, skeleton, make_strategy("one_device"), precision="float32", jit_compile=False)


def taking(learner: Learner, batches: Sequence[dict[str, Any]], steps: int, in_a_call: int) -> Callable[[], None]:
    """Takes steps as the training does: metrics are read when the next call has begun."""
    import tensorflow as tf

    rate, seed, stop = tf.constant(1e-4), tf.constant(1), tf.constant(0.0)
    rates, seeds = tf.fill([in_a_call], rate), tf.fill([in_a_call], seed)

    def take() -> None:
        before: list[dict[str, tf.Tensor]] = []
        for first in range(0, steps, in_a_call):
            share = [batches[(first + n) % len(batches)] for n in range(in_a_call)]
            if in_a_call == 1:
                found = [learner.take_step(share[0], rate, seed, stop)]
            else:
                found = learner.take_steps(share, rates, seeds, stop)
            _ = [float(value) for metrics in before for value in metrics.values()]
            before = found
        _ = [float(value) for metrics in before for value in metrics.values()]

    return take


def in_turns(ways: Sequence[Callable[[], None]], rounds: int) -> np.ndarray:
    """Wall and processor seconds, [rounds, ways, 2]; a round before the first is not counted."""
    seconds = np.zeros((rounds + 1, len(ways), 2))
    for turn in range(rounds + 1):
        for index, way in enumerate(ways):
            started = time.perf_counter(), time.process_time()
            way()
            seconds[turn, index] = np.subtract((time.perf_counter(), time.process_time()), started)
    return seconds[1:]


def rows(names: Sequence[str], seconds: np.ndarray, steps: int) -> list[list[str]]:
    found = []
    for index, name in enumerate(names):
        wall, processor = 1000 * np.median(seconds[:, index], axis=0) / steps
        ratios = seconds[:, index, 0] / seconds[:, 0, 0]
        spread = f"{ratios.min():.3f}–{ratios.max():.3f}"
        found.append([name, f"{wall:.1f}", f"{processor:.1f}", f"{np.median(ratios):.3f}", spread])
    return found


def main(_: list[str]) -> None:
    from benchmarks.measuring import machine, table

    config = config_overrides.override(preset(FLAGS.preset), FLAGS.set)
    if not all(number.isdecimal() and int(number) for number in FLAGS.steps_per_call) or FLAGS.steps_per_call[:1] != ["1"]:
        raise command.UserError(
            f"--steps_per_call={','.join(FLAGS.steps_per_call)}: must be numbers above 0, the first of them 1"
        )
    numbers = [int(number) for number in FLAGS.steps_per_call]
    command.load_tensorflow()
    from model.training.saver import Saver
    from pipeline.allocator import keep_freed_memory

    keep_freed_memory(any_size=True)
    learner = learner_of(config)
    header = ("ms a step", "processor ms a step", "× time", "in the rounds")
    with tempfile.TemporaryDirectory() as folder:
        batches = batches_of(learner, Path(folder) / "data", max(numbers))
        steps = -(-FLAGS.steps // math.lcm(*numbers)) * math.lcm(*numbers)
        size = config.train.global_batch_size
        print(f"{machine()}, {FLAGS.preset}, {steps} steps of {size} images a turn, {FLAGS.rounds} rounds\n")
        calls = in_turns([taking(learner, batches, steps, n) for n in numbers], FLAGS.rounds)
        print(table(("steps a call", *header), rows([str(n) for n in numbers], calls, steps)), flush=True)

        (Path(folder) / "run").mkdir()
        with Saver(learner, Path(folder) / "run", worker=0) as saver:
            take = taking(learner, batches, steps, 1)
            waits: dict[str, list[float]] = {"beside": [], "before": []}

            def saving(way: str) -> None:
                take()
                started = time.perf_counter()
                saver.save(1, required=way == "before")
                waits[way].append(time.perf_counter() - started)
                take()
                saver.wait()

            def not_saving() -> None:
                take()
                take()

            saves = in_turns([not_saving, lambda: saving("beside"), lambda: saving("before")], FLAGS.rounds)
        names = ("no checkpoint", "one checkpoint, beside the steps", "one checkpoint, the steps wait")
        print("\n" + table(("checkpoints", *header), rows(names, saves, 2 * steps)))
        for way, what in (("beside", "beside the steps"), ("before", "with the steps waiting")):
            print(f"\nA step waits {1000 * np.median(waits[way][1:]):.1f} ms for a checkpoint that is written {what}.")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
