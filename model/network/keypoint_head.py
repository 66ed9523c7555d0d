"""The keypoint head (He et al. 2017): heatmaps over each person's box, their loss, and the way between points and places.

A keypoint is a point on the continuous image; a place of a heatmap is a half-open cell. Of a box's S×S places (56×56), place
(i, j) covers [j, j + 1) · width / S from the left edge and [i, i + 1) · height / S from the upper edge. So `encode` rounds
down: place d holds every point from d to just below d + 1. A point on the box's right or lower edge would begin a place of
its own, and belongs to the last one. The way back starts from a middle, d + ½, never from an edge.

To decode, both families (torchvision's and Detectron2's `heatmaps_to_keypoints`) enlarge the heatmap with PyTorch's bicubic
rule to the box's size in whole pixels, at least one each way, take the largest value, and answer with the middle of its
pixel. `decode_reference` does just that, one box after the other, as large as each is. `decode_fast` looks at a fixed number
of those pixels: static shapes, no loop, built-in operators of TFLite. It is what exports contain, and it also says where in
the pixel the point is.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from model.config import KeypointHeadConfig
from model.network.layers import conv, initial, norm

# Heatmaps float32 [N, S, S, K] (logits) and boxes float32 [N, 4] → points float32 [N, K, 2] (x, y), in the frame of the boxes,
# and scores float32 [N, K]: exp(largest value) / Σ exp over the S×S places, above 1 where the enlargement overshoots them all.
Decoder = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

BICUBIC_A = -0.75  # PyTorch's; TensorFlow's own resize has −0.5
# Side of the grid of `decode_fast`, in samples per place. The last step of the keypoint head enlarges S/2 × S/2 values
# bilinearly by 2, so the bicubic surface has its peaks midway between places 2 i and 2 i + 1: odd multiples of ½ have a sample
# at each of them. In boxes of 1 to 2 times the size of those of the published families' small models, 2.5 missed 2 to 4 in
# 1,000 points, 1.5 missed 4 to 13, 2 missed 12.
SAMPLES_PER_PLACE = 2.5
KEYPOINTS_AT_ONCE = 4  # whose heatmaps are enlarged together: 31 MB for 100 people, where all 17 took 133
REFINED = 21  # pixels a side looked at around the best sample: all of them for boxes of up to 10 × 2.5 × S = 1400 pixels
# Places to each side of the best pixel whose mean says where in the pixel the point is. On 200 images of rendered people of
# some 60 pixels, keypoint AP was 0.572 with whole pixels, as the reference has them, and 0.581 with this.
MEAN_REACH = 5
MASK_EPSILON = 1e-8  # of `mask_loss`: a place that is all but excluded costs 18, not infinity


def keypoint_head(
    config: KeypointHeadConfig, channels: int, num_keypoints: int, normalise: bool, policy: keras.DTypePolicy
) -> keras.Model:
    """Pooled features [N, S, S, C] → heatmap logits float32 [N, 4 S, 4 S, K]: convolutions, a deconvolution, bilinear × 2."""
    pooled = x = keras.Input([config.resolution, config.resolution, channels], name="pooled")
    for layer in range(config.convolutions):
        x = conv(x, config.channels, 3, f"keypoint.conv{layer}", policy)
        if normalise:
            x = norm("group", 1e-5, f"keypoint.conv{layer}.norm", policy)(x)
        x = keras.layers.ReLU(name=f"keypoint.relu{layer}", dtype=policy)(x)
    # In PyTorch's terms kernel 4, stride 2, padding 1: "same" leaves out one row on either side, too.
    x = keras.layers.Conv2DTranspose(
        num_keypoints,
        4,
        strides=2,
        padding="same",
        kernel_initializer=initial(keras.initializers.VarianceScaling(2.0, "fan_out")),
        name="keypoint.deconv",
        dtype=policy,
    )(x)
    x = keras.layers.UpSampling2D(2, interpolation="bilinear", name="keypoint.up", dtype="float32")(x)
    return keras.Model(pooled, x, name="keypoint_head")


def keypoint_loss(heatmaps: tf.Tensor, keypoints: tf.Tensor, boxes: tf.Tensor, used: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross entropy over the places of each heatmap as (sum, count), over the labelled points inside their RoI.

    Args:
      heatmaps: float32 [N, S, S, K]; keypoints: float32 [N, K, 3], canvas pixels; boxes: float32 [N, 4]; used: bool [N].
    """
    size, num_keypoints = heatmaps.shape[1], heatmaps.shape[3]
    place, valid = encode(keypoints, boxes, size)
    valid &= used[:, tf.newaxis]
    logits = tf.reshape(tf.transpose(heatmaps, [0, 3, 1, 2]), [-1, num_keypoints, size * size])  # [N, K, S²]
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(place, logits)  # [N, K]
    return tf.reduce_sum(tf.where(valid, cross_entropy, 0.0)), tf.reduce_sum(tf.cast(valid, tf.float32))


def mask_targets(keypoints: tf.Tensor, boxes: tf.Tensor, size: int) -> tf.Tensor:
    """Each keypoint as a mask in its box: 1 where its pixel of the canvas is, cropped and resized to size × size places.

    Resizing is bilinear, as wide as a place if that is larger than a pixel (a lone pixel would vanish otherwise), and rounded:
    in a box smaller than `size` pixels several places are ones. The largest place always is.

    Args:
      keypoints: float32 [N, K, 3]; boxes: float32 [N, 4], canvas pixels.

    Returns:
      float32 [N, K, size · size], row by row; the ones of each mask share a sum of 1.
    """
    low, extent = boxes[:, tf.newaxis, :2], (boxes[:, 2:] - boxes[:, :2])[:, tf.newaxis]  # [N, 1, 2]
    pixel = tf.floor(keypoints[..., :2]) + 0.5
    place = tf.clip_by_value(tf.math.divide_no_nan(pixel - low, extent) * size, 0.0, size)  # [N, K, 2]
    reach = tf.maximum(tf.math.divide_no_nan(float(size), extent), 1.0)  # [N, 1, 2]: a pixel's side in places
    distance = tf.abs(tf.range(size, dtype=tf.float32) + 0.5 - place[..., tf.newaxis])  # [N, K, 2, S]
    along = tf.nn.relu(1.0 - distance / reach[..., tf.newaxis])
    mask = along[:, :, 1, :, tf.newaxis] * along[:, :, 0, tf.newaxis, :]  # [N, K, S, S]
    largest = tf.reduce_max(mask, axis=[2, 3], keepdims=True)
    ones = tf.cast(mask >= tf.minimum(largest, 0.5), tf.float32)
    ones = tf.reshape(ones, [-1, keypoints.shape[1], size * size])
    return ones / tf.reduce_sum(ones, axis=-1, keepdims=True)


def mask_loss(heatmaps: tf.Tensor, keypoints: tf.Tensor, boxes: tf.Tensor, used: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`keypoint_loss` of keypoints as masks: minus Σ target · log(softmax + ε) over the places, as (sum, count).

    The modified loss that QtSignalProcessing proposed in matterport/Mask_RCNN's issue 2. There a mask of several ones counts as
    often as it has ones; here its ones share a sum of 1, so that small people weigh as much as large ones.
    """
    size, num_keypoints = heatmaps.shape[1], heatmaps.shape[3]
    _, valid = encode(keypoints, boxes, size)
    valid &= used[:, tf.newaxis]
    logits = tf.reshape(tf.transpose(heatmaps, [0, 3, 1, 2]), [-1, num_keypoints, size * size])  # [N, K, S²]
    likelihood = tf.math.log(tf.nn.softmax(logits) + MASK_EPSILON)
    loss = -tf.reduce_sum(mask_targets(keypoints, boxes, size) * likelihood, axis=-1)  # [N, K]
    return tf.reduce_sum(tf.where(valid, loss, 0.0)), tf.reduce_sum(tf.cast(valid, tf.float32))


def encode(keypoints: tf.Tensor, boxes: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The place of each point in its box's heatmap.

    Args:
      keypoints: float32 [N, K, 3]: x, y in canvas pixels, visibility.
      boxes: float32 [N, 4], canvas pixels.
      size: places per side.

    Returns:
      place int32 [N, K], row × size + column; valid bool [N, K]: labelled, and inside the box, its far edges included. As
      Detectron2's keypoints.py (`_keypoints_to_heatmap`) has it. `decode_reference` and `decode_fast` are the way back.
    """
    low, high = boxes[:, tf.newaxis, :2], boxes[:, tf.newaxis, 2:]  # [N, 1, 2]
    points = keypoints[..., :2]
    relative = tf.math.divide_no_nan(points - low, high - low) * size  # [N, K, 2]
    cell = tf.where(points == high, size - 1, tf.cast(tf.floor(relative), tf.int32))
    valid = tf.reduce_all((cell >= 0) & (cell < size), -1) & (keypoints[..., 2] > 0)
    return tf.where(valid, cell[..., 1] * size + cell[..., 0], 0), valid


def decode_reference(heatmaps: tf.Tensor, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """As published: every pixel of every box is looked at. A `Decoder` whose cost grows with the boxes; no XLA, no TFLite."""
    size = heatmaps.shape[1]
    heatmaps = _below_zero(heatmaps)
    extent, pixels = _pixel_grid(boxes)

    def one_box(item: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        heat, count = item  # [S, S, K], [2]
        columns, rows = (tf.range(count[axis]) for axis in (0, 1))
        weights_x = _bicubic_weights(_places_of(columns, count[0], size), size)  # [w, S]
        weights_y = _bicubic_weights(_places_of(rows, count[1], size), size)  # [h, S]
        enlarged = tf.matmul(weights_y, tf.matmul(tf.transpose(heat, [2, 0, 1]), weights_x, transpose_b=True))  # [K, h, w]
        flat = tf.reshape(enlarged, [tf.shape(enlarged)[0], -1])
        best = tf.argmax(flat, axis=-1, output_type=tf.int32)
        width = tf.shape(columns)[0]
        return tf.cast(tf.stack([best % width, best // width], -1), tf.float32), tf.reduce_max(flat, axis=-1)

    pixel, largest = tf.map_fn(
        one_box,
        (heatmaps, pixels),
        fn_output_signature=(tf.TensorSpec([heatmaps.shape[3], 2]), tf.TensorSpec([heatmaps.shape[3]])),
        parallel_iterations=1,  # bounds the memory
    )
    return _points(pixel, boxes, extent, pixels), _scores(heatmaps, largest)


def decode_fast(heatmaps: tf.Tensor, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The reference's pixel, and where in it, at a cost that depends on nothing but the shapes. A `Decoder`.

    It looks at 140 × 140 (for S = 56) pixels of the enlarged heatmap spread evenly over the box, which are all where the box
    is no larger; then, around the best of them, at every pixel up to the neighbouring samples. It misses the reference's pixel
    only where two peaks are so nearly equal that the samples rank them the other way round. From the pixel's middle, the point
    moves towards the mean of the places around it, by half a pixel at most.
    """
    size, num_keypoints = heatmaps.shape[1], heatmaps.shape[3]
    samples = int(SAMPLES_PER_PLACE * size)
    heatmaps = _below_zero(heatmaps)
    heat = tf.transpose(heatmaps, [0, 3, 1, 2])  # [N, K, S, S]
    extent, pixels = _pixel_grid(boxes)
    count = tf.expand_dims(pixels, -1)  # [N, 2, 1]
    stride = tf.maximum(count / samples, 1.0)  # pixels between samples
    # If a box has fewer pixels than samples, the last pixel is looked at many times.
    sampled = tf.minimum(tf.floor((tf.range(samples, dtype=tf.float32) + 0.5) * stride), count - 1.0)  # [N, 2, M]
    weights = _bicubic_weights(_places_of(sampled, count, size), size)  # [N, 2, M, S]
    parts = []
    for first in range(0, num_keypoints, KEYPOINTS_AT_ONCE):
        part = heat[:, first : first + KEYPOINTS_AT_ONCE]
        enlarged = tf.matmul(tf.matmul(weights[:, 1:], part), weights[:, :1], transpose_b=True)  # [N, k, M, M]
        flat = tf.reshape(enlarged, [-1, part.shape[1], samples * samples])
        parts.append(tf.argmax(flat, axis=-1, output_type=tf.int32))
    best = tf.concat(parts, axis=1)  # [N, K]
    best_sample = tf.gather(sampled, tf.stack([best % samples, best // samples], 1), batch_dims=2)  # [N, 2, K]

    count, stride = tf.expand_dims(count, -1), tf.expand_dims(stride, -1)  # [N, 2, 1, 1]
    offsets = tf.linspace(-1.0, 1.0, REFINED) * tf.where(stride > 1.0, stride, 0.0)  # [N, 2, 1, L]
    near = tf.clip_by_value(tf.round(tf.expand_dims(best_sample, -1) + offsets), 0.0, count - 1.0)  # [N, 2, K, L]
    weights = _bicubic_weights(_places_of(near, count, size), size)  # [N, 2, K, L, S]
    refined = tf.matmul(tf.matmul(weights[:, 1], heat), weights[:, 0], transpose_b=True)  # [N, K, L, L]
    refined = tf.reshape(refined, [-1, num_keypoints, REFINED * REFINED])
    best = tf.argmax(refined, axis=-1, output_type=tf.int32)
    pixel = tf.gather(near, tf.stack([best % REFINED, best // REFINED], 1), batch_dims=3)  # [N, 2, K]

    mean = _mean_place(tf.exp(heat), _places_of(pixel, tf.expand_dims(pixels, -1), size))
    pixel += tf.clip_by_value((mean + 0.5) * tf.expand_dims(pixels / size, -1) - 0.5 - pixel, -0.5, 0.5)
    return _points(tf.transpose(pixel, [0, 2, 1]), boxes, extent, pixels), _scores(heatmaps, tf.reduce_max(refined, axis=-1))


def _mean_place(mass: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Mean place of mass [N, K, S, S] (rows, columns) in a window around `place` [N, 2, K] (x, y): float32 [N, 2, K]."""
    size = mass.shape[2]
    middle = tf.expand_dims(tf.clip_by_value(tf.round(place), 0.0, size - 1.0), -1)  # [N, 2, K, 1]
    every = tf.range(size, dtype=tf.float32)
    inside = tf.cast(tf.abs(every - middle) <= MEAN_REACH, tf.float32)  # [N, 2, K, S]
    of_columns = inside[:, 0] * tf.linalg.matvec(mass, inside[:, 1], transpose_a=True)  # [N, K, S]
    of_rows = inside[:, 1] * tf.linalg.matvec(mass, inside[:, 0])
    marginals = tf.stack([of_columns, of_rows], 1)  # [N, 2, K, S]
    total = tf.reduce_sum(marginals, -1)
    # Far from the best place there may be nothing that float32 can tell from 0.
    return tf.where(total > 0, tf.math.divide_no_nan(tf.reduce_sum(marginals * every, -1), total), place)


def _pixel_grid(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Width and height of boxes [N, 4], at least 1, and the whole pixels that the enlarged heatmap has: both float32 [N, 2]."""
    extent = tf.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    return extent, tf.math.ceil(extent)


def _places_of(pixel: tf.Tensor, pixels: tf.Tensor, size: int) -> tf.Tensor:
    """Where the middle of a pixel of the enlarged heatmap lies, in places: 0 is the middle of the first place."""
    return (pixel + 0.5) * (size / pixels) - 0.5


def _bicubic_weights(position: tf.Tensor, size: int) -> tf.Tensor:
    """Weights of the places at positions [...] as float32 [..., S]: Keys' kernel over four places, the border repeated."""
    first = tf.floor(position)
    fraction = position - first
    weights = tf.zeros([1], tf.float32)
    for tap in (-1, 0, 1, 2):
        distance = tf.abs(fraction - tap)
        if tap in (0, 1):  # at most 1 away
            weight = ((BICUBIC_A + 2) * distance - (BICUBIC_A + 3)) * distance * distance + 1
        else:
            weight = BICUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
        place = tf.clip_by_value(tf.cast(first, tf.int32) + tap, 0, size - 1)
        weights += tf.one_hot(place, size) * tf.expand_dims(weight, -1)
    return weights


def _points(pixel: tf.Tensor, boxes: tf.Tensor, extent: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """The middle of pixels [N, K, 2] of the enlarged heatmaps, in the frame of the boxes."""
    return tf.expand_dims(boxes[:, :2], 1) + (pixel + 0.5) * tf.expand_dims(extent / pixels, 1)


def _below_zero(heatmaps: tf.Tensor) -> tf.Tensor:
    """Each heatmap less its largest value: enlarging loses no digits of the best, and no exponential overflows."""
    return heatmaps - tf.reduce_max(heatmaps, axis=[1, 2], keepdims=True)


def _scores(heatmaps: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """The largest value's share [N, K], of heatmaps `_below_zero`."""
    return tf.exp(largest) / tf.reduce_sum(tf.exp(heatmaps), axis=[1, 2])
