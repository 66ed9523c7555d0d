import numpy as np
import tensorflow as tf

from model.training.optimizer import Sgd

RATE = tf.constant(0.1)


def one_device(**options):
    settings = {"momentum": 0.9, "weight_decay": 0.0, "clip_norm": 0.0, "dynamic_loss_scale": False} | options
    variables = {"a/kernel": tf.Variable([1.0, -2.0]), "a/bias": tf.Variable([3.0])}
    return variables, Sgd(variables, **settings)


def test_momentum_and_classic_weight_decay_by_hand():
    variables, sgd = one_device(weight_decay=0.5)
    kernel, bias, velocity, bias_velocity = np.array([1.0, -2.0]), np.array([3.0]), np.zeros(2), np.zeros(1)
    for gradient in (np.array([0.2, 0.4]), np.array([-1.0, 0.0])):
        sgd.apply([tf.constant(gradient, tf.float32), tf.constant([1.0])], RATE)
        velocity = 0.9 * velocity + gradient + 0.5 * kernel
        bias_velocity = 0.9 * bias_velocity + 1.0
        kernel, bias = kernel - 0.1 * velocity, bias - 0.1 * bias_velocity
    np.testing.assert_allclose(variables["a/kernel"], kernel, rtol=1e-6)
    np.testing.assert_allclose(variables["a/bias"], bias, rtol=1e-6)


def test_global_norm_is_clipped():
    variables, sgd = one_device(clip_norm=1.0)
    metrics = sgd.apply([tf.constant([3.0, 0.0]), tf.constant([4.0])], RATE)
    np.testing.assert_allclose(metrics["gradient_norm"], 5.0)
    np.testing.assert_allclose(variables["a/kernel"], [1 - 0.06, -2], rtol=1e-6)
    np.testing.assert_allclose(variables["a/bias"], [3 - 0.08], rtol=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing_and_halves_the_loss_scale():
    variables, sgd = one_device(dynamic_loss_scale=True)
    before = float(sgd.scale_loss(tf.constant(1.0)))
    metrics = sgd.apply([tf.constant([np.nan, 0.0]), tf.constant([1.0])], RATE)
    assert float(metrics["skipped"]) == 1
    np.testing.assert_array_equal(variables["a/kernel"], [1, -2])
    np.testing.assert_array_equal(variables["a/bias"], [3])
    assert float(sgd.scale_loss(tf.constant(1.0))) == before / 2


def test_the_loss_scale_is_undone():
    variables, sgd = one_device(dynamic_loss_scale=True)
    scale = sgd.scale_loss(tf.constant(1.0))
    sgd.apply([tf.constant([1.0, 2.0]) * scale, tf.constant([0.0]) * scale], RATE)
    np.testing.assert_allclose(variables["a/kernel"], [0.9, -2.2], rtol=1e-6)


def test_one_replica_that_overflows_stops_the_step_on_both(two_replicas):
    """The fault of loss scaling by optimizers that look at their own replica's gradient only: weights become −inf."""
    strategy = two_replicas
    with strategy.scope():
        variables = {"w/kernel": tf.Variable([1.0, 1.0])}
        sgd = Sgd(variables, momentum=0.9, weight_decay=0.0, clip_norm=0.0, dynamic_loss_scale=True)

    @tf.function
    def step(bad):
        def replica(bad):
            own = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradient = tf.where(bad & (own == 1), np.inf, 1.0) * tf.ones([2]) * sgd.scale_loss(tf.constant(1.0))
            return sgd.apply([gradient], RATE)

        return strategy.run(replica, args=(bad,))

    def on_both():
        return [value.numpy().tolist() for value in strategy.experimental_local_results(variables["w/kernel"])]

    step(tf.constant(True))
    assert on_both() == [[1, 1], [1, 1]]
    step(tf.constant(False))
    np.testing.assert_allclose(on_both(), np.full((2, 2), 1 - 0.1 * 2), rtol=1e-6)  # gradients are summed over replicas
