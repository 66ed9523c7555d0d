"""A new network's training starts from the old one's backbone and pyramid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.config import TINY
from model.matterport.starting_point import OldNetwork
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.starting_point import configuration, open_starting_point
from pipeline.command import UserError
from pipeline.skeleton import COCO_PERSON
from tests.model.matterport.conftest import Case


@pytest.fixture(scope="module")
def start(old_model_dir: Path) -> OldNetwork:
    opened = open_starting_point(old_model_dir)
    assert isinstance(opened, OldNetwork)
    return opened


def test_the_backbone_sees_what_the_old_one_sees(start: OldNetwork, case: Case, tmp_path: Path) -> None:
    """Both stems pool 3×3, from the corner and from one place further: behind them the features are the same."""
    if case.side != 512 or case.name != "land":
        pytest.skip("one image is enough")
    model = KeypointRCNN(configuration(tmp_path, start, "tiny", []), COCO_PERSON)
    told = start.fill(model)
    assert "520 variables of the backbone and 16 of the pyramid start from" in told
    assert "not taken: 100 tensors of its RPN and heads" in told
    assert "(box, keypoint, rpn)" in told
    values = model.variables_by_path()
    padded = tf.pad(case.model.normalised(case.canvas), [[0, 0], [3, 3], [3, 3], [0, 0]])
    stem = tf.nn.conv2d(padded, values["backbone.conv1/kernel"], 2, "VALID")
    mean, variance, beta, gamma = (values[f"backbone.bn1/{name}"] for name in ("mean", "variance", "beta", "gamma"))
    normed = tf.nn.batch_normalization(stem, mean, variance, beta, gamma, model.config.backbone.norm_epsilon)
    np.testing.assert_allclose(normed[0, ::16, ::16], case.arrays["bn_conv1_s"], rtol=0, atol=1e-4)
    # From the pooled stem on, the two networks are one.
    pooled = tf.nn.max_pool2d(tf.nn.relu(normed), 3, 2, "SAME")
    rest = keras.Model(model.backbone.get_layer("backbone.pool").output, model.backbone.outputs)
    ours = model.fpn(rest(pooled))
    for level, features in zip(case.pyramid, ours, strict=True):
        np.testing.assert_allclose(features, level, rtol=0, atol=1e-4 * np.abs(level).max())


def test_what_does_not_fit_is_named(start: OldNetwork, tmp_path: Path) -> None:
    model = KeypointRCNN(configuration(tmp_path, start, "tiny", ["backbone.fpn_channels=16"]), COCO_PERSON)
    told = start.fill(model)
    assert "520 variables of the backbone and 0 of the pyramid" in told
    assert "fpn.inner.0/kernel" in told
    assert "whose shapes differ" in told
    other = dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, fpn_channels=8))
    with pytest.raises(UserError, match="nothing of its backbone and pyramid fits"):
        start.fill(KeypointRCNN(other, COCO_PERSON))
