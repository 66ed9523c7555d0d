r"""Makes a model directory of somebody else's weights: torchvision's or Detectron2's Keypoint R-CNN, or the old Keras network.

  python -m model.import_weights --source=torchvision --weights=keypointrcnn_resnet50_fpn_coco-fc266e95.pth --model_dir=MODEL
  python -m model.import_weights --source=detectron2 --weights=model_final_a6e10b.pkl --model_dir=MODEL
  python -m model.import_weights --source=matterport --weights=mask_rcnn_coco_humanpose.h5 --model_dir=MODEL

The third is matterport's Mask R-CNN for human pose, which keeps its own network, sizes and answers (docs/FROM_MATTERPORT.md).
The command needs none of these packages. It reads .pth, .pkl, .safetensors and .h5 files, and runs nothing of what they hold.
The tensors' shapes give depth and widths; the family gives all else (colours, resizing, anchors, RoIAlign, …). model.predict,
model.evaluate and export.export_model take the directory as --model, and model.train takes it as --init. A backbone alone (a
ResNet of ImageNet) is not imported: model.train takes its file as --init.
"""

from __future__ import annotations

from absl import flags

from pipeline import command
from pipeline.command import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_enum(
    "source",
    None,
    ["torchvision", "detectron2", "matterport"],
    "The family whose names and conventions the file has. Required.",
    flag_values=FLAGS,
)
flags.DEFINE_string("weights", None, "The file of weights. Required.", flag_values=FLAGS)
flags.DEFINE_string(
    "model_dir", None, "The directory to which the model is written; it must be new or empty. Required.", flag_values=FLAGS
)
flags.DEFINE_string(
    "skeleton",
    None,
    "A file with the keypoint set: the skeleton.json of a model directory, or the pipeline.json of a record folder. "
    "By default COCO's 17 keypoints.",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "norm_epsilon",
    None,
    "The epsilon of the batch norms. By default 1e-5, but 0 for torchvision's COCO_V1 file, known by its sha256.",
    flag_values=FLAGS,
)
flags.DEFINE_multi_string(
    "set",
    [],
    "A value of the configuration in which the file differs from its family: backbone.pixel_order=RGB; may be repeated.",
    flag_values=FLAGS,
)
flags.mark_flags_as_required(["source", "weights", "model_dir"], flag_values=FLAGS)


def main(_: list[str]) -> None:
    if FLAGS.norm_epsilon is not None and not 0 <= FLAGS.norm_epsilon < 1:
        raise UserError(f"--norm_epsilon={FLAGS.norm_epsilon}: must be from 0 to below 1")
    if FLAGS.source == "matterport" and FLAGS.norm_epsilon is not None:
        raise UserError(
            f"--norm_epsilon={FLAGS.norm_epsilon}: the network of --source=matterport has 0.001; leave the flag out"
        )
    command.load_tensorflow()
    from model.matterport.importing import import_model as import_matterport
    from model.weights.importing import import_model

    def report(line: str) -> None:
        command.say(f"import_weights: {line}")

    if FLAGS.source == "matterport":
        import_matterport(FLAGS.weights, FLAGS.model_dir, skeleton_file=FLAGS.skeleton, assignments=FLAGS.set, report=report)
    else:
        import_model(
            FLAGS.source,
            FLAGS.weights,
            FLAGS.model_dir,
            skeleton_file=FLAGS.skeleton,
            norm_epsilon=FLAGS.norm_epsilon,
            assignments=FLAGS.set,
            report=report,
        )
    command.say(f"import_weights: model in {FLAGS.model_dir}")


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
