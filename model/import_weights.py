r"""Makes a model directory of somebody else's weights: torchvision's or Detectron2's Keypoint R-CNN, or the old Keras network.

  python -m model.import_weights --source=torchvision --weights=keypointrcnn_resnet50_fpn_coco-fc266e95.pth --model_dir=MODEL
  python -m model.import_weights --source=detectron2 --weights=model_final_a6e10b.pkl --model_dir=MODEL
  python -m model.import_weights --source=matterport --weights=mask_rcnn_coco_humanpose.h5 --model_dir=MODEL

The third is matterport's Mask R-CNN for human pose, which keeps its own network, sizes and answers (docs/FROM_MATTERPORT.md).
Needs none of these packages. Reads .pth, .pkl, .safetensors and .h5; whatever a file holds, nothing in it is run. Depth and
widths are read off the tensors, all else (colours, resizing, anchors, RoIAlign, …) is as the family has it. model.predict,
model.evaluate and export.export_model take the directory as --model, model.train as --init; a backbone alone (a ResNet of
ImageNet) is for model.train --init itself.
"""

from __future__ import annotations

from absl import flags

from pipeline import command
from pipeline.command import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_enum(
    "source", None, ["torchvision", "detectron2", "matterport"], "Whose names and conventions the file has.", flag_values=FLAGS
)
flags.DEFINE_string("weights", None, "The file.", flag_values=FLAGS)
flags.DEFINE_string("model_dir", None, "Where the model is written; a new directory.", flag_values=FLAGS)
flags.DEFINE_string(
    "skeleton",
    None,
    "The keypoint set, if not COCO's 17: skeleton.json of a model directory, or pipeline.json of records.",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "norm_epsilon",
    None,
    "Of the batch norms. By default 1e-5, and 0 for torchvision's published COCO_V1 file, which its sha256 tells.",
    flag_values=FLAGS,
)
flags.DEFINE_multi_string(
    "set",
    [],
    "Sets what the file's owner did otherwise than the family, such as backbone.pixel_order=RGB; may be repeated.",
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
        print(f"import_weights: {line}", flush=True)

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
    print(f"import_weights: model in {FLAGS.model_dir}", flush=True)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
