r"""Says what this machine can do for training: TensorFlow's build, GPUs, the all-reduce, the disk, loader and step.

  python -m model.doctor
  python -m model.doctor --data_dir=records --preset=r50_fpn --batch_size=16 --strategy=mirrored --require_gpu

With --data_dir it also measures the loader's rate beside the step's, and on GPUs the largest batch that fits. The status is 1
if something has to be put right, and the line says what.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("data_dir", None, "Record folder to measure the loader and the step with.", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "Split of --data_dir.", flag_values=FLAGS)
flags.DEFINE_string("model_dir", ".", "Folder whose disk must hold a model's checkpoints.", flag_values=FLAGS)
flags.DEFINE_string("preset", "r50_fpn", "Configuration of the step that is measured.", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "set", [], "Sets one value of the configuration, as in model.train. It may be repeated.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "batch_size", None, "Images per step over all replicas, instead of the preset's.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_enum(
    "strategy", "mirrored", ["one_device", "mirrored"], "One device, or all GPUs of this machine.", flag_values=FLAGS
)
flags.DEFINE_enum(
    "precision", "float32", ["float32", "mixed_float16", "mixed_bfloat16"], "Compute type of the step.", flag_values=FLAGS
)
flags.DEFINE_bool("require_gpu", False, "Makes a machine without a GPU a fault.", flag_values=FLAGS)


def main(_: list[str]) -> None:
    command.load_tensorflow()
    from model import config as config_lib
    from model.training import diagnosis
    from model.training.strategies import make_strategy
    from pipeline import config_overrides
    from pipeline.record_folder import open_record_folder

    config = config_overrides.override(config_lib.preset(FLAGS.preset), FLAGS.set)
    if FLAGS.batch_size:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, global_batch_size=FLAGS.batch_size))
    checks = [
        lambda: [diagnosis.software()],
        lambda: diagnosis.gpus(required=FLAGS.require_gpu),
        lambda: [diagnosis.disk(Path(FLAGS.model_dir))],
    ]
    strategy = make_strategy(FLAGS.strategy)
    checks.append(lambda: [diagnosis.all_reduce(strategy)])
    if FLAGS.data_dir:
        step = (config, open_record_folder(FLAGS.data_dir), FLAGS.split, strategy, FLAGS.precision)
        checks += [lambda: [diagnosis.rates(*step)], lambda: [diagnosis.largest_batch(*step)]]
    if not diagnosis.diagnose(iter(checks), command.say):
        raise command.UserError("something above is WRONG; put it right, then run this command again")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
