"""How much arithmetic a training step does, and how much its devices could do: the two sides of MFU, model FLOPs utilisation.

Counted are the products of convolutions and matrix multiplications, forward and backward, from the graph of the step with the
shapes of one batch; a multiplication with its addition counts as two. All else of the step is little beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# Dense TFLOP/s by the makers' data sheets: in float16 or bfloat16 with sums in float32; and in float32, as TensorFlow computes
# it there by default (TF32 from NVIDIA's Ampere generation on). The first name that a device's name contains counts.
PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 1125.0),
    ("H200", 989.0, 494.0),
    ("H100 PCIe", 756.0, 378.0),
    ("H100", 989.0, 494.0),
    ("A100", 312.0, 156.0),
    ("A40", 149.7, 74.8),
    ("A30", 165.0, 82.0),
    ("A10", 125.0, 62.5),
    ("L40S", 362.0, 183.0),
    ("L4", 121.0, 60.0),
    ("V100", 125.0, 15.7),
    ("T4", 65.0, 8.1),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71.0, 35.6),
)

# Operations that call a function, and the attribute that names it.
CALLS = {"PartitionedCall": "f", "StatefulPartitionedCall": "f", "While": "body", "StatelessWhile": "body"}


def peak_tflops(device: str, precision: str) -> float | None:
    """The peak of a device whose name a driver gives, such as "NVIDIA H200"; None if it is not in the table.

    Args:
      precision: the Keras policy of the layers.
    """
    for name, half, single in PEAKS:
        if name in device:
            return single if precision == "float32" else half
    return None


def products(function: Any, arguments: Any, iterations: int = 1) -> float | None:
    """The floating-point operations of one call of a `tf.function`, on all its devices; None if its graph leaves it open.

    Args:
      function: has been called with arguments of these shapes already.
      arguments: of the call.
      iterations: how often a loop runs that holds products.
    """
    concrete = function.get_concrete_function(*arguments)
    given = tf.nest.flatten(arguments, expand_composites=True)
    stand_ins: list[Callable[[], tf.Tensor]] = []
    for value in [*given, *concrete.captured_inputs]:
        if value.dtype == tf.resource:
            stand_ins.append(_variable(value))
        else:
            stand_ins.append(_placeholder(value.dtype, value.shape))
    return _of_graph(concrete.graph, stand_ins, iterations)


def _placeholder(dtype: tf.DType, shape: tf.TensorShape) -> Callable[[], tf.Tensor]:
    return lambda: tf.raw_ops.Placeholder(dtype=dtype, shape=shape)


def _variable(handle: Any) -> Callable[[], tf.Tensor]:
    """A variable of the same shape, for shapes are inferred from it."""
    parts = handle._handle_data.shape_and_type
    if len(parts) != 1:
        return lambda: tf.raw_ops.Placeholder(dtype=tf.resource, shape=[])
    dtype, shape = tf.dtypes.as_dtype(parts[0].dtype), tf.TensorShape(parts[0].shape)
    return lambda: tf.raw_ops.VarHandleOp(dtype=dtype, shape=shape)


def _of_graph(graph: Any, stand_ins: Sequence[Callable[[], tf.Tensor]], iterations: int) -> float | None:
    """Puts other inputs into a function's graph, so that TensorFlow infers all its shapes anew, and adds up."""
    total = 0.0
    with tf.Graph().as_default() as copy:
        inputs = {placeholder.name: make() for placeholder, make in zip(graph.inputs, stand_ins, strict=True)}
        tf.graph_util.import_graph_def(graph.as_graph_def(), input_map=inputs, name="")
        for operation in _needed(copy, graph):
            if operation.type in CALLS:
                name, times = CALLS[operation.type], iterations if "While" in operation.type else 1
                inner = graph._get_function(operation.get_attr(name).name).graph
                part = _of_graph(inner, [_like(tensor) for tensor in operation.inputs], iterations)
                part = None if part is None else part * times
            else:
                part = _of_operation(operation)
            if part is None:
                return None
            total += part
    return total


def _needed(copy: tf.Graph, graph: Any) -> list[tf.Operation]:
    """The operations that outputs and updates of variables depend on; TensorFlow leaves out the others when it runs a graph."""
    ends = [output.op.name for output in graph.outputs] + [operation.name for operation in graph.control_outputs]
    left = [copy.get_operation_by_name(name) for name in ends]
    needed: dict[str, tf.Operation] = {}
    while left:
        operation = left.pop()
        if operation.name not in needed:
            needed[operation.name] = operation
            left += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return list(needed.values())


def _like(tensor: tf.Tensor) -> Callable[[], tf.Tensor]:
    if tensor.dtype == tf.resource and tensor.op.type == "VarHandleOp":
        dtype, shape = tensor.op.get_attr("dtype"), tf.TensorShape(tensor.op.get_attr("shape"))
        return lambda: tf.raw_ops.VarHandleOp(dtype=dtype, shape=shape)
    return _placeholder(tensor.dtype, tensor.shape)


def _of_operation(operation: tf.Operation) -> float | None:
    """Twice the products of one operation; 0 of one that is no product, None if its shapes are not known."""
    kind = operation.type
    if kind in ("Conv2D", "DepthwiseConv2dNative"):
        places, kernel = operation.outputs[0].shape, operation.inputs[1].shape
    elif kind == "Conv2DBackpropInput":
        places, kernel = operation.inputs[2].shape, operation.inputs[1].shape
    elif kind == "Conv2DBackpropFilter":
        places, kernel = operation.inputs[2].shape, operation.outputs[0].shape
    elif kind in ("MatMul", "BatchMatMulV2", "BatchMatMulV3"):
        places = operation.outputs[0].shape
        first, turned = operation.inputs[0].shape, "transpose_a" if kind == "MatMul" else "adj_x"
        if not (places.is_fully_defined() and first.is_fully_defined()):
            return None
        return float(2 * math.prod(places) * first[-2 if operation.get_attr(turned) else -1])
    else:
        return 0.0
    if not (places.is_fully_defined() and kernel.is_fully_defined()):
        return None
    return float(2 * math.prod(places) * math.prod(kernel[:3]))  # [height, width, channels in of a group, channels out]
