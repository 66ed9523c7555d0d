"""Converts a trained model to TFLite with built-in operators only.

The one signature, `serve_images`, takes `images` uint8 [1, H, W, 3] of a fixed size, RGB, and answers in pixels of what it was
given. An image of another size is letterboxed by the caller: made as large as it fits, at the top left, zeros elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from export.compare import ConversionError
from export.saved_model import temporary_folder
from model.config import AnyConfig
from model.inference import parts, two_stages
from model.inference.serving import ServingModule, round_up
from model.matterport.network import MaskRCNN
from model.network.keypoint_rcnn import PEOPLE_AT_ONCE, KeypointRCNN
from pipeline.command import UserError
from pipeline.data_config import CANVAS_MULTIPLE

Pixels = npt.NDArray[np.uint8]

LARGEST_SIDE = 8192  # pixels; the most that a conversion prepares
SIGNATURE = two_stages.WHOLE
PARTS = (two_stages.FIND_PEOPLE, two_stages.FIND_KEYPOINTS)
SIZES = two_stages.SIZES
# A converter that misses the variables writes these, a file without weights, and no error.
VARIABLE_OPERATORS = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")


def default_size(config: AnyConfig) -> tuple[int, int]:
    """Height and width that suit images in 4:3: the TFLite file sees these at the same size as the SavedModel does.

    The height is the short edge at inference, the width 4/3 of it (no more than the longest edge), both rounded up to 32.
    """
    inference = config.inference
    return round_up(inference.short_edge), round_up(min(inference.max_edge, round(inference.short_edge * 4 / 3)))


def check_size(height: int, width: int) -> None:
    """Raises: UserError if an image of that size makes no canvas."""
    for name, value in (("--tflite_height", height), ("--tflite_width", width)):
        if value < CANVAS_MULTIPLE or value % CANVAS_MULTIPLE:
            raise UserError(f"{name}={value}: must be a multiple of {CANVAS_MULTIPLE}; the next is {round_up(max(value, 1))}")
        if value > LARGEST_SIDE:
            raise UserError(f"{name}={value}: must be at most {LARGEST_SIDE} pixels")


def convert(model: KeypointRCNN | MaskRCNN, height: int, width: int, folder: Path, *, static_shapes: bool = False) -> bytes:
    """The model as a TFLite file.

    Args:
      model: the model.
      height, width: of the only images that it will take; multiples of 32.
      folder: where a SavedModel may lie for a moment.
      static_shapes: keypoints are looked for in all D places, for delegates that want fixed shapes; some 2 to 5 times as slow.
    """
    function = ServingModule(model).serve_images_of_size(height, width, static_shapes=static_shapes)
    return _converted(model, {SIGNATURE: function}, folder)


def convert_parts(model: KeypointRCNN, height: int, width: int, folder: Path) -> bytes:
    """The model as a TFLite file of two signatures, all shapes fixed, for delegates that want that (`model.inference.parts`).

    Args:
      model, height, width, folder: as for `convert`.
    """
    stages = (parts.find_people(model, height, width), parts.find_keypoints(model, height, width, PEOPLE_AT_ONCE))
    return _converted(model, dict(zip(PARTS, stages, strict=True)), folder)


def sizes(height: int, width: int) -> dict[str, tuple[int, int]]:
    """Height and width of each of `SIZES`: the canvas and the same turned, and the square of its short edge."""
    short, long = sorted((height, width))
    return dict(zip(SIZES, ((short, long), (long, short), (short, short)), strict=True))


def convert_sizes(model: KeypointRCNN | MaskRCNN, height: int, width: int, folder: Path) -> bytes:
    """The model as a TFLite file with a signature for each of `sizes`: the converter writes equal weights once.

    Args:
      model, height, width, folder: as for `convert`.
    """
    module = ServingModule(model)
    functions = {name: module.serve_images_of_size(*size) for name, size in sizes(height, width).items()}
    return _converted(model, functions, folder)


def _converted(
    model: KeypointRCNN | MaskRCNN, functions: Mapping[str, tf.types.experimental.ConcreteFunction], folder: Path
) -> bytes:
    """Functions of a model as the signatures of a TFLite file."""
    weights = tf.Module()  # instead of the serving module, whose other functions would be traced, saved and loaded too
    weights.variables_ = list(model.variables_by_path().values())
    with temporary_folder(folder, "tflite") as temporary:
        tf.saved_model.save(weights, str(temporary), signatures=dict(functions))
        converter = tf.lite.TFLiteConverter.from_saved_model(str(temporary), signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        content: bytes = converter.convert()
    return content


def check_file(content: bytes, model: KeypointRCNN | MaskRCNN) -> None:
    """Checks what a converted float file consists of.

    Raises:
      ConversionError: weights are missing, or it needs operators that are not built in.
    """
    weights = sum(4 * int(np.prod(v.shape)) for v in model.variables_by_path().values())
    if not 0.9 * weights < len(content) < 1.5 * weights + 2**22:
        raise ConversionError(f"the TFLite file has {len(content)} bytes, for {weights} bytes of weights")
    interpreter = Interpreter(model_content=content)
    operators = {operator["op_name"] for operator in interpreter._get_ops_details()}
    foreign = {name for name in operators if name in VARIABLE_OPERATORS or name.startswith(("Flex", "CUSTOM"))}
    if foreign:
        raise ConversionError(f"the TFLite file needs operators that are not built in: {', '.join(sorted(foreign))}")


def random_images(height: int, width: int, count: int = 3) -> Iterator[Pixels]:
    """Coloured patches of several scales: more like a photograph than noise is, so that a model finds something to answer."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        image = np.zeros((height, width, 3))
        for cells in (4, 12, 40):
            patches = tf.image.resize(rng.normal(0, 40, (1, cells, cells, 3)), (height, width), "bilinear")[0].numpy()
            image += patches
        yield np.clip(image + 128, 0, 255).astype(np.uint8)
