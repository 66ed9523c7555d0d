"""One batch of the original's training: targets, losses, and the gradient of every tensor.

The old network is not trained here. But its gradients go through each of its operations, and its targets say what its answers
mean: where in a box a place lies, and which class is which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from model.matterport import boxes as boxes_lib
from model.matterport.config import RpnConfig
from model.matterport.network import MaskRCNN
from tests.model.matterport import training_rules as rules
from tests.model.matterport.conftest import bits

Arrays = dict[str, NDArray[Any]]
SIDE = 512


@pytest.fixture(scope="module")
def batch(oracle_folder: Path) -> Arrays:
    with np.load(oracle_folder / "training512.npz") as file:
        return dict(file)


def test_targets(batch: Arrays) -> None:
    masks = bits(batch, "gt_masks_bits", "gt_masks_shape")
    t_mask = bits(batch, "t_mask_bits", "t_mask_shape")
    for i in range(2):
        targets = rules.roi_targets(
            batch["rpn_rois"][i], batch["gt_class_ids"][i], batch["gt_boxes"][i], batch["gt_keypoints"][i], masks[i], SIDE
        )
        for name in ("t_rois", "t_class_ids", "t_keypoint", "t_keypoint_weight"):
            np.testing.assert_array_equal(targets[name], batch[name][i], err_msg=name)
        np.testing.assert_array_equal(targets["t_mask"], t_mask[i])
        np.testing.assert_allclose(targets["t_bbox"], batch["t_bbox"][i], rtol=0, atol=2e-5)
    assert [tuple(row) for row in batch["pos_index"]] == [tuple(row) for row in np.argwhere(batch["t_class_ids"] > 0)]


def test_utilities_of_training(utils: Arrays) -> None:
    resized = utils["kp_in"].copy()
    resized[..., :2] = (resized[..., :2] * 0.8 + 0.5).astype(int) + np.array([0, 85])
    np.testing.assert_array_equal(
        resized * (resized[..., 2:] > 0), utils["kp_resized_scale0p8_pad85_0"] * (resized[..., 2:] > 0)
    )
    masks = bits(utils, "mini_in", "mini_in_shape")
    boxes = rules.boxes_of_masks(masks)
    np.testing.assert_array_equal(boxes, utils["mini_boxes"])
    small = bits(utils, "mini_out", "mini_out_shape")
    for i, box in enumerate(boxes):
        np.testing.assert_array_equal(rules.mini_mask(masks[..., i], box), small[..., i])
    found = rules.deltas(utils["delta_boxes"][:10], utils["refine_gt"])
    np.testing.assert_allclose(found, utils["refine_out"], rtol=1e-5, atol=1e-6)


def moving_targets(logits: tf.Tensor, deltas: tf.Tensor, network: MaskRCNN, batch: Arrays) -> tf.Tensor:
    """The box targets of the positive RoIs [P, 4] as the original's graph has them: they move with the proposals.

    No gradient was stopped there, so the class head's box loss also trains the RPN.
    """
    anchors = tf.constant(boxes_lib.anchors(network.config.anchors, SIDE))
    proposals = boxes_lib.proposals(RpnConfig(proposals=2000), tf.nn.softmax(logits)[..., 1], deltas, anchors, SIDE)
    targets = []
    for i, slot in batch["pos_index"]:
        roi = batch["t_rois"][i, slot]
        distance = np.abs(proposals[i].numpy() - roi).max(axis=-1)
        assert distance.min() < 1e-5
        moving = proposals[i, int(distance.argmin())]
        target = boxes_lib.apply_deltas(tf.constant(roi), tf.constant(batch["t_bbox"][i, slot] * rules.DEVIATIONS)).numpy()
        size, target_size = moving[2:] - moving[:2], target[2:] - target[:2]
        centre = (target[:2] + 0.5 * target_size - moving[:2] - 0.5 * size) / size
        targets.append(tf.concat([centre, tf.math.log(target_size / size)], axis=-1) / rules.DEVIATIONS)
    return tf.stack(targets)


def losses_of(network: MaskRCNN, images: NDArray[np.uint8], batch: Arrays) -> tuple[dict[str, tf.Tensor], Arrays]:
    """The original's six losses and its L2 term, and what the heads say of the positive RoIs."""
    pyramid = network.pyramid(tf.constant(images))
    logits, deltas = network.rpn(pyramid)
    match = batch["rpn_match"]
    losses = {"rpn_class_loss": tf.reduce_mean(rules.cross_entropy(match[match != 0] == 1, logits[match != 0]))}
    packed = np.concatenate([batch["rpn_bbox"][i][: (match[i] == 1).sum()] for i in range(2)])
    losses["rpn_bbox_loss"] = tf.reduce_mean(rules.smooth_l1(deltas[match == 1] - packed))

    heads, rois = pyramid[:4], tf.constant(batch["t_rois"].reshape(-1, 4))
    image_index = tf.repeat(tf.range(2), rules.ROIS)
    class_logits, class_deltas = network.classify(boxes_lib.pool(heads, rois, image_index, 7, SIDE))
    losses["mrcnn_class_loss"] = tf.reduce_mean(rules.cross_entropy(batch["t_class_ids"].reshape(-1), class_logits))
    positive = np.flatnonzero(batch["t_class_ids"].reshape(-1) > 0)
    own_deltas = tf.gather(class_deltas, positive)[:, 1]
    targets = moving_targets(logits, deltas, network, batch)
    losses["mrcnn_bbox_loss"] = tf.reduce_mean(rules.smooth_l1(own_deltas - targets))

    chosen, index = tf.gather(rois, positive), tf.gather(image_index, positive)
    masks = network.masks(boxes_lib.pool(heads, chosen, index, 14, SIDE))[..., 1]
    wanted = bits(batch, "t_mask_bits", "t_mask_shape").reshape(-1, 28, 28)[positive].astype(np.float32)
    clipped = tf.clip_by_value(masks, 1e-7, 1 - 1e-7)
    losses["mrcnn_mask_loss"] = -tf.reduce_mean(wanted * tf.math.log(clipped) + (1 - wanted) * tf.math.log(1 - clipped))

    pooled = boxes_lib.pool(heads, chosen, index, 7, SIDE)
    heatmaps = network.heatmaps(pooled)
    flat = tf.reshape(tf.transpose(heatmaps, [0, 3, 1, 2]), [len(positive), 17, -1])
    weight = batch["t_keypoint_weight"].reshape(-1, 17)[positive].astype(np.float32)
    entropy = rules.cross_entropy(batch["t_keypoint"].reshape(-1, 17)[positive], flat)
    losses["keypoint_mrcnn_mask_loss"] = tf.reduce_sum(entropy * weight) / weight.sum()
    decayed = {n: v for n, v in network.variables_by_path().items() if n.endswith(("/kernel", "/bias"))}
    losses["reg_loss"] = tf.add_n([1e-4 * tf.reduce_mean(tf.square(v)) for v in decayed.values()])
    said = {
        "class_logits": class_logits.numpy().reshape(2, -1, 2),
        "mrcnn_bbox": class_deltas.numpy().reshape(2, -1, 2, 4),
        "pos_mask_prob": masks.numpy(),
        "pos_kp_deconv": network.small_maps(pooled).numpy(),
    }
    return losses, said


def test_losses_and_gradients(network: MaskRCNN, batch: Arrays, oracle_folder: Path) -> None:
    images = np.stack([np.load(oracle_folder / f"{name}512.npz")["molded_u8"] for name in ("land", "port")])
    variables = {n: v for n, v in network.variables_by_path().items() if not n.endswith(("moving_mean", "moving_variance"))}
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(variables.values()))
        losses, said = losses_of(network, images, batch)
        total = tf.add_n(list(losses.values()))
    for name, value in said.items():
        np.testing.assert_allclose(value, batch[name], rtol=0, atol=1e-5 * np.abs(batch[name]).max(), err_msg=name)
    for name, value in losses.items():
        reference = batch["reg_loss"] if name == "reg_loss" else batch[f"loss_{name}"]
        np.testing.assert_allclose(value, reference, rtol=0, atol=5e-6, err_msg=name)
    np.testing.assert_allclose(total, batch["total_loss"], rtol=0, atol=1e-5)

    found = tape.gradient(total, variables)
    norms: dict[str, Any] = {name: np.array(0.0) if g is None else np.asarray(g) for name, g in found.items()}
    named = {
        str(name).removesuffix(":0"): float(norm) for name, norm in zip(batch["grad_name"], batch["grad_norm"], strict=True)
    }
    assert set(named) == set(variables)
    for layer, norm_layer in normed_layers(network):
        # A bias before a norm shifts what the norm's own shift does, by its factor; TensorFlow's operation leaves it out.
        gamma, variance = (network.variables_by_path()[f"{norm_layer}/{part}"].numpy() for part in ("gamma", "moving_variance"))
        factor = gamma / np.sqrt(variance + network.config.backbone.norm_epsilon)
        bias = variables[f"{layer}/bias"].numpy()
        norms[f"{layer}/bias"] = norms[f"{norm_layer}/beta"] * factor + 2e-4 * bias / bias.size
    for name, norm in named.items():
        # The loss over places does not change if all logits rise: only the L2 term moves that bias.
        tolerance = 1e-5 if name == "mrcnn_keypoint_mask_deconv/bias" else 1e-6
        assert np.linalg.norm(norms[name]) == pytest.approx(norm, rel=2e-3, abs=tolerance), name


def normed_layers(network: MaskRCNN) -> list[tuple[str, str]]:
    """Convolutions with a batch norm behind them, and that norm."""
    names = {name.split("/")[0] for name in network.variables_by_path()}
    pairs = [("conv1", "bn_conv1")]
    for layer in sorted(names):
        for old, new in (("res", "bn"), ("_conv", "_bn")):
            norm = layer.replace(old, new, 1)
            if (layer.startswith("res") or "_conv" in layer) and norm != layer and norm in names:
                pairs.append((layer, norm))
    return pairs
