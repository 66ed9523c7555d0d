import keras
import numpy as np
import pytest
import tensorflow as tf

from model.network.layers import FrozenBatchNorm, GroupNorm, conv, group_norm

FLOAT32 = keras.DTypePolicy("float32")


@pytest.mark.parametrize("channels", [16, 48, 256])
def test_group_norm_equals_keras_own(channels):
    random = np.random.default_rng(0)
    x = random.normal(2, 3, (2, 9, 7, channels)).astype(np.float32)
    ours = GroupNorm(1e-5)
    ours(x)
    theirs = keras.layers.GroupNormalization(min(32, channels // 4), epsilon=1e-5)
    theirs.build(x.shape)
    factors = random.normal(1, 0.3, (2, channels)).astype(np.float32)
    for layer in (ours, theirs):
        layer.gamma.assign(factors[0])
        layer.beta.assign(factors[1])
    np.testing.assert_allclose(ours(x), theirs(x), atol=2e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_group_norm_equals_the_one_that_tensorflow_derives_for_keras_own(training):
    random = np.random.default_rng(1)
    x = tf.constant(random.normal(2, 3, (2, 9, 7, 16)), tf.float32)
    upstream = tf.constant(random.normal(0, 1, x.shape), tf.float32)
    theirs = keras.layers.GroupNormalization(4, epsilon=1e-5)
    theirs.build(x.shape)
    gamma, beta = (tf.constant(random.normal(1, 0.3, 16), tf.float32) for _ in range(2))
    theirs.gamma.assign(gamma)
    theirs.beta.assign(beta)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, gamma, beta])
        ours_loss = tf.reduce_sum(group_norm(x, gamma, beta, groups=4, epsilon=1e-5, training=training) * upstream)
        theirs_loss = tf.reduce_sum(theirs(x) * upstream)
    ours = tape.gradient(ours_loss, [x, gamma, beta])
    for own, derived in zip(ours, tape.gradient(theirs_loss, [x, theirs.gamma.value, theirs.beta.value]), strict=True):
        np.testing.assert_allclose(own, derived, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_holds_the_gradient_of_group_norm_in_training_only(training):
    pixels = keras.Input([4, 4, 8])
    model = keras.Model(pixels, GroupNorm(1e-5)(pixels))
    graph = (
        tf.function(lambda x: model(x, training=training), autograph=False).get_concrete_function(tf.zeros([1, 4, 4, 8])).graph
    )
    written_out = [node.name for node in graph.as_graph_def().node if "_gradient_op_type" in node.attr]
    assert bool(written_out) == training


def test_group_norm_of_large_float16_values_stays_finite():
    x = np.random.default_rng(0).normal(0, 3e4, (1, 20, 20, 8)).clip(-6e4, 6e4).astype(np.float16)
    assert np.isfinite(GroupNorm(1e-5, dtype="mixed_float16")(x)).all()


def test_frozen_batch_norm_equals_keras_inference_and_trains_nothing():
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 6)).astype(np.float32)
    ours, theirs = FrozenBatchNorm(1e-3), keras.layers.BatchNormalization(epsilon=1e-3)
    ours(x), theirs(x)
    for index, name in enumerate(("gamma", "beta", "mean", "variance")):
        value = np.random.default_rng(index).uniform(0.1, 2, 6)
        getattr(ours, name).assign(value)
        getattr(theirs, {"mean": "moving_mean", "variance": "moving_variance"}.get(name, name)).assign(value)
    np.testing.assert_allclose(ours(x), theirs(x, training=False), atol=1e-5)
    assert not ours.trainable_variables


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (3, 1), (1, 2)])
def test_convolutions_are_padded_alike_on_all_sides(kernel, stride):
    """PyTorch's padding: output (0, 0) is centred on input (0, 0), whatever the stride."""
    pixels = keras.Input([None, None, 1])
    model = keras.Model(pixels, conv(pixels, 1, kernel, "c", FLOAT32, stride=stride, use_bias=False, initializer="ones"))
    x = np.zeros((1, 12, 12, 1), np.float32)
    x[0, 0, 0] = 1.0
    y = model(x).numpy()[0, ..., 0]
    assert y.shape == (12 // stride, 12 // stride)
    reach = kernel // 2 // stride  # the outputs whose window still contains the corner
    assert y.sum() == (reach + 1) ** 2 and y[0, 0] == 1


def test_gradients_flow_in_mixed_precision_into_float32_variables():
    layer = GroupNorm(1e-5, dtype="mixed_float16")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(layer(tf.random.stateless_normal([2, 4, 4, 8], [0, 1]), training=True), tf.float32) ** 3)
    gradient = tape.gradient(loss, layer.gamma.value)
    assert gradient.dtype == tf.float32 and np.isfinite(gradient).all() and np.abs(gradient).max() > 0
