"""What a trained model answers to: encoded images, or pixels. `Predictor` runs it and the exporter saves it.

Everything inside the network is in pixels of the canvas; everything that leaves this module is in pixels of the image given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from model.inference.encoded_images import READ, SIDE_BY_SIDE, all_read, canvases, headers
from model.matterport.decoding import decode_unrounded
from model.matterport.network import MaskRCNN
from model.network.keypoint_head import Decoder, decode_fast
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline import image
from pipeline.data_config import CANVAS_MULTIPLE

# What `own_pixels` does.
ToOwnPixels = Callable[[Mapping[str, tf.Tensor], tf.Tensor, tf.Tensor, float], dict[str, tf.Tensor]]


def round_up(size: tf.Tensor) -> tf.Tensor:
    """The next multiple of `CANVAS_MULTIPLE`, at least one; an int or an integer tensor, element by element."""
    return (size + CANVAS_MULTIPLE - 1) // CANVAS_MULTIPLE * CANVAS_MULTIPLE


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
    corners = tf.expand_dims(tf.concat([scale_xy, scale_xy], axis=-1), 1)  # [N, 1, 4]
    limit = tf.expand_dims(tf.concat([size_xy, size_xy], axis=-1), 1)  # [N, 1, 4]
    found = tf.expand_dims(tf.expand_dims(detections["scores"] > 0.0, -1), -1)  # [N, D, 1, 1]
    per_point = tf.expand_dims(tf.expand_dims(scale_xy, 1), 1)  # [N, 1, 1, 2]
    return dict(detections) | {
        "boxes": tf.minimum(tf.maximum(detections["boxes"] / corners, 0.0), limit),
        "keypoints": tf.where(found, detections["keypoints"] / per_point - keypoint_offset, 0.0),
    }


def on_canvas(images: tf.Tensor, more: int | tf.Tensor = 0) -> tuple[tf.Tensor, tf.Tensor]:
    """Images as the network takes them: a size that is no multiple of 32 is filled up with zeros below and to the right.

    Args:
      images: uint8 [N, H, W, 3], RGB.
      more: blank images that are put behind them.

    Returns:
      float32 [N + more, …, …, 3], 0…255; int32 [2], H and W.
    """
    height, width = (images.shape[axis] or tf.shape(images)[axis] for axis in (1, 2))
    down, right = (tf.maximum(round_up(side), CANVAS_MULTIPLE) - side for side in (height, width))
    pixels = tf.cast(images, tf.float32)  # before it is padded: neither TensorRT nor ONNX Runtime pads bytes
    if not isinstance(height, int) or not isinstance(width, int) or height % CANVAS_MULTIPLE or width % CANVAS_MULTIPLE:
        pixels = tf.pad(pixels, [[0, more], [0, down], [0, right], [0, 0]])
    return pixels, tf.stack([height, width])


class ServingModule(tf.Module):
    """The signatures of an exported model, over a model's variables.

    All answer with `num_detections` int32 [N], `boxes` float32 [N, D, 4] (x0, y0, x1, y1), `scores` [N, D], `keypoints`
    [N, D, K, 2] (x, y) and `keypoint_scores` [N, D, K], best score first, zeros from `num_detections` on.
    If the model has several classes, also with `classes` int32 [N, D], 1…C in the order of `Skeleton.classes`.

    Args:
      model: the model that answers.
      decode: how heatmaps become keypoints; an export takes the model's own by default, whose shapes are static.
      to_own_pixels: how its answers leave the canvas, `own_pixels` by default.
    """

    def __init__(
        self, model: KeypointRCNN | MaskRCNN, decode: Decoder | None = None, to_own_pixels: ToOwnPixels | None = None
    ) -> None:
        super().__init__(name="serving")
        self._decode = decode or (decode_unrounded if isinstance(model, MaskRCNN) else decode_fast)
        self._to_own_pixels = to_own_pixels or own_pixels
        # Saving would trace every Keras layer anew and store copies of the variables, which the converter to TFLite does not
        # find: keep the model out of what is tracked, and the raw variables in.
        self._model: Callable[[], KeypointRCNN | MaskRCNN] = lambda: model
        self._raw = list(model.variables_by_path().values())
        self._blank = tf.io.encode_png(tf.zeros([CANVAS_MULTIPLE, CANVAS_MULTIPLE, 3], tf.uint8)).numpy()

    @property
    def model(self) -> KeypointRCNN | MaskRCNN:
        """The model that answers."""
        return self._model()

    @property
    def _keypoint_offset(self) -> float:
        return self.model.config.data.keypoint_offset

    # Nothing branches on tensors in Python; without AutoGraph, tracing takes half the time.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
    def serving_default(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Finds the people in JPEG or PNG files, in pixels of each as a viewer shows it: a stored rotation (EXIF) is applied.

        Args:
          image_bytes: string [N]. N may be 0, and sizes may differ.

        Raises:
          tf.errors.InvalidArgumentError: an image cannot be read, or has too many pixels by its header, in which case none is
            decoded. The message names the places of all such images.
        """
        answers = self._detect_encoded(image_bytes, tolerant=False)
        del answers["status"]
        return answers

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
    def serving_tolerant(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """`serving_default`, but an image that cannot be read gets a status and zero people, and the others their answers.

        A server that batches the requests of strangers together needs this: one bad image fails nobody else's request.

        Returns:
          What `serving_default` does, and `status` int32 [N], one of the values of `encoded_images`.
        """
        return self._detect_encoded(image_bytes, tolerant=True)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")], autograph=False)
    def serve_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Finds the people in pixels as they are: RGB, uint8 [N, H, W, 3], not resized."""
        return self._detect_pixels(images)

    def serve_images_of_size(
        self, height: int, width: int, *, static_shapes: bool = False
    ) -> tf.types.experimental.ConcreteFunction:
        """`serve_images` for one image of a fixed size: all shapes of its answer are known.

        Args:
          height, width: pixels of the image.
          static_shapes: keypoints are looked for in all D places, so that inner shapes are fixed, too (see `detect`).
        """
        spec = tf.TensorSpec([1, height, width, 3], tf.uint8, name="images")

        def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._detect_pixels(images, static_shapes=static_shapes)

        return tf.function(serve, input_signature=[spec], autograph=False).get_concrete_function()

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8, name="images")], autograph=False)
    def serve_one_image(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """`serve_images` for one image [1, H, W, 3] of any size: no loop over images, as ONNX and TensorRT want it."""
        return self._detect_pixels(images)

    def checked_files(self) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
        """A function that answers as `serving_default` does, to files whose headers have been read and checked already.

        What it leaves out is most of what `serving_default` has to trace before its first answer. It is none of the signatures,
        which strangers call.

        Returns:
          a function of string [N], JPEG or PNG files that store no rotation, N at least 1, and int32 [N, 2], their heights and
          widths; it raises tf.errors.InvalidArgumentError for an image that cannot be decoded.
        """
        specs = [tf.TensorSpec([None], tf.string, name="image_bytes"), tf.TensorSpec([None, 2], tf.int32, name="size")]
        rule = self.model.config.data.resize

        def answer(image_bytes: tf.Tensor, size: tf.Tensor) -> dict[str, tf.Tensor]:
            resized = self._resized(size)
            canvas = round_up(tf.reduce_max(resized, axis=0))

            def on_its_canvas(item: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
                encoded, wanted = item
                return image.place(image.resize(image.decode(encoded), wanted[0], wanted[1], rule), canvas[0], canvas[1])

            spec = tf.TensorSpec([None, None, 3], image.pixel_dtype(rule))
            pixels = tf.map_fn(
                on_its_canvas, (image_bytes, resized), fn_output_signature=spec, parallel_iterations=SIDE_BY_SIDE
            )
            return self._detect_resized(pixels, size, resized)

        return tf.function(answer, input_signature=specs, autograph=False)  # type: ignore[no-any-return]

    def _resized(self, size: tf.Tensor) -> tf.Tensor:
        """Heights and widths [N, 2] of images → int32 [N, 2], those that the network sees them at."""
        inference, rule = self.model.config.inference, self.model.config.data.resize
        return tf.stack(image.resized_size_tf(size[:, 0], size[:, 1], inference.short_edge, inference.max_edge, rule), axis=-1)

    def _detect_resized(self, pixels: tf.Tensor, size: tf.Tensor, resized: tf.Tensor) -> dict[str, tf.Tensor]:
        """The answer to images of size `resized` [N, 2] at the top left of canvases [N, H, W, 3], in pixels of size `size`."""
        # On a canvas of its own, an image's answer is its own affair: no company in the batch changes it. (The old network has
        # one canvas for all images.)
        own = {} if isinstance(self.model, MaskRCNN) else {"own_canvas": round_up(resized)}
        found = self.model.detect(pixels, resized, self._decode, **own)
        scale = tf.cast(resized, tf.float32) / tf.cast(size, tf.float32)
        return self._to_own_pixels(found, scale, size, self._keypoint_offset)

    def _detect_encoded(self, image_bytes: tf.Tensor, *, tolerant: bool) -> dict[str, tf.Tensor]:
        """The answer to N files, in pixels of each, and `status` int32 [N]; unless `tolerant`, every status is `READ`."""
        count = tf.shape(image_bytes)[0]
        # oneDNN's convolutions refuse an empty batch: look at a blank image, and leave its answer out again.
        image_bytes = tf.cond(count > 0, lambda: image_bytes, lambda: tf.constant([self._blank]))
        status, size, orientation = headers(image_bytes)
        if not tolerant:
            with tf.control_dependencies([all_read(status)]):  # nothing is decoded if one header is refused
                image_bytes = tf.identity(image_bytes)
        resized = tf.where(tf.expand_dims(status == READ, -1), self._resized(size), 1)  # [N, 2]
        canvas = round_up(tf.reduce_max(resized, axis=0))
        pixels, status = canvases(image_bytes, status, size, orientation, resized, canvas, self.model.config.data.resize)
        if not tolerant:
            with tf.control_dependencies([all_read(status)]):
                pixels = tf.identity(pixels)
        answers = self._detect_resized(pixels, size, resized)
        if tolerant:
            read = tf.equal(status, READ)
            answers = {
                name: tf.where(tf.reshape(read, [-1, *[1] * (value.shape.rank - 1)]), value, tf.zeros([], value.dtype))
                for name, value in answers.items()
            }
        answers["status"] = status
        return {name: value[:count] for name, value in answers.items()}

    def _answer_of_one(self) -> dict[str, tf.TensorSpec]:
        number, keypoints = self.model.config.inference.max_detections, self.model.skeleton.num_keypoints
        return {
            "num_detections": tf.TensorSpec([], tf.int32),
            "boxes": tf.TensorSpec([number, 4], tf.float32),
            "scores": tf.TensorSpec([number], tf.float32),
            "keypoints": tf.TensorSpec([number, keypoints, 2], tf.float32),
            "keypoint_scores": tf.TensorSpec([number, keypoints], tf.float32),
            "classes": tf.TensorSpec([number], tf.int32),  # only of a model of several classes
        }

    def _detect_pixels(self, images: tf.Tensor, *, static_shapes: bool = False) -> dict[str, tf.Tensor]:
        one = images.shape[0] == 1
        count = images.shape[0] or tf.shape(images)[0]
        # An empty batch, as above, becomes one blank image.
        pixels, size = on_canvas(images, more=0 if one else tf.where(count > 0, 0, 1))
        size = tf.tile(tf.expand_dims(size, 0), [1 if one else tf.maximum(count, 1), 1])
        found = self.model.detect(pixels, size, self._decode, static_shapes=static_shapes)
        answers = self._to_own_pixels(found, tf.ones_like(size, tf.float32), size, self._keypoint_offset)
        if one:
            specs = self._answer_of_one()
            return {name: tf.ensure_shape(value, [1, *specs[name].shape]) for name, value in answers.items()}
        return {name: value[:count] for name, value in answers.items()}
