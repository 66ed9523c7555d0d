"""Applies a function of one picture to each picture of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def map_images(
    function: Callable[..., Any], tensors: Sequence[tf.Tensor], dtypes: tuple[tf.DType, ...]
) -> tuple[tf.Tensor, ...]:
    """Calls `function` with each picture's slice of `tensors` [B, …] and stacks its results.

    A batch of static size is unrolled: XLA and TFLite see no loop then. One of a size known late (serving) is a `tf.map_fn`.
    """
    batch = tensors[0].shape[0]
    if batch is None:
        return tuple(tf.map_fn(lambda slices: function(*slices), tuple(tensors), fn_output_signature=dtypes))
    results = [function(*(t[b] for t in tensors)) for b in range(batch)]
    return tuple(tf.stack(column) for column in zip(*results, strict=True))
