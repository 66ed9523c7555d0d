"""The second stage's box head (Girshick 2015): sampling of RoIs, scores and deltas, losses, final detections."""

from __future__ import annotations

import keras
import tensorflow as tf

from model.config import BoxHeadConfig, InferenceConfig
from model.network import boxes as box_ops
from model.network.boxes import map_images
from model.network.layers import conv, initial, norm
from model.network.rpn import NOTHING, kept_places, suppress
from pipeline.data_config import CROWD, CROWD_SHARE, PERSON
from pipeline.random_draws import uniform

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def box_head(config: BoxHeadConfig, channels: int, policy: keras.DTypePolicy, classes: int = 1) -> keras.Model:
    """Pooled features [N, S, S, F] → class logits [N, 1 + C], the background first, and deltas [N, 4 · C].

    Each class has deltas of its own, as in torchvision's and Detectron2's Faster R-CNN; the background has none.
    """
    pooled = keras.Input([config.resolution, config.resolution, channels], name="pooled")
    x = pooled
    for layer in range(config.convolutions):
        x = norm("group", 1e-5, f"box.conv{layer}.norm", policy)(conv(x, channels, 3, f"box.conv{layer}", policy))
        x = keras.layers.ReLU(name=f"box.relu{layer}", dtype=policy)(x)
    x = keras.layers.Flatten(name="box.flatten", dtype=policy)(x)
    for layer in (1, 2):
        x = keras.layers.Dense(
            config.channels, "relu", kernel_initializer=initial("he_uniform"), name=f"box.fc{layer}", dtype=policy
        )(x)
    logits = keras.layers.Dense(
        1 + classes,
        kernel_initializer=initial(keras.initializers.RandomNormal(stddev=0.01)),
        name="box.class",
        dtype=policy,
    )(x)
    deltas = keras.layers.Dense(
        4 * classes,
        kernel_initializer=initial(keras.initializers.RandomNormal(stddev=0.001)),
        name="box.deltas",
        dtype=policy,
    )(x)
    return keras.Model(pooled, [logits, deltas], name="box_head")


def sample_rois(
    config: BoxHeadConfig, proposals: tf.Tensor, scores: tf.Tensor, batch: dict[str, tf.Tensor], seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Chooses the RoIs that train the heads: drawn at random, at most `config.positive_fraction` of them positive.

    True boxes of persons are candidates beside the proposals.

    Args:
      proposals: float32 [B, N, 4], canvas pixels; scores: float32 [B, N], `NOTHING` in places without a proposal.
      batch: `boxes` [B, G, 4], `box_kind` [B, G], `image_id` [B]; `box_class` [B, G], if there are several classes.
      seed: int32 scalar, of the step. Draws depend on (seed, image id), so no split over replicas changes them.

    Returns:
      `boxes` [B, R, 4]; `label` int32 [B, R]: 1 person (of several classes 1…C), 0 background, −1 unused; `true_box`
      int32 [B, R]: the box of the batch with which its IoU is largest. Positives come first, in random order.
    """
    person, crowd = batch["box_kind"] == PERSON, batch["box_kind"] == CROWD  # [B, G]
    candidates = tf.concat([proposals, batch["boxes"]], axis=1)  # [B, N + G, 4]
    exists = tf.concat([scores > NOTHING, person], axis=1) & (batch["image_id"] >= 0)[:, tf.newaxis]
    overlap = tf.where(person[:, tf.newaxis], box_ops.iou(candidates, batch["boxes"]), 0.0)  # [B, N + G, G]
    nearest = tf.argmax(overlap, axis=-1, output_type=tf.int32)
    positive = exists & (tf.reduce_max(overlap, -1) >= config.positive_iou)
    inside = tf.where(crowd[:, tf.newaxis], box_ops.share_inside(candidates, batch["boxes"]), 0.0)
    negative = exists & ~positive & (tf.reduce_max(inside, -1) < CROWD_SHARE)

    width = candidates.shape[1]

    def draw(image_id: tf.Tensor) -> tuple[tf.Tensor]:
        key = tf.stack([seed, tf.cast(image_id & 0x7FFFFFFF, tf.int32)])
        return (uniform([width], key),)

    (order,) = map_images(draw, [batch["image_id"]], (tf.float32,))  # [B, N + G] in [0, 1)
    taken, most = (min(number, width) for number in (config.rois, int(config.rois * config.positive_fraction)))
    last = tf.math.top_k(tf.where(positive, order, -1.0), most).values[:, -1:]  # [B, 1]: the lowest draw that is still taken
    chosen = positive & (order >= last)
    rank, index = tf.math.top_k(tf.where(chosen, order + 2.0, tf.where(negative, order, -1.0)), taken)
    unused = [[0, 0], [0, config.rois - taken]]  # there may be fewer candidates than RoIs
    rank, index = tf.pad(rank, unused, constant_values=-1.0), tf.pad(index, unused)  # [B, R]
    true_box = tf.gather(nearest, index, batch_dims=1)
    own_class = tf.gather(batch["box_class"], true_box, batch_dims=1) if "box_class" in batch else 1
    return {
        "boxes": tf.gather(candidates, index, batch_dims=1),
        "label": tf.where(rank >= 2.0, own_class, tf.where(rank >= 0.0, 0, -1)),
        "true_box": true_box,
    }


def box_losses(
    config: BoxHeadConfig, logits: tf.Tensor, deltas: tf.Tensor, rois: dict[str, tf.Tensor], true_boxes: tf.Tensor
) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
    """Cross entropy and smooth L1 over the sampled RoIs as (sum, count); Detectron2's fast_rcnn.py: both by the number of RoIs.

    Args:
      logits: float32 [B, R, 1 + C]; deltas: float32 [B, R, 4 · C], of which those of the true class count; rois: from
        `sample_rois`; true_boxes: float32 [B, G, 4].
    """
    label = rois["label"]
    classes = logits.shape[-1] - 1  # (AutoGraph knows no := and would say so at every start)
    if classes > 1:
        by_class = tf.reshape(deltas, [-1, label.shape[1], classes, 4])
        deltas = tf.gather(by_class, tf.maximum(label - 1, 0), batch_dims=2)  # [B, R, 4]
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(label, 0), logits)  # [B, R]
    class_loss = tf.reduce_sum(tf.where(label >= 0, cross_entropy, 0.0))

    positive = (label > 0)[..., tf.newaxis]  # [B, R, 1]
    unit = tf.constant([0.0, 0.0, 1.0, 1.0])  # keeps the logarithm finite for RoIs that are not positive
    boxes = tf.where(positive, rois["boxes"], unit)
    target_boxes = tf.where(positive, tf.gather(true_boxes, rois["true_box"], batch_dims=1), unit)
    error = deltas - box_ops.encode(target_boxes, boxes, DELTA_WEIGHTS)
    box = tf.reduce_sum(tf.where(positive, box_ops.smooth_l1(error, config.smooth_l1_beta), 0.0))
    count = tf.reduce_sum(tf.cast(label >= 0, tf.float32))
    return {"box_class": (class_loss, count), "box_delta": (box, count)}


def scored_boxes(
    config: InferenceConfig,
    logits: tf.Tensor,
    deltas: tf.Tensor,
    proposals: tf.Tensor,
    proposal_scores: tf.Tensor,
    image_size: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What `detections`, whose arguments these are, chooses from: boxes float32 [B, N, 4] within the image, scores [B, N].

    Of C classes, every pair of a proposal and a class is a candidate, as in torchvision's and Detectron2's inference:
    [B, N · C, 4] and [B, N · C], the classes of a proposal side by side. The score is `NOTHING` where no box is, or one that is
    too small.
    """
    classes = logits.shape[-1] - 1
    if classes > 1:
        number = classes * proposals.shape[1]
        boxes = box_ops.decode(tf.reshape(deltas, [-1, number, 4]), tf.repeat(proposals, classes, axis=1), DELTA_WEIGHTS)
        boxes = box_ops.clip(boxes, image_size)  # [B, N · C, 4]
        scores = tf.reshape(tf.nn.softmax(logits)[..., 1:], [-1, number])
        exists = box_ops.large_enough(boxes, config.min_size) & (tf.repeat(proposal_scores, classes, axis=1) > NOTHING)
        return boxes, tf.where(exists, scores, NOTHING)
    boxes = box_ops.clip(box_ops.decode(deltas, proposals, DELTA_WEIGHTS), image_size)  # [B, N, 4]
    scores = tf.nn.softmax(logits)[..., 1]  # [B, N]
    exists = box_ops.large_enough(boxes, config.min_size) & (proposal_scores > NOTHING)
    return boxes, tf.where(exists, scores, NOTHING)


def detections(
    config: InferenceConfig,
    logits: tf.Tensor,
    deltas: tf.Tensor,
    proposals: tf.Tensor,
    proposal_scores: tf.Tensor,
    image_size: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """The people found, best score first, zeros behind the last.

    Args:
      logits: float32 [B, N, 1 + C]; deltas: float32 [B, N, 4 · C]; proposals: float32 [B, N, 4] and their scores [B, N];
      image_size: int32 [B, 2].

    Returns:
      `num_detections` int32 [B], `boxes` float32 [B, D, 4] within the image, `scores` float32 [B, D]; of several classes also
      `classes` int32 [B, D], 1…C.
    """
    boxes, scores = scored_boxes(config, logits, deltas, proposals, proposal_scores, image_size)  # [B, N · C, 4], [B, N · C]
    classes = logits.shape[-1] - 1
    if classes > 1:
        return _best_of_classes(config, boxes, scores, classes)

    def best_of_one(boxes: tf.Tensor, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return suppress(boxes, scores, config.max_detections, config.nms_threshold, config.score_threshold)

    boxes, scores = map_images(best_of_one, [boxes, scores], (tf.float32, tf.float32))
    return {
        "num_detections": tf.reduce_sum(tf.cast(scores > NOTHING, tf.int32), axis=1),
        "boxes": tf.reshape(boxes, [-1, config.max_detections, 4]),
        "scores": tf.reshape(tf.maximum(scores, 0.0), [-1, config.max_detections]),
    }


def _best_of_classes(config: InferenceConfig, boxes: tf.Tensor, scores: tf.Tensor, classes: int) -> dict[str, tf.Tensor]:
    """What `detections` returns of several classes, chosen from boxes [B, N · C, 4] by scores [B, N · C].

    Boxes of different classes do not suppress each other: NMS sees each class moved to a place of its own, as torchvision's
    `batched_nms` does.
    """
    own_class = tf.tile(tf.range(classes), [boxes.shape[1] // classes])  # [N · C]

    def best_of_one(boxes: tf.Tensor, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        apart = tf.cast(own_class, tf.float32) * (tf.reduce_max(boxes) + 1.0)
        index, real = kept_places(
            boxes + apart[:, tf.newaxis], scores, config.max_detections, config.nms_threshold, config.score_threshold
        )
        return (
            tf.where(real[:, tf.newaxis], tf.gather(boxes, index), 0.0),
            tf.where(real, tf.gather(scores, index), 0.0),
            tf.where(real, tf.gather(own_class, index) + 1, 0),
        )

    boxes, scores, labels = map_images(best_of_one, [boxes, scores], (tf.float32, tf.float32, tf.int32))
    return {
        "num_detections": tf.reduce_sum(tf.cast(labels > 0, tf.int32), axis=1),
        "boxes": tf.reshape(boxes, [-1, config.max_detections, 4]),
        "scores": tf.reshape(scores, [-1, config.max_detections]),
        "classes": tf.reshape(labels, [-1, config.max_detections]),
    }
