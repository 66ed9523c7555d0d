"""The model as an ONNX file (opset 17) for ONNX Runtime, OpenVINO and TensorRT.

One input, `images` uint8 [1, height, width, 3] of any size; the outputs of `serve_images`. A batch of one, since NMS over
a free batch becomes a loop, which OpenVINO and TensorRT refuse. What a client must know lies in the file's metadata.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from export.compare import Answer, ConversionError
from export.tflite_quantized import MissingError
from model.inference.serving import ServingModule

OPSET = 17  # tf2onnx 1.17 writes up to 18
OUTPUTS = ("num_detections", "boxes", "scores", "keypoints", "keypoint_scores")
INSTALL = "pip install 'keypoint-rcnn-tensorflow[onnx]'"


def convert(module: ServingModule, notes: Mapping[str, Any]) -> bytes:
    """The model as an ONNX file.

    Args:
      module: the model.
      notes: what becomes the file's metadata, each entry as JSON.

    Raises:
      MissingError: tf2onnx or onnx is not installed.
      ConversionError: the file has a loop, or is not valid.
    """
    try:
        import onnx
        import tf2onnx
    except ImportError as error:
        raise MissingError(f"needs {error.name}: {INSTALL}") from None
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    function = module.serve_one_image
    model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    _name_dimensions(model, module)
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    loops = {node.op_type for node in model.graph.node} & {"Loop", "If", "Scan"}
    if loops:
        raise ConversionError(f"the ONNX file has {', '.join(sorted(loops))}, which OpenVINO and TensorRT refuse")
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _name_dimensions(model: Any, module: ServingModule) -> None:
    """Names the free sides of the input, and states the fixed shapes of the outputs."""
    (images,) = model.graph.input
    sides = images.type.tensor_type.shape.dim
    sides[0].dim_value, sides[1].dim_param, sides[2].dim_param, sides[3].dim_value = 1, "height", "width", 3
    people, points = module.model.config.inference.max_detections, module.model.skeleton.num_keypoints
    shapes = {
        "num_detections": [1],
        "boxes": [1, people, 4],
        "scores": [1, people],
        "keypoints": [1, people, points, 2],
        "keypoint_scores": [1, people, points],
    }
    found = {output.name: output for output in model.graph.output}
    if module.model.skeleton.num_classes > 1:
        shapes["classes"] = [1, people]
    if set(found) != set(shapes):
        raise ConversionError(f"the ONNX file answers with {sorted(found)}, not with {sorted(shapes)}")
    for name, shape in shapes.items():
        dimensions = found[name].type.tensor_type.shape
        del dimensions.dim[:]
        for size in shape:
            dimensions.dim.add().dim_value = size


def runner(path: Path, threads: int | None = None) -> Callable[[Any], Answer]:
    """A function of pixels uint8 [1, h, w, 3]. Raises: MissingError, unless ONNX Runtime is installed."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingError(f"needs onnxruntime: {INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Any) -> Answer:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return run
