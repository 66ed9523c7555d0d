"""The whole model: one path from pixels to people (`detect`), and one from a batch to its losses (`losses`).

    pixels → normalise → ResNet → FPN → RPN → proposals ─┬→ RoIAlign 7×7  → box head      → boxes, scores
                                                        └→ RoIAlign 14×14 → keypoint head → keypoints

Everything is in canvas pixels; float32 outside the layers, whose compute type is the precision policy's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import keras
import tensorflow as tf

from model.config import BoxHeadConfig, Config, KeypointHeadConfig
from model.network import box_head, keypoint_head, rpn
from model.network.backbone import fpn, level_shapes, resnet
from model.network.keypoint_head import Decoder, decode_fast
from model.network.layers import blank_weights
from model.network.own_canvas import level_sizes, own_canvases
from model.network.roi_align import roi_align
from model.network.sync_batch_norm import SyncBatchNorm
from pipeline import image
from pipeline.skeleton import Skeleton

# The keypoint head looks at a multiple of this number of people: a GPU's library tries its algorithms anew for each number.
PEOPLE_AT_ONCE = 8

Loss = tuple[tf.Tensor, tf.Tensor]  # (sum, count): reduced in one place, over the global batch


class KeypointRCNN(tf.Module):
    """Keypoint R-CNN for one keypoint set, and one class of objects or several that share it.

    Args:
      config: the architecture and how it answers.
      skeleton: the keypoint set, and the classes.
      precision: a Keras policy: "float32", "mixed_float16", "mixed_bfloat16".
      seed: of the initial weights.
      blank: whether the weights begin as zeros instead, because they are read from a file next.
    """

    def __init__(
        self, config: Config, skeleton: Skeleton, *, precision: str = "float32", seed: int = 0, blank: bool = False
    ) -> None:
        super().__init__(name="keypoint_rcnn")
        self.config = config
        self.skeleton = skeleton
        policy = keras.DTypePolicy(precision)
        channels, ratios = config.backbone.fpn_channels, len(config.anchors.aspect_ratios)
        keras.utils.set_random_seed(seed)
        with blank_weights(blank):
            self.backbone = resnet(config.backbone, policy)
            self.fpn = fpn(config.backbone, [stage.shape[-1] for stage in self.backbone.outputs], policy)
            self.rpn_head = rpn.rpn_head(channels, ratios, policy)
            self.box_head = box_head.box_head(config.box_head, channels, policy, skeleton.num_classes)
            from_scratch = config.backbone.norm == "group"
            self.keypoint_head = keypoint_head.keypoint_head(
                config.keypoint_head, channels, skeleton.num_keypoints, from_scratch, policy
            )

    def parts(self) -> tuple[keras.Model, ...]:
        return (self.backbone, self.fpn, self.rpn_head, self.box_head, self.keypoint_head)

    def variables_by_path(self, *, trainable_only: bool = False) -> dict[str, tf.Variable]:
        """The raw TensorFlow variables by name, such as "backbone.layer1.0.conv1/kernel": what checkpoints and exports hold."""
        keras_variables = [v for part in self.parts() for v in (part.trainable_variables if trainable_only else part.variables)]
        return {v.path: v.value for v in keras_variables}

    def freeze_statistics(self, frozen: Collection[str]) -> None:
        """Lets norms whose moving statistics are among these paths take them in training, too, and leave them as they are."""
        for part in self.parts():
            for layer in part.layers:
                if isinstance(layer, SyncBatchNorm) and layer.mean.path in frozen:
                    layer.trainable = False

    def pyramid(
        self, images: tf.Tensor, image_size: tf.Tensor, *, own_canvas: tf.Tensor | None = None, training: bool = False
    ) -> list[tf.Tensor]:
        """P2…P6 of images [B, H, W, 3], whose content is the top left `image_size` [B, 2] of the canvas.

        Images are RGB, 0…255: uint8, or float32 if a resize was not rounded to whole numbers. `own_canvas` as in `detect`.
        """
        height, width = (images.shape[axis] or tf.shape(images)[axis] for axis in (1, 2))
        of_image = self.config.backbone.norm == "group" and self.config.backbone.group_statistics == "image"
        with own_canvases(image_size if of_image else own_canvas, height, width):
            features = self.backbone(self.normalised(images, image_size), training=training)
            levels: list[tf.Tensor] = self.fpn(features, training=training)
        return levels

    def normalised(self, images: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
        """What the backbone sees, float32 [B, H, W, 3], of images as `pyramid` takes them.

        What lies outside an image is zero after normalisation, as both reference implementations have it.
        """
        backbone = self.config.backbone
        pixels = tf.cast(images, tf.float32)
        if backbone.pixel_order == "BGR":
            pixels = pixels[..., ::-1]
        mean, std = (
            tf.constant(values) * (255.0 / backbone.pixel_range) for values in (backbone.pixel_mean, backbone.pixel_std)
        )
        pixels = (pixels - mean) / std
        height, width = (images.shape[axis] or tf.shape(images)[axis] for axis in (1, 2))
        return tf.where(image.covered(image_size, height, width), pixels, 0.0)

    def propose(
        self, images: tf.Tensor, image_size: tf.Tensor, own_canvas: tf.Tensor | None = None
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """The first stage at inference: P2…P6 of images as `detect` takes them, and `rpn.proposals`: boxes and their scores."""
        pyramid = self.pyramid(images, image_size, own_canvas=own_canvas)
        own_sizes = None if own_canvas is None else level_sizes(own_canvas, len(pyramid))
        anchors = rpn.anchor_grid(self.config.anchors, level_shapes(pyramid), own_sizes)
        logits, deltas = rpn.rpn_outputs(self.rpn_head, pyramid)
        if own_sizes is not None:
            logits = rpn.within_own_canvases(logits, level_shapes(pyramid), own_sizes)
        # TF-TRT takes no EnsureShape. Without it the convolutions of deltas share an engine with what follows `top_k`, and so
        # cannot lie in the one with the backbone.
        deltas = [tf.ensure_shape(level, [None, None, 4]) for level in deltas]
        return pyramid, *rpn.proposals(self.config.rpn, logits, deltas, anchors, image_size, training=False)

    def detect(
        self,
        images: tf.Tensor,
        image_size: tf.Tensor,
        decode: Decoder = decode_fast,
        *,
        own_canvas: tf.Tensor | None = None,
        static_shapes: bool = False,
    ) -> dict[str, tf.Tensor]:
        """Finds people.

        Args:
          images: uint8 or float32 [B, H, W, 3], RGB, 0…255; H and W multiples of 32.
          image_size: int32 [B, 2], height and width of each image within its canvas.
          decode: how heatmaps become keypoints.
          own_canvas: int32 [B, 2], multiples of 32: each image is answered as if it lay alone on a canvas of this height and
            width, whatever the batch's canvas is (see `own_canvas.py`). None: all see the batch's canvas.
          static_shapes: looks for keypoints in all D places of an image, whether somebody was found there or not. No shape
            depends on the image then, as XLA needs it; it costs as much as the rest of the model.

        Returns:
          `num_detections` int32 [B], `boxes` [B, D, 4] (x0, y0, x1, y1), `scores` [B, D], `keypoints` [B, D, K, 2],
          `keypoint_scores` [B, D, K]: float32, canvas pixels, sorted by score, zeros behind the last. If the model has several
          classes, also `classes` int32 [B, D], 1…C in the order of `Skeleton.classes`.
        """
        # 1. The first stage: where something may be.
        pyramid, proposals, proposal_scores = self.propose(images, image_size, own_canvas)
        own_sizes = None if own_canvas is None else level_sizes(own_canvas, len(pyramid))
        # 2. The box head: who is there, and where exactly.
        logits, deltas = self.classify(pyramid, proposals, own_sizes)
        who = box_head.detections(self.config.inference, logits, deltas, proposals, proposal_scores, image_size)
        boxes, scores = who["boxes"], who["scores"]
        # 3. The keypoint head, for the boxes of all images together; only where somebody was found, unless shapes are static.
        flat_boxes, image_index = tf.reshape(boxes, [-1, 4]), _image_index(boxes)  # [B · D, 4], [B · D]
        found = tf.reshape(scores > 0.0, [-1])  # [B · D]
        looked_at = None if static_shapes else first_places(found)
        if looked_at is not None:
            flat_boxes, image_index = tf.gather(flat_boxes, looked_at), tf.gather(image_index, looked_at)
        keypoints, keypoint_scores = decode(self.heatmaps(pyramid, flat_boxes, image_index, own_sizes), flat_boxes)

        def at_their_places(values: tf.Tensor) -> tf.Tensor:
            """[N, ...] → [B, D, ...], zeros where nobody was found."""
            if looked_at is not None:
                shape = tf.concat([tf.shape(found), values.shape[1:]], axis=0)
                values = tf.scatter_nd(tf.expand_dims(looked_at, 1), values, shape)
            values = tf.where(tf.reshape(found, [-1, *[1] * (values.shape.rank - 1)]), values, 0.0)
            return tf.reshape(values, [-1, self.config.inference.max_detections, *values.shape[1:]])

        return {
            **who,
            "keypoints": at_their_places(keypoints),
            "keypoint_scores": at_their_places(keypoint_scores),
        }

    def losses(
        self, batch: dict[str, tf.Tensor], seed: tf.Tensor, *, training: bool = True
    ) -> tuple[dict[str, Loss], dict[str, tf.Tensor]]:
        """The five losses of a batch (see `pipeline.loading.batches`), each as (sum, count), and sums worth watching.

        Args:
          seed: int32 scalar, of the step: RoIs are drawn by (seed, image id).
          training: whether norms take their statistics from the batch, where they do so in training.
        """
        # 1. The RPN's losses, over the anchors that the loader sampled.
        pyramid = self.pyramid(batch["image"], batch["image_size"], training=training)
        level_logits, level_deltas = rpn.rpn_outputs(self.rpn_head, pyramid)
        anchors = rpn.anchor_grid(self.config.anchors, level_shapes(pyramid))
        losses = rpn.rpn_losses(
            self.config.rpn,
            self.config.data.sampled_anchors,
            tf.concat(level_logits, 1),
            tf.concat(level_deltas, 1),
            tf.concat(anchors, 0),
            batch,
        )

        # 2. The box head's losses, over RoIs sampled from the proposals. No gradient flows through a proposal's place.
        proposals, proposal_scores = rpn.proposals(
            self.config.rpn,
            [tf.stop_gradient(logits) for logits in level_logits],
            [tf.stop_gradient(deltas) for deltas in level_deltas],
            anchors,
            batch["image_size"],
            training=True,
        )
        rois = box_head.sample_rois(self.config.box_head, proposals, proposal_scores, batch, seed)
        logits, deltas = self.classify(pyramid, rois["boxes"], training=training)
        losses |= box_head.box_losses(self.config.box_head, logits, deltas, rois, batch["boxes"])

        # 3. The keypoint head's loss, over the positive RoIs of all images together.
        packed = self.pack(rois, batch)
        heatmaps = self.heatmaps(pyramid, packed["boxes"], packed["image_index"], training=training)
        loss = keypoint_head.mask_loss if self.config.keypoint_head.loss == "mask" else keypoint_head.keypoint_loss
        losses["keypoint"] = loss(heatmaps, packed["keypoints"], packed["boxes"], packed["used"])
        watched = {
            "positive_rois": tf.reduce_sum(tf.cast(rois["label"] == 1, tf.float32)),
            "keypoint_rois": tf.reduce_sum(tf.cast(packed["used"], tf.float32)),
            "keypoint_overflow": packed["overflow"],
        }
        return losses, watched

    def pack(self, rois: dict[str, tf.Tensor], batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The positive RoIs of a batch that the keypoint head learns from; see `pack_positives`."""
        return pack_positives(rois, batch["keypoints"], self.config.keypoint_head.rois * batch["image"].shape[0])

    def trace(self, batch: dict[str, tf.Tensor], decode: Decoder = decode_fast, *, seed: int = 0) -> dict[str, tf.Tensor]:
        """Every stage's tensors by name, as `detect` and `losses` have them, of one batch.

        Args:
          batch: `image` and `image_size`, as `detect` takes them; with `boxes`, `keypoints`, `box_kind` and `image_id`, as
            `pipeline.loading.batches` yields them, also what the heads are taught.
          decode: how heatmaps become keypoints.
          seed: of the RoIs that are drawn.

        Returns:
          Boxes are float32 x0, y0, x1, y1 in canvas pixels. L is P2…P6.

          `pixels` [B, H, W, 3], normalised; `pyramid/L` [B, H_l, W_l, C]; `anchors/L` [A_l, 4], `objectness/L` [B, A_l],
          `deltas/L` [B, A_l, 4]; `before_nms/L` [B, k_l, 4] with `before_nms_scores/L`, the best of each level; `proposals`
          [B, N, 4] with `proposal_scores`; `class_logits` [B, N, 1 + C], `box_deltas` [B, N, 4 · C]; `num_detections`
          [B], `boxes` [B, D, 4], `scores` [B, D]; `heatmaps` [B, D, S, S, K], `keypoints` [B, D, K, 2], `keypoint_scores`
          [B, D, K] of all D places, those behind the last detection included.

          For training: `sampled_anchors` [B, A, 4] with `sampled_anchor_label` (1, 0, −1 unused), if the batch has them;
          `roi_boxes` [B, R, 4], `roi_label`, `roi_true_box`; `keypoint_roi_boxes` [P, 4], `…_image_index`, `…_keypoints`
          [P, K, 3], `…_used`, `…_overflow`, `…_heatmaps` [P, S, S, K]; `keypoint_target_place` int32 [P, K] (row × S + column)
          and `keypoint_target_valid` bool [P, K].
        """
        from model.network.trace import trace  # (it is about this class)

        return trace(self, batch, decode, seed)

    def classify(
        self,
        pyramid: Sequence[tf.Tensor],
        boxes: tf.Tensor,
        own_sizes: Sequence[tf.Tensor] | None = None,
        *,
        training: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Class logits [B, N, 1 + C] and deltas [B, N, 4 · C] of boxes [B, N, 4], float32; `own_sizes` as in `pool`."""
        pooled = self.pool(self.config.box_head, pyramid, tf.reshape(boxes, [-1, 4]), _image_index(boxes), own_sizes)
        logits, deltas = self.box_head(pooled, training=training)
        number, classes = boxes.shape[1], self.skeleton.num_classes
        return (
            tf.reshape(tf.cast(logits, tf.float32), [-1, number, 1 + classes]),
            tf.reshape(tf.cast(deltas, tf.float32), [-1, number, 4 * classes]),
        )

    def heatmaps(
        self,
        pyramid: Sequence[tf.Tensor],
        boxes: tf.Tensor,
        image_index: tf.Tensor,
        own_sizes: Sequence[tf.Tensor] | None = None,
        *,
        training: bool = False,
    ) -> tf.Tensor:
        """Heatmap logits [N, S, S, K] of boxes [N, 4], float32; `own_sizes` as in `pool`."""
        pooled = self.pool(self.config.keypoint_head, pyramid, boxes, image_index, own_sizes)
        heatmaps = self.keypoint_head(pooled, training=training)
        return tf.cast(heatmaps, tf.float32)

    def pool(
        self,
        head: BoxHeadConfig | KeypointHeadConfig,
        pyramid: Sequence[tf.Tensor],
        boxes: tf.Tensor,
        image_index: tf.Tensor,
        own_sizes: Sequence[tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """RoIAlign for a head, [N, S, S, C] of boxes [N, 4], from P2…P5; P6 exists for proposals only.

        `own_sizes`: of each level, rows and columns [B, 2] of the images' own canvases, at whose edges pooling ends.
        """
        levels, strides = pyramid[:-1], self.config.anchors.strides[:-1]
        size = head.resolution
        own = None if own_sizes is None else own_sizes[:-1]
        pooled = roi_align(self.config.roi_align, levels, strides, boxes, image_index, size, head.sampling_ratio, own_sizes=own)
        return tf.ensure_shape(pooled, [None, size, size, self.config.backbone.fpn_channels])


def _image_index(boxes: tf.Tensor) -> tf.Tensor:
    """The image of each box after boxes [B, N, 4] are flattened: int32 [B · N]."""
    batch, number = boxes.shape[0] or tf.shape(boxes)[0], boxes.shape[1]
    return tf.repeat(tf.range(batch), number)


def first_places(found: tf.Tensor) -> tf.Tensor:
    """The places, of [P], where somebody was found: int32 [N], filled up with other places to a multiple of `PEOPLE_AT_ONCE`.

    N is at least 1: oneDNN's convolutions refuse an empty batch.
    """
    places = tf.size(found)
    number = tf.reduce_sum(tf.cast(found, tf.int32))
    # (Not -(-number // …): in ONNX the division of integers rounds towards zero.)
    filled_up = tf.maximum((number + PEOPLE_AT_ONCE - 1) // PEOPLE_AT_ONCE, 1) * PEOPLE_AT_ONCE
    return tf.math.top_k(tf.cast(found, tf.int32), places).indices[: tf.minimum(filled_up, places)]


def pack_positives(rois: dict[str, tf.Tensor], keypoints: tf.Tensor, capacity: int) -> dict[str, tf.Tensor]:
    """Gathers the positive RoIs of a whole batch that have a labelled keypoint into one buffer of fixed size.

    Padding each image to its largest possible number of positives would make the keypoint head two thirds of all arithmetic.

    Args:
      rois: from `box_head.sample_rois`, [B, R, …]; keypoints: float32 [B, G, K, 3]; capacity: P, RoIs in the buffer.

    Returns:
      `boxes` [P, 4], `image_index` int32 [P], `keypoints` [P, K, 3], `used` bool [P], `overflow` float32: RoIs left out. When
      the buffer is full, each image loses the ones drawn last.
    """
    batch, number = rois["label"].shape
    own_keypoints = tf.gather(keypoints, rois["true_box"], batch_dims=1)  # [B, R, K, 3]
    wanted = (rois["label"] > 0) & tf.reduce_any(own_keypoints[..., 2] > 0, -1)  # [B, R]
    # Rank within the image first, so that a full buffer takes from all images alike.
    rank = tf.cumsum(tf.cast(wanted, tf.int32), axis=1)
    order = tf.reshape(tf.where(wanted, -rank, -(number + 1)), [-1])  # [B · R]
    _, index = tf.math.top_k(order, min(capacity, batch * number))  # of equals the first comes first
    flat_wanted = tf.reshape(wanted, [-1])
    return {
        "boxes": tf.gather(tf.reshape(rois["boxes"], [-1, 4]), index),
        "image_index": index // number,
        "keypoints": tf.gather(tf.reshape(own_keypoints, [-1, *own_keypoints.shape[2:]]), index),
        "used": tf.gather(flat_wanted, index),
        "overflow": tf.nn.relu(tf.reduce_sum(tf.cast(wanted, tf.float32)) - float(capacity)),
    }
