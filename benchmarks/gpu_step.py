r"""Writes the training step and the inference of a preset as XLA programs, for a GPU machine that has JAX and no TensorFlow.

  python -m benchmarks.gpu_step --preset=r50_fpn --output_dir=gpu_step
  python benchmarks/gpu_step_run.py gpu_step        # on the GPU machine, which needs JAX alone

A training step is the one of `model.train`: losses, gradients, update. Weights and images are not written but made on the spot,
by the same rules on both machines (`gpu_step_run.argument`). The answer of a program with at most --record images is computed
here and compared there.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("preset", "r50_fpn", "The model, as in model.train.", flag_values=FLAGS)
flags.DEFINE_string("output_dir", None, "Required. Folder of the programs; it is made anew.", required=True, flag_values=FLAGS)
flags.DEFINE_list("batch_sizes", "2,8,16", "Images in a step.", flag_values=FLAGS)
flags.DEFINE_list("precisions", "float32,mixed_bfloat16", "Keras policies of the layers.", flag_values=FLAGS)
flags.DEFINE_list("measure", "training,inference", "What to write.", flag_values=FLAGS)
flags.DEFINE_integer("height", 800, "Of the images, in pixels; a multiple of 32.", lower_bound=64, flag_values=FLAGS)
flags.DEFINE_integer("width", 1088, "Of the images, in pixels; a multiple of 32.", lower_bound=64, flag_values=FLAGS)
flags.DEFINE_integer("persons", 10, "People in each image of training.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("record", 2, "Computes the answers of steps with at most this many images here.", 0, flag_values=FLAGS)

LEARNING_RATE = 1e-4


def main(_: list[str]) -> None:
    command.load_tensorflow()
    import tensorflow as tf

    from benchmarks.measuring import fresh_folder
    from model.config import preset

    unknown = set(FLAGS.measure) - {"training", "inference"}
    if unknown or FLAGS.height % 32 or FLAGS.width % 32:
        raise command.UserError("--measure: among training,inference; --height, --width: multiples of 32")
    config = preset(FLAGS.preset)
    folder = fresh_folder(FLAGS.output_dir)
    programs = []
    for precision in FLAGS.precisions:
        for batch_size in map(int, FLAGS.batch_sizes):
            for what in FLAGS.measure:
                programs.append(_write(folder, config, what, precision, batch_size))
                command.say(f"{programs[-1]['name']}: {programs[-1]['answer_name']} {programs[-1]['recorded']}")
    checksums = {path.name: zlib.crc32(path.read_bytes()) for path in sorted(folder.iterdir())}
    listed = {"tensorflow": tf.__version__, "checksums": checksums, "programs": programs}
    (folder / "programs.json").write_text(json.dumps(listed, indent=1))
    size = sum(path.stat().st_size for path in folder.iterdir())
    command.say(f"written: {folder} ({command.counted(len(programs), 'program')}, {size / 1e6:.1f} MB)")


def _write(folder: Path, config: Any, what: str, precision: str, batch_size: int) -> dict[str, Any]:
    """Writes one program; returns its entry of `programs.json`."""
    import numpy as np
    import tensorflow as tf

    from benchmarks.gpu_step_run import argument

    name = f"{FLAGS.preset}-{what}-{precision}-{batch_size}"
    function, inputs, variables, answer_name = (
        _training(config, precision, batch_size) if what == "training" else _inference(config, precision, batch_size)
    )
    concrete = function.get_concrete_function(*inputs.values())
    answer = sorted(concrete.structured_outputs).index(answer_name)  # XLA's outputs are in the order of sorted names
    by_handle = {id(variable.handle): variable for variable in variables}
    rules = []
    for key, value in inputs.items():
        rule: dict[str, Any] = {"shape": list(value.shape), "dtype": value.dtype.name}
        if key == "image":
            rule["patches"] = 0
        else:
            rule["file"] = f"{key}-{batch_size}.npy"
            np.save(folder / rule["file"], value.numpy())
        rules.append(rule)
    captured = [by_handle[id(outer)] for outer, _ in concrete.graph.captures]
    for number, variable in enumerate(captured):
        rule = {"shape": list(variable.shape), "dtype": variable.dtype.name}
        content = variable.numpy()
        if content.min() == content.max():
            rule["fill"] = content.flat[0].item()
        else:
            rule |= {"normal": float(content.std()), "seed": number}
        variable.assign(argument(rule, folder))
        rules.append(rule)
    representation = function.experimental_get_compiler_ir(*inputs.values())
    (folder / f"{name}.hlo.gz").write_bytes(gzip.compress(representation(stage="hlo_serialized"), mtime=0))
    recorded = None
    if batch_size <= FLAGS.record:
        recorded = float(tf.reduce_sum(tf.cast(function(*inputs.values())[answer_name], tf.float64)))
    head = representation(stage="hlo").partition("\n")[0]  # … input_output_alias={ {14}: (9, {}, may-alias), …
    return {
        "name": name,
        "program": f"{name}.hlo.gz",
        "precision": precision,
        "batch_size": batch_size,
        "arguments": rules,
        "updates": {output: int(parameter) for output, parameter in re.findall(r"\{(\d+)\}: \((\d+), \{\}", head)},
        "answer": answer,
        "answer_name": answer_name,
        "recorded": recorded,
    }


def _training(config: Any, precision: str, batch_size: int) -> tuple[Any, dict[str, Any], list[Any], str]:
    """The step, the tensors of its batch, its variables, and the name of the number that is compared."""
    import numpy as np
    import tensorflow as tf

    from benchmarks.gpu_step_run import patches
    from benchmarks.model_ways import random_persons, training_batch
    from model.training.step import Learner
    from pipeline.skeleton import COCO_PERSON

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    learner = Learner(config, COCO_PERSON, strategy, precision=precision, jit_compile=True)
    boxes, keypoints = random_persons(np.random.default_rng(0), batch_size, FLAGS.persons, FLAGS.height, FLAGS.width)
    images = patches((batch_size, FLAGS.height, FLAGS.width, 3), 0)
    batch = training_batch(config, images, boxes, keypoints)
    names = list(batch)

    @tf.function(jit_compile=True, autograph=False)
    def step(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        arguments = (tf.constant(LEARNING_RATE), tf.constant(0), tf.constant(0.0))
        return learner._replica_step(dict(zip(names, values, strict=True)), *arguments)

    variables = [*learner.model.variables_by_path().values(), *learner.optimizer.variables_by_path().values()]
    return step, batch, variables, "loss"


def _inference(config: Any, precision: str, batch_size: int) -> tuple[Any, dict[str, Any], list[Any], str]:
    """Pixels to people, with static shapes."""
    import tensorflow as tf

    from benchmarks.gpu_step_run import patches
    from model.network.keypoint_rcnn import KeypointRCNN
    from pipeline.skeleton import COCO_PERSON

    model = KeypointRCNN(config, COCO_PERSON, precision=precision, seed=0)

    @tf.function(jit_compile=True, autograph=False)
    def detect(images: tf.Tensor, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        return model.detect(images, image_size, static_shapes=True)

    images = tf.constant(patches((batch_size, FLAGS.height, FLAGS.width, 3), 0))
    image_size = tf.constant([[FLAGS.height, FLAGS.width]] * batch_size, tf.int32)
    return detect, {"image": images, "image_size": image_size}, list(model.variables_by_path().values()), "scores"


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
