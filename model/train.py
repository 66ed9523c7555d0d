r"""Trains Keypoint R-CNN on records that pipeline.make_tfrecords wrote.

  python -m model.train --data_dir=records --model_dir=run --init=resnet50-0676ba61.pth --strategy=mirrored \
    --precision=mixed_float16 --eval_split=val --eval_annotations=annotations/person_keypoints_val2017.json

Training starts from the weights that --init names, or from random ones with --set backbone.norm=group. The same command goes
on from the newest checkpoint of --model_dir. Ctrl-C, SIGTERM and SIGHUP save one first; the status is then 130, 143 or 129.
Several machines run the same command, each with TF_CONFIG set and --strategy=multi_worker; a task of type evaluator evaluates
their checkpoints.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from absl import flags

from model import config as config_lib
from model.config import Config
from model.training.cluster import read_cluster
from model.training.learning_rate import advice_on_batch_size
from pipeline import batch_flags, command, config_overrides
from pipeline.command import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("data_dir", None, "Record folder that pipeline.make_tfrecords wrote. Required.", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "Split to train on.", flag_values=FLAGS)
flags.DEFINE_string(
    "model_dir",
    None,
    "Directory that the model is written to: configuration, checkpoints, logs. If it holds a checkpoint, training goes on from "
    "it. Required.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "preset",
    None,
    "Configuration to begin with: tiny, r50_fpn or r101_fpn. The default is that of --model_dir or of the directory that "
    "--init names, else r50_fpn.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "init",
    None,
    "Weights to start from if --model_dir holds no checkpoint: a ResNet's file (.pth, .pkl, .safetensors, .h5), which becomes "
    "the backbone, or a model directory. The default is random weights.",
    flag_values=FLAGS,
)
flags.DEFINE_multi_string(
    "set",
    [],
    "Sets one value of the configuration, such as rpn.nms_threshold=0.6 or data.short_edges=128,160. May be repeated.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("steps", None, "Steps to train. The default is the preset's.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", None, "Images per step over all replicas. The default is the preset's.", flag_values=FLAGS)
flags.DEFINE_float("learning_rate", None, "Peak learning rate. The default is the preset's.", flag_values=FLAGS)
flags.DEFINE_integer(
    "seed", None, "Seed of the weights, the order of images and all draws. The default is the preset's.", flag_values=FLAGS
)
flags.DEFINE_bool("flip", None, "Mirrors half of the images, or none. The default is the preset's choice.", flag_values=FLAGS)
batch_flags.define_colours(FLAGS)
flags.DEFINE_enum(
    "strategy",
    "one_device",
    ["one_device", "mirrored", "multi_worker"],
    "Where training runs: on one GPU or the CPU, on all GPUs of this machine, or on several machines, which TF_CONFIG names.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_float16", "mixed_bfloat16"],
    "Compute type of the layers. Weights, losses and boxes are always float32.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("jit_compile", False, "Compiles each replica's step with XLA.", flag_values=FLAGS)
flags.DEFINE_integer("save_every", 1000, "Steps between two checkpoints.", flag_values=FLAGS)
flags.DEFINE_integer("keep", 3, "Number of checkpoints that are kept, the newest.", flag_values=FLAGS)
flags.DEFINE_enum(
    "on_damaged_checkpoint",
    "previous",
    ["previous", "fail"],
    "What happens if the newest checkpoint's files are not as they were saved: the training names it and goes on from the one "
    "before, or names it and stops.",
    flag_values=FLAGS,
)
flags.DEFINE_string("eval_split", None, "Split to evaluate while training. Needs --eval_annotations.", flag_values=FLAGS)
flags.DEFINE_string("eval_annotations", None, "COCO JSON that --eval_split was converted from.", flag_values=FLAGS)
flags.DEFINE_integer(
    "eval_every", 0, "Steps between two evaluations; with 0, the model is evaluated at the end alone.", flag_values=FLAGS
)
flags.DEFINE_enum(
    "on_error",
    "fail",
    ["fail", "skip"],
    "What happens if a record or image cannot be read: the training names it and stops, or names it and goes on without it "
    "(loading is then 10 to 20 % slower).",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "cache",
    "none",
    ["none", "records", "decoded"],
    "What is kept in memory of images that have been read: nothing, their records (COCO train2017: 8 GB on each machine), or "
    "also the decoded images (3 bytes a pixel; 54 GB in all). python -m pipeline.benchmark_loader says what other data take.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "data_service",
    "",
    "Address grpc://host:port of the dispatcher of a tf.data service that makes the batches, in no certain order. The default "
    "is to make them in this process.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "cpu_devices", 1, "Devices that the CPU is split into, to try --strategy=mirrored without GPUs.", flag_values=FLAGS
)
flags.mark_flags_as_required(["data_dir", "model_dir"], flag_values=FLAGS)


def main(_: list[str]) -> None:
    _check_flags()
    _check_configuration()

    command.load_tensorflow()
    from model.model_dir import newest_checkpoint
    from model.training import loop
    from model.training.evaluator_task import follow
    from model.training.starting_point import configuration, open_starting_point
    from model.training.strategies import make_strategy, naming_lost_workers
    from model.training.validation import Validation
    from pipeline.loading.options import LoadingOptions
    from pipeline.record_folder import open_record_folder

    options = LoadingOptions(on_error=FLAGS.on_error, cache=FLAGS.cache, data_service=FLAGS.data_service)
    model_dir = Path(FLAGS.model_dir)
    if _is_evaluator():
        follow(model_dir, Validation(open_record_folder(FLAGS.data_dir), FLAGS.eval_split, FLAGS.eval_annotations))
        return
    has_checkpoint = newest_checkpoint(model_dir) is not None
    start = open_starting_point(FLAGS.init) if FLAGS.init and not has_checkpoint else None
    begun_with = configuration(model_dir, start, FLAGS.preset, FLAGS.set)
    config = _with_flags(begun_with)
    strategy = make_strategy(FLAGS.strategy, cpu_devices=FLAGS.cpu_devices)
    record_folder = open_record_folder(FLAGS.data_dir)
    batch_flags.check_flip(config.data.flip, record_folder)
    validate = Validation(record_folder, FLAGS.eval_split, FLAGS.eval_annotations) if FLAGS.eval_split else None
    run = loop.Run(
        model_dir=model_dir,
        precision=FLAGS.precision,
        jit_compile=FLAGS.jit_compile,
        save_every=FLAGS.save_every,
        evaluate_every=FLAGS.eval_every,
        options=options,
        keep=FLAGS.keep,
        on_damaged_checkpoint=FLAGS.on_damaged_checkpoint,
        remarks=_remarks(begun_with, config, has_checkpoint),
    )
    with naming_lost_workers(strategy):
        loop.train(config, record_folder, FLAGS.split, run, strategy, validate, start)


def _check_flags() -> None:
    """Raises: UserError for flags that contradict each other or have values that they cannot have."""
    if FLAGS.strategy == "multi_worker" and not os.environ.get("TF_CONFIG"):
        raise UserError("--strategy=multi_worker: TF_CONFIG is not set; it names the cluster's workers and this one's index")
    if FLAGS.strategy == "multi_worker" and _is_evaluator() and not FLAGS.eval_split:
        raise UserError("TF_CONFIG: this task is the evaluator; it needs --eval_split and --eval_annotations")
    if (FLAGS.eval_split is None) != (FLAGS.eval_annotations is None):
        raise UserError("--eval_split and --eval_annotations: give both or neither")
    for name in ("steps", "batch_size", "learning_rate", "save_every", "keep", "cpu_devices"):
        if FLAGS[name].value is not None and not FLAGS[name].value > 0:
            raise UserError(f"--{name}={FLAGS[name].value}: must be above 0")
    if FLAGS.seed is not None and not 0 <= FLAGS.seed < 2**63:
        raise UserError(f"--seed={FLAGS.seed}: must be from 0 to 2^63 - 1")
    if FLAGS.eval_every < 0:
        raise UserError(f"--eval_every={FLAGS.eval_every}: must be 0 or more")
    if FLAGS.eval_every and not FLAGS.eval_split:
        raise UserError(
            f"--eval_every={FLAGS.eval_every}: needs --eval_split and --eval_annotations; give both, or leave it out"
        )
    if FLAGS.init and not Path(FLAGS.init).exists():
        raise UserError(f"--init={FLAGS.init}: does not exist; give a ResNet's file or a model directory")


def _is_evaluator() -> bool:
    """Whether this process evaluates the checkpoints of a training that other processes of its cluster do."""
    return FLAGS.strategy == "multi_worker" and read_cluster(os.environ["TF_CONFIG"]).is_evaluator


def _check_configuration() -> None:
    """Answers a wrong --preset or --set before TensorFlow loads, which takes seconds. Raises: UserError."""
    config = config_lib.preset(FLAGS.preset or "r50_fpn")
    if FLAGS.init and Path(FLAGS.init).is_dir():
        own = config_lib.load_any(Path(FLAGS.init) / "config.json")
        if isinstance(own, config_lib.Config):  # the old network's says nothing of training
            if FLAGS.preset:
                raise UserError(
                    f"--init={FLAGS.init}: a model directory has a configuration of its own; leave --preset={FLAGS.preset} out"
                )
            config = own
    if (Path(FLAGS.model_dir) / "config.json").is_file():
        config = config_lib.load(Path(FLAGS.model_dir) / "config.json")
    config_overrides.override(config, FLAGS.set)


def _with_flags(config: Config) -> Config:
    """The configuration with the values of --steps, --batch_size and their like."""
    given = {
        "steps": FLAGS.steps,
        "global_batch_size": FLAGS.batch_size,
        "learning_rate": FLAGS.learning_rate,
        "seed": FLAGS.seed,
    }
    schedule = {name: value for name, value in given.items() if value is not None}
    augmentation = batch_flags.colours(FLAGS) | ({} if FLAGS.flip is None else {"flip": FLAGS.flip})
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, **schedule),
        data=dataclasses.replace(config.data, **augmentation),
    )


def _remarks(begun_with: Config, config: Config, has_checkpoint: bool) -> tuple[str, ...]:
    """Lines on what these flags do that somebody may have overlooked."""
    remarks = []
    if FLAGS.init and has_checkpoint:
        remarks.append(f"--init={FLAGS.init} is passed over, because {FLAGS.model_dir} holds a checkpoint to go on from")
    chosen = FLAGS.learning_rate is not None or any(text.startswith("train.learning_rate=") for text in FLAGS.set)
    advice = None if chosen else advice_on_batch_size(begun_with.train, config.train)
    return (*remarks, advice) if advice else tuple(remarks)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__, url_flags=("data_service", "eval_annotations"))
