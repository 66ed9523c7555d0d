"""What a trained model answers to: encoded images, or pixels. `Predictor` runs it and the exporter saves it.

Everything inside the network is in pixels of the canvas; everything that leaves this module is in pixels of the image given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from model.network.keypoint_head import Decoder, decode_fast
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline import image
from pipeline.data_config import ResizeRule

CANVAS_MULTIPLE = 32  # P5's stride: smaller canvases would lose the last row or column of a level
MAX_PIXELS = 64 * 2**20  # a header may promise more than any memory holds


def round_up(size: tf.Tensor) -> tf.Tensor:
    """The next multiple of `CANVAS_MULTIPLE`, at least one; an int or an integer tensor, element by element."""
    return (size + CANVAS_MULTIPLE - 1) // CANVAS_MULTIPLE * CANVAS_MULTIPLE


def header_size(image_bytes: tf.Tensor) -> tf.Tensor:
    """Reads an image's size off its first bytes, without decoding.

    Args:
      image_bytes: scalar string, a JPEG or PNG file.

    Returns:
      int32 [2], height and width in pixels.

    Raises:
      tf.errors.InvalidArgumentError: neither JPEG nor PNG, or more than `MAX_PIXELS`.
    """
    # A PNG begins with its signature, the length and the name of the first chunk, then width and height, big end first.
    is_png = (tf.strings.substr(image_bytes, 0, 8) == image.PNG_SIGNATURE) & (tf.strings.length(image_bytes) >= 24)
    is_jpeg = tf.strings.substr(image_bytes, 0, 2) == b"\xff\xd8"
    known = tf.debugging.Assert(is_png | is_jpeg, ["an image must be a JPEG or PNG file; this one begins neither like one"])
    with tf.control_dependencies([known]):
        size = tf.cond(
            is_png,
            lambda: tf.io.decode_raw(tf.strings.substr(image_bytes, 16, 8), tf.int32, little_endian=False)[::-1],
            lambda: tf.io.extract_jpeg_shape(image_bytes)[:2],
        )
    size = tf.ensure_shape(size, [2])
    height, width = tf.cast(size[0], tf.int64), tf.cast(size[1], tf.int64)
    fits = tf.debugging.Assert(
        (height > 0) & (width > 0) & (height <= MAX_PIXELS) & (width <= MAX_PIXELS) & (height * width <= MAX_PIXELS),
        [f"an image must have between 1 and {MAX_PIXELS} pixels; this one's height and width:", size],
    )
    with tf.control_dependencies([fits]):
        return tf.identity(size)


def own_pixels(
    detections: Mapping[str, tf.Tensor], scale: tf.Tensor, size: tf.Tensor, keypoint_offset: float
) -> dict[str, tf.Tensor]:
    """Takes answers from canvas pixels to those of the images, and cuts boxes at their edges.

    Args:
      detections: what `KeypointRCNN.detect` gives, float32 [N, D, ...].
      scale: float32 [N, 2], canvas over image along y and x.
      size: int32 [N, 2], height and width of the images.
      keypoint_offset: `DataConfig.keypoint_offset` of the model.
    """
    scale_xy = scale[:, ::-1]  # [N, 2]
    size_xy = tf.cast(size[:, ::-1], tf.float32)
    corners = tf.concat([scale_xy, scale_xy], axis=-1)[:, None]  # [N, 1, 4]
    limit = tf.concat([size_xy, size_xy], axis=-1)[:, None]
    found = (detections["scores"] > 0.0)[..., None, None]  # [N, D, 1, 1]
    return {
        "num_detections": detections["num_detections"],
        "boxes": tf.minimum(tf.maximum(detections["boxes"] / corners, 0.0), limit),
        "scores": detections["scores"],
        "keypoints": tf.where(found, detections["keypoints"] / scale_xy[:, None, None] - keypoint_offset, 0.0),
        "keypoint_scores": detections["keypoint_scores"],
    }


def _prepare(encoded: tf.Tensor, resized: tf.Tensor, canvas: tf.Tensor, rule: ResizeRule) -> tf.Tensor:
    """One file as pixels [H, W, 3]: decoded, resized to `resized` [2], at the top left of a canvas of `canvas` [2]."""
    return image.place(image.resize(image.decode(encoded), resized[0], resized[1], rule), canvas[0], canvas[1])


class ServingModule(tf.Module):
    """The two signatures of an exported model, over a model's variables.

    Both answer with `num_detections` int32 [N], `boxes` float32 [N, D, 4] (x0, y0, x1, y1), `scores` [N, D], `keypoints`
    [N, D, K, 2] (x, y) and `keypoint_scores` [N, D, K], best score first, zeros from `num_detections` on.

    Args:
      model: the model that answers.
      decode: how heatmaps become keypoints; an export takes the default, whose shapes are static.
    """

    def __init__(self, model: KeypointRCNN, decode: Decoder = decode_fast) -> None:
        super().__init__(name="serving")
        self._decode = decode
        # Saving would trace every Keras layer anew and store copies of the variables, which the converter to TFLite does not
        # find: keep the model out of what is tracked, and the raw variables in.
        self._model: Callable[[], KeypointRCNN] = lambda: model
        self._raw = list(model.variables_by_path().values())
        self._blank = tf.io.encode_png(tf.zeros([CANVAS_MULTIPLE, CANVAS_MULTIPLE, 3], tf.uint8)).numpy()

    @property
    def model(self) -> KeypointRCNN:
        """The model that answers."""
        return self._model()

    @property
    def _keypoint_offset(self) -> float:
        return self.model.config.data.keypoint_offset

    # Nothing branches on tensors in Python; without AutoGraph, tracing takes half the time.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
    def serving_default(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Finds the people in JPEG or PNG files, in pixels of each.

        Args:
          image_bytes: string [N]. N may be 0, and sizes may differ.

        Raises:
          tf.errors.InvalidArgumentError: an image that cannot be read, or has too many pixels (told before it is decoded).
        """
        count = tf.shape(image_bytes)[0]
        # oneDNN's convolutions refuse an empty batch: look at a blank image, and leave its answer out again.
        image_bytes = tf.cond(count > 0, lambda: image_bytes, lambda: tf.constant([self._blank]))
        size = tf.map_fn(header_size, image_bytes, fn_output_signature=tf.TensorSpec([2], tf.int32))
        inference, rule = self.model.config.inference, self.model.config.data.resize
        resized = tf.stack(
            image.resized_size_tf(size[:, 0], size[:, 1], inference.short_edge, inference.max_edge, rule), axis=-1
        )  # [N, 2]
        if self.model.config.backbone.norm == "group":
            # Its statistics are those of the whole canvas: on a canvas of its own, an image's answer is its own affair.
            found = tf.map_fn(self._detect_alone, (image_bytes, resized), fn_output_signature=self._answer_of_one())
        else:
            canvas = round_up(tf.reduce_max(resized, axis=0))
            pixels = tf.map_fn(
                lambda item: _prepare(item[0], item[1], canvas, rule),
                (image_bytes, resized),
                fn_output_signature=tf.TensorSpec([None, None, 3], image.pixel_dtype(rule)),
            )
            found = self.model.detect(pixels, resized, self._decode)
        answers = own_pixels(found, tf.cast(resized, tf.float32) / tf.cast(size, tf.float32), size, self._keypoint_offset)
        return {name: value[:count] for name, value in answers.items()}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")], autograph=False)
    def serve_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Finds the people in pixels as they are: RGB, uint8 [N, H, W, 3], not resized."""
        return self._detect_pixels(images)

    def serve_images_of_size(self, height: int, width: int) -> tf.types.experimental.ConcreteFunction:
        """`serve_images` for one image of a fixed size: all shapes are known, as TFLite wants them."""
        spec = tf.TensorSpec([1, height, width, 3], tf.uint8, name="images")
        return tf.function(self._detect_pixels, input_signature=[spec], autograph=False).get_concrete_function()

    def _detect_alone(self, item: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """`detect` of one encoded image, resized to the given size, on the smallest canvas."""
        encoded, resized = item
        pixels = _prepare(encoded, resized, round_up(resized), self.model.config.data.resize)
        found = self.model.detect(pixels[None], resized[None], self._decode)
        return {name: value[0] for name, value in found.items()}

    def _answer_of_one(self) -> dict[str, tf.TensorSpec]:
        number, keypoints = self.model.config.inference.max_detections, self.model.skeleton.num_keypoints
        return {
            "num_detections": tf.TensorSpec([], tf.int32),
            "boxes": tf.TensorSpec([number, 4], tf.float32),
            "scores": tf.TensorSpec([number], tf.float32),
            "keypoints": tf.TensorSpec([number, keypoints, 2], tf.float32),
            "keypoint_scores": tf.TensorSpec([number, keypoints], tf.float32),
        }

    def _detect_pixels(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        if images.shape.is_fully_defined():
            count, height, width, _ = images.shape
            padding = [[0, 0], [0, round_up(height) - height], [0, round_up(width) - width], [0, 0]]
            if height % CANVAS_MULTIPLE == 0 and width % CANVAS_MULTIPLE == 0:
                padding = []
        else:
            count, height, width = (tf.shape(images)[axis] for axis in range(3))
            more = tf.where(count > 0, 0, 1)  # an empty batch, as above
            padding = [
                [0, more],
                [0, tf.maximum(round_up(height), CANVAS_MULTIPLE) - height],
                [0, tf.maximum(round_up(width), CANVAS_MULTIPLE) - width],
                [0, 0],
            ]
        size = tf.tile(tf.stack([height, width])[None], [tf.maximum(count, 1), 1])
        canvas = tf.pad(images, padding) if padding else images
        found = self.model.detect(canvas, size, self._decode, static_shapes=isinstance(count, int))
        answers = own_pixels(found, tf.ones_like(size, tf.float32), size, self._keypoint_offset)
        return answers if isinstance(count, int) else {name: value[:count] for name, value in answers.items()}
