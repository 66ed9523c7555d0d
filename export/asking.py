"""Asks an artifact as a stranger does: in a process that imports its runtime and NumPy, and nothing of this project."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.compare import Answer, ConversionError
from model.inference import two_stages

Runtime = Literal["saved_model", "tflite", "tflite_parts", "tflite_sizes", "onnx"]
Pixels = npt.NDArray[np.uint8]

_TWO_STAGES = Path(two_stages.__file__).read_text().replace("from __future__ import annotations\n", "")
_BEGIN = """
from __future__ import annotations
import sys
import numpy as np
model, pixels, answers = sys.argv[1:]
"""
_SEVERAL_SIGNATURES = f"""
{_TWO_STAGES}
from ai_edge_litert.interpreter import Interpreter
signatures = runner(Interpreter(model_path=model))
run = lambda p: signatures(images=p)
allowed = {{"ai_edge_litert"}}
"""
_LOAD: dict[Runtime, str] = {
    "saved_model": """
import tensorflow as tf
loaded = tf.saved_model.load(model)
signature = loaded.signatures["serve_images"]
run = lambda p: {k: v.numpy() for k, v in signature(images=tf.constant(p)).items()}
allowed = {"tensorflow"}
""",
    "tflite": """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=model)
signature = interpreter.get_signature_runner("serve_images")
run = lambda p: signature(images=p)
allowed = {"ai_edge_litert"}
""",
    "tflite_parts": _SEVERAL_SIGNATURES,
    "tflite_sizes": _SEVERAL_SIGNATURES,
    "onnx": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
run = lambda p: dict(zip(names, session.run(names, {"images": p})))
allowed = {"onnxruntime"}
""",
}
_END = """
with np.load(pixels) as images:
    found = {f"{i}/{k}": v for i in images.files for k, v in run(images[i][None]).items()}
foreign = ({"model", "pipeline", "export", "tensorflow", "ai_edge_litert", "onnxruntime"} - allowed) & set(sys.modules)
assert not foreign, foreign
np.savez(answers, **found)
"""


def ask(runtime: Runtime, path: Path, images: Sequence[Pixels], folder: Path) -> list[Answer]:
    """The artifact's answers.

    Args:
      runtime: what runs it.
      path: of the SavedModel's version, or of the file.
      images: uint8 [H, W, 3] each, of sizes that the artifact takes.
      folder: where questions and answers may lie for a moment.

    Returns:
      For each image the arrays of `serve_images`, a batch of one.

    Raises:
      ConversionError: the artifact cannot be loaded or run there.
    """
    pixels, answers = folder / "pixels.npz", folder / "answers.npz"
    named: dict[str, Any] = {str(i): image for i, image in enumerate(images)}
    np.savez(pixels, **named)
    arguments = [str(path.resolve()), str(pixels.resolve()), str(answers.resolve())]
    code = _BEGIN + _LOAD[runtime] + _END
    ended = subprocess.run([sys.executable, "-I", "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"it ended with status {ended.returncode}"])[-1]
        raise ConversionError(f"{path.name}: a process of its own cannot run it ({reason})")
    with np.load(answers) as found:
        answered: list[dict[str, npt.NDArray[np.generic]]] = [{} for _ in images]
        for key in found.files:
            number, _, name = key.partition("/")
            answered[int(number)][name] = found[key]
    return list(answered)
