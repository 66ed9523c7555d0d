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

from absl import flags

from model.checkpoint_names import define_which
from model.training.arguments import Arguments
from model.training.recipe_files import HELP, preset_help, recipe_help
from pipeline import batch_flags, command
from pipeline.allocator import keep_freed_memory

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
    "Configuration to begin with: tiny, r50_fpn, r101_fpn or x101_fpn; help lists what each reaches. The default is that of "
    "--model_dir or of the directory that --init names, else r50_fpn.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "recipe",
    None,
    "Settings with a name, such as detectron2_1x; help lists them. auto fits schedule, rate, frozen stages, augmentation and "
    "anchors to the records and to what training starts from, and says why.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "config", None, "JSON file with all that a model's config.json holds, to begin with instead of --preset.", flag_values=FLAGS
)
flags.DEFINE_string(
    "init",
    None,
    "Weights to start from if --model_dir holds no checkpoint: a ResNet's file (.pth, .pkl, .safetensors, .h5), which becomes "
    "the backbone, or a model directory. The default is random weights.",
    flag_values=FLAGS,
)
define_which(FLAGS, of="--init")
flags.DEFINE_multi_string(
    "set",
    [],
    "Sets one value of the configuration, such as rpn.nms_threshold=0.6 or data.short_edges=128,160. May be repeated.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("steps", None, "Steps to train. The default is the preset's.", flag_values=FLAGS)
flags.DEFINE_integer(
    "epochs", None, "Passes over the images of --split to train, instead of --steps; the log says the steps.", flag_values=FLAGS
)
flags.DEFINE_integer("batch_size", None, "Images per step over all replicas. The default is the preset's.", flag_values=FLAGS)
flags.DEFINE_float("learning_rate", None, "Peak learning rate. The default is the preset's.", flag_values=FLAGS)
flags.DEFINE_bool(
    "scale_learning_rate",
    None,
    "Scales the learning rate with the batch size: it is that of a batch of train.reference_batch_size, 16 (4 in the preset "
    "tiny). By default it is taken as it is.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "seed", None, "Seed of the weights, the order of images and all draws. The default is the preset's.", flag_values=FLAGS
)
flags.DEFINE_bool("flip", None, "Mirrors half of the images, or none. The default is the preset's choice.", flag_values=FLAGS)
batch_flags.define_colours(FLAGS)
flags.DEFINE_enum(
    "strategy",
    "one_device",
    ["one_device", "mirrored", "multi_worker", "tpu"],
    "Where training runs: on one GPU or the CPU, on all GPUs of this machine, on several machines, which TF_CONFIG names, or "
    "on the TPU that TPU_NAME names, by default that of this machine (never tried on a TPU).",
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
flags.DEFINE_integer(
    "steps_per_call",
    1,
    "Steps that are taken in one call of TensorFlow, with the same numbers; at most 20. Single steps are taken if the batches "
    "lie on several canvases (data.num_canvases), or if a line of the log, a checkpoint, an evaluation or a boundary of "
    "--profile falls between them.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("save_every", 1000, "Steps between two checkpoints.", flag_values=FLAGS)
flags.DEFINE_integer(
    "keep",
    3,
    "Number of checkpoints that are kept: the newest. The best by keypoint AP of the evaluations is kept beside them.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "keep_every",
    0,
    "Steps between two checkpoints that are kept for good; with 0, only the newest are kept.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "on_damaged_checkpoint",
    "previous",
    ["previous", "fail"],
    "What happens if the newest checkpoint's files are not as they were saved: the training names it and goes on from the one "
    "before, or names it and stops.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "on_nonfinite",
    "stop",
    ["stop", "skip"],
    "What happens at a loss that is not finite: the training names the images and stops, or the step changes nothing and is "
    "counted. More than ten such steps in a row stop the training in any case.",
    flag_values=FLAGS,
)
flags.DEFINE_string("eval_split", None, "Split to evaluate while training. Needs --eval_annotations.", flag_values=FLAGS)
flags.DEFINE_string("eval_annotations", None, "COCO JSON that --eval_split was converted from.", flag_values=FLAGS)
flags.DEFINE_integer(
    "eval_every", 0, "Steps between two evaluations; with 0, the model is evaluated at the end alone.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "eval_loss",
    False,
    "Measures the losses of --eval_split beside its AP, for the log. Its images are seen as evaluation sees them.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "patience",
    0,
    "Evaluations in a row without a higher keypoint AP than before, after which training stops early; a resumed run keeps the "
    "count. With 0, training does not stop early.",
    flag_values=FLAGS,
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
flags.DEFINE_bool(
    "deterministic",
    False,
    "Has TensorFlow choose operations that give the same bits in every run on GPUs, too, which are slower. On a CPU a training "
    "does so in any case.",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "peak_tflops",
    None,
    "TFLOP/s that one device does at most in --precision, for MFU on the progress line. The default is the maker's figure for "
    "the GPUs of a table; for other devices TFLOP/s are shown.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "profile", None, "Steps FIRST:END to profile for TensorBoard, such as 100:110: the steps 100 to 109.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "dry_run",
    False,
    "Makes every check, prints the configuration, the shapes of a batch and what a step takes of time and memory, and writes "
    "nothing.",
    flag_values=FLAGS,
)


def main(_: list[str]) -> None:
    for name, lines in (("preset", preset_help), ("recipe", recipe_help)):
        if FLAGS[name].value == HELP:
            for line in lines():
                command.say(line)
            return
    missing = [f"--{name}" for name in ("data_dir", "model_dir") if FLAGS[name].value is None]
    if missing:
        raise command.UserError(f"{', '.join(missing)}: must be given; --help explains every flag")
    flag_of = {"overrides": "set"}
    given = {field.name: FLAGS[flag_of.get(field.name, field.name)].value for field in dataclasses.fields(Arguments)}
    Arguments(**given)  # a wrong flag is answered before TensorFlow loads

    command.load_tensorflow()
    keep_freed_memory(any_size=True)
    from model.api import train

    train(**given)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__, url_flags=("data_service", "eval_annotations"))
