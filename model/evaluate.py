"""Box and keypoint AP of a model over records, or of a file of results; each joint's error; left and right confused.

  python -m model.evaluate --model=MODEL --data_dir=RECORDS --split=val --annotations=person_keypoints_val.json --output_dir=OUT
  python -m model.evaluate --annotations=gt.json --results=results.json

MODEL is a model directory, a SavedModel or a .tflite file. With --output_dir the figures are also written there, as
evaluation-<split>.json. A dash stands for a figure that the annotations leave undefined.
  errors of joints   shares of the root of a person's area; hits: joints whose own similarity, as in OKS, is 0.5 or more
  swapped back       mirror twins, where one lies nearer the other's truth and OKS gains: what AP would be without that

With --results, --data_dir limits the images to those of the split and gives the keypoint set, where it is not COCO's.
"""

from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "model directory, SavedModel or .tflite file", flag_values=FLAGS)
flags.DEFINE_string("data_dir", None, "folder of records: the images for --model", flag_values=FLAGS)
flags.DEFINE_string("split", "val", "which split of the records", flag_values=FLAGS)
flags.DEFINE_string("annotations", None, "COCO keypoint JSON, the ground truth", flag_values=FLAGS)
flags.DEFINE_string("results", None, "JSON in COCO's results format, instead of --model", flag_values=FLAGS)
flags.DEFINE_list("sigmas", None, "OKS constants of the keypoints, where they are not COCO's", flag_values=FLAGS)
flags.DEFINE_enum(
    "decoder", "fast", ["fast", "reference"], "of the keypoints, as in model.predict; a model directory only", flag_values=FLAGS
)
flags.DEFINE_bool(
    "legacy_decoding",
    False,
    "Round as the original does, as in model.predict; for the old network of --source=matterport only.",
    flag_values=FLAGS,
)
flags.DEFINE_string("output_dir", None, "folder for evaluation-<split>.json", flag_values=FLAGS)
flags.mark_flags_as_required(["annotations"], flag_values=FLAGS)


def main(_rest: list[str]) -> None:
    try:
        sigmas = None if FLAGS.sigmas is None else [float(text) for text in FLAGS.sigmas]
    except ValueError:
        raise command.UserError(f"--sigmas={','.join(FLAGS.sigmas)}: must be numbers with commas between") from None
    command.load_tensorflow()
    from model.evaluation.evaluator import evaluate_files

    print(
        evaluate_files(
            annotations=FLAGS.annotations,
            model=FLAGS.model,
            data_dir=FLAGS.data_dir,
            split=FLAGS.split,
            results=FLAGS.results,
            sigmas=sigmas,
            decoder=FLAGS.decoder,
            legacy_decoding=FLAGS.legacy_decoding,
            output_dir=FLAGS.output_dir,
        )
    )


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
