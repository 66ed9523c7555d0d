"""Asks an ONNX file in OpenVINO: python ask_onnx_with_openvino.py MODEL.onnx SAVED_MODEL IMAGES.npz ANSWERS.npz

Images lie in the first .npz by name, uint8 [1, height, width, 3]; answers in the second as "<name>/<output>". Prints what
OpenVINO says of the SavedModel folder.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import openvino

onnx, saved_model, images, answers = sys.argv[1:]
core = openvino.Core()
exact = {"INFERENCE_PRECISION_HINT": "f32"}  # some processors compute in bfloat16 otherwise
model = core.compile_model(core.read_model(onnx), "CPU", exact)
names = [output.get_any_name() for output in model.outputs]
found: dict[str, Any] = {}
with np.load(images) as files:
    for name in files:
        result = model({"images": files[name]})
        found |= {f"{name}/{output}": result[output] for output in names}
np.savez(answers, **found)
try:
    core.compile_model(core.read_model(saved_model), "CPU")
except Exception as error:  # of a kind that OpenVINO's Python does not export
    print("refused:", " ".join(str(error).split()))
