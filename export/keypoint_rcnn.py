"""The installed program `keypoint-rcnn`: one name for all commands.

  keypoint-rcnn predict --model=imported --input=my_images --output_dir=predictions

is `python -m model.predict` with the same flags. It lies in `export` because that package may import the two others.
"""

from __future__ import annotations

import difflib
import runpy
import sys

# What is typed, the module that it runs, and what that does.
COMMANDS = {
    "convert": ("pipeline.make_tfrecords", "converts a COCO keypoint JSON and its images into records"),
    "inspect": ("pipeline.inspect_records", "draws, counts and verifies records"),
    "synthetic": ("pipeline.synthetic", "renders people in COCO's format"),
    "benchmark-loader": ("pipeline.benchmark_loader", "measures how fast batches are loaded"),
    "train": ("model.train", "trains a model on records"),
    "evaluate": ("model.evaluate", "prints COCO's figures and each joint's error"),
    "predict": ("model.predict", "finds people in images"),
    "import": ("model.import_weights", "makes a model of published weights"),
    "doctor": ("model.doctor", "says what this machine can do for training"),
    "compare": ("export.compare_exports", "compares exports with their model"),
    "export": ("export.export_model", "writes SavedModel, TFLite and ONNX files"),
}


def main() -> None:
    """Runs the command that the first argument names; without one it lists them."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        lines = [f"  {command:<18}{what} (python -m {module})" for command, (module, what) in COMMANDS.items()]
        print("\n".join(["keypoint-rcnn COMMAND --flag=value …", *lines, "keypoint-rcnn COMMAND --help lists the flags."]))
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        sys.exit(f"error: {name!r}: no such command; {hint}keypoint-rcnn --help lists them")
    module = COMMANDS[name][0]
    sys.argv = [f"keypoint-rcnn {name}", *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
