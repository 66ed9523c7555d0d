"""Lets TF-TRT divide a SavedModel into engines, as export/convert_tensorrt.py does, on a machine without a GPU.

  python segment_with_tf_trt.py FOLDER MINIMUM_SEGMENT_SIZE SIGNATURE...

Prints a line of JSON for each signature: the convolutions of each engine, and those left in TensorFlow. A stand-in for TensorRT
must lie on LD_LIBRARY_PATH.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tensorflow.python.compiler.tensorrt import trt_convert

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "export"))  # the converter is a program of its own
convert_tensorrt = importlib.import_module("convert_tensorrt")
folder, size = Path(sys.argv[1]), int(sys.argv[2])
zeros = trt_convert.array_ops.zeros


def on_a_gpu(shape: Any, *arguments: Any, **named: Any) -> Any:
    """The converter asks a scalar where it lies."""
    return SimpleNamespace(device="/device:GPU:0") if shape == [] else zeros(shape, *arguments, **named)


for signature in sys.argv[3:]:
    options = argparse.Namespace(precision="FP32", workspace_bytes=1 << 30, minimum_segment_size=size, profile_strategy=None)
    parameters = convert_tensorrt._parameters(options, folder, shapes=1) | {"input_saved_model_signature_key": signature}
    converter = trt_convert.TrtGraphConverterV2(**parameters)
    with mock.patch.object(trt_convert.array_ops, "zeros", on_a_gpu):
        graph = converter.convert().graph.as_graph_def()
    held, left = convert_tensorrt._convolutions(graph)
    print(json.dumps({"signature": signature, "engines": held, "left": left}), flush=True)
