import keras
import numpy as np
import pytest
import tensorflow as tf

from model.config import TrainConfig
from model.training.optimizer import Optimizer, optimizer_of
from model.training.update_rules import Sgd

RATE = tf.constant(0.1)


def one_device(**options):
    settings = {"weight_decay": 0.0, "clip_norm": 0.0, "dynamic_loss_scale": False} | options
    variables = {"a/kernel": tf.Variable([1.0, -2.0]), "a/bias": tf.Variable([3.0])}
    return variables, Optimizer(variables, Sgd(variables, momentum=0.9), **settings)


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
        sgd = Optimizer(variables, Sgd(variables, momentum=0.9), weight_decay=0.0, clip_norm=0.0, dynamic_loss_scale=True)

    @tf.function(autograph=False)
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


def test_adamw_by_hand_with_decay_of_kernels_alone():
    variables = {"a/kernel": tf.Variable([1.0, -2.0]), "a/bias": tf.Variable([3.0])}
    config = TrainConfig(optimizer="adamw", weight_decay=0.05, momentum=0.9, adam_beta2=0.99)
    adamw = optimizer_of(config, variables, dynamic_loss_scale=False)
    weights = {"a/kernel": np.array([1.0, -2.0]), "a/bias": np.array([3.0])}
    mean, square = ({path: np.zeros_like(weight) for path, weight in weights.items()} for _ in range(2))
    for number, scale in enumerate((0.3, -2.0, 0.01), start=1):
        gradients = {"a/kernel": np.array([0.2, 0.4]) * scale, "a/bias": np.array([1.0]) * scale}
        adamw.apply([tf.constant(g, tf.float32) for g in gradients.values()], RATE)
        for path, gradient in gradients.items():
            mean[path] = 0.9 * mean[path] + 0.1 * gradient
            square[path] = 0.99 * square[path] + 0.01 * gradient**2
            weights[path] = weights[path] * (1 - 0.1 * (0.05 if path == "a/kernel" else 0))
            unbiased = np.sqrt(square[path] / (1 - 0.99**number)) + 1e-8
            weights[path] = weights[path] - 0.1 * mean[path] / (1 - 0.9**number) / unbiased
            np.testing.assert_allclose(variables[path], weights[path], rtol=1e-5)


def test_adamw_is_keras_own_where_keras_is_right():
    random = np.random.default_rng(0)
    ours, theirs = ({"a/kernel": tf.Variable(np.arange(6.0, dtype=np.float32))} for _ in range(2))
    adamw = optimizer_of(TrainConfig(optimizer="adamw", weight_decay=0.05), ours, dynamic_loss_scale=False)
    reference = keras.optimizers.AdamW(0.1, weight_decay=0.05, beta_1=0.9, beta_2=0.999, epsilon=1e-8)
    for _ in range(5):
        gradient = tf.constant(random.normal(0, 1, 6), tf.float32)
        adamw.apply([gradient], RATE)
        reference.apply([gradient], list(theirs.values()))
    np.testing.assert_allclose(ours["a/kernel"], theirs["a/kernel"], rtol=1e-5, atol=1e-6)


def of_rule(optimizer, variables=None, **values):
    made = variables or {"a/kernel": tf.Variable([1.0, -2.0]), "a/bias": tf.Variable([3.0])}
    return made, optimizer_of(TrainConfig(optimizer=optimizer, **values), made, dynamic_loss_scale=True)


def everything(variables, optimizer):
    state = {path: v for path, v in optimizer.variables_by_path().items() if path not in ("loss_scale", "finite_steps")}
    return {path: v.numpy().copy() for path, v in {**variables, **state}.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_state_nor_average(optimizer):
    variables, made = of_rule(optimizer, ema_decay=0.5, weight_decay=0.1)
    scale = made.scale_loss(tf.constant(1.0))
    for gradient in (1.0, np.nan, np.inf, 2.0):
        before = everything(variables, made)
        made.apply([tf.constant([gradient, 1.0]) * scale, tf.constant([1.0])], RATE)
        for path, value in everything(variables, made).items():
            assert np.isfinite(value).all(), path
            assert np.array_equal(value, before[path]) == (not np.isfinite(gradient)), path
    assert float(made.variables_by_path()["updates"]) == 2


def test_the_moving_average_by_hand_and_in_the_place_of_the_variables():
    variables, made = of_rule("sgd", ema_decay=0.4)
    weights = [variables["a/kernel"].numpy()]
    for _ in range(6):
        made.apply([tf.constant([1.0, 2.0]), tf.constant([1.0])], RATE)
        weights.append(variables["a/kernel"].numpy())
    average = weights[0]
    for number, weight in enumerate(weights[1:], start=1):
        decay = min(0.4, number / (9 + number))
        average = decay * average + (1 - decay) * weight
    np.testing.assert_allclose(made.variables_by_path()["average/a/kernel"], average, rtol=1e-5)
    assert not np.allclose(average, weights[-1])
    before = everything(variables, made)
    with pytest.raises(ZeroDivisionError), made.averages_in_place():
        np.testing.assert_allclose(variables["a/kernel"], average, rtol=1e-5)
        raise ZeroDivisionError
    for path, value in everything(variables, made).items():
        np.testing.assert_array_equal(value, before[path], path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_replicas_update_and_average_as_one_does(two_replicas, optimizer):
    """Each with its half of the gradient; both hold the same afterwards, to the bit."""
    gradients = np.random.default_rng(0).normal(0, 1, (4, 2, 3)).astype(np.float32)  # steps, replicas, values
    gradients[2, 1, 1] = np.inf  # a step that counts for neither
    results = []
    for strategy in (tf.distribute.OneDeviceStrategy("CPU:0"), two_replicas):
        with strategy.scope():
            variables, made = of_rule(optimizer, {"w/kernel": tf.Variable([1.0, 2.0, 3.0])}, ema_decay=0.9, clip_norm=1.0)

        @tf.function(autograph=False)
        def step(both, strategy=strategy, made=made):
            def replica(both):
                context = tf.distribute.get_replica_context()
                share = tf.gather(both, context.replica_id_in_sync_group)
                own = tf.reduce_sum(both, 0) if context.num_replicas_in_sync == 1 else share
                return made.apply([own * made.scale_loss(tf.constant(1.0))], RATE)

            return strategy.run(replica, args=(both,))

        for both in gradients:
            step(tf.constant(both))
        found = {**variables, **made.variables_by_path()}
        local = strategy.experimental_local_results
        for path, variable in found.items():
            values = [value.numpy() for value in local(variable)]
            assert len(values) == strategy.num_replicas_in_sync and all(np.array_equal(v, values[0]) for v in values), path
        results.append({path: local(variable)[0].numpy() for path, variable in found.items()})
    for path, value in results[0].items():
        np.testing.assert_allclose(results[1][path], value, rtol=1e-6, err_msg=path)
