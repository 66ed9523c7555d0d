from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline.random_draws import uniform


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
@pytest.mark.parametrize("key", [(5, 7), (-1, 2**31 - 1), (0, -1)])
def test_compiled_and_interpreted_alike(key: tuple[int, int], dtype: tf.DType) -> None:
    compiled = tf.function(lambda k: uniform([100], k), jit_compile=True)
    np.testing.assert_array_equal(compiled(tf.constant(key, dtype)), uniform([100], tf.constant(key, dtype)))


def test_evenly_distributed() -> None:
    numbers = uniform([40_000], tf.constant([1, 2])).numpy()
    assert numbers.dtype == np.float32 and numbers.min() >= 0 and numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, bins=10, range=(0, 1))[0], 4000, atol=4 * 60)


def test_another_key_draws_other_numbers() -> None:
    first = uniform([10], tf.constant([1, 2])).numpy()
    for other in ((2, 1), (1, 3), (0, 2)):
        assert not np.isin(uniform([10], tf.constant(other)), first).any()
