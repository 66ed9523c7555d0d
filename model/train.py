r"""Trains Keypoint R-CNN on records that pipeline.make_tfrecords wrote.

  python -m model.train --data_dir=records --model_dir=run --preset=r50_fpn --strategy=mirrored --precision=mixed_float16 \
    --eval_split=val --eval_annotations=annotations/person_keypoints_val2017.json

The same command goes on from the newest checkpoint of --model_dir. Ctrl-C saves one first. Several machines: the same
command on each, with TF_CONFIG set and --strategy=multi_worker.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from absl import flags

from pipeline import batch_flags, command
from pipeline.command import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("data_dir", None, "Folder of records.", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "Split to train on.", flag_values=FLAGS)
flags.DEFINE_string("model_dir", None, "Where the model is written: configuration, checkpoints, logs.", flag_values=FLAGS)
flags.DEFINE_string(
    "preset",
    None,
    "Configuration: tiny, r50_fpn (the default) or r101_fpn; a --model_dir that exists, or --init=DIR, has its own.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "init",
    None,
    "Weights to start from: a ResNet's file (.pth, .pkl, .safetensors, .h5), which becomes the backbone, or a model directory.",
    flag_values=FLAGS,
)
flags.DEFINE_multi_string(
    "set", [], "Sets one value of the configuration, such as rpn.nms_threshold=0.6; may be repeated.", flag_values=FLAGS
)
flags.DEFINE_integer("steps", None, "Steps to train, instead of the preset's.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", None, "Images per step over all replicas, instead of the preset's.", flag_values=FLAGS)
flags.DEFINE_float("learning_rate", None, "Peak rate, instead of the preset's.", flag_values=FLAGS)
flags.DEFINE_integer("seed", None, "Of weights, order of data and draws, instead of the preset's.", flag_values=FLAGS)
flags.DEFINE_bool("flip", None, "Mirrors half of the images, or none, instead of the preset's choice.", flag_values=FLAGS)
batch_flags.define_colours(FLAGS)
flags.DEFINE_enum(
    "strategy",
    "one_device",
    ["one_device", "mirrored", "multi_worker"],
    "One GPU or the CPU; all GPUs of this machine; several machines by TF_CONFIG.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_float16", "mixed_bfloat16"],
    "Compute type of the layers; weights, losses and boxes are float32 always.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("jit_compile", False, "Compile each replica's step with XLA.", flag_values=FLAGS)
flags.DEFINE_integer("save_every", 1000, "Steps between two checkpoints.", flag_values=FLAGS)
flags.DEFINE_string("eval_split", None, "Split to evaluate while training; needs --eval_annotations.", flag_values=FLAGS)
flags.DEFINE_string("eval_annotations", None, "COCO JSON of --eval_split.", flag_values=FLAGS)
flags.DEFINE_integer("eval_every", 0, "Steps between two evaluations; 0: only at the end.", flag_values=FLAGS)
flags.DEFINE_enum(
    "on_error",
    "fail",
    ["fail", "skip"],
    "A record or image that cannot be read: name it and stop; or name it, and go on without it (10 to 20 % slower loading).",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "cache",
    "none",
    ["none", "records", "decoded"],
    "Kept in memory of images that have been read: records (COCO train2017: 8 GB on each machine), or also decoded images (3 "
    "bytes a pixel; in all 54 GB). python -m pipeline.benchmark_loader says what it takes for other data.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "data_service",
    "",
    "grpc://host:port of the dispatcher of a tf.data service that shall make the batches, in no certain order.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "cpu_devices", 1, "Splits the CPU into so many devices, to try --strategy=mirrored without GPUs.", flag_values=FLAGS
)
flags.mark_flags_as_required(["data_dir", "model_dir"], flag_values=FLAGS)


def main(_: list[str]) -> None:
    if FLAGS.strategy == "multi_worker" and not os.environ.get("TF_CONFIG"):
        raise UserError("--strategy=multi_worker: TF_CONFIG is not set; it names the cluster's workers and this one's index")
    if (FLAGS.eval_split is None) != (FLAGS.eval_annotations is None):
        raise UserError("--eval_split and --eval_annotations: give both or neither")
    if FLAGS.preset and FLAGS.init and Path(FLAGS.init).is_dir():
        raise UserError(
            f"--init={FLAGS.init}: a model directory has a configuration of its own; leave --preset={FLAGS.preset} out"
        )
    for name in ("steps", "batch_size", "learning_rate", "save_every", "cpu_devices"):
        if FLAGS[name].value is not None and FLAGS[name].value <= 0:
            raise UserError(f"--{name}={FLAGS[name].value}: must be above 0")

    command.load_tensorflow()
    from model.model_dir import newest_checkpoint
    from model.training import loop
    from model.training.starting_point import configuration, open_starting_point
    from model.training.strategies import make_strategy, naming_lost_workers
    from model.training.validation import Validation
    from pipeline.loading.options import LoadingOptions
    from pipeline.record_folder import open_record_folder

    options = LoadingOptions(on_error=FLAGS.on_error, cache=FLAGS.cache, data_service=FLAGS.data_service)
    model_dir = Path(FLAGS.model_dir)
    start = open_starting_point(FLAGS.init) if FLAGS.init and newest_checkpoint(model_dir) is None else None
    config = configuration(model_dir, start, FLAGS.preset, FLAGS.set)
    given = {
        "steps": FLAGS.steps,
        "global_batch_size": FLAGS.batch_size,
        "learning_rate": FLAGS.learning_rate,
        "seed": FLAGS.seed,
    }
    schedule = {name: value for name, value in given.items() if value is not None}
    augmentation = batch_flags.colours(FLAGS) | ({} if FLAGS.flip is None else {"flip": FLAGS.flip})
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, **schedule),
        data=dataclasses.replace(config.data, **augmentation),
    )
    strategy = make_strategy(FLAGS.strategy, cpu_devices=FLAGS.cpu_devices)
    record_folder = open_record_folder(FLAGS.data_dir)
    validate = Validation(record_folder, FLAGS.eval_split, FLAGS.eval_annotations) if FLAGS.eval_split else None
    run = loop.Run(
        model_dir=model_dir,
        precision=FLAGS.precision,
        jit_compile=FLAGS.jit_compile,
        save_every=FLAGS.save_every,
        evaluate_every=FLAGS.eval_every,
        options=options,
    )
    with naming_lost_workers(strategy):
        loop.train(config, record_folder, FLAGS.split, run, strategy, validate, start)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
