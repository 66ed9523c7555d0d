"""From the bytes of strangers' files to canvases, inside the graph: what `serving_default` does before the network.

The headers of all images are checked before one is decoded, and images that are large together are decoded one after the
other: `MAX_PIXELS` bounds the memory, whatever is sent. A file that cannot be read gets a status instead of an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from pipeline import image
from pipeline.data_config import MAX_PIXELS, ResizeRule

PIXELS_AT_ONCE = 16 * 2**20  # of all images of a batch, if they are decoded side by side: some 27 bytes of memory each
SIDE_BY_SIDE = 8  # images decoded at once, if they are small enough
ORIENTATION_BYTES = 2**16  # of a file, that are searched for its orientation, as `pipeline.image` does
EXIF_MARK = b"Exif\0\0"

# Values of `status`, and what is wrong with such a file.
READ, NOT_AN_IMAGE, TOO_LARGE, DAMAGED = range(4)
REASONS = (
    "was read",
    "is neither a JPEG nor a PNG file; no other format is read",
    f"must have between 1 and {MAX_PIXELS} pixels by its header; it is not decoded",
    "is a damaged JPEG or PNG file; it cannot be decoded",
)


def header(image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Reads an image's header, without decoding, and never fails.

    Args:
      image_bytes: scalar string, a file.

    Returns:
      status: int32 scalar, `READ` or what is wrong.
      size: int32 [2], height and width in pixels as a viewer shows the image; 1, 1 unless `status` is `READ`.
      orientation: int32 scalar, EXIF's 1…8.
    """
    # A PNG begins with its signature, the length and the name of the first chunk, then width and height, big end first.
    is_png = tf.strings.substr(image_bytes, 0, 8) == image.PNG_SIGNATURE
    is_jpeg = tf.strings.substr(image_bytes, 0, 3) == b"\xff\xd8\xff"
    whole_png = is_png & (tf.strings.length(image_bytes) >= 24)
    nothing = tf.zeros([2], tf.int32)

    def of_png() -> tf.Tensor:
        sides = tf.io.decode_raw(tf.strings.substr(image_bytes, 16, 8), tf.int32, little_endian=False)
        return tf.ensure_shape(sides[::-1], [2])

    def of_jpeg() -> tf.Tensor:
        # The decoder's own reader: a header that says one thing to us and another to the decoder would pass the limit.
        return _attempt(lambda: tf.ensure_shape(tf.io.extract_jpeg_shape(image_bytes)[:2], [2]), nothing - 1)

    size = tf.cond(whole_png, of_png, lambda: tf.cond(is_jpeg, of_jpeg, lambda: nothing))
    height, width = tf.cast(size[0], tf.int64), tf.cast(size[1], tf.int64)
    # A side of more than 2³¹ pixels is negative here, but −1, −1 is a JPEG without a size.
    fits = (height > 0) & (width > 0) & (height <= MAX_PIXELS) & (width <= MAX_PIXELS) & (height * width <= MAX_PIXELS)
    unreadable = (is_png & ~whole_png) | (is_jpeg & tf.reduce_all(tf.equal(size, -1)))
    status = tf.where(is_png | is_jpeg, tf.where(unreadable, DAMAGED, tf.where(fits, READ, TOO_LARGE)), NOT_AN_IMAGE)
    orientation = tf.cond(status == READ, lambda: stored_orientation(image_bytes), lambda: tf.constant(1))
    size = tf.where(status == READ, tf.where(orientation >= 5, size[::-1], size), 1)
    return tf.cast(status, tf.int32), size, orientation


def headers(image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`header` of each of N files: status [N], size [N, 2], orientation [N], all int32."""
    specs = (tf.TensorSpec([], tf.int32), tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.int32))
    status, size, orientation = tf.map_fn(header, image_bytes, fn_output_signature=specs)
    return status, size, orientation


def canvases(
    image_bytes: tf.Tensor,
    status: tf.Tensor,
    size: tf.Tensor,
    orientation: tf.Tensor,
    resized: tf.Tensor,
    canvas: tf.Tensor,
    rule: ResizeRule,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes those files whose headers can be read, turns them upright, and puts each at the top left of a canvas.

    Args:
      image_bytes: string [N].
      status, size, orientation: from `headers`.
      resized: int32 [N, 2], height and width that each is resized to on its canvas.
      canvas: int32 [2], height and width of all canvases.
      rule: how the model's family resizes.

    Returns:
      pixels [N, *canvas, 3] of `pixel_dtype(rule)`, zeros if a file cannot be read; status int32 [N], now of the whole file.
    """
    dtype = image.pixel_dtype(rule)

    def one(item: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, status, orientation, resized = item

        def read() -> tuple[tf.Tensor, tf.Tensor]:
            pixels = upright(image.decode(encoded), orientation)
            return image.resize(pixels, resized[0], resized[1], rule), tf.constant(READ)

        def not_read(status: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.ensure_shape(tf.zeros([0, 0, 3], dtype), [None, None, 3]), tf.constant(status)

        pixels, status = tf.cond(
            status == READ,
            lambda: _attempt(read, not_read(DAMAGED)),
            lambda: (tf.zeros([0, 0, 3], dtype), status),
        )
        return image.place(tf.ensure_shape(pixels, [None, None, 3]), canvas[0], canvas[1]), tf.ensure_shape(status, [])

    def each(at_once: int) -> Callable[[], tuple[tf.Tensor, tf.Tensor]]:
        specs = (tf.TensorSpec([None, None, 3], dtype), tf.TensorSpec([], tf.int32))
        items = (image_bytes, status, orientation, resized)
        return lambda: tf.map_fn(one, items, fn_output_signature=specs, parallel_iterations=at_once)

    together = tf.reduce_sum(tf.reduce_prod(tf.cast(size, tf.int64), axis=1))
    pixels, status = tf.cond(together <= PIXELS_AT_ONCE, each(SIDE_BY_SIDE), each(1))
    return pixels, status


def all_read(status: tf.Tensor) -> tf.Operation:
    """An assertion that every status [N] is `READ`; its message names each place that is not, as "image 3 of 8", and why."""
    places = tf.reshape(tf.where(status != READ), [-1])
    why = tf.gather(tf.constant(REASONS), tf.gather(status, places))
    total = tf.strings.as_string(tf.size(status))
    named = tf.strings.join(["image ", tf.strings.as_string(places + 1), " of ", total, " ", why])
    return tf.debugging.Assert(tf.reduce_all(tf.equal(status, READ)), [tf.strings.reduce_join(named, separator=". ")])


def upright(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns pixels [h, w, 3] as a viewer does that obeys EXIF's orientation (an int32 scalar, 1…8)."""

    def turned() -> tf.Tensor:
        upper = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
        upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
        mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
        return tf.raw_ops.Reverse(tensor=upper, dims=tf.stack([upside_down, mirrored, False]))

    shown = tf.cond(orientation > 1, turned, lambda: pixels)
    return tf.ensure_shape(shown, [None, None, 3])


def stored_orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """EXIF's orientation of a JPEG or PNG file, int32 scalar 1…8; 1 if it is missing or malformed. Never fails.

    `pipeline.image.stored_orientation` in the graph: looked for in the first `ORIENTATION_BYTES` (EXIF 2.3, section 4.5.2: an
    APP1 segment; PNG's eXIf chunk).
    """
    is_png = tf.strings.substr(image_bytes, 0, 8) == image.PNG_SIGNATURE
    start = tf.strings.substr(image_bytes, 0, ORIENTATION_BYTES)
    content = tf.concat([tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int64), tf.zeros([1], tf.int64)], axis=0)
    end = tf.size(content, tf.int64) - 1  # the zero there is what lies outside

    def byte(place: tf.Tensor, stop: tf.Tensor = end) -> tf.Tensor:
        return tf.gather(content, tf.where((place >= 0) & (place < stop), place, end))

    def big(place: tf.Tensor, size: int) -> tf.Tensor:
        return tf.add_n([byte(place + i) * 256 ** (size - 1 - i) for i in range(size)])

    def begins(place: tf.Tensor, text: bytes) -> tf.Tensor:
        return tf.reduce_all(byte(place + tf.range(len(text), dtype=tf.int64)) == list(text))

    # A step looks at a segment of a JPEG or a chunk of a PNG: where the next begins, where TIFF begins (0: not here) and ends.
    def png_step(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        following = place + 12 + big(place, 4)
        tiff = place + 8 + tf.where(begins(place + 8, EXIF_MARK), tf.constant(len(EXIF_MARK), tf.int64), 0)
        return following, tf.where(begins(place + 4, b"eXIf"), tiff, 0), following - 4

    def jpeg_step(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        marker, length = byte(place + 1), tf.maximum(big(place + 2, 2), 2)
        alone = (marker == 0x01) | ((marker >= 0xD0) & (marker <= 0xD8))  # markers that no segment follows
        following = tf.where(marker == 0xFF, place + 1, tf.where(alone, place + 2, place + 2 + length))
        over = (byte(place) != 0xFF) | (marker == 0xDA) | (marker == 0xD9)  # the image itself begins, or ends
        found = (marker == 0xE1) & begins(place + 4, EXIF_MARK) & ~over
        return tf.where(over, end, following), tf.where(found, place + 10, 0), place + 2 + length

    def orientation_in(tiff: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        """The orientation in the first directory of a TIFF structure, int64; 0 if it has none of 1…8."""
        little = byte(tiff, stop) == ord("I")

        def number(place: tf.Tensor, size: int) -> tf.Tensor:
            values = [byte(place + i, stop) for i in range(size)]
            first, last = (tf.add_n([v * 256**i for i, v in enumerate(order)]) for order in (values, values[::-1]))
            return tf.where(little, first, last)

        directory = tiff + number(tiff + 4, 4)
        entries = directory + 2 + 12 * tf.range(tf.minimum(number(directory, 2), ORIENTATION_BYTES // 12), dtype=tf.int64)
        kind = number(entries + 2, 2)
        value = tf.where(kind == 3, number(entries + 8, 2), number(entries + 8, 4))  # SHORT, as EXIF wants it, or LONG
        sound = ((kind == 3) | (kind == 4)) & (number(entries + 4, 4) == 1) & (entries + 12 <= stop)
        values = tf.boolean_mask(value, (number(entries, 2) == 0x0112) & sound)
        value = tf.concat([values, [0]], axis=0)[0]
        is_tiff = begins(tiff, b"II*\0") | begins(tiff, b"MM\0*")
        return tf.where(is_tiff & (value >= 1) & (value <= 8), value, 0)

    def step(place: tf.Tensor, _orientation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        following, tiff, stop = tf.cond(is_png, lambda: png_step(place), lambda: jpeg_step(place))
        zero = tf.constant(0, tf.int64)
        return following, tf.cond(tiff > 0, lambda: orientation_in(tiff, tf.minimum(stop, end)), lambda: zero)

    _, orientation = tf.while_loop(
        lambda place, orientation: (place < end) & (orientation == 0),
        step,
        (tf.where(is_png, tf.constant(8, tf.int64), 2), tf.constant(0, tf.int64)),
        parallel_iterations=1,
    )
    return tf.cast(tf.maximum(orientation, 1), tf.int32)


def _attempt(function: Callable[[], Any], otherwise: Any) -> Any:
    """What `function` gives, or `otherwise`, of the same structure, if an operation in it fails.

    A graph has no exceptions; a tf.data.Dataset that leaves out what fails is the one construct of TensorFlow that goes on.
    """
    unconverted = tf.autograph.experimental.do_not_convert(lambda _: function())  # AutoGraph would take a second
    tried = tf.data.Dataset.from_tensors(0).map(unconverted, num_parallel_calls=None)
    tried = tried.ignore_errors(log_warning=False).concatenate(tf.data.Dataset.from_tensors(otherwise))
    return tried.take(1).get_single_element()
