"""Training optimises what torchvision and Detectron2 optimise: losses and gradients, all anchors and proposals being taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from model.network import keypoint_head, rpn
from model.weights.importing import SOURCES
from model.weights.names import renamed
from pipeline import anchors
from pipeline.data_config import PERSON
from tests.model.oracles import Oracle, nchw, relative_error

LOSS = 1e-4  # relative; float32 against float64 differ by 1e-5 (the oracles' README)
GRADIENT_NORM, GRADIENT_NORM_SHARE, WORST_GRADIENT_NORM = 1e-3, 0.99, 5e-3  # relative; float32 against float64: 5e-5
# Its gradient is zero in exact arithmetic, as a softmax does not change when all its logits do; the rest is rounding.
NO_GRADIENT = "keypoint.deconv/bias"
INPUT = 1e-4  # of the largest value. torchvision computes the resize's source coordinates in float32: 4e-5 against float64
PROPOSALS = 200  # an image's, in the oracles

# By our names, theirs.
LOSSES = {
    "rpn_objectness": ("loss_objectness", "loss_rpn_cls"),
    "rpn_box": ("loss_rpn_box_reg", "loss_rpn_loc"),
    "box_class": ("loss_classifier", "loss_cls"),
    "box_delta": ("loss_box_reg", "loss_box_reg"),
    "keypoint": ("loss_keypoint", "loss_keypoint"),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step's answers of ours and of the reference, and what went in."""

    reference: dict[str, NDArray[Any]]
    batch: dict[str, tf.Tensor]
    matching: list[anchors.Matching]
    losses: dict[str, float]
    gradients: dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def step(oracle: Oracle) -> Iterator[Step]:
    reference = oracle.arrays("training")
    config = oracle.model.config
    with pytest.MonkeyPatch.context() as patch:
        taking_all = dataclasses.replace(
            config,
            rpn=dataclasses.replace(config.rpn, proposals_train=PROPOSALS),
            box_head=dataclasses.replace(config.box_head, rois=PROPOSALS + 4, positive_fraction=1.0),
        )
        patch.setattr(oracle.model, "config", taking_all)
        proposals = tf.constant(np.stack([reference[f"rpn_proposals_{image}"] for image in range(2)]))
        patch.setattr(rpn, "proposals", lambda *_, **__: (proposals, tf.zeros(proposals.shape[:2])))  # given, as the oracle's
        batch, matching = batch_of(oracle, reference)
        losses, gradients = compute(oracle)(batch)
        yield Step(
            reference,
            batch,
            matching,
            {name: float(value) for name, value in losses.items()},
            {path: value.numpy() for path, value in gradients.items()},
        )


def compute(oracle: Oracle) -> Callable[[dict[str, tf.Tensor]], tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]]:
    trainable = oracle.model.variables_by_path(trainable_only=True)

    @tf.function(autograph=False)
    def losses_and_gradients(batch: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        with tf.GradientTape() as tape:
            losses = {name: total / count for name, (total, count) in oracle.model.losses(batch, tf.constant(0))[0].items()}
            total = tf.add_n(list(losses.values()))
        return losses, dict(zip(trainable, tape.gradient(total, list(trainable.values())), strict=True))

    return losses_and_gradients  # type: ignore[no-any-return]


def batch_of(oracle: Oracle, reference: dict[str, NDArray[Any]]) -> tuple[dict[str, tf.Tensor], list[anchors.Matching]]:
    """The oracle's two images as a batch of `pipeline.loading.batches`, with every anchor in it."""
    about, config = oracle.meta["training"], oracle.model.config
    count = len(anchors.grid(config.anchors, *about["padded_size"]))
    boxes, keypoints = np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 17, 3), np.float32)
    kind, label, box = np.zeros((2, 4), np.int32), np.zeros((2, count), np.int32), np.zeros((2, count), np.int32)
    matching = []
    for image in range(2):
        own = reference[f"gt_boxes_{image}"]
        persons = slice(len(own))
        boxes[image, persons], keypoints[image, persons] = own, reference[f"gt_keypoints_{image}"]
        kind[image, persons] = PERSON
        found = anchors.match(config.anchors, own, *about["padded_size"])
        label[image, found.positive], label[image, found.ignored] = 1, -1
        box[image, found.positive] = found.positive_box
        matching.append(found)
    sizes = about["sizes"]
    canvases = [oracle.canvas(file, size, about["padded_size"]) for file, size in zip(about["files"], sizes, strict=True)]
    batch = {
        "image": tf.stack(canvases),
        "image_size": tf.constant(sizes),
        "image_id": tf.constant([1, 2], tf.int64),
        "boxes": tf.constant(boxes),
        "keypoints": tf.constant(keypoints),
        "box_kind": tf.constant(kind),
        "anchor_index": tf.tile(tf.range(count)[None], [2, 1]),
        "anchor_label": tf.constant(label),
        "anchor_box": tf.constant(box),
    }
    return batch, matching


def test_the_network_sees_the_same_pixels(oracle: Oracle, step: Step) -> None:
    seen = nchw(oracle.model.normalised(step.batch["image"], step.batch["image_size"]))
    assert relative_error(seen[:, :, ::8, ::8], step.reference["input_stride8"]) <= INPUT


def test_anchors_have_the_same_labels_and_boxes(oracle: Oracle, step: Step) -> None:
    grid = anchors.grid(oracle.model.config.anchors, *oracle.meta["training"]["padded_size"])
    np.testing.assert_array_equal(grid, step.reference["anchors"])
    for image, found in enumerate(step.matching):
        np.testing.assert_array_equal(step.batch["anchor_label"][image], step.reference[f"anchor_labels_{image}"])
        np.testing.assert_array_equal(found.positive, step.reference[f"anchor_positive_index_{image}"])
        np.testing.assert_array_equal(found.positive_box, step.reference[f"anchor_matched_{image}"][found.positive])


def test_keypoints_have_the_same_places_in_their_heatmaps(step: Step) -> None:
    for image in range(2):
        own = tf.gather(step.reference[f"gt_keypoints_{image}"], step.reference[f"keypoint_matched_{image}"])
        place, valid = keypoint_head.encode(own, tf.constant(step.reference[f"keypoint_proposals_{image}"]), 56)
        np.testing.assert_array_equal(valid, step.reference[f"keypoint_valid_{image}"] > 0)
        np.testing.assert_array_equal(tf.where(valid, place, 0), step.reference[f"keypoint_target_{image}"])


@pytest.mark.parametrize("name", LOSSES)
def test_loss(oracle: Oracle, step: Step, name: str) -> None:
    expected = oracle.meta["training"]["losses"]
    (theirs,) = set(LOSSES[name]) & set(expected)
    np.testing.assert_allclose(step.losses[name], expected[theirs], rtol=LOSS)


def test_gradient_norms(oracle: Oracle, step: Step) -> None:
    """Of every parameter that they train, and we train no others."""
    expected = oracle.meta["training"]["grad_norms"]
    by_path, names, _ = renamed({name: np.array(norm) for name, norm in expected.items()}, SOURCES[oracle.family])
    assert len(by_path) == len(expected) and set(by_path) == set(step.gradients)
    error = {
        names[path]: abs(np.linalg.norm(step.gradients[path]) - norm) / norm
        for path, norm in by_path.items()
        if path != NO_GRADIENT
    }
    worst = max(error, key=lambda name: error[name])
    assert error[worst] <= WORST_GRADIENT_NORM, f"{worst}: {error[worst]}"
    assert np.mean([value <= GRADIENT_NORM for value in error.values()]) >= GRADIENT_NORM_SHARE
    # A sum over 56 × 56 places that cancel: their rounding, 6e-8 each.
    assert np.linalg.norm(step.gradients[NO_GRADIENT]) < 1e-5 * np.linalg.norm(step.gradients["keypoint.deconv/kernel"])
