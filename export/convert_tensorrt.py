"""Converts an exported SavedModel with TF-TRT: a program of its own that needs TensorFlow and NumPy, nothing of this project.

  python convert_tensorrt.py --saved_model=exported/keypoint_rcnn/1 --output_dir=exported/keypoint_rcnn_trt/1 --precision=FP16

TF-TRT ended with TensorFlow 2.17. Copy this file and the SavedModel to where it still is: a container
nvcr.io/nvidia/tensorflow (24.xx-tf2-py3), or `pip install 'tensorflow[and-cuda]==2.17.1'` with TensorRT 8.6. SavedModels that
TensorFlow 2.21 wrote load there. `--check` says whether this machine can do it.

The result answers the signatures serving_default (JPEG or PNG files) and serve_images (pixels uint8 [1, height, width, 3]).
Unlike the SavedModel's, its serving_default checks no header and applies no stored rotation: send it images that you trust.
It was never run on a GPU by its authors: see assets/tensorrt.json for what was built and compared on yours.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

SIGNATURE = "serve_one_image"  # of what is converted: no loop over images lies around the network
CONTAINER = "a container nvcr.io/nvidia/tensorflow (24.xx-tf2-py3) has it; ONNX and trtexec are the way without TF-TRT"


def main() -> int:
    options = _options()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    refusal = _refusal()
    if refusal:
        return _fail(refusal)
    if options.check:
        print("TF-TRT can convert here")
        return 0
    if options.saved_model is None or options.output_dir is None:
        return _fail("--saved_model and --output_dir: both are needed")
    source, target = Path(options.saved_model), Path(options.output_dir)
    if not (source / "saved_model.pb").is_file():
        return _fail(f"--saved_model={source}: has no saved_model.pb; name the folder of one version")
    if target.exists():
        return _fail(f"--output_dir={target}: is there already; name another folder")
    temporary = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        reason = _convert(options, source, temporary)
        if reason:
            return _fail(reason)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"written: {target}")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says in one line what argparse says below a page of usage."""
        sys.exit(_fail(f"{message}; --help explains every flag"))


def _options() -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saved_model", help="the folder of one version, as export.export_model writes it")
    parser.add_argument("--output_dir", help="a new folder")
    parser.add_argument("--precision", choices=["FP32", "FP16", "INT8"], default="FP16")
    for name, meaning in (("min", "smallest"), ("opt", "usual"), ("max", "largest")):
        parser.add_argument(f"--{name}_shape", type=_shape, help=f"height×width of the {meaning} image, such as 800x1088")
    parser.add_argument("--workspace_bytes", type=int, default=1 << 32, help="memory that TensorRT may use to build")
    parser.add_argument("--minimum_segment_size", type=int, default=30, help="nodes that an engine must hold at least")
    parser.add_argument("--profile_strategy", choices=["Range", "Optimal", "Range+Optimal", "ImplicitBatchModeCompatible"])
    parser.add_argument("--calibration_images", help="folder of JPEG files for INT8")
    parser.add_argument("--check", action="store_true", help="say whether this machine can convert, and end")
    return parser.parse_args()


def _shape(text: str) -> tuple[int, int]:
    height, separator, width = text.lower().replace("×", "x").partition("x")
    sides = [int(side) if side.isdecimal() else 0 for side in (height, width)]
    if not separator or not all(sides) or any(side % 32 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: must be height×width, both multiples of 32, such as 800x1088")
    return sides[0], sides[1]


def _refusal() -> str | None:
    """Why this machine cannot convert, in one line; None if it can."""
    try:
        import tensorflow as tf
        from tensorflow.python.compiler.tensorrt import utils
    except ImportError as error:
        return f"TF-TRT needs TensorFlow up to 2.17 ({error}); {CONTAINER}"
    linked = utils.get_linked_tensorrt_version() if hasattr(utils, "get_linked_tensorrt_version") else (0, 0, 0)
    if not any(linked):
        return f"TensorFlow {tf.__version__} is built without TensorRT, as all are since 2.18; {CONTAINER}"
    library = f"libnvinfer.so.{linked[0]}"
    if not _can_be_loaded(library):  # TensorFlow itself would end the process
        built_for = ".".join(map(str, linked))
        return f"TensorFlow {tf.__version__} is built for TensorRT {built_for}, and {library} is not found; {CONTAINER}"
    if not tf.config.list_physical_devices("GPU"):
        return "TF-TRT builds engines on the GPU that will run them, and TensorFlow finds none here"
    return None


def _can_be_loaded(library: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _convert(options: argparse.Namespace, source: Path, target: Path) -> str | None:
    """Converts, compares and saves. Returns why the result is of no use, or None."""
    import tensorflow as tf
    from tensorflow.python.compiler.tensorrt import trt_convert as trt

    config = json.loads((source / "assets" / "config.json").read_text())
    images = _images(options, config)
    shapes = [shape for shape in (options.min_shape, options.opt_shape, options.max_shape) if shape] or [images[0].shape[1:3]]
    engine = target.with_name(target.name + ".engine")
    converter = trt.TrtGraphConverterV2(**_parameters(options, source, len(shapes)))
    feed = (lambda: ([image] for image in images)) if options.precision == "INT8" else None
    held, left = _convolutions(converter.convert(calibration_input_fn=feed).graph.as_graph_def())
    if not any(held):
        least = f"of {options.minimum_segment_size} nodes or more"
        return f"TF-TRT put no convolution into an engine {least}; try a smaller --minimum_segment_size"
    try:
        converter.build(input_fn=lambda: ([tf.zeros([1, *shape, 3], tf.uint8)] for shape in shapes))
        converter.save(str(engine), save_gpu_specific_engines=True)
        own = tf.saved_model.load(str(source))
        module = _Wrapper(tf, source, engine, config)
        share, worst = _agreement(own.signatures["serve_images"], module.engine.signatures[SIGNATURE], images)
        if options.precision == "FP32" and share < 0.98:
            return f"the engines give {share:.3f} of the SavedModel's boxes within 0.5 px (largest difference {worst:.2f} px)"
        signatures = {"serving_default": module.serving_default, "serve_images": module.serve_images}
        tf.saved_model.save(module, str(target), signatures=signatures)
    finally:
        shutil.rmtree(engine, ignore_errors=True)
    without_checksums = shutil.ignore_patterns("sha256.json")  # (of the files that were converted)
    shutil.copytree(source / "assets", target / "assets", dirs_exist_ok=True, ignore=without_checksums)
    about = {
        "tensorflow": tf.__version__,
        "gpu": [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")],
        "precision": options.precision,
        "engines": len(held),
        "convolutions_of_each_engine": held,
        "convolutions_left_in_tensorflow": left,
        "boxes_within_half_a_pixel": share,
        "largest_box_difference_pixels": worst,
    }
    (target / "assets" / "tensorrt.json").write_text(json.dumps(about, indent=2, default=str) + "\n")
    return None


def _parameters(options: argparse.Namespace, source: Path, shapes: int) -> dict:  # type: ignore[type-arg]
    """What the converter is told; `shapes`: how many sizes of images the engines are built for."""
    return {
        "input_saved_model_dir": str(source),
        "input_saved_model_signature_key": SIGNATURE,
        "precision_mode": options.precision,
        "max_workspace_size_bytes": options.workspace_bytes,
        "minimum_segment_size": options.minimum_segment_size,
        "use_dynamic_shape": True,
        "use_calibration": options.precision == "INT8",
        "dynamic_shape_profile_strategy": options.profile_strategy or ("Range" if shapes > 1 else "Optimal"),
    }


def _convolutions(graph) -> tuple[list[int], int]:  # type: ignore[no-untyped-def]
    """How many convolutions each engine of a converted graph holds, most first, and how many TensorFlow itself runs."""

    def count(nodes) -> int:  # type: ignore[no-untyped-def]
        return sum(node.op in ("Conv2D", "Conv2DBackpropInput", "DepthwiseConv2dNative") for node in nodes)

    # The segment of an engine lies among the functions, for the case that its engine cannot run.
    segments = {node.attr["segment_func"].func.name for node in graph.node if node.op == "TRTEngineOp"}
    functions = {function.signature.name: count(function.node_def) for function in graph.library.function}
    held = sorted((functions[name] for name in segments), reverse=True)
    return held, count(graph.node) + sum(number for name, number in functions.items() if name not in segments)


def _images(options: argparse.Namespace, config: dict) -> list:  # type: ignore[type-arg]
    """Images uint8 [1, height, width, 3] for calibration and comparison: those of a folder, else coloured patches."""
    import tensorflow as tf

    height, width = options.opt_shape or (-(-config["inference"]["short_edge"] // 32) * 32,) * 2
    names = sorted(Path(options.calibration_images).glob("*.jp*g"))[:64] if options.calibration_images else []
    found = [tf.cast(tf.image.resize(tf.io.decode_jpeg(n.read_bytes(), channels=3), [height, width]), tf.uint8) for n in names]
    for seed in range(0 if found else 4):
        rough = tf.random.stateless_uniform([12, 16, 3], [seed, 0], 0, 255)
        found.append(tf.cast(tf.image.resize(rough, [height, width], "bicubic"), tf.uint8))
    return [image[None] for image in found]


def _agreement(own, other, images) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """The share of boxes within 0.5 px of the nearest one of the engines, and the largest distance of those."""
    import numpy as np

    distances = [0.0]
    for image in images:
        wanted, found = own(images=image), other(images=image)
        count, others = int(wanted["num_detections"][0]), found["boxes"][0, : int(found["num_detections"][0])].numpy()
        for box in wanted["boxes"][0, :count].numpy():
            distances.append(float(np.abs(others - box).max(axis=1).min()) if len(others) else float("inf"))
    return float(np.mean(np.array(distances) <= 0.5)), max(distances)


def _Wrapper(tf, source: Path, engine: Path, config: dict):  # type: ignore[no-untyped-def, type-arg] # noqa: N802
    """A module: files → pixels → engines → pixels of each image. The converter saves the converted signature alone."""

    class Wrapper(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.engine = tf.saved_model.load(str(engine))

        @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8, name="images")], autograph=False)
        def serve_images(self, images):  # type: ignore[no-untyped-def]
            return self.engine.signatures[SIGNATURE](images=images)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
        def serving_default(self, image_bytes):  # type: ignore[no-untyped-def]
            spec = {
                name: tf.TensorSpec(t.shape[1:], t.dtype)
                for name, t in self.engine.signatures[SIGNATURE].structured_outputs.items()
            }
            return tf.map_fn(self._one, image_bytes, fn_output_signature=spec, parallel_iterations=1)

        def _one(self, encoded):  # type: ignore[no-untyped-def]
            pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            pixels.set_shape([None, None, 3])
            size = tf.cast(tf.shape(pixels)[:2], tf.float32)
            edges = config["inference"]
            factor = tf.minimum(edges["short_edge"] / tf.reduce_min(size), edges["max_edge"] / tf.reduce_max(size))
            resized = tf.maximum(tf.cast(size * factor + 0.5, tf.int32), 1)
            antialias = config["data"]["resize"] == "detectron2"
            small = tf.image.resize(tf.cast(pixels, tf.float32), resized, antialias=antialias)
            found = self.engine.signatures[SIGNATURE](images=tf.expand_dims(tf.cast(small + 0.5, tf.uint8), 0))
            scale = (size / tf.cast(resized, tf.float32))[::-1]
            offset = config["data"]["keypoint_offset"]
            found["boxes"] *= tf.concat([scale, scale], 0)
            points = (found["keypoints"] + offset) * scale - offset
            found["keypoints"] = tf.where((found["scores"] > 0)[..., None, None], points, 0.0)
            return {name: value[0] for name, value in found.items()}

    return Wrapper()


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
