"""Box and keypoint AP of a model over records, or of a file of results; each joint's error; left and right confused.

  python -m model.evaluate --model=MODEL --data_dir=RECORDS --split=val --annotations=person_keypoints_val.json --output_dir=OUT
  python -m model.evaluate --annotations=gt.json --results=results.json

MODEL is a model directory, a SavedModel or a .tflite file. With --output_dir the figures are also written there, as
evaluation-<split>.json (evaluation.json if --results are judged without records). The table explains its columns; a dash
stands for a figure that the annotations leave undefined.

Annotations of other keypoints or other images than the records' are refused. A line that begins with "note:" names what else
may make the figures other than expected: annotations that changed since the conversion, areas that are tiny or missing, results
that do not count. A result with a file_name belongs to the image of that name, any other one to the image of its image_id.

With --results, --data_dir limits the images to those of the split, and gives the keypoint set with its sigmas.
"""

from absl import flags

from model.checkpoint_names import define_weights, define_which
from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "model",
    None,
    "Model directory, SavedModel or .tflite file. Required, with --data_dir, unless --results is given.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "data_dir",
    None,
    "Record folder. It gives the images that --model looks at, or that --results are limited to.",
    flag_values=FLAGS,
)
flags.DEFINE_string("split", None, "Name of the split of --data_dir. By default val.", flag_values=FLAGS)
flags.DEFINE_string("annotations", None, "COCO keypoint file, the ground truth. Required.", flag_values=FLAGS)
flags.DEFINE_string("results", None, "JSON file in COCO's results format, to be judged instead of --model.", flag_values=FLAGS)
flags.DEFINE_string(
    "category",
    None,
    "Category of the annotations for --results without --data_dir, as in pipeline.make_tfrecords: a name, several with commas "
    "between, or all.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "categories",
    None,
    "Instead of --category, categories that are told apart: names with commas between, or all. Each gets figures of its own.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "sigmas",
    None,
    "OKS sigma of each keypoint, or one for all. By default those of the records, else COCO's by name, and 1/K within COCO's "
    "range for other keypoints.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "decoder",
    "fast",
    ["fast", "reference"],
    "How heatmaps become keypoints: at a fixed cost, or pixel by pixel as published (reference; model directories only).",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "legacy_decoding",
    False,
    "Rounds as the original does, as in model.predict; for the network of --source=matterport only.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "output_dir",
    None,
    "Folder for evaluation-SPLIT.json, which without --data_dir is evaluation.json. By default none is written.",
    flag_values=FLAGS,
)
define_which(FLAGS)
define_weights(FLAGS)
flags.DEFINE_enum(
    "strategy",
    "one_device",
    ["one_device", "mirrored", "multi_worker"],
    "Where --model runs: on one GPU or the CPU; on all GPUs of this machine, which share the images; or on several machines, "
    "which TF_CONFIG names and which all start the same command.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "cpu_devices", 1, "Devices that the CPU is split into, to try --strategy=mirrored without GPUs.", 1, flag_values=FLAGS
)
flags.mark_flags_as_required(["annotations"], flag_values=FLAGS)


def main(_rest: list[str]) -> None:
    try:
        sigmas = None if FLAGS.sigmas is None else [float(text) for text in FLAGS.sigmas]
    except ValueError:
        raise command.UserError(f"--sigmas={','.join(FLAGS.sigmas)}: must be numbers with commas between") from None
    command.load_tensorflow()
    from model.api import evaluate

    print(
        evaluate(
            annotations=FLAGS.annotations,
            model=FLAGS.model,
            data_dir=FLAGS.data_dir,
            split=FLAGS.split,
            results=FLAGS.results,
            category=FLAGS.category,
            categories=FLAGS.categories,
            sigmas=sigmas,
            decoder=FLAGS.decoder,
            legacy_decoding=FLAGS.legacy_decoding,
            output_dir=FLAGS.output_dir,
            which=FLAGS.which,
            weights=FLAGS.weights,
            strategy=FLAGS.strategy,
            cpu_devices=FLAGS.cpu_devices,
        )
    )


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__, url_flags=("annotations",))
