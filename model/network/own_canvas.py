"""Images of several sizes in one batch, each answered as if it lay alone on a canvas of its own.

A batch has one canvas, as large as its largest image needs. What lies beyond an image's own canvas (the smallest multiple of 32
that holds it) would change its answer: group normalisation counts those places, frozen batch normalisation and biases fill
them, and convolutions carry that inwards. Within `own_canvases` the backbone's and the pyramid's layers set these places to
zero where a neighbourhood is looked at, which is what the padding of an own canvas would be, and leave them out of statistics.

It is written without a loop over images, since TF-TRT and others take no convolution out of a loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import keras
import tensorflow as tf

from pipeline import image

STRIDES = (2, 4, 8, 16, 32)  # pixels per place: behind the stem's convolution, then C2…C5

# By stride, the places of the own canvases, bool [B, H, W, 1]; None if every image has the whole canvas. (A Keras model hands
# its layers nothing but its inputs, and a second input would have to be made, and multiplied by, in training, too.)
_PLACES: ContextVar[Mapping[int, tf.Tensor] | None] = ContextVar("places of own canvases", default=None)


@contextlib.contextmanager
def own_canvases(own_canvas: tf.Tensor | None, height: int | tf.Tensor, width: int | tf.Tensor) -> Iterator[None]:
    """Layers that are called within it see each image on its own canvas.

    Args:
      own_canvas: int32 [B, 2], height and width of each; None if each image has the whole canvas. A place that they cover in
        part belongs to them.
      height, width: of the batch's canvas.
    """
    places = None
    if own_canvas is not None:
        # Made of the canvas, not of the shapes of features: nothing here must wait for a convolution.
        places = {
            stride: image.covered((own_canvas + stride - 1) // stride, height // stride, width // stride) for stride in STRIDES
        }
    token = _PLACES.set(places)
    try:
        yield
    finally:
        _PLACES.reset(token)


def own_places(stride: int | None, dtype: tf.DType) -> tf.Tensor | None:
    """1 at the places of own canvases, 0 elsewhere, [B, H, W, 1]; None outside of `own_canvases`, or if `stride` is None."""
    places = _PLACES.get()
    return None if places is None or stride is None else tf.cast(places[stride], dtype)


def level_sizes(own_canvas: tf.Tensor, levels: int) -> list[tf.Tensor]:
    """Rows and columns of each own canvas [B, 2] at P2 and the levels above it: int32 [B, 2] each."""
    sizes = [own_canvas // 4]
    for _ in range(levels - 1):
        sizes.append((sizes[-1] + 1) // 2)  # (rounded up for P6, which is every second place of P5)
    return sizes


class OwnCanvas(keras.layers.Layer):
    """Sets features [B, H, W, C] beyond each image's own canvas to zero within `own_canvases`, and changes nothing elsewhere.

    Args:
      stride: pixels per place of the features, one of `STRIDES`.
    """

    def __init__(self, stride: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.stride = stride

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape  # (said, so that Keras does not trace the layer to find out)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        places = own_places(self.stride, x.dtype)
        return x if places is None else x * places
