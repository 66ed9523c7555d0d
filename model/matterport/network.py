"""The old network: ResNet-101 with FPN, an RPN, and heads for the class, the mask and the keypoints of each box.

Its variables are called as the layers of its file, "res2a_branch2a/kernel" (`layout`). Everything is float32; batch norms use
their stored statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from model.matterport import boxes as boxes_lib
from model.matterport import decoding, layout
from model.matterport.config import CANVAS_MULTIPLE, STAGES, MatterportConfig
from model.network.keypoint_head import Decoder
from pipeline.skeleton import Skeleton

PERSON = 1  # of its classes; 0 is the background


class MaskRCNN(tf.Module):
    """Mask R-CNN with a keypoint head.

    Args:
      config: its sizes, and how it answers.
      skeleton: the keypoint set.

    Attributes:
      with_masks: whether `detect` looks for masks, too.
    """

    def __init__(self, config: MatterportConfig, skeleton: Skeleton) -> None:
        super().__init__(name="matterport")
        self.config = config
        self.skeleton = skeleton
        self.with_masks = False
        shapes = layout.shapes(config.architecture)
        self._variables = {name: tf.Variable(tf.zeros(shape), name=name, trainable=False) for name, shape in shapes.items()}

    def variables_by_path(self) -> dict[str, tf.Variable]:
        """The variables by name, such as "conv1/kernel"."""
        return dict(self._variables)

    def convolution(self, x: tf.Tensor, layer: str, *, stride: int = 1, padding: str = "SAME") -> tf.Tensor:
        """[B, H, W, C] → [B, H/stride, W/stride, C'], with its bias."""
        y = tf.nn.conv2d(x, self._variables[f"{layer}/kernel"], stride, padding)
        return tf.nn.bias_add(y, self._variables[f"{layer}/bias"])

    def normalised_convolution(
        self, x: tf.Tensor, layer: str, norm: str, *, stride: int = 1, padding: str = "SAME"
    ) -> tf.Tensor:
        """`convolution` and the batch norm behind it, with the statistics of the file.

        One operation takes the bias, too, as a part of the mean: scores of keypoints come out within 5e-7 of the original's,
        and within 1.3e-6 if each step rounds.
        """
        gamma, beta, mean, variance = (self._variables[f"{norm}/{name}"] for name in layout.BATCH_NORM)
        y = tf.nn.conv2d(x, self._variables[f"{layer}/kernel"], stride, padding)
        return tf.raw_ops.FusedBatchNormV3(
            x=y,
            scale=gamma,
            offset=beta,
            mean=mean - self._variables[f"{layer}/bias"],
            variance=variance,
            epsilon=self.config.backbone.norm_epsilon,
            is_training=False,
        ).y

    def deconvolution(self, x: tf.Tensor, layer: str) -> tf.Tensor:
        """A transposed convolution whose 2×2 windows do not overlap: [N, S, S, C] → [N, 2 S, 2 S, C']."""
        kernel = self._variables[f"{layer}/kernel"]
        count, size = x.shape[0] or tf.shape(x)[0], x.shape[1]
        y = tf.nn.conv2d_transpose(x, kernel, [count, 2 * size, 2 * size, kernel.shape[2]], 2, "VALID")
        return tf.nn.bias_add(y, self._variables[f"{layer}/bias"])

    def normalised(self, images: tf.Tensor) -> tf.Tensor:
        """What the backbone sees of images [B, S, S, 3], RGB, 0…255: less the mean, the padding as well."""
        return tf.cast(images, tf.float32) - tf.constant(self.config.backbone.pixel_mean)

    def stages(self, pixels: tf.Tensor) -> list[tf.Tensor]:
        """C2…C5 of normalised images [B, S, S, 3]."""
        x = tf.pad(pixels, [[0, 0], [3, 3], [3, 3], [0, 0]])
        x = tf.nn.relu(self.normalised_convolution(x, "conv1", "bn_conv1", stride=2, padding="VALID"))
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        stages = []
        for stage, blocks in zip(STAGES, self.config.architecture.blocks, strict=True):
            for block in range(blocks):
                x = self._bottleneck(x, layout.block_name(stage, block), 2 if stage > 2 and block == 0 else 1, block == 0)
            stages.append(x)
        return stages

    def _bottleneck(self, x: tf.Tensor, name: str, stride: int, projects: bool) -> tf.Tensor:
        """A block "2a"; its stride lies in the first 1×1 convolution, and in the shortcut's."""

        def part(x: tf.Tensor, branch: str, stride: int = 1) -> tf.Tensor:
            return self.normalised_convolution(x, f"res{name}_branch{branch}", f"bn{name}_branch{branch}", stride=stride)

        y = tf.nn.relu(part(x, "2a", stride))
        y = tf.nn.relu(part(y, "2b"))
        y = part(y, "2c")
        return tf.nn.relu(y + (part(x, "1", stride) if projects else x))

    def pyramid(self, images: tf.Tensor) -> list[tf.Tensor]:
        """P2…P6 of images [B, S, S, 3], RGB, 0…255; S is a multiple of 64."""
        return self.pyramid_of(self.stages(self.normalised(images)))

    def pyramid_of(self, stages: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """P2…P6 of C2…C5: nearest upsampling, no activations; P6 is every second place of P5."""
        merged = [self.convolution(stages[-1], "fpn_c5p5")]
        for stage, features in zip(STAGES[-2::-1], stages[-2::-1], strict=True):
            above = tf.repeat(tf.repeat(merged[0], 2, axis=1), 2, axis=2)
            merged.insert(0, self.convolution(features, f"fpn_c{stage}p{stage}") + above)
        levels = [self.convolution(features, f"fpn_p{stage}") for stage, features in zip(STAGES, merged, strict=True)]
        return [*levels, levels[-1][:, ::2, ::2]]

    def rpn(self, pyramid: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Class logits [B, A, 2] (background, person) and deltas [B, A, 4] of all anchors, of the levels P2…P6 in turn."""
        logits, deltas = [], []
        for features in pyramid:
            shared = tf.nn.relu(self.convolution(features, "rpn_conv_shared"))
            places = features.shape[1] * features.shape[2] * self.config.architecture.anchors
            logits.append(tf.reshape(self.convolution(shared, "rpn_class_raw"), [-1, places, 2]))
            deltas.append(tf.reshape(self.convolution(shared, "rpn_bbox_pred"), [-1, places, 4]))
        return tf.concat(logits, 1), tf.concat(deltas, 1)

    def classify(self, pooled: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Class logits [N, classes] and deltas [N, classes, 4] of pooled features [N, 7, 7, C]."""
        shared = self.class_features(pooled)
        logits, deltas = (
            tf.matmul(shared, self._variables[f"{layer}/kernel"]) + self._variables[f"{layer}/bias"]
            for layer in ("mrcnn_class_logits", "mrcnn_bbox_fc")
        )
        return logits, tf.reshape(deltas, [-1, self.config.architecture.classes, 4])

    def class_features(self, pooled: tf.Tensor) -> tf.Tensor:
        """What both outputs of the class head see: [N, 7, 7, C] → [N, C']."""
        x = tf.nn.relu(self.normalised_convolution(pooled, "mrcnn_class_conv1", "mrcnn_class_bn1", padding="VALID"))
        x = tf.nn.relu(self.normalised_convolution(x, "mrcnn_class_conv2", "mrcnn_class_bn2"))
        return tf.squeeze(x, [1, 2])

    def masks(self, pooled: tf.Tensor) -> tf.Tensor:
        """Mask probabilities [N, 28, 28, classes] of pooled features [N, 14, 14, C]."""
        x = self._convolutions(pooled, "mrcnn_mask", layout.MASK_CONVOLUTIONS)
        x = tf.nn.relu(self.deconvolution(x, "mrcnn_mask_deconv"))
        return tf.sigmoid(self.convolution(x, "mrcnn_mask"))

    def small_maps(self, pooled: tf.Tensor) -> tf.Tensor:
        """What the keypoint head has learned: maps [N, 14, 14, K] of pooled features [N, 7, 7, C]."""
        x = self._convolutions(pooled, "mrcnn_keypoint_mask", layout.KEYPOINT_CONVOLUTIONS)
        return self.deconvolution(x, "mrcnn_keypoint_mask_deconv")

    def _convolutions(self, x: tf.Tensor, head: str, number: int) -> tf.Tensor:
        for layer in range(1, number + 1):
            x = tf.nn.relu(self.normalised_convolution(x, f"{head}_conv{layer}", f"{head}_bn{layer}"))
        return x

    def heatmaps(self, pooled: tf.Tensor) -> tf.Tensor:
        """Logits [N, 56, 56, K] of pooled features [N, 7, 7, C]: the small maps, enlarged twice."""
        maps = self.small_maps(pooled)
        size = maps.shape[1]
        return enlarged(enlarged(maps, 2 * size), 4 * size)

    def detect(
        self,
        images: tf.Tensor,
        image_size: tf.Tensor,
        decode: Decoder = decoding.decode_unrounded,
        *,
        static_shapes: bool = False,
    ) -> dict[str, tf.Tensor]:
        """Finds people; as `KeypointRCNN.detect`, which has the arguments and the answer in full.

        Args:
          images: uint8 or float32 [B, H, W, 3], RGB, 0…255, each at the top left of its canvas, zeros elsewhere.
          image_size: int32 [B, 2], height and width of each; at most `inference.max_edge`, unless H and W are known.
          decode: of `model.matterport.decoding`.
          static_shapes: looks at all D places, as if everywhere were somebody: no shape depends on what is seen.

        Returns:
          `num_detections`, `boxes` (x0, y0, x1, y1), `scores`, `keypoints`, `keypoint_scores` in pixels of `images`; if
          `with_masks`, also `mask_probabilities` float32 [B, D, 28, 28]. Other classes than the person are left out.
        """
        side = canvas_side(images, self.config.inference.max_edge)
        window = decoding.window_of(image_size, side)
        pyramid = self.pyramid(decoding.in_the_middle(images, image_size, window, side))
        boxes, scores, number = self.people(pyramid, tf.cast(window, tf.float32), side)
        origin = tf.cast(window[:, tf.newaxis, :2], tf.float32)  # [B, 1, 2]
        own = tf.concat([boxes[..., :2] - origin, boxes[..., 2:] - origin], axis=-1)
        answer = {
            "num_detections": number,
            "boxes": tf.where((scores > 0.0)[..., tf.newaxis], decoding.xy(own), 0.0),
            "scores": scores,
        }

        most = self.config.inference.max_detections
        # Heads look at as many places as the image with the most people needs, at least one: oneDNN refuses an empty batch.
        looked_at = most if static_shapes else tf.maximum(tf.reduce_max(number), 1)
        seen = boxes[:, :looked_at] / float(side)  # [B, n, 4]
        flat, image_index = tf.reshape(seen, [-1, 4]), _image_index(seen)
        kept = tf.range(most)[tf.newaxis] < number[:, tf.newaxis]  # [B, D]

        def at_their_places(values: tf.Tensor) -> tf.Tensor:
            """[B · n, ...] → [B, D, ...], zeros where nobody is."""
            inner = values.shape[1:]
            if not static_shapes:
                values = tf.reshape(values, [tf.shape(seen)[0], looked_at, *inner])
                values = tf.pad(values, [[0, 0], [0, most - looked_at], *[[0, 0]] * inner.rank])
            values = tf.reshape(values, [-1 if images.shape[0] is None else images.shape[0], most, *inner])
            return tf.where(tf.reshape(kept, [-1, most, *[1] * inner.rank]), values, tf.zeros([], values.dtype))

        heads = pyramid[:4]
        heatmaps = self.heatmaps(boxes_lib.pool(heads, flat, image_index, self.config.heads.keypoint_size, side))
        keypoints, keypoint_scores = decode(heatmaps, tf.reshape(answer["boxes"][:, :looked_at], [-1, 4]))
        answer["keypoints"] = at_their_places(keypoints)
        answer["keypoint_scores"] = at_their_places(keypoint_scores)
        if self.with_masks:
            of_classes = self.masks(boxes_lib.pool(heads, flat, image_index, self.config.heads.mask_size, side))
            answer["mask_probabilities"] = at_their_places(of_classes[..., PERSON])
        return answer

    def people(self, pyramid: Sequence[tf.Tensor], window: tf.Tensor, side: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The people in images whose pyramid is given.

        Args:
          pyramid: P2…P6; window: float32 [B, 4], y0, x0, y1, x1 of each image on its canvas; side: of the canvas, pixels.

        Returns:
          Boxes float32 [B, D, 4], y0, x0, y1, x1 in whole pixels of the canvas, scores [B, D], their number int32 [B].
        """
        config = self.config
        logits, deltas = self.rpn(pyramid)
        anchors = tf.constant(boxes_lib.anchors(config.anchors, side))
        rois = boxes_lib.proposals(config.rpn, tf.nn.softmax(logits)[..., 1], deltas, anchors, side)  # [B, P, 4]
        flat_rois = tf.reshape(rois, [-1, 4])
        pooled = boxes_lib.pool(pyramid[:4], flat_rois, _image_index(rois), config.architecture.class_size, side)
        class_logits, class_deltas = self.classify(pooled)
        proposals, classes = config.rpn.proposals, config.architecture.classes
        boxes, labels, scores, number = boxes_lib.detections(
            config.inference,
            tf.reshape(tf.nn.softmax(class_logits), [-1, proposals, classes]),
            tf.reshape(class_deltas, [-1, proposals, classes, 4]),
            rois,
            window,
            side,
        )
        has_area = tf.reduce_all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        number, boxes, scores = boxes_lib.compacted((labels == PERSON) & has_area, boxes, scores)
        return boxes, scores, number


def canvas_side(images: tf.Tensor, max_edge: int) -> int:
    """The side of the square on which images [B, H, W, 3] are looked at: `max_edge`, or more if they are known not to fit."""
    sides = [side for side in images.shape[1:3] if side is not None]
    largest = max(sides, default=0)
    return max(max_edge, -(-largest // CANVAS_MULTIPLE) * CANVAS_MULTIPLE)


def enlarged(maps: tf.Tensor, size: int) -> tf.Tensor:
    """Maps [N, S, S, K] at size × size by TensorFlow 1's bilinear rule: place i of the result lies at i · S / size."""
    return tf.raw_ops.ResizeBilinear(images=maps, size=[size, size], align_corners=False, half_pixel_centers=False)


def _image_index(boxes: tf.Tensor) -> tf.Tensor:
    """The image of each box after boxes [B, N, 4] are flattened: int32 [B · N]."""
    batch, number = (boxes.shape[axis] if boxes.shape[axis] is not None else tf.shape(boxes)[axis] for axis in (0, 1))
    return tf.repeat(tf.range(batch), number)
