"""Builds engines ahead of time with TensorRT-RTX, without a GPU: python build_with_tensorrt_rtx.py parse|build MODEL.onnx ...

Each word holds for the files that follow it. Prints a line for each file: its name, and the engine's bytes or 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorrt_rtx_bindings as tensorrt_rtx

logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
build = False
for word in sys.argv[1:]:
    if word in ("parse", "build"):
        build = word == "build"
        continue
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    if not parser.parse(Path(word).read_bytes()):
        sys.exit(f"{word}: " + "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    engine = builder.build_serialized_network(network, builder.create_builder_config()) if build else b""
    if engine is None:
        sys.exit(f"{word}: no engine was built")
    print(Path(word).name, len(bytes(engine)), flush=True)
