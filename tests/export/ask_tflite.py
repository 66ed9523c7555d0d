"""Asks TFLite files: python ask_tflite.py RUNTIME IMAGES.npz ANSWERS.npz MODEL.tflite...

RUNTIME is the module that has `interpreter`, such as tflite_runtime or ai_edge_litert. Images lie in the first .npz by name,
uint8 [1, height, width, 3]; answers in the second as "<file>/<name>/<output>". Prints the runtime's version.
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

runtime, images, answers, *models = sys.argv[1:]
interpreters = importlib.import_module(f"{runtime}.interpreter")
found: dict[str, Any] = {}
with np.load(images) as pixels:
    for model in models:
        answer = interpreters.Interpreter(model_path=model, num_threads=1).get_signature_runner("serve_images")
        for name in pixels:
            found |= {f"{Path(model).name}/{name}/{key}": value for key, value in answer(images=pixels[name]).items()}
np.savez(answers, **found)
print(metadata.version(runtime))
