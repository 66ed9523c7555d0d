"""Region proposal network (Ren et al. 2015): P2…P6 in, objectness and deltas of all anchors out; proposals and losses.

Everything flat runs over anchors in the order of `pipeline.anchors`: level, row, column, ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from model.config import RpnConfig
from model.network import boxes as box_ops
from model.network.boxes import map_images
from model.network.layers import conv
from pipeline import image
from pipeline.anchors import AnchorConfig, cell_anchors

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
# The score of a place that holds no proposal. Shapes are fixed, so places are left over; a finite number below every logit
# ranks them last, and NMS takes only what is above it.
NOTHING = -1e8


def rpn_head(channels: int, num_ratios: int, policy: keras.DTypePolicy) -> keras.Model:
    """The head that all levels share: [B, H, W, C] → objectness [B, H, W, R], deltas [B, H, W, 4 R], 4 an anchor."""
    small = keras.initializers.RandomNormal(stddev=0.01)
    features = keras.Input([None, None, channels], name="features")
    x = conv(features, channels, 3, "rpn.conv", policy)
    x = keras.layers.ReLU(name="rpn.relu", dtype=policy)(x)
    objectness = conv(x, num_ratios, 1, "rpn.objectness", policy, initializer=small)
    deltas = conv(x, 4 * num_ratios, 1, "rpn.deltas", policy, initializer=small)
    return keras.Model(features, [objectness, deltas], name="rpn")


def anchor_grid(
    config: AnchorConfig,
    shapes: Sequence[tuple[int | tf.Tensor, int | tf.Tensor]],
    own_sizes: Sequence[tf.Tensor] | None = None,
) -> list[tf.Tensor]:
    """The anchors of each level, [H_l · W_l · R, 4], canvas pixels: `pipeline.anchors.grid`, for shapes known late, too.

    If strides are a canvas's, and `own_sizes` of each level states rows and columns [B, 2] of the images' own canvases, each
    image has its own anchors: [B, H_l · W_l · R, 4].
    """
    if config.canvas_strides and own_sizes is not None:
        return _anchors_of_own_canvases(config, shapes, own_sizes)
    grids = []
    canvas = [config.strides[0] * side for side in shapes[0]]  # its sides are multiples of every level's but P6's stride
    for cells, stride, (rows, columns) in zip(cell_anchors(config), config.strides, shapes, strict=True):
        down, right = (canvas[0] // rows, canvas[1] // columns) if config.canvas_strides else (stride, stride)
        x = tf.cast(tf.range(columns) * right, tf.float32)
        y = tf.cast(tf.range(rows) * down, tf.float32)
        x, y = tf.meshgrid(x, y)  # [H_l, W_l]
        centres = tf.expand_dims(tf.stack([x, y, x, y], axis=-1), 2)  # [H_l, W_l, 1, 4]
        grids.append(tf.reshape(centres + tf.constant(cells), [-1, 4]))
    return grids


def _anchors_of_own_canvases(
    config: AnchorConfig, shapes: Sequence[tuple[int | tf.Tensor, int | tf.Tensor]], own_sizes: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """`anchor_grid` for each image of a batch, [B, H_l · W_l · R, 4], if the distance of centres is that of its own canvas."""
    grids = []
    for cells, (rows, columns), own in zip(cell_anchors(config), shapes, own_sizes, strict=True):
        strides = own_sizes[0] * config.strides[0] // own  # [B, 2], down and right
        y = tf.expand_dims(tf.cast(tf.range(rows) * strides[:, :1], tf.float32), 2)  # [B, H_l, 1]
        x = tf.expand_dims(tf.cast(tf.range(columns) * strides[:, 1:], tf.float32), 1)  # [B, 1, W_l]
        x, y = x + tf.zeros_like(y), y + tf.zeros_like(x)  # [B, H_l, W_l]
        centres = tf.expand_dims(tf.stack([x, y, x, y], axis=-1), 3)  # [B, H_l, W_l, 1, 4]
        grids.append(tf.reshape(centres + tf.constant(cells), [tf.shape(own)[0], -1, 4]))
    return grids


def within_own_canvases(
    logits: Sequence[tf.Tensor], shapes: Sequence[tuple[int | tf.Tensor, int | tf.Tensor]], own_sizes: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Objectness [B, A_l] of each level, `NOTHING` for anchors beyond an image's own canvas of rows and columns [B, 2]."""
    own_logits = []
    for level_logits, (rows, columns), own in zip(logits, shapes, own_sizes, strict=True):
        places = tf.reshape(image.covered(own, rows, columns), [-1, rows * columns, 1])  # [B, H_l · W_l, 1]
        per_place = tf.reshape(level_logits, [tf.shape(own)[0], rows * columns, -1])  # [B, H_l · W_l, R]
        own_logits.append(tf.reshape(tf.where(places, per_place, NOTHING), tf.shape(level_logits)))
    return own_logits


def rpn_outputs(head: keras.Model, pyramid: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Objectness [B, A_l] and deltas [B, A_l, 4] of each level, float32."""
    logits, deltas = [], []
    for features in pyramid:
        level_logits, level_deltas = head(features)
        batch = tf.shape(features)[0] if features.shape[0] is None else features.shape[0]
        logits.append(tf.cast(tf.reshape(level_logits, [batch, -1]), tf.float32))
        deltas.append(tf.cast(tf.reshape(level_deltas, [batch, -1, 4]), tf.float32))
    return logits, deltas


def proposals(
    config: RpnConfig,
    logits: Sequence[tf.Tensor],
    deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    image_size: tf.Tensor,
    *,
    training: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The best boxes of all levels, after NMS within each level.

    Args:
      logits: per level float32 [B, A_l].
      deltas: per level float32 [B, A_l, 4].
      anchors: per level float32 [A_l, 4] or [B, A_l, 4], canvas pixels.
      image_size: int32 [B, 2], height and width of the images within the canvas.

    Returns:
      boxes float32 [B, N, 4], clipped to the image, best first; zeros behind the last proposal;
      scores float32 [B, N], what the boxes are ranked by; `NOTHING` behind the last proposal.
    """
    top_k = config.top_k_train if training else config.top_k_test
    count = config.proposals_train if training else config.proposals_test

    # 1. Of each level, the anchors of the largest logits become boxes; those that are too small lose their score.
    level_boxes, level_scores = candidates(config, top_k, logits, deltas, anchors, image_size)  # L × [B, k_l, 4], L × [B, k_l]
    num_levels = len(level_boxes)

    def best_of_one(*one_image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # `map_images` hands over one flat list: the boxes [k_l, 4] of every level, then the scores [k_l] of every level.
        boxes_by_level, scores_by_level = one_image[:num_levels], one_image[num_levels:]
        # 2. NMS within each level: boxes of different levels do not suppress each other.
        kept = [
            suppress(boxes, scores, tf.minimum(count, tf.shape(boxes)[0]), config.nms_threshold, NOTHING)
            for boxes, scores in zip(boxes_by_level, scores_by_level, strict=True)
        ]
        # 3. The best N of all levels. N places without a proposal stand behind, so that there are always N to take, however
        # small the canvas is.
        boxes = tf.concat([*(boxes for boxes, _ in kept), tf.zeros([count, 4])], 0)
        scores = tf.concat([*(scores for _, scores in kept), tf.fill([count], NOTHING)], 0)
        scores, index = tf.math.top_k(scores, count)
        return tf.gather(boxes, index), scores

    boxes, scores = map_images(best_of_one, [*level_boxes, *level_scores], (tf.float32, tf.float32))
    return tf.reshape(boxes, [-1, count, 4]), tf.reshape(scores, [-1, count])


def candidates(
    config: RpnConfig,
    top_k: int,
    logits: Sequence[tf.Tensor],
    deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    image_size: tf.Tensor,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """What NMS chooses from: of each level the boxes of the k largest logits, L × [B, k, 4], and their scores L × [B, k];
    `NOTHING` for boxes that are too small.

    Args: as `proposals` has them.
    """
    best = [_best_of_level(top_k, *level) for level in zip(logits, deltas, anchors, strict=True)]
    numbers = [scores.shape[1] or tf.shape(scores)[1] for scores, _, _ in best]  # k of each level
    # All levels at once: TF-TRT makes an engine for each chain of operations, and so made one for each level.
    scores, best_deltas, best_anchors = (tf.concat(of_levels, 1) for of_levels in zip(*best, strict=True))
    boxes = box_ops.clip(box_ops.decode(best_deltas, best_anchors, DELTA_WEIGHTS), image_size)
    candidate = box_ops.large_enough(boxes, config.min_size) & (scores > NOTHING)
    if config.rank_by == "sigmoid":
        scores = 1.0 / (1.0 + tf.exp(-scores))  # in these steps, so that it is 0 where torchvision's is
    scores = tf.where(candidate, scores, NOTHING)
    return tf.split(boxes, numbers, axis=1), tf.split(scores, numbers, axis=1)


def _best_of_level(
    top_k: int, logits: tf.Tensor, deltas: tf.Tensor, anchors: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One level's k largest logits [B, k], with their deltas [B, k, 4] and anchors [B, k, 4]."""
    available = logits.shape[1]
    # The size of a canvas is known late in serving.
    k = tf.minimum(top_k, tf.shape(logits)[1]) if available is None else min(top_k, available)
    scores, index = tf.math.top_k(logits, k)  # [B, k]
    anchors = tf.gather(anchors, index, batch_dims=anchors.shape.rank - 2)  # [B, k, 4], of each image's or of all images'
    return scores, tf.gather(deltas, index, batch_dims=1), anchors


def suppress(
    boxes: tf.Tensor, scores: tf.Tensor, limit: int | tf.Tensor, iou_threshold: float, score_threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Greedy NMS of one image's boxes [N, 4] by scores [N]: `limit` of each, best first, zeros and `NOTHING` behind."""
    index, real = kept_places(boxes, scores, limit, iou_threshold, score_threshold)
    kept_scores = tf.where(real, tf.gather(scores, index), NOTHING)
    return tf.where(tf.expand_dims(real, 1), tf.gather(boxes, index), 0.0), kept_scores


def kept_places(
    boxes: tf.Tensor, scores: tf.Tensor, limit: int | tf.Tensor, iou_threshold: float, score_threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """What greedy NMS keeps of boxes [N, 4]: places int32 [limit], best score first, and bool [limit], whether there is one.

    The raw V4 is the one form that XLA, TFLite, ONNX and OpenVINO all take; it takes corners in either order of the axes.
    """
    index, valid = tf.raw_ops.NonMaxSuppressionV4(
        boxes=boxes,
        scores=scores,
        max_output_size=limit,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        pad_to_max_output_size=True,
    )
    return index, tf.range(limit) < valid


def rpn_losses(
    config: RpnConfig,
    sampled_anchors: int,
    logits: tf.Tensor,
    deltas: tf.Tensor,
    anchors: tf.Tensor,
    batch: dict[str, tf.Tensor],
) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
    """Objectness and box loss over the anchors that the input sampled, as (sum, count).

    Args:
      sampled_anchors: per image, what `normalise_by` "sampled" means: both losses are divided by it × (images that are no
        padding), however many anchors could be sampled, as in Detectron2's rpn.py. torchvision's divides by "labelled" ones.
      logits: float32 [B, T], all levels; deltas: float32 [B, T, 4]; anchors: float32 [T, 4].
      batch: `anchor_index`, `anchor_label`, `anchor_box` [B, A], `boxes` [B, G, 4], `image_id` [B].
    """
    index = tf.maximum(batch["anchor_index"], 0)
    label = batch["anchor_label"]
    chosen_logits = tf.gather(logits, index, batch_dims=1)  # [B, A]
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(label == 1, tf.float32), chosen_logits)
    objectness = tf.reduce_sum(tf.where(label >= 0, cross_entropy, 0.0))

    positive = label == 1
    target_boxes = tf.gather(batch["boxes"], tf.maximum(batch["anchor_box"], 0), batch_dims=1)  # [B, A, 4]
    own_anchors = tf.gather(anchors, index)  # [B, A, 4]
    target_boxes = tf.where(positive[..., tf.newaxis], target_boxes, own_anchors)  # keeps the logarithm finite elsewhere
    target = box_ops.encode(target_boxes, own_anchors, DELTA_WEIGHTS)
    distance = box_ops.smooth_l1(tf.gather(deltas, index, batch_dims=1) - target, config.smooth_l1_beta)  # [B, A, 4]
    box = tf.reduce_sum(tf.where(positive[..., tf.newaxis], distance, 0.0))

    if config.normalise_by == "labelled":
        count = tf.reduce_sum(tf.cast(label >= 0, tf.float32))
    else:
        count = float(sampled_anchors) * tf.reduce_sum(tf.cast(batch["image_id"] >= 0, tf.float32))
    return {"rpn_objectness": (objectness, count), "rpn_box": (box, count)}
