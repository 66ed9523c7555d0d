"""Asks TFLite files: python ask_tflite.py RUNTIME IMAGES.npz ANSWERS.npz MODEL.tflite...

RUNTIME is the module that has `interpreter`, such as tflite_runtime or ai_edge_litert. Images lie in the first .npz by name,
uint8 [1, height, width, 3]; answers in the second as "<file>/<name>/<output>". Prints the runtime's version. Files of several
signatures are run by model/inference/two_stages.py, of which docs/EXPORTS.md says that it may be copied.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

runtime, images, answers, *models = sys.argv[1:]
interpreters = importlib.import_module(f"{runtime}.interpreter")
source = Path(__file__).resolve().parents[2] / "model" / "inference" / "two_stages.py"
spec = importlib.util.spec_from_file_location("two_stages", source)
assert spec is not None and spec.loader is not None
two_stages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(two_stages)
found: dict[str, Any] = {}
with np.load(images) as pixels:
    for model in models:
        answer = two_stages.runner(interpreters.Interpreter(model_path=model, num_threads=1))
        for name in pixels:
            found |= {f"{Path(model).name}/{name}/{key}": value for key, value in answer(images=pixels[name]).items()}
np.savez(answers, **found)
print(metadata.version(runtime))
