"""Smaller TFLite files, made of the float file by ai-edge-quantizer: float16 weights, int8 weights, int8 arithmetic.

Full int8 is refused by design: the arithmetic of boxes (deltas, NMS, RoIAlign) has no ranges that eight bits can hold, and the
converter's attempt dies of a zero divisor. So only convolutions and fully connected layers are quantised.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.compare import ConversionError

Pixels = npt.NDArray[np.uint8]
Kind = Literal["float16", "dynamic", "int8", "int8_all"]
EVERYWHERE = ".*"  # names of the output tensors of layers
KEYPOINT_HEAD = ".*keypoint_head.*"
# Few weights through which all that follows is seen: stem and first two stages, the pyramid's outputs, RPN, the box head's
# convolutions. Rounded to int8, they turn the order of nearly equal proposals, and NMS keeps others.
FINE = r".*(backbone\.conv1|layer[12]\.|fpn\.layer|rpn\.|box\.conv).*"


class MissingError(Exception):
    """A format that this machine cannot make; the message says why, and what would be needed."""


def quantize(content: bytes, kind: Kind, calibration: Sequence[Pixels], signature: str) -> bytes:
    """A quantised form of a float TFLite file.

    Args:
      content: the float file.
      kind: "float16": weights as float16, computed in float32. "int8": weights as int8, those of `FINE`
        as float16, and the keypoint head in int8 arithmetic with ranges from `calibration`. "dynamic": the same weights; what
        the convolutions of the keypoint head see is quantised on the fly. "int8_all": int8 arithmetic in every layer.
      calibration: images [H, W, 3] of the file's size.
      signature: whose input `images` they are.

    Raises:
      MissingError: ai-edge-quantizer is not installed.
      ConversionError: the quantizer fails.
    """
    try:
        from ai_edge_quantizer import algorithm_manager, qtyping, quantizer
    except ImportError:
        raise MissingError("needs ai-edge-quantizer: pip install 'keypoint-rcnn-tensorflow[quantize]'") from None
    names = qtyping.TFLOperationName
    made = quantizer.Quantizer(bytearray(content))
    as_float16 = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    casting = algorithm_manager.AlgorithmName.FLOAT_CASTING
    for layer in (names.CONV_2D, names.CONV_2D_TRANSPOSE, names.FULLY_CONNECTED):
        if kind == "float16":
            made.update_quantization_recipe(EVERYWHERE, layer, as_float16, casting)
        elif kind == "int8_all":
            made.add_static_config(EVERYWHERE, layer, 8, 8)
        else:  # of two recipes that fit, the later one holds
            made.add_weight_only_config(EVERYWHERE, layer, 8)
            made.update_quantization_recipe(FINE, layer, as_float16, casting)
            if kind == "int8":
                made.add_static_config(KEYPOINT_HEAD, layer, 8, 8)
            # (Interpreters of 2023 refuse transposed convolutions of this kind, and answer wrongly of fully connected layers.)
            elif layer == names.CONV_2D:
                made.add_dynamic_config(KEYPOINT_HEAD, layer, 8)
    with _quiet():
        try:
            ranges = made.calibrate({signature: [{"images": image[None]} for image in calibration]}, num_threads=2)
            result: Any = made.quantize(ranges, enable_progress_report=False)
        except (RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ConversionError(f"TFLite {kind}: ai-edge-quantizer fails ({reason}); leave the format out") from None
    return bytes(result.quantized_model)


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the quantizer's own bars on stderr, which a log cannot show, and its warning that calibration takes memory."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
