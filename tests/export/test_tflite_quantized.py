"""Which weights a smaller TFLite file holds as what: int8 keeps those in float16 that detections depend on most."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from export.tflite import SIGNATURE, random_images
from export.tflite_quantized import Kind, quantize

LAYER = re.compile(
    r"backbone\.conv1|layer\d|fpn\.(?:inner|layer)|rpn\.(?:conv|deltas|objectness)|box\.(?:conv|fc|class|deltas)"
    r"|keypoint\.(?:conv|deconv)"
)


class Layer(NamedTuple):
    """How a layer computes: the types of its weights in the file, of the weights it sees, and of the features it sees."""

    stored: str
    weights: str
    features: str


def layers_of(content: bytes) -> dict[str, set[Layer]]:
    """By the names of layers, or of what they belong to."""
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    widened: dict[int, int] = {}  # from what a layer sees to what lies in the file
    found: dict[str, set[Layer]] = {}
    for operator in interpreter._get_ops_details():
        inputs, output = [int(i) for i in operator["inputs"]], int(operator["outputs"][0])
        if operator["op_name"] == "DEQUANTIZE":
            widened[output] = inputs[0]
        if operator["op_name"] in ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
            weights, features = (inputs[1], inputs[2 if operator["op_name"] == "TRANSPOSE_CONV" else 0])
            types = [np.dtype(tensors[i]["dtype"]).name for i in (widened.get(weights, weights), weights, features)]
            for name in set(LAYER.findall(tensors[output]["name"])):
                found.setdefault(name, set()).add(Layer(*types))
    return found


@pytest.mark.parametrize("kind", ["dynamic", "int8"])
def test_int8_holds_float16_where_detections_depend_on_it(kind: Kind, exported: Path) -> None:
    content = (exported / "keypoint_rcnn.tflite").read_bytes()
    # (The box head of this model has no convolutions.)
    found = layers_of(quantize(content, kind, list(random_images(96, 128, 1)), SIGNATURE))
    fine, coarse = Layer("float16", "float32", "float32"), Layer("int8", "float32", "float32")
    on_the_fly, arithmetic = Layer("int8", "int8", "float32"), Layer("int8", "int8", "int8")
    wanted = {
        **dict.fromkeys(("backbone.conv1", "layer1", "layer2", "fpn.layer", "rpn.conv", "rpn.deltas"), fine),
        "rpn.objectness": fine,
        **dict.fromkeys(("layer3", "layer4", "fpn.inner", "box.fc", "box.class", "box.deltas"), coarse),
        "keypoint.conv": arithmetic if kind == "int8" else on_the_fly,
        "keypoint.deconv": arithmetic if kind == "int8" else coarse,
    }
    assert found == {name: {how} for name, how in wanted.items()}
